//! The packets of the milter protocol: a length (four octets, the highest first), a command, and data. Pure functions read
//! incoming packets, and accept any octets.

use crate::message::edit::{Edit, FieldPosition, Wanted, folded};
use crate::scan::engine::head::Malformed;

/// Octets of one packet, without its length: libmilter's own limit of data (1 MiB, SMFI_V1_PROT to SMFIP_MDS_1M), and one
/// octet for the command.
pub const PACKET_OCTETS_MAX: usize = (1 << 20) + 1;
/// Version of the protocol that the relay offers.
pub const PROTOCOL_VERSION: u32 = 6;
/// Oldest version of the protocol that the relay understands.
const PROTOCOL_VERSION_MIN: u32 = 2;
/// Actions that a filter may request (SMFIF_*): all that exist. Some filters refuse to work if an action is not offered. An
/// offer does not mean that the relay carries out a request.
pub const OFFERED_ACTIONS: u32 = 0x1ff;
/// Steps that a filter may leave out (SMFIP_*): all events and all replies. The offer includes SKIP and leading spaces. It
/// does not include rejected recipients, which the relay does not have.
pub const OFFERED_STEPS: u32 = 0x001f_ffff & !0x800;

/// An event that the relay sends to a filter.
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
    /// Command of the event (SMFIC_*).
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

    /// The steps (SMFIP_*) by which a filter leaves out the event, and by which it leaves out the reply to the event.
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

    /// Number of the event's list of macros (SMFIM_*), if a filter may choose macros for the event.
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

/// The negotiated terms.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NegotiatedTerms {
    /// Version that the filter speaks, at most [`PROTOCOL_VERSION`].
    pub version: u32,
    /// Steps that the filter leaves out.
    pub steps: u32,
    /// Macros that the filter has chosen, by stage; `None` for a stage without a choice.
    pub macros: [Option<Vec<String>>; 7],
}

impl NegotiatedTerms {
    /// Whether the filter's version has the event. Version 4 introduced DATA.
    pub(super) fn knows(&self, event: Event) -> bool {
        event != Event::Data || self.version >= 4
    }

    /// Whether the filter wants the event.
    pub(super) fn wants(&self, event: Event) -> bool {
        self.knows(event) && self.steps & event.left_out().0 == 0
    }

    /// Whether the filter replies to the event.
    pub(super) fn answers(&self, event: Event) -> bool {
        let (_, no_reply) = event.left_out();
        no_reply == 0 || self.steps & no_reply == 0
    }

    /// Whether values of fields keep the space after the colon.
    pub(super) fn leading_space(&self) -> bool {
        self.steps & 1 << 20 != 0
    }
}

/// A reply of a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MilterReply {
    /// Continue with the next event.
    Continue,
    /// Continue, without further events of this kind.
    Skip,
    /// The filter has no objection, and wants no more of the message.
    Accept,
    /// A permanent objection to the message or the recipient.
    Reject,
    /// A temporary objection: the client is to try again later.
    TempFail,
    /// The filter wants the message dropped without a notice.
    Discard,
    /// Reject (5yz) or tempfail (4yz) with reply code and text.
    Reply(String),
    /// The filter wants the message held, for this reason. Its decision follows.
    Quarantine(String),
    /// The filter is still working.
    Progress,
    /// The filter cannot work.
    Failed,
    /// The filter requests a change of the message. Its decision follows.
    Wants(Wanted),
    /// A piece of the body with which the filter wants to replace that of the message. Its decision follows.
    Body,
}

/// A packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// SMFIC_* or SMFIR_*.
    pub command: u8,
    /// Octets after the command.
    pub data: &'a [u8],
    /// Octets of the whole packet, including its length.
    pub octets: usize,
}

/// The first packet in `octets`; `None` while it is incomplete.
pub fn split(octets: &[u8]) -> Result<Option<Packet<'_>>, Malformed> {
    let Some((length, rest)) = octets.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length == 0 || length > PACKET_OCTETS_MAX {
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
    // The length always fits: a piece of a body has at most 65,535 octets, and names and values are lines of a message of at
    // most 4 GiB.
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    to.extend_from_slice(&length.to_be_bytes());
    to.push(command);
    for piece in data {
        to.extend_from_slice(piece);
    }
}

/// Reads the filter's answer to the offered terms (SMFIC_OPTNEG).
pub fn terms(command: u8, data: &[u8]) -> Result<NegotiatedTerms, Malformed> {
    let wrong = |what: String| Err(Malformed::Garbage(what));
    if command != b'O' {
        return wrong(format!(
            "{:?} in answer to the offered terms",
            char::from(command)
        ));
    }
    let mut data = Data(data);
    let (version, actions, steps) = (data.number()?, data.number()?, data.number()?);
    if !(PROTOCOL_VERSION_MIN..=PROTOCOL_VERSION).contains(&version) {
        return wrong(format!(
            "version {version} of the protocol; the relay speaks 2 to 6"
        ));
    }
    if actions & !OFFERED_ACTIONS != 0 || steps & !OFFERED_STEPS != 0 {
        return wrong(format!(
            "more than was offered: actions {actions:#x}, steps {steps:#x}"
        ));
    }
    let mut terms = NegotiatedTerms {
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

/// Reads a filter's reply to an event.
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
        b'h' => MilterReply::Wants(add(FieldPosition::End, &mut data)?),
        b'i' => {
            // Positions count the relay's own Received field, which has number 0.
            let place = match data.number()? {
                0 => FieldPosition::Top,
                number => FieldPosition::Before(number),
            };
            MilterReply::Wants(add(place, &mut data)?)
        }
        b'm' => {
            // Number 0 means the first field too.
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
            "unexpected data after {:?}",
            char::from(command)
        ))),
    }
}

fn add(place: FieldPosition, data: &mut Data<'_>) -> Result<Wanted, Malformed> {
    let (name, value) = (data.text()?, data.text()?);
    Ok(Wanted::Field(Edit::Add {
        place,
        name,
        value: folded(&value),
    }))
}

/// Reads a reply with its code (SMFIR_REPLYCODE), in which percent signs are doubled.
fn reply(text: &str) -> Result<String, Malformed> {
    let code = text.as_bytes().first_chunk::<3>();
    let is_code =
        |code: &[u8; 3]| matches!(code[0], b'4' | b'5') && code[1..].iter().all(u8::is_ascii_digit);
    match code.is_some_and(is_code) {
        true => Ok(text.replace("%%", "%")),
        false => Err(Malformed::Garbage(format!(
            "a reply without a code 4yz or 5yz: {:.50}",
            text.escape_debug().to_string()
        ))),
    }
}

/// The unread data of a packet.
struct Data<'a>(&'a [u8]);

impl Data<'_> {
    fn number(&mut self) -> Result<u32, Malformed> {
        let (number, rest) = self.0.split_first_chunk().ok_or_else(short)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*number))
    }

    /// Reads a text up to its final NUL, which must be present.
    fn text(&mut self) -> Result<String, Malformed> {
        let end = memchr::memchr(0, self.0).ok_or_else(short)?;
        let text = String::from_utf8_lossy(&self.0[..end]).into_owned();
        self.0 = &self.0[end + 1..];
        Ok(text)
    }

    /// Reads a request about an address with its parameters. The relay does not carry out such requests.
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
