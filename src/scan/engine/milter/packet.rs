//! The packets of the milter protocol: a length (four octets, the first the highest), a command, data. What comes in is read
//! by pure functions that take any octets.

use crate::message::edit::{Edit, Place, Wanted, folded};
use crate::scan::engine::head::Malformed;

/// Octets of one packet: libmilter's own limit (1 MiB, SMFI_V1_PROT to SMFIP_MDS_1M) and its command.
pub const LONGEST: usize = (1 << 20) + 1;
/// The version that we speak, and the oldest that we understand.
pub const VERSION: u32 = 6;
const OLDEST: u32 = 2;
/// What a filter may ask for (SMFIF_*): everything that there is. Some filters refuse to work where they may not ask; whether it
/// is done is another question.
pub const ACTIONS: u32 = 0x1ff;
/// What a filter may leave out (SMFIP_*): all events and all replies; and SKIP and leading spaces. Not: rejected recipients,
/// which we do not have.
pub const STEPS: u32 = 0x001f_ffff & !0x800;

/// An event that a filter is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Connect,
    Helo,
    Mail,
    Rcpt,
    Data,
    Header,
    EndOfHeader,
    Body,
    EndOfBody,
}

impl Event {
    /// SMFIC_*.
    pub(super) fn command(self) -> u8 {
        match self {
            Self::Connect => b'C',
            Self::Helo => b'H',
            Self::Mail => b'M',
            Self::Rcpt => b'R',
            Self::Data => b'T',
            Self::Header => b'L',
            Self::EndOfHeader => b'N',
            Self::Body => b'B',
            Self::EndOfBody => b'E',
        }
    }

    /// The steps (SMFIP_*) that leave the event out, and that leave the reply to it out.
    fn left_out(self) -> (u32, u32) {
        match self {
            Self::Connect => (1, 1 << 12),
            Self::Helo => (1 << 1, 1 << 13),
            Self::Mail => (1 << 2, 1 << 14),
            Self::Rcpt => (1 << 3, 1 << 15),
            Self::Data => (1 << 9, 1 << 16),
            Self::Header => (1 << 5, 1 << 7),
            Self::EndOfHeader => (1 << 6, 1 << 18),
            Self::Body => (1 << 4, 1 << 19),
            Self::EndOfBody => (0, 0),
        }
    }

    /// The number of its list of macros (SMFIM_*), where a filter may choose one.
    pub(super) fn stage(self) -> Option<usize> {
        match self {
            Self::Connect => Some(0),
            Self::Helo => Some(1),
            Self::Mail => Some(2),
            Self::Rcpt => Some(3),
            Self::Data => Some(4),
            Self::EndOfBody => Some(5),
            Self::EndOfHeader => Some(6),
            Self::Header | Self::Body => None,
        }
    }
}

/// What a filter has agreed to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Terms {
    /// The version that it speaks, at most ours.
    pub version: u32,
    /// What it wants left out.
    pub steps: u32,
    /// The macros that it wants, by stage, where it has chosen.
    pub macros: [Option<Vec<String>>; 7],
}

impl Terms {
    /// Whether its version has the event: DATA came with version 4.
    pub(super) fn knows(&self, event: Event) -> bool {
        event != Event::Data || self.version >= 4
    }

    /// Whether it wants to be told the event.
    pub(super) fn wants(&self, event: Event) -> bool {
        self.knows(event) && self.steps & event.left_out().0 == 0
    }

    /// Whether it answers the event.
    pub(super) fn answers(&self, event: Event) -> bool {
        let (_, no_reply) = event.left_out();
        no_reply == 0 || self.steps & no_reply == 0
    }

    /// Whether values of fields begin with the space that follows the colon.
    pub(super) fn leading_space(&self) -> bool {
        self.steps & 1 << 20 != 0
    }
}

/// What a filter says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MilterReply {
    /// Go on.
    Continue,
    /// Go on, without further events of this kind.
    Skip,
    /// Nothing speaks against the message; no more of it is wanted.
    Accept,
    /// Against the message, or the recipient, for good.
    Reject,
    /// Not now.
    TempFail,
    /// The message is to vanish.
    Discard,
    /// The same as reject or tempfail, by the first digit, with words.
    Reply(String),
    /// The message is to be held, for this reason; the decision follows.
    Quarantine(String),
    /// It still works.
    Progress,
    /// It cannot work.
    Failed,
    /// Wants the message changed; the decision follows.
    Wants(Wanted),
    /// Wants another body, of which this was a piece; the decision follows.
    Body,
}

/// A packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// SMFIC_* or SMFIR_*.
    pub command: u8,
    /// What is behind the command.
    pub data: &'a [u8],
    /// Octets of all of it, its length included.
    pub octets: usize,
}

/// The first packet; none while it is not complete.
pub fn split(octets: &[u8]) -> Result<Option<Packet<'_>>, Malformed> {
    let Some((length, rest)) = octets.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length == 0 || length > LONGEST {
        return Err(Malformed::Garbage(format!("a packet of {length} octets")));
    }
    let Some(packet) = rest.get(..length) else {
        return Ok(None);
    };
    Ok(packet.split_first().map(|(command, data)| Packet {
        command: *command,
        data,
        octets: 4 + length,
    }))
}

