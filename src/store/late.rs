//! Stored mail that waits for too long, counted by what it waits for.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Cause, Lane};

/// Most messages that are counted of one kind: more are "10,000 or more", because a status must not read a million rows.
pub const LATE_COUNTED_MAX: u64 = 10_000;

/// Stored messages that wait for the same thing and arrived before a given time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateMail {
    /// [`Lane::Scan`] or [`Lane::Delivery`]; [`Lane::Held`] for mail that is held because an engine did not answer, which is
    /// scanned again once the engine is back.
    pub lane: Lane,
    /// The next hop of mail in [`Lane::Delivery`]; empty if no next hop takes the domain.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub next_hop: Arc<str>,
    /// The cause for which the guard keeps the messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// Whether workers have these messages now: those of a next hop only if they have all of its mail.
    pub in_work: bool,
    /// The earliest time of the next try, if none of the messages is due; none for messages with a cause, which do not wait for
    /// their time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<Timestamp>,
    /// The number of messages, at most [`LATE_COUNTED_MAX`].
    pub messages: u64,
    /// Whether there are more than that.
    pub more: bool,
    /// The end of data of the oldest.
    pub oldest: Timestamp,
}

/// Which mail is late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LateTimes {
    /// The present.
    pub now: Timestamp,
    /// Mail that arrived before is late.
    pub before: Timestamp,
}
