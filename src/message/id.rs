//! The id of one message, from end of data to its last trace.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A ULID of 26 characters, sortable by time of reception. Every reply, log line and header about the message contains it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageId(ulid::Ulid);

impl MessageId {
    /// Number of characters of an id as text.
    pub const LENGTH: usize = ulid::ULID_LEN;

    /// A new id, unique on all relays (80 random bits within the same millisecond).
    pub fn new() -> Self {
        Self(ulid::Ulid::generate())
    }

    /// When the id was created, to the millisecond; the epoch if the id has a time outside of this calendar.
    pub fn received_at(&self) -> jiff::Timestamp {
        let milliseconds = i64::try_from(self.0.timestamp_ms()).unwrap_or_default();
        jiff::Timestamp::from_millisecond(milliseconds).unwrap_or_default()
    }
}

impl Default for MessageId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is not 26 characters of Crockford's base 32.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a message id (26 letters and digits, as printed in the reply and in the log)"
)]
pub struct NotAnId(String);

impl FromStr for MessageId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        ulid::Ulid::from_string(text.trim())
            .map(Self)
            .map_err(|_| NotAnId(text.chars().take(40).collect()))
    }
}
