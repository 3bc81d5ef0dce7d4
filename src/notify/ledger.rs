//! What one way has told, and what it has to tell. No clock and no socket: the present is an argument.
//!
//! The receiver's belief decides: a beginning is due while the receiver believes that all is well, or knows of other trouble
//! with the same cause, and an end while the receiver believes that the trouble lasts. So nothing is told twice, and each end
//! has had its beginning.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use ulid::Ulid;

use super::Settings;
use crate::incident::{Kind, Story, StoryPhase};

/// Most stories that a way keeps. The oldest is dropped for a new one.
pub(super) const STORIES_MAX: usize = 200;
/// Most stories that a summary names; the others are a number.
pub(super) const STORIES_NAMED_MAX: usize = 10;
/// The time that `max_per_hour` counts.
const LIMIT_WINDOW: Duration = Duration::from_secs(3600);

/// What is told of a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The trouble has begun.
    Begin,
    /// The trouble that the receiver knows has become another, worse one.
    Worse,
    /// The trouble has ended.
    End,
}

/// One story of the ledger.
#[derive(Debug)]
struct Entry {
    story: Story,
    /// The kind of the trouble that the receiver knows of; none if the receiver believes that all is well.
    told: Option<Kind>,
    /// What the receiver will know when what is being told now has been told.
    under_way: Option<Option<Kind>>,
    /// What is to be told, and when.
    pending: Option<(StoryPhase, Instant)>,
}

impl Entry {
    fn belief(&self) -> Option<Kind> {
        self.under_way.unwrap_or(self.told)
    }
}

/// What a way does next.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Tell this now.
    Tell(Batch),
    /// Nothing before this instant.
    At(Instant),
    /// Nothing.
    Idle,
}

/// What one notification tells: one story, or a summary of several.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Batch {
    /// The stories, the longest due first.
    pub(super) stories: Vec<(Part, Story)>,
    /// Stories that began and ended before the way could tell them.
    pub(super) missed: u64,
}

/// The ledger of one way.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: VecDeque<Entry>,
    /// When the notifications of the last hour were sent.
    sent: VecDeque<Instant>,
    /// Whether something due waits because of the limit of an hour.
    is_limited: bool,
    missed: u64,
}

impl Ledger {
    /// Takes up the beginning or the end of a story. Returns how many stories were dropped for it.
    pub(super) fn note(
        &mut self,
        phase: StoryPhase,
        story: &Story,
        settings: &Settings,
        now: Instant,
    ) -> u64 {
        let Some(at) = self.entries.iter().position(|one| one.story.id == story.id) else {
            return match phase {
                StoryPhase::Begin if settings.wants(story) => self.open(story, settings, now),
                // Among others, the end of a story whose beginning was not told.
                StoryPhase::Begin | StoryPhase::End => 0,
            };
        };
        let entry = &mut self.entries[at];
        entry.story = story.clone();
        let belief = entry.belief();
        let truth = match phase {
            StoryPhase::End => None,
            StoryPhase::Begin if settings.wants_kind(story.kind) => Some(story.kind),
            // The trouble lasts, but its present kind is not told.
            StoryPhase::Begin => belief,
        };
        let before = entry.pending.take();
        if belief == truth {
            if belief.is_none() && entry.under_way.is_none() {
                // Untold from beginning to end. If it was not due yet, it was too short to be told.
                self.missed += u64::from(before.is_some_and(|(_, due)| due <= now));
                self.entries.remove(at);
            }
        } else if phase == StoryPhase::Begin && !settings.begin {
            entry.told = truth;
        } else if phase == StoryPhase::End && !settings.end {
            self.entries.remove(at);
        } else {
            let same = before.filter(|(pending, _)| *pending == phase);
            entry.pending = same.or_else(|| Some((phase, now + wait(phase, settings))));
        }
        0
    }

    /// Takes up a story whose beginning another process has told.
    pub(super) fn resume(&mut self, story: &Story, settings: &Settings) {
        if settings.wants(story) {
            self.push(story, Some(story.kind), None);
        }
    }

    fn open(&mut self, story: &Story, settings: &Settings, now: Instant) -> u64 {
        let due = now + wait(StoryPhase::Begin, settings);
        let pending = settings.begin.then_some((StoryPhase::Begin, due));
        let told = (!settings.begin).then_some(story.kind);
        self.push(story, told, pending)
    }

