//! Header fields that engines want added, changed or removed: what may be asked for, and how it is done.
//!
//! What an engine says is outside data. [`grant`] is the one gate: the administrator's [`Rights`] for that engine first, then
//! whether the field could stand in a header section at all. What passed it is in the engine's report as an [`Edit`], and so it
//! is durable with the message; what did not is there in words. [`rewrite`] applies edits to what is delivered, never to what
//! is stored or scanned: a message that is scanned again is edited anew, from the original.
//!
//! Positions are those of the message as received, whatever other edits there are: all engines look at the same original at
//! once, and none knows of the others. (Sendmail counts like that for the edits of one milter, too: a field that was removed
//! still counts.)

mod results;
mod rewrite;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use rewrite::{Rewritten, rewrite};

/// Octets of a line without its CRLF (RFC 5322 2.1.1).
const LINE: usize = 998;
/// Octets of a field's name: one that a line of 78 octets has room for (RFC 5322 2.1.1).
const NAME: usize = 76;
/// Octets of names and values that one report may hold.
const OCTETS: usize = 32 << 10;
/// Wishes that one report may hold.
const MOST: usize = 64;
/// Fields of one name that are removed by their numbers; where there are more, all of them go.
const NUMBERS: usize = 256;
/// Characters of a wish, and of why it was refused, that are shown.
const SHOWN: usize = 200;

/// What an engine may have done to the messages that it looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rights {
    /// Nothing.
    #[default]
    None,
    /// Header fields may be added, changed and removed.
    Fields,
}

/// One change of the header section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Edit {
    /// A new field.
    Add {
        /// Where.
        place: Place,
        /// Its name.
        name: String,
        /// What follows the colon, folded with CRLF; a space is put before it if it does not begin with white space.
        value: String,
    },
    /// Another value for a field; a new one at the end if there are fewer of that name, as milters expect.
    Change {
        /// Compared without regard to case; the field keeps its own spelling.
        name: String,
        /// Which of that name, counted from 1.
        nth: u32,
        /// As in [`Edit::Add`].
        value: String,
    },
    /// A field less.
    Remove {
        /// Compared without regard to case.
        name: String,
        /// Which of that name, counted from 1; all of them if none is said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nth: Option<u32>,
    },
    /// Several fields of one name less.
    RemoveSome {
        /// Compared without regard to case.
        name: String,
        /// Which of that name, counted from 1.
        nths: Vec<u32>,
    },
    /// Removes every Authentication-Results field that says it is from this authserv-id, or whose authserv-id cannot be
    /// read: whoever adds such a field answers for all that claim to be its own (RFC 8601 5).
    RemoveResults {
        /// Compared without regard to case.
        authserv_id: String,
    },
}

/// Where a new field goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Above everything, our own `Received` too: where trace fields go (RFC 5321 4.4). The last one is the topmost.
    Top,
    /// Before this field of the message as received, counted from 1; at the end if there are fewer.
    Before(u32),
    /// Below all fields.
    End,
}

/// What an engine asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A change of the header section.
    Field(Edit),
    /// Anything else, in words: no relay does that because an engine says so.
    Other(String),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(edit) => edit.fmt(f),
            Self::Other(words) => f.write_str(words),
        }
    }
}

/// What an engine has asked for, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RequestedEdit {
    /// Done to the message wherever it is delivered.
    Granted(Edit),
    /// Not done.
    Refused {
        /// What was asked for; untrusted, bounded, without control characters.
        asked: String,
        /// Why it is not done.
        why: String,
    },
}

