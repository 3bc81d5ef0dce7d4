//! Stories: the incidents of one cause, from the first sign of trouble to its end, and the mail that the cause touched
//! (docs/GLOSSARY.md, "story").

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::cause::{Condition, Topic, cause_of};
use super::{Incident, Kind, Subject, WaitingMail};
use crate::measure::Latencies;
use crate::message::MessageId;
use crate::verdict::millis;

/// Longest title, in characters: a line that fits into a mail's subject and a chat message.
const TITLE_CHARACTERS_MAX: usize = 300;
/// Most interceptors that one story remembers, to know that the mail that they hold belongs to it.
const STORY_INTERCEPTORS_MAX: usize = 256;

/// The incidents of one cause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Story {
    /// The id, which each incident of the story names: that of its first incident.
    pub id: Ulid,
    /// The engine, next hop or part of the relay whose trouble the story tells.
    pub cause: Subject,
    /// The kind of the incident that says most about the cause.
    pub kind: Kind,
    /// One line for people. The line may quote mail, so output escapes it.
    pub title: String,
    /// The time of the first incident.
    pub began: Timestamp,
    /// The time at which the trouble came back last after the story had ended; none if it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<Timestamp>,
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
    /// Messages in which something was found after they had been delivered.
    #[serde(default)]
    pub found: u64,
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

impl StoryPhase {
    /// The word in the log and in notifications.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::End => "end",
        }
    }
}

/// A receiver of the beginnings and ends of stories. The default is none.
pub trait StoryListener: Send + Sync {
    /// A story has begun or ended. Must not wait: it is called where the incident is recorded, in the order of the events.
    ///
    /// [`StoryPhase::Begin`] comes when `story.kind` is first worth a person's attention (a single strike is not), and again
    /// when the story gets worse, that is, when its kind changes; and when trouble comes back within ten minutes after the end.
    /// [`StoryPhase::End`] comes once after each beginning, or each run of them. `story.touched` counts the mail up to then.
    fn story(&self, phase: StoryPhase, story: &Story);
}

/// What the cause of a story did to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TouchOutcome {
    /// The message was delivered later than without the cause.
    Delayed,
    /// The message went to quarantine.
    Held,
    /// The message was delivered without the engine.
    Passed,
    /// Something was found in the message after it had been delivered.
    Found,
    /// The message was refused; its sender keeps it.
    Refused,
}

impl TouchOutcome {
    /// All outcomes, in the order of the output.
    pub const ALL: [Self; 5] = [
        Self::Delayed,
        Self::Held,
        Self::Passed,
        Self::Found,
        Self::Refused,
    ];

    /// The word in output and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delayed => "delayed",
            Self::Held => "held",
            Self::Passed => "passed",
            Self::Found => "found",
            Self::Refused => "refused",
        }
    }
}

/// One message that a cause touched. A message whose recipients went different ways comes once for each way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// The message.
    pub message: MessageId,
    /// What became of it.
    pub outcome: TouchOutcome,
    /// The time of this outcome.
    pub at: Timestamp,
    /// The end of data.
    pub received: Timestamp,
    /// From the end of data to the delivery, for [`TouchOutcome::Delayed`]; else 0.
    #[serde(with = "millis")]
    pub delay: Duration,
    /// The sender. Untrusted.
    pub sender: String,
    /// The first recipients. Untrusted.
    pub recipients: Vec<String>,
    /// The number of all recipients.
    pub recipients_total: u64,
    /// The subject. Untrusted.
    pub subject: String,
}

/// How often a kind of incident happened in a story.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindCount {
    /// The kind.
    pub kind: Kind,
    /// The number of incidents, also of those that are not in the log.
    pub count: u64,
    /// The time of the first one.
    pub first: Timestamp,
    /// The time of the last one.
    pub last: Timestamp,
}

