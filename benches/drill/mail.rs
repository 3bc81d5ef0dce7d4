//! What the planned messages contain.

use std::net::Ipv4Addr;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::letter::{FileKind, Letter, Part};
use crate::options::Options;
use crate::plan::{From, KNOWN, Kind, Planned};
use crate::relay::ONE_CLIENT;
use crate::scene::{Scene, Senders};
use crate::variant::Flood;
use crate::words::Words;

const KIB: usize = 1024;
/// Octets of what all messages of a flood share.
const TEMPLATE: usize = 64 * KIB;
/// Sentences of a text of about 40 KiB.
const SENTENCES: usize = 640;

/// Recipients' domains: the second is that of the second next hop.
pub const DOMAINS: [&str; 2] = ["first.test", "second.test"];

const SUBJECTS: [&str; 16] = [
    "Re: offer #",
    "Invoice # for @",
    "Minutes of our meeting, @",
    "Your order #",
    "Question about @",
    "Delivery note #",
    "AW: @",
    "Draft of the contract with @",
    "Holiday plans, @",
    "Ticket # was updated",
    "Re: Re: @",
    "Photos from @",
    "Time sheet, week #",
    "Lunch on Thursday?",
    "Report # for @",
    "Fwd: @ and @",
];

/// A message ready to be sent.
pub struct Ready {
    pub client: Ipv4Addr,
    pub helo: String,
    pub sender: String,
    pub recipient: String,
    pub content: Vec<u8>,
    /// What the client tells of where the message came from, if it tells.
    pub xforward: Option<String>,
}

/// What messages share, drawn once for a run.
pub struct World {
    words: Words,
    logos: Vec<Vec<u8>>,
    footers: Vec<String>,
    poison: Vec<u8>,
    sentences: Vec<String>,
    long_sentences: Vec<String>,
    pdf: Vec<u8>,
    letter: String,
    sizes: (f64, f64),
    senders: Senders,
}

impl World {
    pub fn new(options: &Options, scene: &Scene) -> Self {
        let words = Words::new();
        let mut rng = SmallRng::seed_from_u64(options.seed ^ 0x0077_0000);
        let rng = &mut rng;
        Self {
            logos: (0..KNOWN)
                .map(|_| FileKind::Jpeg.octets(rng, 3 * KIB))
                .collect(),
            footers: (0..KNOWN).map(|_| words.text(rng, 300)).collect(),
            poison: FileKind::Docx.octets(rng, TEMPLATE),
            sentences: (0..40).map(|_| words.sentence(rng)).collect(),
            pdf: FileKind::Pdf.octets(rng, 120 * KIB),
            letter: words.text(rng, 2 * KIB),
            long_sentences: (0..SENTENCES).map(|_| words.sentence(rng)).collect(),
            words,
            sizes: (
                (options.smallest * KIB) as f64,
                (options.largest.min(scene.largest) * KIB) as f64,
            ),
            senders: scene.senders,
        }
    }

    /// The message with this number.
    pub fn compose(&self, number: usize, planned: &Planned) -> Ready {
        let mut rng = SmallRng::seed_from_u64(planned.seed);
        let rng = &mut rng;
        let (client, domain) = self.sender(planned.from, rng);
        let user = match planned.from {
            From::Known(_) => format!("user{}", rng.random_range(0..5)),
            From::Fresh(_) | From::Greedy => self.words.word(rng).to_owned(),
            From::User(at) => format!("user{at}"),
        };
        let sender = format!("{user}@{domain}");
        let recipient = format!(
            "user{}@{}",
            rng.random_range(0..200),
            DOMAINS[usize::from(planned.second_hop)]
        );
        let mut letter = match planned.kind {
            Kind::Flood(flood) => self.flood(flood, rng),
            Kind::Newsletter { personal, .. } => self.newsletter(personal, rng),
            Kind::Beside | Kind::Alone => self.document(planned.kind, rng),
            Kind::Valid
            | Kind::Large
            | Kind::Malware
            | Kind::Greedy { .. }
            | Kind::Hang
            | Kind::Killer => self.valid(planned, rng),
        };
        letter.from = format!("{} <{sender}>", self.words.name(rng));
        letter.to = format!("<{recipient}>");
        letter.message_id = message_id(number, rng.random(), &domain);
        let helo = format!("mail.{domain}");
        let (client, helo, xforward) = match self.senders {
            Senders::Apart | Senders::OneDomain => (client, helo, None),
            Senders::OneClient { xforward } => {
                let told =
                    format!("XFORWARD NAME={helo} ADDR={client} PROTO=ESMTP HELO={helo}\r\n");
                (
                    ONE_CLIENT,
                    "upstream.example".to_owned(),
                    xforward.then_some(told),
                )
            }
        };
        Ready {
            client,
            helo,
            xforward,
            content: letter.render(rng.random()),
            sender,
            recipient,
        }
    }