impl RequestedEdit {
    /// The edit, if it is to be done.
    pub fn granted(&self) -> Option<&Edit> {
        match self {
            Self::Granted(edit) => Some(edit),
            Self::Refused { .. } => None,
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Add { place, name, value } => {
                let place = match place {
                    Place::Top => "on top".to_owned(),
                    Place::Before(nth) => format!("before field {nth}"),
                    Place::End => "at the end".to_owned(),
                };
                format!("add {name} {place}: {}", value.trim())
            }
            Self::Change { name, nth, value } => format!("change {name} {nth}: {}", value.trim()),
            Self::Remove { name, nth: None } => format!("remove all {name}"),
            Self::Remove { name, nth: Some(n) } => format!("remove {name} {n}"),
            Self::RemoveSome { name, nths } => {
                let nths: Vec<String> = nths.iter().map(u32::to_string).collect();
                format!("remove {name} {}", nths.join(", "))
            }
            Self::RemoveResults { authserv_id } => {
                format!("remove Authentication-Results of {authserv_id}")
            }
        };
        f.write_str(&shown(&text))
    }
}

/// Decides about everything that an engine asks for; `smtputf8` says whether the message may have other than ASCII octets in
/// its header section (RFC 6531). The requested_edits are in their order, bounded in number and size.
pub fn grant(wanted: Vec<Wanted>, rights: Rights, smtputf8: bool) -> Vec<RequestedEdit> {
    let refuse = |asked: String, why: &str| RequestedEdit::Refused {
        asked: shown(&asked),
        why: shown(why),
    };
    let exceeds = exceeds(&wanted);
    let more = wanted.len().saturating_sub(MOST);
    let mut requested_edits: Vec<RequestedEdit> = Vec::with_capacity(wanted.len().min(MOST) + 1);
    for wanted in wanted.into_iter().take(MOST) {
        requested_edits.push(match (wanted, rights) {
            (Wanted::Other(asked), _) => refuse(asked, "only header fields can be changed"),
            (Wanted::Field(edit), Rights::None) => {
                refuse(edit.to_string(), "this engine has edits = \"none\"")
            }
            (Wanted::Field(edit), Rights::Fields) if exceeds => {
                refuse(edit.to_string(), "too much for one message: none is done")
            }
            (Wanted::Field(edit), Rights::Fields) => match edit.objection(smtputf8) {
                Some(why) => refuse(edit.to_string(), why),
                None => RequestedEdit::Granted(edit),
            },
        });
    }
    if more > 0 {
        requested_edits.push(refuse(format!("{more} more"), "too many for one message"));
    }
    requested_edits
}

/// The value of a field whose folding may have any kind of line end, as in messages on disk: with CRLF, and nothing behind.
pub fn folded(value: &str) -> String {
    let lines = value.trim_ascii_end().replace("\r\n", "\n");
    lines.replace(['\n', '\r'], "\r\n")
}

/// Puts a wish behind others. Removals of one name in a row are one: whoever writes many such fields into a message must not push
/// out what is wanted after them. Where they are very many, all fields of that name go. Of what is more than a report may hold only
/// so much is kept that [`exceeds`] tells.
pub fn want(wanted: &mut Vec<Wanted>, wish: Wanted) {
    if let Wanted::Field(Edit::Remove { name, nth }) = &wish
        && let Some(Wanted::Field(last)) = wanted.last_mut()
        && last.takes(name, *nth)
    {
        return;
    }
    if wanted.len() <= MOST {
        wanted.push(wish);
    }
}

/// Whether it is more than one report may hold. Then [`grant`] grants nothing of it: half of it may be worse than nothing, as where
/// one field is to stand for all that are removed.
pub fn exceeds(wanted: &[Wanted]) -> bool {
    wanted.len() > MOST || octets(wanted) > OCTETS
}

/// Octets of all that is asked for.
pub fn octets(wanted: &[Wanted]) -> usize {
    let of = |wanted: &Wanted| match wanted {
        Wanted::Field(edit) => edit.octets(),
        Wanted::Other(text) => text.len(),
    };
    wanted.iter().map(of).sum()
}