/// A story with all that is needed to go on with it: what the log keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoryState {
    /// The story.
    pub story: Story,
    /// Which trouble of the cause the story is about.
    pub topic: Topic,
    /// The incident that says most about the cause.
    pub main: Ulid,
    /// The time of the last incident, or of the end of the last condition.
    pub last: Timestamp,
    /// The incidents by kind, in the order of their first ones.
    pub kinds: Vec<KindCount>,
    /// The conditions that last; the story cannot end before they do.
    pub conditions: BTreeSet<Condition>,
    /// Whether there was a condition. If not, the story ends when nothing has happened for a while.
    pub lasted: bool,
    /// The mail that still waits for the cause after the last condition has ended; none if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<WaitingMail>,
    /// The interceptors that the learner made because of the cause.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub interceptors: BTreeSet<String>,
    /// What ended the story, in one line; empty while it lasts.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ended_by: String,
    /// The last event that ended a condition, in one line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub relief: String,
    /// The delays of the messages that were delivered later.
    pub delays: Latencies,
    /// The kind with which a listener was told of the beginning; none if the next beginning is to be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<Kind>,
    /// The number of messages in the log; further ones are only counted.
    pub rows: u32,
}

impl StoryState {
    /// A story that begins with this incident.
    pub(super) fn begin(incident: &Incident, cause: Subject, topic: Topic) -> Self {
        Self {
            story: Story {
                id: incident.id,
                cause,
                kind: incident.kind,
                title: title(incident),
                began: incident.at,
                back: None,
                ended: None,
                touched: Touched::default(),
            },
            topic,
            main: incident.id,
            last: incident.at,
            kinds: Vec::new(),
            conditions: BTreeSet::new(),
            lasted: false,
            waiting: None,
            interceptors: BTreeSet::new(),
            ended_by: String::new(),
            relief: String::new(),
            delays: Latencies::default(),
            told: None,
            rows: 0,
        }
    }

    /// The story of an incident of an earlier version, which belongs to none.
    pub fn of_one(incident: &Incident) -> Self {
        let (cause, topic) = cause_of(incident, |_| None);
        let mut state = Self::begin(incident, cause, topic);
        state.count(incident);
        state.story.ended = Some(incident.at);
        state
    }

    /// Counts an incident, and takes its kind and words as those of the story if it says more about the cause than all before.
    /// Returns how many incidents of this kind there were before.
    pub(super) fn count(&mut self, incident: &Incident) -> u64 {
        self.last = self.last.max(incident.at);
        if incident.kind.weight() > self.story.kind.weight() {
            self.story.kind = incident.kind;
            self.story.title = title(incident);
            self.main = incident.id;
        }
        let at = incident.at;
        let known = self.kinds.iter_mut().find(|k| k.kind == incident.kind);
        let Some(known) = known else {
            self.kinds.push(KindCount {
                kind: incident.kind,
                count: 1,
                first: at,
                last: at,
            });
            return 0;
        };
        known.count += 1;
        known.last = known.last.max(at);
        known.count - 1
    }

    /// Counts a message. `false` if the log has enough messages of this story.
    pub(super) fn touch(&mut self, touch: &Touch, rows_max: u32) -> bool {
        let touched = &mut self.story.touched;
        match touch.outcome {
            TouchOutcome::Delayed => {
                touched.delayed += 1;
                touched.delay_max = touched.delay_max.max(touch.delay);
                self.delays.add(touch.delay);
            }
            TouchOutcome::Held => touched.held += 1,
            TouchOutcome::Passed => touched.passed += 1,
            TouchOutcome::Found => touched.found += 1,
            TouchOutcome::Refused => touched.refused += 1,
        }
        let is_kept = self.rows < rows_max;
        self.rows += u32::from(is_kept);
        is_kept
    }

    /// Computes the percentiles of the delays.
    pub(super) fn measure(&mut self) {
        let touched = &mut self.story.touched;
        let within = |share| self.delays.within(share).unwrap_or_default();
        // A percentile may be a step too long, the maximum is exact.
        touched.delay_median = within(0.5).min(touched.delay_max);
        touched.delay_p99 = within(0.99).min(touched.delay_max);
    }

    /// Remembers an interceptor.
    pub(super) fn intercepts(&mut self, id: &str) {
        if self.interceptors.len() < STORY_INTERCEPTORS_MAX {
            self.interceptors.insert(id.to_owned());
        }
    }

    /// The number of all incidents.
    pub fn incidents(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.count).sum()
    }
}

fn title(incident: &Incident) -> String {
    incident
        .summary
        .chars()
        .take(TITLE_CHARACTERS_MAX)
        .collect()
}
