//! One stored message: its record, and the changes of a record.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Cause, Lane};
use crate::incident::Subject;
use crate::message::{Envelope, MessageId, Recipient, SenderReputation};
use crate::verdict::{Decision, Report};

/// One stored message, for recipients that share its fate. A recipient that is done is removed from the envelope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The key. Equals `message` unless the message was split between groups of recipients.
    pub id: MessageId,
    /// The id of the message in the relay's 250, by which its sender knows it.
    pub message: MessageId,
    /// What the record waits for.
    pub lane: Lane,
    /// Name of the next hop of the recipients ([`Lane::Delivery`]) at the last routing; empty if unknown.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub next_hop: Arc<str>,
    /// The envelope, with the recipients that are not done.
    pub envelope: Envelope,
    /// The relay's `Received` field, made at reception.
    pub trace: Arc<str>,
    /// Size of the content in octets.
    pub size: u64,
    /// SHA-256 of the content, hexadecimal.
    pub sha256: String,
    /// Subject, for lists and search: unfolded and decoded (RFC 2047), at most 300 characters.
    pub subject: String,
    /// End of data.
    pub received_at: Timestamp,
    /// Earliest time of the next pass (Scan, Delivery); time of entry into quarantine (Held).
    pub due_at: Timestamp,
    /// Time at which the relay gives up (Delivery, Scan) or the record expires (Held).
    pub expires_at: Timestamp,
    /// Number of passes in this lane.
    pub attempts: u32,
    /// Engine time used so far, out of `budget.total`.
    #[serde(with = "crate::verdict::millis")]
    pub spent: Duration,
    /// The decision that moved the record to Delivery or Held.
    pub decision: Option<Decision>,
    /// The reports that the decision is based on.
    pub reports: Vec<Report>,
    /// Why the record is still stored, in one line: the last reply of the next hop, or the missing engine.
    pub status: String,
    /// Whether a reviewer released the record, so that policy decides no more.
    pub released: bool,
    /// Why the guard keeps the record, if the guard does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The engines, interceptors and next hops that made the message late, in order, at most four. The stories of their trouble
    /// count the message when it is delivered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub late_for: Vec<Subject>,
    /// Number of scans that timed out while the engine took other mail. After the first, the message is scanned once more, and
    /// then held.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeouts: u32,
    /// Whether an engine stopped taking mail or went away, an interceptor began to hold mail like this, or the relay ended, while
    /// the engine scanned the message: the message may be the cause, as after a timeout.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hung: bool,
    /// The sender's reputation at reception, where known: recovery takes mail of known senders first. Records of earlier
    /// versions call this `standing`.
    #[serde(default, alias = "standing", skip_serializing_if = "Option::is_none")]
    pub reputation: Option<SenderReputation>,
    /// The kind of notification, if this relay wrote the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification: Option<Notification>,
    /// The original recipients, if a reviewer released the record to others. They are the recipients again if the record
    /// returns to quarantine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instead_of: Vec<Recipient>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// The kind of a message that this relay wrote itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Notification {
    /// A report of success. The relay may drop it without harm to any sender.
    Report,
    /// A bounce: the end of a message that was answered 250. [`Extent`] says how much of the bounce is sent.
    Bounce(Extent),
}

/// How much of a bounce is sent. Each time that a next hop refuses the form, the relay sends less. The whole bounce stays
/// stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extent {
    /// The whole bounce.
    Whole,
    /// At most the header section of the returned message, in ASCII.
    Headers,
    /// Nothing of the returned message, only the parts for people and for programs, in ASCII.
    Bare,
}

/// A change of one record. The store applies it atomically with the audit entry; it is durable when the call returns.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Replace everything except the content.
    Replace(Box<Record>),
    /// Replace everything except the content, and lease the record to its worker until this instant, so that no other worker
    /// gets it ([`Store::claim`](super::Store::claim)).
    Take(Box<Record>, Timestamp),
    /// Remove the record and its content.
    Remove,
}

impl Record {
    /// Most causes of which a record says that they made it late.
    const LATE_CAUSES_MAX: usize = 4;

    /// Notes that this cause makes the message late. Each cause is noted once.
    pub fn note_late_for(&mut self, cause: Subject) {
        if self.late_for.len() < Self::LATE_CAUSES_MAX && !self.late_for.contains(&cause) {
            self.late_for.push(cause);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::incident::Subject;
    use crate::store::Lane;
    use crate::store::contract::record;

    /// Each cause that made a message late is noted once, in order, and not without bound.
    #[test]
    fn each_cause_of_a_delay_is_noted_once() {
        let mut record = record(Lane::Scan);
        for name in ["a", "b", "a", "c", "d", "e"] {
            record.note_late_for(Subject::NextHop(name.to_owned()));
        }
        let expected = ["a", "b", "c", "d"].map(|name| Subject::NextHop(name.to_owned()));
        assert_eq!(record.late_for, expected);
    }
}
