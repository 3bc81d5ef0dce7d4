//! Edits of the header section that engines request: which are allowed, and how they are made.
//!
//! The request of an engine is outside data. [`grant`] is the only check: first the administrator's [`Rights`] for the engine,
//! then whether the field could be in a header section at all. The engine's report has each granted request as an [`Edit`],
//! which is stored with the message, and each refused request in words. [`rewrite`] applies edits to the delivered message,
//! never to the stored or scanned one: a message that is scanned again is edited again, from the original.
//!
//! Positions count the fields of the message as received, whatever other edits there are: all engines scan the same original
//! at the same time, and no engine knows the edits of others. (Sendmail also counts like this for the edits of one milter: a
//! field that was removed still counts.)

mod results;
mod rewrite;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use rewrite::{Rewritten, rewrite};

/// Largest line without its CRLF (RFC 5322 2.1.1).
const LINE_OCTETS_MAX: usize = 998;
/// Longest name of a field: a longer name does not fit on a line of 78 octets (RFC 5322 2.1.1).
const NAME_OCTETS_MAX: usize = 76;
/// Maximum octets of names and values in one report, which is stored with the message.
const REPORT_OCTETS_MAX: usize = 32 << 10;
/// Maximum number of requested edits in one report.
const REQUESTS_MAX: usize = 64;
/// Maximum number of fields of one name that are removed by number. Beyond it, all fields of the name are removed.
const REMOVED_NUMBERS_MAX: usize = 256;
/// Maximum length of a request, and of the reason for its refusal, as shown to people.
const SHOWN_CHARACTERS_MAX: usize = 200;

/// The edits that an engine may request for the messages that it scans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rights {
    /// No edits.
    #[default]
    None,
    /// The engine may add, change and remove header fields.
    Fields,
}

/// One edit of the header section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Edit {
    /// Adds a field.
    Add {
        /// Position of the field.
        place: FieldPosition,
        /// Name of the field.
        name: String,
        /// The text after the colon, folded with CRLF. A space is added before it if it does not begin with white space.
        value: String,
    },
    /// Changes the value of a field. If the message has fewer fields of that name, a field is added at the end, as milters
    /// expect.
    Change {
        /// Name, compared without regard to case; the field keeps its own spelling.
        name: String,
        /// Number of the field among those of that name, from 1.
        nth: u32,
        /// Like the value of [`Edit::Add`].
        value: String,
    },
    /// Removes a field.
    Remove {
        /// Name, compared without regard to case.
        name: String,
        /// Number of the field among those of that name, from 1; all of them if `None`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nth: Option<u32>,
    },
    /// Removes several fields of one name.
    RemoveSome {
        /// Name, compared without regard to case.
        name: String,
        /// Numbers of the fields among those of that name, from 1.
        nths: Vec<u32>,
    },
    /// Removes every Authentication-Results field that claims this authserv-id, or whose authserv-id cannot be read: an agent
    /// that adds this field is responsible for all fields that claim its authserv-id (RFC 8601 5).
    RemoveResults {
        /// The authserv-id, compared without regard to case.
        authserv_id: String,
    },
}

/// The position of a new field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FieldPosition {
    /// Above all fields, including the relay's own `Received`: the position of trace fields (RFC 5321 4.4). The last one is
    /// the topmost.
    Top,
    /// Before the field with this number in the message as received, from 1; at the end if there are fewer fields.
    Before(u32),
    /// Below all fields.
    End,
}

/// A request of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// An edit of the header section.
    Field(Edit),
    /// Any other request, in words. The relay never grants it.
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

/// A request of an engine, with the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RequestedEdit {
    /// The edit is made in every delivery of the message.
    Granted(Edit),
    /// The edit is not made.
    Refused {
        /// The request; untrusted, bounded, without control characters.
        asked: String,
        /// The reason of the refusal.
        why: String,
    },
}

