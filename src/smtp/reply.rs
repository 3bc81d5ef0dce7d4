//! Replies: one value that is written to the socket and logged.
//!
//! A reply is made from its [`Class`], which gives both the first digit of the reply code (RFC 5321 4.2.1) and the
//! class of the enhanced status code (RFC 3463 2): a 4yz with 5.x.x cannot be written down. All our replies are named
//! constructors of this file.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// First digit of the reply code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// 2yz: done.
    Positive = 2,
    /// 3yz: go on.
    Intermediate = 3,
    /// 4yz: not now.
    Transient = 4,
    /// 5yz: not like this.
    Permanent = 5,
}

/// Our reply to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    class: Class,
    /// Second and third digit of the code.
    detail: u8,
    /// Subject and detail of the enhanced code; none where RFC 2034 has none (greeting, EHLO, intermediate replies).
    enhanced: Option<(u16, u16)>,
    lines: Vec<Cow<'static, str>>,
    closes: bool,
}

impl Reply {
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
        }
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

    /// Appends the reply as it goes on the wire.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        use std::io::Write;
        let last = self.lines.len() - 1;
        for (at, line) in self.lines.iter().enumerate() {
            let separator = if at == last { ' ' } else { '-' };
            // Writing to a Vec cannot fail.
            let _ = write!(out, "{}{separator}", self.code());
            if let Some((subject, detail)) = self.enhanced {
                let _ = write!(out, "{}.{subject}.{detail} ", self.class as u16);
            }
            // A line break in a text (an echo of something received) must not become a line break of the protocol.
            out.extend(
                line.bytes()
                    .map(|b| if b < b' ' || b == 127 { b'?' } else { b }),
            );
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// As logged: one line, exactly the words that were sent.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.code())?;
        if let Some((subject, detail)) = self.enhanced {
            write!(f, "{}.{subject}.{detail} ", self.class as u16)?;
        }
        f.write_str(&self.lines.join(" / "))
    }
}

/// A reply of a next hop, as received and bounded; shown, logged, kept, and passed on in bounces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteReply {
    /// 200 to 599.
    pub code: u16,
    /// Enhanced status code, if the text began with one of the same class.
    pub enhanced: Option<(u16, u16, u16)>,
    /// The text without codes, lines joined by a space; at most 1000 octets, control characters replaced.
    pub text: String,
}

impl RemoteReply {
    /// The class of the code; anything outside 200 to 499 counts as permanent.
    pub fn class(&self) -> Class {
        match self.code / 100 {
            2 => Class::Positive,
            3 => Class::Intermediate,
            4 => Class::Transient,
            _ => Class::Permanent,
        }
    }
}

impl fmt::Display for RemoteReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some((class, subject, detail)) = self.enhanced {
            write!(f, " {class}.{subject}.{detail}")?;
        }
        if !self.text.is_empty() {
            write!(f, " {}", self.text)?;
        }
        Ok(())
    }
}
