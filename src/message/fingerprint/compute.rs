//! Computes the fingerprint of a message: with bounded work, and with values that are equal on every relay.

use memchr::memmem;
use sha2::{Digest, Sha256};

use super::{Aspect, Fingerprint, Identity, Trait};
use crate::message::mime::{Inspection, Part};
use crate::message::{Message, canonical, header};

/// Text of a message that is examined: 64 KiB.
const TEXT_OCTETS_MAX: usize = 64 << 10;
/// Octets of an attachment that are examined for near traits: 512 KiB.
const NEAR_OCTETS_MAX: usize = 512 << 10;
/// Number of words of a shingle of text.
const WORDS_PER_SHINGLE: usize = 3;
/// Smallest number of words of a text that has traits of its own. Too much mail has the same shorter text beside an
/// attachment.
const TEXT_WORDS_MIN: usize = 12;
/// Octets of a text for each word that memory is reserved for: 6, as an English word has five letters on average.
const OCTETS_PER_WORD: usize = 6;
/// Number of octets of a shingle of an attachment.
const OCTETS_PER_SHINGLE: usize = 8;
/// One shingle of an attachment in 16 is taken. The shingle's own value decides, so that octets inserted before it change
/// nothing (Manber, 1994).
const SHINGLES_PER_SAMPLE: u64 = 16;
/// Number of bins of the sketch, and of the bins that make one near trait.
const SKETCH_BINS: usize = 16;
const BINS_PER_BAND: usize = 2;

/// Header fields that are not part of the identity: fields that differ between copies of one mailing (recipients, dates, ids,
/// signatures over them), and trace fields. All other fields belong to the identity. Otherwise a sender could omit a field
/// that a rule looks for from the one copy that is scanned.
const TRANSPORT_FIELDS: [&str; 20] = [
    "ARC-Authentication-Results",
    "ARC-Message-Signature",
    "ARC-Seal",
    "Authentication-Results",
    "Bcc",
    "Cc",
    "Date",
    "Delivered-To",
    "DKIM-Signature",
    "In-Reply-To",
    "List-Unsubscribe",
    "Message-ID",
    "Received",
    "Received-SPF",
    "References",
    "Return-Path",
    "To",
    "X-Received",
    "X-Spam-Score",
    "X-Spam-Status",
];

impl Fingerprint {
    /// The fingerprint of a message with this inspection. Hashes the octets twice (about 1 ms for 1 MB) and examines bounded
    /// parts of them. Also computes the digest of the content, because callers need it soon and this function may run outside
    /// of the runtime.
    pub fn of(message: &Message, inspection: &Inspection) -> Self {
        message.content.digest();
        let attachments: Vec<&Part> = inspection.parts.iter().filter(is_attached).collect();
        let words = words(inspection);
        let parts = attachments.iter().take(Self::EXACT_TRAITS_MAX - 1);
        let mut exact: Vec<Trait> = parts.map(|part| octets(part)).collect();
        if attachments.is_empty() || words.len() >= TEXT_WORDS_MIN {
            exact.push(text(&words));
        }
        let mut broad = near(Aspect::Attachment, |add| near_octets(&attachments, add));
        broad.extend(near(Aspect::Text, |add| near_words(&words, add)));
        broad.extend(shape(message, inspection, &attachments));
        broad.extend(origin(message, inspection));
        Self {
            identity: identity(message),
            exact: exact.into(),
            broad: broad.into(),
            attachments: attachments
                .iter()
                .take(Self::EXACT_TRAITS_MAX - 1)
                .map(|part| part.sha256())
                .collect(),
        }
    }
}

fn is_attached(part: &&Part) -> bool {
    !part.is_container && (part.is_attachment || !part.declared.starts_with("text/"))
}

fn identity(message: &Message) -> Identity {
    let mut hash = Sha256::new();
    let section = message.content.header_section();
    // Hash the octets as they are, with their lengths, including pieces that are not fields to this parser. Parsers differ
    // about malformed pieces, and an engine's reading of this message must not be used for a message that the engine reads
    // differently.
    for (piece, _) in
        header::pieces(section).filter(|(piece, field)| !is_transport_field(piece, field))
    {
        hash.update((piece.len() as u64).to_le_bytes());
        hash.update(piece);
    }
    hash.update(u64::MAX.to_le_bytes());
    hash.update(&message.content.bytes()[section.len()..]);
    Identity(hash.finalize().into())
}