impl RequestedEdit {
    /// The edit, if it is granted.
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
                    FieldPosition::Top => "on top".to_owned(),
                    FieldPosition::Before(nth) => format!("before field {nth}"),
                    FieldPosition::End => "at the end".to_owned(),
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

/// Decides about all requests of an engine, within bounds of number and size; the results are in the order of the requests.
/// `smtputf8` says whether the header section may have non-ASCII characters (RFC 6531).
pub fn grant(wanted: Vec<Wanted>, rights: Rights, smtputf8: bool) -> Vec<RequestedEdit> {
    let refuse = |asked: String, why: &str| RequestedEdit::Refused {
        asked: shown(&asked),
        why: shown(why),
    };
    let exceeds = exceeds(&wanted);
    let more = wanted.len().saturating_sub(REQUESTS_MAX);
    let mut requested_edits: Vec<RequestedEdit> =
        Vec::with_capacity(wanted.len().min(REQUESTS_MAX) + 1);
    for wanted in wanted.into_iter().take(REQUESTS_MAX) {
        requested_edits.push(match (wanted, rights) {
            (Wanted::Other(asked), _) => refuse(asked, "only header fields can be changed"),
            (Wanted::Field(edit), Rights::None) => {
                refuse(edit.to_string(), "this engine has edits = \"none\"")
            }
            (Wanted::Field(edit), Rights::Fields) if exceeds => refuse(
                edit.to_string(),
                "the requests exceed the limits for one message, so none is granted",
            ),
            (Wanted::Field(edit), Rights::Fields) => match edit.objection(smtputf8) {
                Some(why) => refuse(edit.to_string(), why),
                None => RequestedEdit::Granted(edit),
            },
        });
    }
    if more > 0 {
        requested_edits.push(refuse(
            format!("{more} more"),
            "more than one message may have",
        ));
    }
    requested_edits
}

/// Normalises the folding of a field's value, which may have any line ends, as in files: to CRLF, without trailing white
/// space.
pub fn folded(value: &str) -> String {
    let lines = value.trim_ascii_end().replace("\r\n", "\n");
    lines.replace(['\n', '\r'], "\r\n")
}

/// Adds a request. Consecutive removals of one name become one request, so that a sender who writes many such fields into a
/// message cannot crowd out the requests after them. Beyond a limit, they become a removal of all fields of the name. Beyond
/// the limit of requests, only one more is kept, so that [`exceeds`] reports it.
pub fn want(wanted: &mut Vec<Wanted>, request: Wanted) {
    if let Wanted::Field(Edit::Remove { name, nth }) = &request
        && let Some(Wanted::Field(last)) = wanted.last_mut()
        && last.takes(name, *nth)
    {
        return;
    }
    if wanted.len() <= REQUESTS_MAX {
        wanted.push(request);
    }
}

/// Whether the requests exceed the limits of one report. [`grant`] then grants none of them: a part may be worse than nothing,
/// for example where one field is to replace all removed fields.
pub fn exceeds(wanted: &[Wanted]) -> bool {
    wanted.len() > REQUESTS_MAX || octets(wanted) > REPORT_OCTETS_MAX
}

/// Octets of all requests.
pub fn octets(wanted: &[Wanted]) -> usize {
    let of = |wanted: &Wanted| match wanted {
        Wanted::Field(edit) => edit.octets(),
        Wanted::Other(text) => text.len(),
    };
    wanted.iter().map(of).sum()
}

impl Edit {
    /// Adds another removal to this one; returns false unless this is a removal of the same name.
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
            (Self::RemoveSome { nths, .. }, Some(nth)) if nths.len() < REMOVED_NUMBERS_MAX => {
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

    /// The reason why the edit cannot be made in any message; `None` if it can.
    fn objection(&self, smtputf8: bool) -> Option<&'static str> {
        let (name, value) = match self {
            Self::Add {
                place: FieldPosition::Before(0),
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
                let empty = authserv_id.is_empty() || authserv_id.len() > LINE_OCTETS_MAX;
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

/// RFC 5322 2.2, and fields that no engine may change.
fn name_objection(name: &str) -> Option<&'static str> {
    let ftext = |octet: u8| octet.is_ascii_graphic() && octet != b':';
    if name.is_empty() || name.len() > NAME_OCTETS_MAX || !name.bytes().all(ftext) {
        return Some("not a valid field name (RFC 5322 2.2)");
    }
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    let start = name.get(..8).unwrap_or_default();
    if is("Received") || is("X-Spillway-Result") {
        return Some("trace fields may not be changed (RFC 5321 4.4)");
    }
    if is("MIME-Version") || start.eq_ignore_ascii_case("Content-") {
        return Some("the delivered message would differ from the scanned one");
    }
    None
}

/// RFC 5322 2.1.1 and 2.2.3: lines of bounded length; each line after the first begins with white space and has other text.
fn value_objection(name: &str, value: &str, smtputf8: bool) -> Option<&'static str> {
    let control = |c: char| c.is_control() && c != '\t';
    let mut first = name.len() + 2;
    for (at, line) in value.split("\r\n").enumerate() {
        if line.contains(control) {
            return Some("a line end or another control character in the value");
        }
        let folded = line.starts_with([' ', '\t']) && !line.trim().is_empty();
        if at > 0 && !folded {
            return Some("a line of the value is not folded text (RFC 5322 2.2.3)");
        }
        if first + line.len() > LINE_OCTETS_MAX {
            return Some("a line of more than 998 octets (RFC 5322 2.1.1)");
        }
        first = 0;
    }
    (!smtputf8 && !value.is_ascii()).then_some("non-ASCII characters in a message without SMTPUTF8")
}

/// The text for people: on one line, with bounded length.
fn shown(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let clean = |c: char| if c.is_control() { '?' } else { c };
    words
        .chars()
        .take(SHOWN_CHARACTERS_MAX)
        .map(clean)
        .collect()
}

#[cfg(test)]
mod tests;
