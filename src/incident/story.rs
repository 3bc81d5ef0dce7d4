//! Stories: the incidents of one cause, from the first sign of trouble to its end, and the mail that the cause touched
//! (docs/GLOSSARY.md, "story").

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::{Kind, Subject};
use crate::verdict::millis;

/// The incidents of one cause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Story {
    /// The id, which each incident of the story names.
    pub id: Ulid,
    /// The engine, next hop or part of the relay whose trouble the story tells.
    pub cause: Subject,
    /// The kind of the incident that says most about the cause.
    pub kind: Kind,
    /// One line for people. The line may quote mail, so output escapes it.
    pub title: String,
    /// The time of the first incident.
    pub began: Timestamp,
    /// The end of the trouble and of the recovery from it; none while it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// The mail that the cause has touched so far.
    pub touched: Touched,
}

/// The number of messages that one cause touched, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// Messages that were delivered later because of the cause.
    pub delayed: u64,
    /// How much later, at the median.
    #[serde(with = "millis")]
    pub delay_median: Duration,
    /// How much later, at the 99th percentile.
    #[serde(with = "millis")]
    pub delay_p99: Duration,
    /// How much later, at most.
    #[serde(with = "millis")]
    pub delay_max: Duration,
    /// Messages that went to quarantine.
    pub held: u64,
    /// Messages that were delivered without the engine.
    pub passed: u64,
    /// Messages and recipients that the relay refused because of the cause; their senders keep the mail.
    pub refused: u64,
}

/// The part of a story that a notification is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoryPhase {
    /// The trouble has begun.
    Begin,
    /// The trouble and the recovery from it have ended.
    End,
}

/// A receiver of the beginnings and ends of stories. The default is none.
pub trait StoryListener: Send + Sync {
    /// A story has begun or ended. Called once for each phase of a story, in the order of the phases, from the thread that
    /// recorded the incident: must not wait. A story that goes on after its end within the quiet time has a second beginning
    /// and a second end, under the same id.
    ///
    /// At the beginning, `story.kind` is the kind of the first incident, and `story.touched` counts nothing yet.
    fn story(&self, phase: StoryPhase, story: &Story);
}
