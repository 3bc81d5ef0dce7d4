//! SMTP replies. The same value is written to the socket and logged.
//!
//! Each reply has one [`Class`], which gives both the first digit of the reply code (RFC 5321 4.2.1) and the class of the
//! enhanced status code (RFC 3463 2). A reply such as 4yz with 5.x.x cannot be expressed. All replies of the relay are named
//! constructors: [`commands`] has those before the end of data, [`end_of_data`] those to it.

mod commands;
mod end_of_data;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// First digit of the reply code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// 2yz: success.
    Positive = 2,
    /// 3yz: continue.
    Intermediate = 3,
    /// 4yz: transient failure.
    Transient = 4,
    /// 5yz: permanent failure.
    Permanent = 5,
}

impl Class {
    /// The class of a received code. A code outside 200 to 499 counts as permanent.
    pub fn of_code(code: u16) -> Self {
        match code / 100 {
            2 => Self::Positive,
            3 => Self::Intermediate,
            4 => Self::Transient,
            _ => Self::Permanent,
        }
    }
}

/// A reply of the relay to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    class: Class,
    /// Second and third digit of the code.
    detail: u8,
    /// Subject and detail of the enhanced status code; `None` for replies that have none (RFC 2034: greeting, EHLO,
    /// intermediate replies).
    enhanced: Option<(u16, u16)>,
    lines: Vec<Cow<'static, str>>,
    closes: bool,
    /// See [`Reply::reason`].
    reason: &'static str,
}

impl Reply {
    /// Longest reply line in octets, including CRLF (RFC 5321 4.5.3.1.5).
    const LINE_OCTETS_MAX: usize = 512;

    fn new(
        class: Class,
        detail: u8,
        enhanced: impl Into<Option<(u16, u16)>>,
        text: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            class,
            detail,
            enhanced: enhanced.into(),
            lines: vec![text.into()],
            closes: false,
            reason: "",
        }
    }

    /// Gives a refusal its reason.
    fn because(mut self, reason: &'static str) -> Self {
        self.reason = reason;
        self
    }

    /// The reason of a refusal in one stable word, for the log and the metrics; empty for other replies. docs/LOGS.md lists
    /// all words.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// Whether the relay does not do what the client wants.
    pub fn is_refusal(&self) -> bool {
        self.class >= Class::Transient
    }

    /// The enhanced status code (RFC 3463) as text.
    pub fn enhanced(&self) -> Option<String> {
        let (subject, detail) = self.enhanced?;
        Some(format!("{}.{subject}.{detail}", self.class as u16))
    }

    /// The reply code.
    pub fn code(&self) -> u16 {
        self.class as u16 * 100 + u16::from(self.detail)
    }

    /// Its class.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Whether the session ends with this reply (421, and 221 to QUIT).
    pub fn closes(&self) -> bool {
        self.closes
    }

    /// Appends the reply in its wire format.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        use std::io::Write;
        let last = self.lines.len() - 1;
        for (at, line) in self.lines.iter().enumerate() {
            let separator = if at == last { ' ' } else { '-' };
            let start = out.len();
            // Writing to a Vec cannot fail.
            let _ = write!(out, "{}{separator}", self.code());
            if let Some((subject, detail)) = self.enhanced {
                let _ = write!(out, "{}.{subject}.{detail} ", self.class as u16);
            }
            // Text from other systems must not add a line break, and a client expects lines in ASCII (RFC 5321 4.2) of at
            // most 512 octets with CRLF (4.5.3.1.5).
            let room = (start + Self::LINE_OCTETS_MAX - 2).saturating_sub(out.len());
            let text = line.bytes().map(|b| match b {
                b' '..=b'~' => b,
                _ => b'?',
            });
            out.extend(text.take(room));
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// The form for the log: one line with the texts of all lines.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.code())?;
        if let Some((subject, detail)) = self.enhanced {
            write!(f, "{}.{subject}.{detail} ", self.class as u16)?;
        }
        f.write_str(&self.lines.join(" / "))
    }
}
