//! Stored mail that waits for too long, counted by what it waits for.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Cause, Lane, Record};
use crate::message::MessageId;
use crate::verdict::Reason;

/// Mail that has waited longer is late: 60 s. Mail that nothing holds up takes seconds, and a user begins to ask for a mail after
/// about a minute. The time does not depend on what is usual here: whoever is used to an hour's delay has late mail.
pub const LATE_AFTER: Duration = Duration::from_secs(60);

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
    /// Whether their senders still wait for the reply: then no message is stored, and all are in work.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_session: bool,
    /// How the engine of the cause fails on these messages, told of the oldest of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing: Option<Failing>,
    /// One of the messages, mostly the oldest, for commands that a person may copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub example: Option<MessageId>,
    /// The earliest time of the next try, if none of the messages is due; none for messages with a cause, which do not wait for
    /// their time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<Timestamp>,
    /// The number of messages, at most [`LATE_COUNTED_MAX`]; of those on which an engine fails, at most as many as are read.
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

/// How an engine fails on a message each time that it is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    /// The number of tries; 0 if it is not known, for mail in quarantine.
    pub tries: u32,
    /// Why the last of them gave no answer.
    pub reason: Reason,
    /// The error of the last one, in the words of the engine or of the relay; cut. Untrusted.
    pub said: String,
    /// When the message goes to quarantine for it; none if it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_at: Option<Timestamp>,
}

impl Failing {
    /// Fewer tries may be those of an outage that is just over: 3, after 15 s.
    const TRIES_MIN: u32 = 3;
    /// Longest error that is shown: a line for people.
    const SAID_CHARACTERS_MAX: usize = 120;

    /// How the engine for which a record is kept fails on it; none if it was not asked at the last try, and while it may be an
    /// accident. The engine may take no mail at all by now.
    pub fn of(record: &Record) -> Option<Self> {
        let Some(Cause::Engine(engine)) = &record.cause else {
            return None;
        };
        let mut reports = record.reports.iter();
        let report = reports.find(|report| *report.engine == **engine)?;
        let (reason, said) = report.missing().zip(report.detail())?;
        let was_asked = matches!(
            reason,
            Reason::Unreachable
                | Reason::Disconnected
                | Reason::Garbage
                | Reason::EngineError
                | Reason::Panicked
        );
        let ran_out = |rule: &str| rule.starts_with("budget.");
        let decision = record.decision.as_ref();
        let tries = match record.lane {
            Lane::Scan => record.attempts,
            _ => 0,
        };
        let is_again = match record.lane {
            Lane::Scan => tries >= Self::TRIES_MIN,
            Lane::Held => decision.is_some_and(|decision| ran_out(&decision.rule)),
            Lane::Delivery | Lane::Rescan => false,
        };
        (was_asked && is_again).then(|| Self {
            tries,
            reason,
            said: said.chars().take(Self::SAID_CHARACTERS_MAX).collect(),
            held_at: (record.lane == Lane::Scan).then_some(record.expires_at),
        })
    }

    /// The number of tries and the error: `7 tries, engine-error: Can't allocate memory`.
    pub fn words(&self) -> String {
        let tries = match self.tries {
            0 => String::new(),
            tries => format!("{tries} tries, "),
        };
        let reason = self.reason.as_str();
        match &*self.said {
            "" => format!("{tries}{reason}"),
            said => format!("{tries}{reason}: {said}"),
        }
    }
}