/// Whether every parser reads a piece of the header section as one of the transport fields: the colon follows its name
/// directly, no line consists of white space (some parsers end the section there), and there are no control characters.
fn is_transport_field(piece: &[u8], field: &Option<header::Field<'_>>) -> bool {
    let Some(field) = field.filter(|field| TRANSPORT_FIELDS.iter().any(|name| field.is(name)))
    else {
        return false;
    };
    let is_odd = |&b: &u8| b.is_ascii_control() && b != b'\t';
    let mut rest = piece.strip_suffix(b"\r\n").unwrap_or_default();
    while let Some(end) = memmem::find(rest, b"\r\n") {
        let line = &rest[..end];
        if line.trim_ascii().is_empty() || line.iter().any(is_odd) {
            return false;
        }
        rest = &rest[end + 2..];
    }
    piece.get(field.name.len()) == Some(&b':')
        && !rest.trim_ascii().is_empty()
        && !rest.iter().any(is_odd)
}

fn octets(part: &Part) -> Trait {
    let [a, b, c, d, e, f, g, h, ..] = part.sha256();
    Trait {
        aspect: Aspect::Attachment,
        value: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
    }
}

/// The words of the text, as hashes, without words that differ between copies of a mailing: numbers, addresses, and names that
/// are capitalised inside a sentence.
fn words(inspection: &Inspection) -> Vec<u64> {
    let texts = inspection.parts.iter();
    let texts =
        texts.filter(|p| !p.is_container && !p.is_attachment && p.declared.starts_with("text/"));
    let mut words = Vec::new();
    let mut left = TEXT_OCTETS_MAX;
    for part in texts {
        let bytes = &part.bytes[..part.bytes.len().min(left)];
        left -= bytes.len();
        words.reserve(bytes.len() / OCTETS_PER_WORD);
        let mut begins = true;
        let mut rest = bytes.iter();
        while let Some(first) = rest.as_slice().first() {
            let (mut value, mut found, mut last) = (FNV_OFFSET_BASIS, 0, None);
            for octet in &mut rest {
                let letter = LETTERS[usize::from(*octet)];
                if letter & SPACE != 0 {
                    break;
                }
                found |= letter;
                last = Some(*octet);
                value = fnv(value, [letter as u8]);
            }
            // None between two octets of white space.
            if let Some(last) = last {
                let is_name = !begins && first.is_ascii_uppercase();
                begins = matches!(last, b'.' | b'!' | b'?' | b':' | b',');
                if !is_name && found & VARIES == 0 {
                    words.push(mix(value));
                }
            }
        }
    }
    words
}

/// In [`LETTERS`]: white space, which ends a word.
const SPACE: u32 = 1 << 8;
/// In [`LETTERS`]: an octet of numbers and addresses, which differ between copies of a mailing.
const VARIES: u32 = 1 << 9;

/// Each octet in lower case, and what it means for its word. One look for each octet of a text: several would be most of the work
/// for a message.
const LETTERS: [u32; 256] = {
    let mut letters = [0; 256];
    let mut at = 0;
    while at < letters.len() {
        let octet = at as u8;
        let means = match octet {
            b'0'..=b'9' | b'@' | b'/' | b'=' | b'<' => VARIES,
            _ if octet.is_ascii_whitespace() => SPACE,
            _ => 0,
        };
        letters[at] = means | octet.to_ascii_lowercase() as u32;
        at += 1;
    }
    letters
};

fn text(words: &[u64]) -> Trait {
    Trait {
        aspect: Aspect::Text,
        value: hash_words(words),
    }
}

