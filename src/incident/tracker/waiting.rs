//! The mail that waits for a cause. While its trouble lasts, the story says how much waits. When the trouble is over, the mail that
//! still waits holds the story open, so that the end counts what it delayed.
//!
//! Then only mail that came before the trouble ended counts, so the number falls. Mail that waits for another reason must not hold a
//! story open for ever: the story ends all the same when the number has not fallen for
//! [`STORY_QUIET`](super::STORY_QUIET).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use ulid::Ulid;

use super::{Followed, Tracker};
use crate::incident::cause::Topic;
use crate::incident::{StoryState, Subject};

/// Mail that waits for a cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StillWaiting {
    /// The number of messages.
    pub messages: u64,
    /// Whether there are more than that: the store counts only the first ones.
    pub more: bool,
    /// The end of data of the oldest; any time if there is none.
    pub oldest: Timestamp,
}

impl StillWaiting {
    /// Whether less mail waits than at `before`.
    fn is_less_than(&self, before: &Self) -> bool {
        self.messages < before.messages || self.oldest > before.oldest
    }
}

/// An open story for whose cause mail may wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitedFor {
    /// The story.
    pub story: Ulid,
    /// Its cause.
    pub cause: Subject,
    /// The interceptors that the learner made because of the cause: mail that waits for them waits for the cause.
    pub interceptors: Vec<String>,
    /// Only mail that arrived before waits for the trouble of the story; none while the trouble lasts.
    pub before: Option<Timestamp>,
}

impl Tracker {
    /// The open stories for whose cause mail may wait, the oldest first.
    pub fn waited_for(&self) -> Vec<WaitedFor> {
        let is_waited_for = |f: &&Followed| f.is_open() && f.state.topic == Topic::Trouble;
        let waited_for = |followed: &Followed| {
            let state = &followed.state;
            let ended = state.waiting.map_or(state.last, |waiting| waiting.since);
            WaitedFor {
                story: state.story.id,
                cause: state.story.cause.clone(),
                interceptors: state.interceptors.iter().cloned().collect(),
                before: state.conditions.is_empty().then_some(ended),
            }
        };
        let stories = self.stories.iter().filter(is_waited_for);
        stories.map(waited_for).collect()
    }

    /// Takes note of how much mail waits for the cause of a [story](Self::waited_for).
    pub fn waits(&mut self, now: Instant, at: Timestamp, of: &WaitedFor, mail: StillWaiting) {
        let mut stories = self.stories.iter_mut();
        let Some(followed) = stories.find(|f| f.state.story.id == of.story) else {
            return;
        };
        let is_over = followed.state.conditions.is_empty();
        if !followed.is_open()
            || is_over != of.before.is_some()
            || mail.messages == 0 && followed.state.waiting.is_none()
        {
            return;
        }
        let is_less = is_over && followed.least.is_none_or(|least| mail.is_less_than(&least));
        if is_less {
            followed.least = Some(mail);
            followed.last = now;
            followed.state.last = followed.state.last.max(at);
        }
        let waiting = Some(WaitingMail {
            since: of.before.unwrap_or(at),
            messages: mail.messages,
            more: mail.more,
        });
        followed.is_changed |= is_less || followed.state.waiting != waiting;
        followed.state.waiting = waiting;
    }
}

impl Followed {
    /// Forgets how much waited during the trouble, if the trouble is over now: from here on only mail from before counts.
    pub(super) fn settles(&mut self) {
        if self.state.conditions.is_empty() {
            (self.state.waiting, self.least) = (None, None);
        }
    }
}

/// What the log keeps of the mail that waits for the cause of a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingMail {
    /// The end of the trouble: mail that arrived later does not count. While the trouble lasts, the last look.
    pub since: Timestamp,
    /// The number of messages at the last look; 0 if all that waited has gone on.
    pub messages: u64,
    /// Whether there are more than that.
    pub more: bool,
}

impl WaitingMail {
    fn verb(&self) -> &'static str {
        match self.messages {
            1 => "waits",
            _ => "wait",
        }
    }

    /// The number and its noun: `1 message`, `10000 or more messages`.
    fn text(&self) -> String {
        match (self.messages, self.more) {
            (n, true) => format!("{n} or more messages"),
            (1, false) => "1 message".to_owned(),
            (n, false) => format!("{n} messages"),
        }
    }
}

impl StoryState {
    /// What lasts, in words; empty if all that is missing is some quiet time.
    pub fn lasts(&self) -> Vec<String> {
        let mut lasts: Vec<String> = self.conditions.iter().map(ToString::to_string).collect();
        if let Some(waiting) = self.waiting.filter(|_| self.is_waited_for()) {
            let who = match &self.story.cause {
                Subject::Engine { .. } => "the engine is well",
                Subject::NextHop(_) => "the next hop is well",
                _ => "the trouble is over",
            };
            lasts.push(format!(
                "{who}, but {} still {}",
                waiting.text(),
                waiting.verb()
            ));
        }
        lasts
    }

    /// How much mail waits for the cause of an open story, in words: `258 messages wait`; none if none was seen to wait.
    pub fn waits(&self) -> Option<String> {
        let waiting = self.waiting.filter(|waiting| waiting.messages > 0)?;
        let is_open = self.story.ended.is_none();
        is_open.then(|| format!("{} {}", waiting.text(), waiting.verb()))
    }

    /// Whether mail waits for the cause although its trouble is over.
    pub(super) fn is_waited_for(&self) -> bool {
        let waits = self.waiting.is_some_and(|waiting| waiting.messages > 0);
        waits && self.conditions.is_empty() && self.story.ended.is_none()
    }

    /// What became of the mail that waited at the end of the story, to follow the words of what ended it.
    pub(super) fn rest(&self) -> String {
        match self.waiting {
            None => String::new(),
            Some(waiting) if waiting.messages == 0 => {
                "; then the mail that waited for it went on".to_owned()
            }
            Some(waiting) => format!(
                "; {} of that time wait on, for another reason (spillway queue list)",
                waiting.text()
            ),
        }
    }
}