impl Edit {
    /// Takes another removal into this one; not if this is none of the same name.
    fn takes(&mut self, other: &str, nth: Option<u32>) -> bool {
        let (Self::Remove { name, .. } | Self::RemoveSome { name, .. }) = &mut *self else {
            return false;
        };
        if !name.eq_ignore_ascii_case(other) {
            return false;
        }
        let name = std::mem::take(name);
        let nths = match (&mut *self, nth) {
            (Self::Remove { nth: Some(one), .. }, Some(nth)) => Some(vec![*one, nth]),
            (Self::RemoveSome { nths, .. }, Some(nth)) if nths.len() < NUMBERS => {
                nths.push(nth);
                Some(std::mem::take(nths))
            }
            _ => None,
        };
        *self = match nths {
            Some(nths) => Self::RemoveSome { name, nths },
            None => Self::Remove { name, nth: None },
        };
        true
    }

    /// Why it cannot be done to any message, if it cannot.
    fn objection(&self, smtputf8: bool) -> Option<&'static str> {
        let (name, value) = match self {
            Self::Add {
                place: Place::Before(0),
                ..
            } => return Some("fields are counted from 1"),
            Self::Add { name, value, .. } => (name, value.as_str()),
            Self::Change { nth: 0, .. } | Self::Remove { nth: Some(0), .. } => {
                return Some("fields are counted from 1");
            }
            Self::Change { name, value, .. } => (name, value.as_str()),
            Self::RemoveSome { nths, .. } if nths.contains(&0) => {
                return Some("fields are counted from 1");
            }
            Self::Remove { name, .. } | Self::RemoveSome { name, .. } => (name, ""),
            Self::RemoveResults { authserv_id } => {
                let empty = authserv_id.is_empty() || authserv_id.len() > LINE;
                return empty.then_some("not an authserv-id");
            }
        };
        name_objection(name).or_else(|| value_objection(name, value, smtputf8))
    }

    fn octets(&self) -> usize {
        match self {
            Self::Add { name, value, .. } | Self::Change { name, value, .. } => {
                name.len() + value.len()
            }
            Self::Remove { name, .. } => name.len(),
            Self::RemoveSome { name, nths } => name.len() + 4 * nths.len(),
            Self::RemoveResults { authserv_id } => authserv_id.len(),
        }
    }
}

/// RFC 5322 2.2, and fields that are not an engine's to touch.
fn name_objection(name: &str) -> Option<&'static str> {
    let ftext = |octet: u8| octet.is_ascii_graphic() && octet != b':';
    if name.is_empty() || name.len() > NAME || !name.bytes().all(ftext) {
        return Some("not the name of a field (RFC 5322 2.2)");
    }
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    let start = name.get(..8).unwrap_or_default();
    if is("Received") || is("X-Spillway-Result") {
        return Some("trace fields are not changed (RFC 5321 4.4)");
    }
    if is("MIME-Version") || start.eq_ignore_ascii_case("Content-") {
        return Some("what is delivered would not be what was scanned");
    }
    None
}

/// RFC 5322 2.1.1 and 2.2.3: text on lines of bounded length, each but the first of which begins with white space and has
/// more than that.
fn value_objection(name: &str, value: &str, smtputf8: bool) -> Option<&'static str> {
    let control = |c: char| c.is_control() && c != '\t';
    let mut first = name.len() + 2;
    for (at, line) in value.split("\r\n").enumerate() {
        if line.contains(control) {
            return Some("a line end or another control character in the value");
        }
        let folded = line.starts_with([' ', '\t']) && !line.trim().is_empty();
        if at > 0 && !folded {
            return Some("a line of the value that is no folding (RFC 5322 2.2.3)");
        }
        if first + line.len() > LINE {
            return Some("a line of more than 998 octets (RFC 5322 2.1.1)");
        }
        first = 0;
    }
    (!smtputf8 && !value.is_ascii()).then_some("other than ASCII in a message without SMTPUTF8")
}

/// For people: on one line, bounded.
fn shown(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let clean = |c: char| if c.is_control() { '?' } else { c };
    words.chars().take(SHOWN).map(clean).collect()
}

#[cfg(test)]
mod tests;
