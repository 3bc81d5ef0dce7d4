//! The mail that causes have touched: which story counts it, and which messages the log gets.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use ulid::Ulid;

use super::{Followed, Tracker};
use crate::incident::cause::{Condition, Topic};
use crate::incident::{Subject, Touch, TouchOutcome};

/// Most messages that the log keeps of one story; later ones are only counted.
const STORY_MESSAGES_MAX: u32 = 20_000;
/// Most messages of all stories that wait for the log, which takes them about once a second; further ones are only counted.
pub(super) const UNWRITTEN_MAX: usize = 4096;
/// How long touched mail waits for the incident that begins its story: 60 s, longer than a breaker needs to open.
pub(super) const UNCLAIMED_TIME: Duration = Duration::from_secs(60);
/// Most touched messages that wait so.
pub(super) const UNCLAIMED_MAX: usize = 1024;

impl Tracker {
    /// Counts a message that this cause touched, and remembers it for the log if that has room. Returns the story.
    pub fn touch(
        &mut self,
        now: Instant,
        cause: Subject,
        touch: Touch,
        has_room: bool,
    ) -> Option<Ulid> {
        let cause = match &cause {
            Subject::Interceptor(id) => match self.learned_for(id) {
                Some(name) => Subject::engine(name),
                None => cause,
            },
            _ => cause,
        };
        let topic = match touch.outcome {
            TouchOutcome::Found => Topic::Finding,
            _ => Topic::Trouble,
        };
        match self.counts((&cause, topic), touch.received) {
            Some(index) => self.add(index, touch, has_room),
            None => {
                if self.unclaimed.len() >= UNCLAIMED_MAX {
                    self.unclaimed.pop_front();
                }
                self.unclaimed.push_back((now, cause, touch));
                None
            }
        }
    }

    /// The story that counts a message: the first one that had not ended when the message arrived made it late.
    fn counts(&self, (cause, topic): (&Subject, Topic), received: Timestamp) -> Option<usize> {
        let lasted = |f: &Followed| f.state.story.ended.is_none_or(|ended| ended >= received);
        let mut stories = self.stories.iter();
        stories.position(|f| f.is_of(cause, topic) && lasted(f))
    }

    fn add(&mut self, index: usize, touch: Touch, has_room: bool) -> Option<Ulid> {
        let followed = self.stories.get_mut(index)?;
        followed.is_changed = true;
        let rows_max = match has_room && self.unwritten < UNWRITTEN_MAX {
            true => STORY_MESSAGES_MAX,
            false => 0,
        };
        if followed.state.touch(&touch, rows_max) {
            followed.messages.push(touch);
            self.unwritten += 1;
        }
        Some(followed.state.story.id)
    }

    /// Counts the messages that a new story has touched before its first incident.
    pub(super) fn claim(&mut self, now: Instant, index: usize, cause: &Subject) {
        let mut claimed = Vec::new();
        self.unclaimed.retain(|(at, of, touch)| {
            let is_young = now.saturating_duration_since(*at) < UNCLAIMED_TIME;
            let is_claimed = is_young && of == cause;
            if is_claimed {
                claimed.push(touch.clone());
            }
            is_young && !is_claimed
        });
        for touch in claimed {
            self.add(index, touch, true);
        }
    }

    /// Counts refusals, about which nothing else is known, for the story with this condition.
    pub fn refused(&mut self, condition: &Condition, count: u64) {
        let has = |f: &&mut Followed| f.is_open() && f.state.conditions.contains(condition);
        if let Some(followed) = self.stories.iter_mut().rev().find(has) {
            followed.state.story.touched.refused += count;
            followed.is_changed = true;
        }
    }
}
