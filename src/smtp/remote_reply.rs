//! The reply of a next hop, as the relay keeps and shows it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::reply::Class;

/// A reply of a next hop, with a text of limited size. The relay shows, logs and stores it, and passes it on in bounces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteReply {
    /// 200 to 599.
    pub code: u16,
    /// Enhanced status code, if the text began with a code of the same class.
    pub enhanced: Option<(u16, u16, u16)>,
    /// The text without codes, with lines joined by a space: at most 1000 octets, and control characters replaced.
    pub text: String,
}

impl RemoteReply {
    /// The class of the code. A code outside 200 to 499 counts as permanent.
    pub fn class(&self) -> Class {
        Class::of_code(self.code)
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