    fn sender(&self, from: From, rng: &mut SmallRng) -> (Ipv4Addr, String) {
        match from {
            From::Known(at) => {
                let last = u8::try_from(at + 1).unwrap_or(255);
                (
                    Ipv4Addr::new(127, 1, 0, last),
                    format!("company{at}.example"),
                )
            }
            From::Greedy => (Ipv4Addr::new(127, 1, 200, 1), "greedy.example".to_owned()),
            From::User(_) => (ONE_CLIENT, "outbound.example".to_owned()),
            From::Fresh(at) => {
                // Strangers come from everywhere: neighbours in time are not neighbours in the network.
                let [_, high, middle, low] = (at.wrapping_mul(0x9_e377) & 0x1f_ffff).to_be_bytes();
                let domain = format!(
                    "{}{}{at}.example",
                    self.words.word(rng),
                    self.words.word(rng)
                );
                (Ipv4Addr::new(127, 2 + high, middle, low), domain)
            }
        }
    }

    fn subject(&self, rng: &mut SmallRng) -> String {
        let template = SUBJECTS[rng.random_range(0..SUBJECTS.len())];
        let mut subject = String::new();
        for c in template.chars() {
            match c {
                '#' => subject += &rng.random_range(100..99_999).to_string(),
                '@' => subject += &self.words.name(rng),
                other => subject.push(other),
            }
        }
        subject
    }

    /// A letter without sender, recipient and id.
    fn blank(&self, subject: String, text: String, parts: Vec<Part>) -> Letter {
        Letter {
            from: String::new(),
            to: String::new(),
            subject,
            message_id: String::new(),
            text,
            html: false,
            parts,
        }
    }

    fn valid(&self, planned: &Planned, rng: &mut SmallRng) -> Letter {
        let (low, high) = self.sizes;
        let size = match planned.kind {
            Kind::Large => rng.random_range(1100 * KIB..2000 * KIB),
            Kind::Greedy { .. } => rng.random_range(4 * KIB..8 * KIB),
            _ => (low * (high / low).powf(rng.random())) as usize,
        };
        let is_text = size < 12 * KIB || (size < 32 * KIB && rng.random_bool(0.5));
        let readable = if is_text {
            size
        } else {
            rng.random_range(400..3 * KIB)
        };
        let html = is_text && rng.random_bool(0.4);
        let mut letter = self.blank(
            self.subject(rng),
            self.words
                .text(rng, if html { readable / 2 } else { readable }),
            Vec::new(),
        );
        letter.html = html;
        if !is_text {
            letter.parts.push(self.attachment(rng, size));
        }
        // What every letter of a company carries: its footer, and often its logo.
        if let From::Known(at) = planned.from {
            letter.text += &self.footers[at as usize];
            if rng.random_bool(0.25) {
                letter.parts.push(Part {
                    name: "logo.jpg".to_owned(),
                    media_type: "image/jpeg",
                    inline: true,
                    octets: self.logos[at as usize].clone(),
                });
            }
        }
        letter
    }

    /// A file that makes a message of `size`.
    fn attachment(&self, rng: &mut SmallRng, size: usize) -> Part {
        let kind = FileKind::draw(rng);
        let name = format!(
            "{}-{}.{}",
            self.words.word(rng),
            rng.random_range(1..9999),
            kind.extension()
        );
        Part {
            name,
            media_type: kind.media_type(),
            inline: false,
            // Base64 in lines is 78/57 of what it carries.
            octets: kind.octets(rng, size * 57 / 78),
        }
    }