/// Appends a packet.
pub(super) fn append(to: &mut Vec<u8>, command: u8, data: &[&[u8]]) {
    let length: usize = 1 + data.iter().map(|piece| piece.len()).sum::<usize>();
    // Pieces of bodies have 65535 octets, and names and values are lines of a message of at most 4 GiB.
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    to.extend_from_slice(&length.to_be_bytes());
    to.push(command);
    for piece in data {
        to.extend_from_slice(piece);
    }
}

/// Reads the answer to the offer of terms (SMFIC_OPTNEG).
pub fn terms(command: u8, data: &[u8]) -> Result<Terms, Malformed> {
    let wrong = |what: String| Err(Malformed::Garbage(what));
    if command != b'O' {
        return wrong(format!("{:?} to our offer", char::from(command)));
    }
    let mut data = Data(data);
    let (version, actions, steps) = (data.number()?, data.number()?, data.number()?);
    if !(OLDEST..=VERSION).contains(&version) {
        return wrong(format!("version {version}"));
    }
    if actions & !ACTIONS != 0 || steps & !STEPS != 0 {
        return wrong(format!(
            "more than was offered: actions {actions:#x}, steps {steps:#x}"
        ));
    }
    let mut terms = Terms {
        version,
        steps,
        macros: Default::default(),
    };
    while !data.0.is_empty() {
        let (stage, names) = (data.number()? as usize, data.text()?);
        if let Some(list) = terms.macros.get_mut(stage) {
            let names = names.split([' ', ',']).filter(|name| !name.is_empty());
            *list = Some(names.take(100).map(str::to_owned).collect());
        }
    }
    Ok(terms)
}

/// Reads what a filter says to an event.
pub fn parse(command: u8, data: &[u8]) -> Result<MilterReply, Malformed> {
    let mut data = Data(data);
    let said = match command {
        b'c' => MilterReply::Continue,
        b's' => MilterReply::Skip,
        b'a' => MilterReply::Accept,
        b'r' => MilterReply::Reject,
        b't' => MilterReply::TempFail,
        b'd' => MilterReply::Discard,
        b'p' => MilterReply::Progress,
        b'f' | b'4' => MilterReply::Failed,
        b'y' => MilterReply::Reply(reply(&data.text()?)?),
        b'q' => MilterReply::Quarantine(data.text()?),
        b'h' => MilterReply::Wants(add(Place::End, &mut data)?),
        b'i' => {
            // Counted with our own Received field, which is number 0.
            let place = match data.number()? {
                0 => Place::Top,
                number => Place::Before(number),
            };
            MilterReply::Wants(add(place, &mut data)?)
        }
        b'm' => {
            // Number 0 means the first, too.
            let nth = data.number()?.max(1);
            let (name, value) = (data.text()?, data.text()?);
            MilterReply::Wants(Wanted::Field(match value.is_empty() {
                true => Edit::Remove {
                    name,
                    nth: Some(nth),
                },
                false => Edit::Change {
                    name,
                    nth,
                    value: folded(&value),
                },
            }))
        }
        b'e' => data.other("change the sender to")?,
        b'+' | b'2' => data.other("add the recipient")?,
        b'-' => data.other("remove the recipient")?,
        b'b' => {
            data.0 = &[];
            MilterReply::Body
        }
        _ => return Err(Malformed::garbage(&[command])),
    };
    match data.0.is_empty() {
        true => Ok(said),
        false => Err(Malformed::Garbage(format!(
            "data behind {:?}",
            char::from(command)
        ))),
    }
}

fn add(place: Place, data: &mut Data<'_>) -> Result<Wanted, Malformed> {
    let (name, value) = (data.text()?, data.text()?);
    Ok(Wanted::Field(Edit::Add {
        place,
        name,
        value: folded(&value),
    }))
}

/// A reply with its code (SMFIR_REPLYCODE); percent signs come doubled.
fn reply(text: &str) -> Result<String, Malformed> {
    let code = text.as_bytes().first_chunk::<3>();
    let is_code =
        |code: &[u8; 3]| matches!(code[0], b'4' | b'5') && code[1..].iter().all(u8::is_ascii_digit);
    match code.is_some_and(is_code) {
        true => Ok(text.replace("%%", "%")),
        false => Err(Malformed::Garbage(format!(
            "a reply without code: {:.50}",
            text.escape_debug().to_string()
        ))),
    }
}

/// The data of a packet, as far as it has not been read.
struct Data<'a>(&'a [u8]);

impl Data<'_> {
    fn number(&mut self) -> Result<u32, Malformed> {
        let (number, rest) = self.0.split_first_chunk().ok_or_else(short)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*number))
    }

    /// Up to a NUL, which must be there.
    fn text(&mut self) -> Result<String, Malformed> {
        let end = memchr::memchr(0, self.0).ok_or_else(short)?;
        let text = String::from_utf8_lossy(&self.0[..end]).into_owned();
        self.0 = &self.0[end + 1..];
        Ok(text)
    }

    /// Something that is not done, about an address with its parameters.
    fn other(&mut self, what: &str) -> Result<MilterReply, Malformed> {
        let mut words = format!("{what} {}", self.text()?);
        if !self.0.is_empty() {
            words.push(' ');
            words.push_str(&self.text()?);
        }
        Ok(MilterReply::Wants(Wanted::Other(words)))
    }
}

fn short() -> Malformed {
    Malformed::Garbage("a packet that is too short for its command".to_owned())
}
