//! Claims: which records a worker gets, in which order, and until when.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::Record;
use crate::message::{MessageId, SenderReputation};

/// Which times are due, and how long leases last. The clock may have been set back since a time was stored; no record waits
/// longer because of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// The present: a record that is due by then is due, and a lease that ends by then has ended.
    pub now: Timestamp,
    /// The end of the longest wait that could begin now. A later due time comes from a clock that was set back, so it is due.
    pub latest: Timestamp,
    /// The end of a lease that begins now. A lease that ends later comes from a clock that was set back, so it has ended.
    pub until: Timestamp,
}

impl Times {
    /// Times from `now` on: leases last for `lease`, and no wait is longer than `longest`.
    pub fn from(now: Timestamp, lease: Duration, longest: Duration) -> Self {
        let after = |span| now.checked_add(span).unwrap_or(Timestamp::MAX);
        Self {
            now,
            latest: after(longest),
            until: after(lease),
        }
    }

    /// Whether a record with this due time is due.
    pub fn is_due(&self, at: Timestamp) -> bool {
        at <= self.now || at > self.latest
    }

    /// Whether a lease with this end is in force.
    pub fn is_leased(&self, until: Timestamp) -> bool {
        until > self.now && until <= self.until
    }
}

/// Which records of [`Lane::Delivery`](super::Lane::Delivery) to claim: those to deliver, or those to give up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// Records that are due for this next hop ([`Record::next_hop`]), the oldest due first.
    To(Arc<str>),
    /// Records whose [`Record::expires_at`] is not after this instant, due or not, the longest expired first.
    GivenUp(Timestamp),
}

/// The mail of [`Lane::Delivery`](super::Lane::Delivery) for one next hop that is not leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// [`Record::next_hop`].
    pub next_hop: Arc<str>,
    /// The earliest due time.
    pub first: Timestamp,
    /// The latest due time.
    pub last: Timestamp,
}

/// The position of a record in the order in which [`Store::recover`](super::Store::recover) returns records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweepPosition {
    /// Whether the sender is known.
    pub known: bool,
    /// [`Record::received_at`].
    pub received_at: Timestamp,
    /// [`Record::id`].
    pub id: MessageId,
}

impl SweepPosition {
    /// The position of a record.
    pub fn of(record: &Record) -> Self {
        Self {
            known: record.reputation == Some(SenderReputation::Known),
            received_at: record.received_at,
            id: record.id,
        }
    }
}