/// Traits that messages with nearly the same content share: bands of a one-permutation MinHash (Li, Owen, Zhang, NIPS 2012)
/// over shingles. Two contents that share a part J of their shingles have at least one equal band with probability 1 - (1 -
/// J²)^8: 99 % for J = 0.65, 0.3 % for J = 0.02.
fn near(of: Aspect, shingles: impl FnOnce(&mut dyn FnMut(u64))) -> Vec<Trait> {
    let mut bins = [u64::MAX; SKETCH_BINS];
    shingles(&mut |shingle| {
        let mixed = mix(shingle);
        let bin = &mut bins[(mixed >> 60) as usize];
        *bin = (*bin).min(mixed);
    });
    let bands = bins.chunks(BINS_PER_BAND).enumerate();
    let full = bands.filter(|(_, band)| !band.contains(&u64::MAX));
    let place = |at: usize| (of as u64) << 8 | at as u64;
    // The last bit is the kind: see `Trait::is_of_text`.
    let kind = u64::from(of == Aspect::Text);
    let value = |at, band: &[u64]| band.iter().fold(place(at), |so_far, bin| mix(so_far ^ bin));
    full.map(|(at, band)| Trait {
        aspect: Aspect::Near,
        value: value(at, band) & !1 | kind,
    })
    .collect()
}

/// Adds the shingles of the largest attachment.
fn near_octets(attachments: &[&Part], add: &mut dyn FnMut(u64)) {
    let Some(part) = attachments.iter().max_by_key(|part| part.bytes.len()) else {
        return;
    };
    let bytes = &part.bytes[..part.bytes.len().min(NEAR_OCTETS_MAX)];
    for window in bytes.windows(OCTETS_PER_SHINGLE) {
        let shingle = u64::from_le_bytes(window.try_into().unwrap_or_default());
        let chosen = shingle.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        if chosen.is_multiple_of(SHINGLES_PER_SAMPLE) {
            add(shingle);
        }
    }
}

/// Adds the shingles of the text.
fn near_words(words: &[u64], add: &mut dyn FnMut(u64)) {
    if words.len() >= TEXT_WORDS_MIN {
        for window in words.windows(WORDS_PER_SHINGLE) {
            add(hash_words(window));
        }
    }
}

/// The shape: type, size, large, skeleton.
fn shape(message: &Message, inspection: &Inspection, attachments: &[&Part]) -> [Trait; 4] {
    let size = message.content.len();
    let kind = match attachments.iter().max_by_key(|part| part.bytes.len()) {
        Some(part) => hash(part.sniffed().media_type().bytes()),
        None => 0,
    };
    let mut skeleton = Vec::new();
    for part in &inspection.parts {
        skeleton.extend_from_slice(part.declared.as_bytes());
        skeleton.push(part.path.matches('.').count() as u8);
        skeleton.push(u8::from(part.is_encoded) | u8::from(part.is_attachment) << 1);
        if let Some((_, extension)) = part.name().and_then(|name| name.rsplit_once('.')) {
            skeleton.extend(extension.bytes().take(8).map(|b| b.to_ascii_lowercase()));
        }
        skeleton.push(0);
    }
    let one = |aspect, value| Trait { aspect, value };
    [
        one(Aspect::Type, kind),
        one(Aspect::Size, u64::from(size.max(1).ilog2())),
        one(Aspect::Large, u64::from(size >= 1 << 20)),
        one(Aspect::Skeleton, hash(skeleton)),
    ]
}

/// The origin that the message claims: sender domain, subject, client.
fn origin(message: &Message, inspection: &Inspection) -> Vec<Trait> {
    let mut traits = Vec::with_capacity(3);
    let mut add = |aspect, value| traits.push(Trait { aspect, value });
    if let Some(mailbox) = message.envelope.reverse_path.mailbox() {
        let domain = canonical::domain(mailbox.domain());
        add(Aspect::SenderDomain, hash(domain.bytes()));
    }
    if let Some(subject) = &inspection.subject {
        let words = subject.split_whitespace().take(32);
        let words = words.filter(|word| !word.bytes().any(|b| b.is_ascii_digit()));
        add(
            Aspect::Subject,
            hash(words.flat_map(|w| w.bytes().chain([0]))),
        );
    }
    // A network and not an address: a sender with one address often has its neighbours.
    let network = match message.envelope.origin.client.to_canonical() {
        std::net::IpAddr::V4(client) => client.octets()[..3].to_vec(),
        std::net::IpAddr::V6(client) => client.octets()[..6].to_vec(),
    };
    add(Aspect::Client, hash(network));
    traits
}