    fn newsletter(&self, personal: bool, rng: &mut SmallRng) -> Letter {
        let octets = match personal {
            true => FileKind::Pdf.octets(rng, 120 * KIB),
            false => self.pdf.clone(),
        };
        let text = format!("Dear {},\r\n\r\n{}", self.words.name(rng), self.letter);
        let part = Part {
            name: "newsletter.pdf".to_owned(),
            media_type: FileKind::Pdf.media_type(),
            inline: false,
            octets,
        };
        self.blank("News of the month".to_owned(), text, vec![part])
    }

    /// The document that all of them have, and in some of them a part of their own beside it.
    fn document(&self, kind: Kind, rng: &mut SmallRng) -> Letter {
        let mut parts = vec![Part {
            name: "agenda.pdf".to_owned(),
            media_type: FileKind::Pdf.media_type(),
            inline: false,
            octets: self.pdf.clone(),
        }];
        if kind == Kind::Beside {
            parts.push(self.attachment(rng, 48 * KIB));
        }
        let text = self.words.text(rng, KIB);
        self.blank(self.subject(rng), text, parts)
    }

    fn flood(&self, flood: Flood, rng: &mut SmallRng) -> Letter {
        match flood {
            Flood::Constant | Flood::Polymorphic => {
                let octets = match flood {
                    Flood::Constant => self.poison.clone(),
                    _ => mutated(&self.poison, rng),
                };
                let number = rng.random_range(100..99_999);
                let text = format!(
                    "Dear {},\r\n\r\n{}",
                    self.words.name(rng),
                    self.words.text(rng, 600)
                );
                let part = Part {
                    name: format!("document_{number}.docx"),
                    media_type: FileKind::Docx.media_type(),
                    inline: false,
                    octets,
                };
                self.blank(format!("Your document {number}"), text, vec![part])
            }
            Flood::Mimic => {
                let (low, high) = self.sizes;
                let size = (low * (high / low).powf(rng.random())) as usize;
                let text = match rng.random_bool(0.6) {
                    true => self.pitch(&self.sentences, rng, 0.9),
                    false => self.words.text(rng, 1200),
                };
                let part = self.attachment(rng, size);
                self.blank(self.subject(rng), text, vec![part])
            }
            Flood::Text | Flood::Words => {
                let sentences = match flood {
                    Flood::Text => &self.sentences,
                    _ => &self.long_sentences,
                };
                let subject = format!("Payment {} overdue", rng.random_range(100..99_999));
                self.blank(subject, self.pitch(sentences, rng, 0.9), Vec::new())
            }
        }
    }

    /// The sentences that a flood shares, each with this probability, with names and numbers that differ.
    fn pitch(&self, sentences: &[String], rng: &mut SmallRng, share: f64) -> String {
        let mut text = format!("Dear {},\r\n\r\n", self.words.name(rng));
        for sentence in sentences {
            match rng.random_bool(share) {
                true => text += sentence,
                false => text += &self.words.sentence(rng),
            }
            text += "\r\n";
            if rng.random_ratio(1, 6) {
                let (name, sum) = (self.words.name(rng), rng.random_range(10..99_999));
                text += &format!("Please ask {name} for {sum}.\r\n");
            }
        }
        text
    }
}

/// The same file with 15 % of its octets different, in runs, and a tail of its own.
fn mutated(template: &[u8], rng: &mut SmallRng) -> Vec<u8> {
    let mut octets = template.to_vec();
    let mut left = octets.len() * 14 / 100;
    while left > 0 {
        let run = rng.random_range(32..2048).min(left);
        let at = rng.random_range(64..octets.len() - run);
        rng.fill(&mut octets[at..at + run]);
        left -= run;
    }
    let mut tail = vec![0; rng.random_range(0..template.len() / 50)];
    rng.fill(&mut tail[..]);
    octets.extend_from_slice(&tail);
    octets
}

fn message_id(number: usize, salt: u64, domain: &str) -> String {
    format!("d{number}.{salt:016x}@{domain}")
}

/// The number in the Message-ID of a message whose header section, at least, is here; none if it is not ours.
pub fn number_of(content: &[u8]) -> Option<usize> {
    const FIELD: &[u8] = b"Message-ID: <d";
    let head = &content[..content.len().min(16 * KIB)];
    let at = memchr::memmem::find(head, FIELD)? + FIELD.len();
    let end = at + memchr::memchr(b'.', &head[at..])?;
    std::str::from_utf8(&head[at..end]).ok()?.parse().ok()
}