    /// Adds a story. Returns how many were dropped for it.
    fn push(
        &mut self,
        story: &Story,
        told: Option<Kind>,
        pending: Option<(StoryPhase, Instant)>,
    ) -> u64 {
        self.entries.push_back(Entry {
            story: story.clone(),
            told,
            under_way: None,
            pending,
        });
        if self.entries.len() <= STORIES_MAX {
            return 0;
        }
        let mut entries = self.entries.iter();
        let oldest = entries.position(|entry| entry.under_way.is_none());
        oldest.map_or(0, |at| {
            self.entries.remove(at);
            1
        })
    }

    /// Decides what to do next. At the end of the way (`is_ending`) everything is due, in one notification.
    pub(super) fn next(&mut self, settings: &Settings, now: Instant, is_ending: bool) -> Next {
        let due = |entry: &Entry| {
            let pending = entry.pending.filter(|_| entry.under_way.is_none());
            pending.map(|(_, due)| due)
        };
        let Some(first) = self.entries.iter().filter_map(due).min() else {
            return Next::Idle;
        };
        if first > now && !is_ending {
            return Next::At(first);
        }
        while let Some(sent) = self.sent.front().copied()
            && now.duration_since(sent) >= LIMIT_WINDOW
        {
            self.sent.pop_front();
        }
        if self.sent.len() >= settings.max_per_hour {
            let frees = self.sent.front().copied().unwrap_or(now) + LIMIT_WINDOW;
            self.is_limited = true;
            return if is_ending {
                Next::Idle
            } else {
                Next::At(frees)
            };
        }
        let is_whole = std::mem::take(&mut self.is_limited) || is_ending;
        let mut chosen: Vec<(Instant, Ulid)> = self
            .entries
            .iter()
            .filter_map(|entry| Some((due(entry)?, entry.story.id)))
            .filter(|(due, _)| *due <= now || is_ending)
            .collect();
        chosen.sort();
        chosen.truncate(if is_whole { usize::MAX } else { 1 });
        self.sent.push_back(now);
        Next::Tell(self.take(&chosen))
    }

    /// Marks these stories as under way.
    fn take(&mut self, chosen: &[(Instant, Ulid)]) -> Batch {
        let mut stories = Vec::with_capacity(chosen.len());
        for (_, id) in chosen {
            let entry = self.entries.iter_mut().find(|entry| entry.story.id == *id);
            if let Some(entry) = entry
                && let Some((phase, _)) = entry.pending.take()
            {
                let (part, belief) = match (phase, entry.told) {
                    (StoryPhase::End, _) => (Part::End, None),
                    (StoryPhase::Begin, None) => (Part::Begin, Some(entry.story.kind)),
                    (StoryPhase::Begin, Some(_)) => (Part::Worse, Some(entry.story.kind)),
                };
                entry.under_way = Some(belief);
                stories.push((part, entry.story.clone()));
            }
        }
        Batch {
            stories,
            missed: self.missed,
        }
    }

    /// The batch was told, or was given up.
    pub(super) fn settle(&mut self, batch: &Batch, is_told: bool) {
        if is_told {
            self.missed -= batch.missed.min(self.missed);
        }
        for (part, story) in &batch.stories {
            let Some(at) = self.entries.iter().position(|one| one.story.id == story.id) else {
                continue;
            };
            let entry = &mut self.entries[at];
            entry.under_way = None;
            entry.told = match (part, is_told) {
                (Part::Begin | Part::Worse, true) => Some(story.kind),
                (Part::Worse, false) => entry.told,
                (Part::Begin, false) | (Part::End, _) => None,
            };
            let begins = matches!(entry.pending, Some((StoryPhase::Begin, _)));
            // Among others, the end of a story whose beginning could not be told.
            if entry.told.is_none() && !begins {
                self.entries.remove(at);
            }
        }
    }

    /// The stories of which something is still to be told.
    pub(super) fn open_ends(&self) -> usize {
        let is_open = |entry: &&Entry| entry.pending.is_some() || entry.under_way.is_some();
        self.entries.iter().filter(is_open).count()
    }
}

fn wait(phase: StoryPhase, settings: &Settings) -> Duration {
    match phase {
        StoryPhase::Begin => settings.begin_after,
        StoryPhase::End => settings.end_after,
    }
}