/// FNV-1a, mixed. The values are stored and compared between relays, so they must not change with a library.
fn hash(octets: impl IntoIterator<Item = u8>) -> u64 {
    mix(fnv(FNV_OFFSET_BASIS, octets))
}

/// The same hash over the octets of words. This is most of the work for a message of text, so its speed must not depend on how
/// the compiler handles a chain of iterators.
fn hash_words(words: &[u64]) -> u64 {
    let add = |so_far, word: &u64| fnv(so_far, word.to_le_bytes());
    mix(words.iter().fold(FNV_OFFSET_BASIS, add))
}

const FNV_OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

#[inline(always)]
fn fnv(so_far: u64, octets: impl IntoIterator<Item = u8>) -> u64 {
    let add = |so_far: u64, octet: u8| (so_far ^ u64::from(octet)).wrapping_mul(0x100_0000_01b3);
    octets.into_iter().fold(so_far, add)
}

/// The finalizer of splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::message::mime::{self, inspect};
    use crate::message::{Content, Envelope, Mailbox, MessageId, Origin};

    fn fingerprint(content: &[u8]) -> Fingerprint {
        let mailbox = Mailbox::parse("a@a.test").expect("a mailbox");
        let message = Message {
            id: MessageId::new(),
            received_at: jiff::Timestamp::UNIX_EPOCH,
            envelope: Arc::new(Envelope {
                reverse_path: mailbox.clone().into(),
                recipients: vec![mailbox.into()],
                body: Default::default(),
                smtputf8: false,
                ret: None,
                envid: None,
                origin: Origin::local("test"),
            }),
            trace: "".into(),
            content: Content::uncharged(content.to_vec()),
            times: None,
        };
        let inspection = inspect(message.content.bytes(), mime::Limits::default());
        Fingerprint::of(&message, &inspection)
    }

    fn with_attachment(bytes: &[u8]) -> Fingerprint {
        let mut content = b"From: a@a.test\r\nSubject: x\r\nContent-Type: application/pdf; name=\"x.pdf\"\r\n\
                            Content-Disposition: attachment; filename=\"x.pdf\"\r\nContent-Transfer-Encoding: base64\r\n\r\n"
            .to_vec();
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(bytes);
        for line in text.as_bytes().chunks(76) {
            content.extend_from_slice(line);
            content.extend_from_slice(b"\r\n");
        }
        fingerprint(&content)
    }

    fn random(seed: u64, octets: usize) -> Vec<u8> {
        let mut bytes = vec![0; octets];
        StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        bytes
    }

    fn share_near(one: &Fingerprint, other: &Fingerprint) -> bool {
        let mut near = one.traits().filter(|t| t.aspect == Aspect::Near);
        near.any(|t| other.has(t))
    }

    /// Copies of one mailing have one identity: engines do not examine the parts that differ.
    #[test]
    fn copies_of_a_mailing_have_one_identity() {
        let copy = |to: &str, date: &str| {
            let text = format!(
                "Received: from x\r\nFrom: a@a.test\r\nTo: {to}\r\nDate: {date}\r\nMessage-ID: <{to}>\r\nSubject: x\r\n\r\nHello\r\n"
            );
            fingerprint(text.as_bytes()).identity
        };
        assert_eq!(copy("b@b.test", "1"), copy("c@c.test", "2"));
        let other = fingerprint(b"From: a@a.test\r\nSubject: y\r\n\r\nHello\r\n");
        assert_ne!(copy("b@b.test", "1"), other.identity, "another subject");
    }

    /// An answer about one message is not used for another message that an engine reads differently: with exchanged values,
    /// with an additional field, or with a field at the beginning of the body.
    #[test]
    fn a_message_that_reads_differently_has_another_identity() {
        let of = |text: &str| fingerprint(text.as_bytes()).identity;
        let same = "From: a@a.test\r\nSubject: base64\r\nContent-Transfer-Encoding: 7bit\r\n\r\nSGVsbG8=\r\n";
        for other in [
            "From: a@a.test\r\nContent-Transfer-Encoding: base64\r\nSubject: 7bit\r\n\r\nSGVsbG8=\r\n",
            "From: a@a.test\r\nSubject: base64\r\nContent-Transfer-Encoding: 7bit\r\nX-Mailer: y\r\n\r\nSGVsbG8=\r\n",
            "From: a@a.test\r\nSubject: base64\r\n\r\nContent-Transfer-Encoding: 7bit\r\n\r\nSGVsbG8=\r\n",
            "From: a@a.test\r\nSubject: base647bit\r\n\r\nSGVsbG8=\r\n",
        ] {
            assert_ne!(of(same), of(other), "{other}");
        }
        assert_eq!(
            of(same),
            of(&format!("To: b@b.test,\r\n c@c.test\r\n{same}"))
        );
    }

    /// Parsers differ about malformed fields. So these are part of the identity, whatever this parser does with them: lines
    /// without a colon, white space before the colon, octets in no character set, malformed transport fields.
    #[test]
    fn a_malformed_field_changes_the_identity() {
        let plain =
            "Content-Type: multipart/mixed; boundary=\"b\"\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n";
        let with = |first: &[u8]| fingerprint(&[first, plain.as_bytes()].concat()).identity;
        let odd: [&[u8]; 9] = [
            b"",
            b"no field\r\n",
            b"To : x\r\n",
            b"To: x\r\n \r\n",
            b"To: x\0\r\n",
            b"To: x\ry\r\n",
            b"To: x\ny\r\n",
            b"X-Mailer: \xff\r\n",
            b"X-Mailer: \xfe\r\n",
        ];
        for (at, one) in odd.iter().enumerate() {
            for other in &odd[at + 1..] {
                assert_ne!(with(one), with(other), "{one:?} {other:?}");
            }
        }
        let spaced = plain.replacen(':', &format!("{}:", " ".repeat(60)), 1);
        assert_ne!(with(b""), fingerprint(spaced.as_bytes()).identity);
    }

    /// An attachment has the same trait in every text.
    #[test]
    fn an_attachment_is_known_by_its_octets() {
        let bytes = random(1, 5000);
        let one = with_attachment(&bytes);
        assert_eq!(one.exact, with_attachment(&bytes).exact);
        assert_ne!(one.exact, with_attachment(&random(2, 5000)).exact);
        assert_eq!(one.exact[0].aspect, Aspect::Attachment);
    }

    /// Copies of a flood that differ in a part of their octets share near traits; unrelated content does not.
    #[test]
    fn nearly_the_same_content_is_near() {
        let template = random(1, 60_000);
        let variant = |seed: u64| {
            let mut bytes = template.clone();
            let own = random(seed, 9000);
            let at = (seed as usize * 7919) % (bytes.len() - own.len());
            bytes[at..at + own.len()].copy_from_slice(&own);
            with_attachment(&bytes)
        };
        let first = variant(100);
        let near = (101..201).filter(|seed| share_near(&first, &variant(*seed)));
        assert!(near.count() >= 90, "15 % differ, in one run");
        let unrelated =
            (2..202).filter(|seed| share_near(&first, &with_attachment(&random(*seed, 60_000))));
        assert_eq!(unrelated.count(), 0);
    }

    /// Texts that differ only in names and numbers have one trait; another text is not near them.
    #[test]
    fn names_and_numbers_do_not_make_another_text() {
        let letter = |name: &str, sum: u32| {
            format!(
                "From: a@a.test\r\nSubject: x\r\n\r\nDear {name}, your invoice of {sum} is overdue and has to be paid at once. \
                 Otherwise our lawyers will have to take further steps without any more notice. Yours {name}\r\n"
            )
        };
        let one = fingerprint(letter("Alice", 17).as_bytes());
        let other = fingerprint(letter("Bob", 4711).as_bytes());
        assert_eq!(one.exact, other.exact);
        assert!(share_near(&one, &other));
        let unrelated = fingerprint(
            b"From: a@a.test\r\nSubject: x\r\n\r\nThe harbour is closed on thursday because of the regatta, so boats have to \
              be moved to the northern pier until the evening of that day at the latest.\r\n",
        );
        assert_ne!(one.exact, unrelated.exact);
        assert!(!share_near(&one, &unrelated));
    }
}
