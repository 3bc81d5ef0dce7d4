//! Which incidents have one cause: a state machine that makes stories of incidents, and counts the mail that a cause touched.
//! Pure: time is an argument, and nothing here waits.
//!
//! A story begins with the first sign of trouble of its cause. It ends when all its [conditions](Condition) are over, after
//! [`STORY_SETTLE`], in which the recovery from it begins. A story of single events ends after [`STORY_QUIET`] without
//! one. Trouble that comes back within [`STORY_QUIET`] continues the story, so that flapping does not make a hundred stories.
//!
//! Mail may be touched before the first incident (the timeouts that open a breaker) and after the end (mail that waited).
//! So touched mail is remembered for [`UNCLAIMED_TIME`] until a story claims it, and a story counts mail that arrived before
//! its end for [`STORY_MEMORY`].

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use ulid::Ulid;

use super::cause::{Condition, Effect, Topic, cause_of};
use super::{Incident, Kind, Story, StoryPhase, StoryState, Subject, Touch};

/// Quiet time after which a story of single events ends, and within which trouble continues an ended story: 10 minutes.
pub const STORY_QUIET: Duration = Duration::from_secs(600);
/// Time between the end of the last condition and the end of the story: 30 s. Recovery looks for its causes each second.
const STORY_SETTLE: Duration = Duration::from_secs(30);
/// How long an ended story counts the mail that it delayed: a day.
const STORY_MEMORY: Duration = Duration::from_secs(86_400);
/// How long conditions from before a restart are believed without a new sign of them: 30 s, in which the relay looks at its
/// engines, its store and its next hops.
const RESTORED_BELIEVED: Duration = Duration::from_secs(30);
/// Most stories that are followed at once. There are fewer causes than that in a configuration.
const STORIES_MAX: usize = 1024;
/// Most incidents of one kind that the log keeps of one story; later ones are only counted.
const STORY_INCIDENTS_OF_KIND_MAX: u64 = 1000;
/// Most messages that the log keeps of one story; later ones are only counted.
const STORY_MESSAGES_MAX: u32 = 20_000;
/// How long touched mail waits for the incident that begins its story: 60 s, longer than a breaker needs to open.
const UNCLAIMED_TIME: Duration = Duration::from_secs(60);
/// Most touched messages that wait so.
const UNCLAIMED_MAX: usize = 1024;

/// A beginning or end to tell a listener of.
pub type Phase = (StoryPhase, Story);

/// A message for the log: the story, and what the story did to the message.
pub type TouchRow = (Ulid, Touch);

/// A story that is followed.
#[derive(Debug)]
struct Followed {
    state: StoryState,
    /// The time of the last incident, or of the end of the last condition.
    last: Instant,
    /// After a restart: the time of the start, and the conditions from before it that nothing has confirmed yet.
    restored: Option<(Instant, BTreeSet<Condition>)>,
    /// Whether the log has an older state.
    is_changed: bool,
}

impl Followed {
    fn is_open(&self) -> bool {
        self.state.story.ended.is_none()
    }

    fn is_of(&self, cause: &Subject, topic: Topic) -> bool {
        self.state.topic == topic && self.state.story.cause == *cause
    }

    /// Whether new trouble continues the story.
    fn goes_on(&self, now: Instant) -> bool {
        self.is_open() || now.saturating_duration_since(self.last) < STORY_QUIET
    }
}

/// The state machine.
#[derive(Debug, Default)]
pub struct Tracker {
    /// Stories in the order of their beginnings.
    stories: Vec<Followed>,
    /// Touched messages for whose cause there was no story.
    unclaimed: VecDeque<(Instant, Subject, Touch)>,
    /// Last states of stories that made room for others, for the log; at most [`STORIES_MAX`].
    forgotten: Vec<StoryState>,
}

/// The incidents.
impl Tracker {
    /// A tracker that continues these stories after a restart. Those that have ended longer than [`STORY_QUIET`] before `at`
    /// only count the mail that they delayed.
    pub fn restore(now: Instant, at: Timestamp, states: Vec<StoryState>) -> Self {
        let quiet_since = at.checked_sub(STORY_QUIET).unwrap_or(Timestamp::MIN);
        let follow = |state: StoryState| {
            let is_warm = state.story.ended.is_none_or(|ended| ended >= quiet_since);
            Followed {
                // A clock that has not run long enough cannot say how old an old story is; new ones are worth a day of memory.
                last: match is_warm {
                    true => now,
                    false => now.checked_sub(STORY_QUIET).unwrap_or(now),
                },
                restored: Some((now, state.conditions.clone())),
                is_changed: false,
                state,
            }
        };
        let mut stories: Vec<_> = states.into_iter().map(follow).collect();
        stories.sort_by_key(|followed| followed.state.story.began);
        let surplus = stories.len().saturating_sub(STORIES_MAX);
        stories.drain(..surplus);
        Self {
            stories,
            ..Self::default()
        }
    }

    /// Takes up an incident: sets its story, if it belongs to one. Returns whether the log should keep the incident, the
    /// phases to tell of, and the messages that a new story claims.
    pub fn record(
        &mut self,
        now: Instant,
        incident: &mut Incident,
    ) -> (bool, Vec<Phase>, Vec<TouchRow>) {
        let (cause, topic) = cause_of(incident, |id| self.learned_for(id));
        let is_learned = matches!(cause, Subject::Engine { .. });
        let effect = Effect::of(incident, is_learned);
        let mut phases = Vec::new();
        let Some(index) = self.story_of(now, incident.kind, (&cause, topic), &effect) else {
            // What a person diverts is no trouble, and is announced again at each start.
            let is_by_hand = matches!(cause, Subject::Interceptor(_))
                && matches!(
                    incident.kind,
                    Kind::InterceptorMade | Kind::InterceptorChanged
                );
            if is_by_hand || !incident.kind.begins_story() {
                return (true, phases, Vec::new());
            }
            let rows = self.begin(now, incident, (cause, topic), &effect, &mut phases);
            return (true, phases, rows);
        };
        let is_kept = self.take_up(now, index, incident, &effect, &mut phases);
        (is_kept, phases, Vec::new())
    }

    /// The story that the incident continues.
    fn story_of(
        &mut self,
        now: Instant,
        kind: Kind,
        (cause, topic): (&Subject, Topic),
        effect: &Effect,
    ) -> Option<usize> {
        // The end of a condition may name another subject than its beginning: the relay, where the beginning named an engine.
        if let Effect::Ends(condition) = effect {
            let has = |f: &Followed| f.state.conditions.contains(condition);
            let of_cause = |f: &Followed| f.is_of(cause, topic) || kind == Kind::AdmissionAccepts;
            let found = self.stories.iter().rposition(|f| of_cause(f) && has(f));
            if found.is_some() {
                return found;
            }
        }
        let is_it = |f: &Followed| f.is_of(cause, topic) && f.goes_on(now);
        let index = self.stories.iter().rposition(is_it)?;
        // One condition of all mail has one cause at a time: its second beginning names another one.
        if let Effect::Begins(Condition::Refusing) = effect {
            self.hand_over(now, index);
        }
        Some(index)
    }

    /// Ends the refusal of mail in all stories but this one.
    fn hand_over(&mut self, now: Instant, index: usize) {
        for (at, other) in self.stories.iter_mut().enumerate() {
            if at != index && other.state.conditions.remove(&Condition::Refusing) {
                other.last = now;
                other.is_changed = true;
            }
        }
    }

    fn begin(
        &mut self,
        now: Instant,
        incident: &mut Incident,
        (cause, topic): (Subject, Topic),
        effect: &Effect,
        phases: &mut Vec<Phase>,
    ) -> Vec<TouchRow> {
        if self.stories.len() >= STORIES_MAX {
            self.forget_one(incident.at, phases);
        }
        self.stories.push(Followed {
            state: StoryState::begin(incident, cause.clone(), topic),
            last: now,
            restored: None,
            is_changed: true,
        });
        let index = self.stories.len() - 1;
        if let Effect::Begins(Condition::Refusing) = effect {
            self.hand_over(now, index);
        }
        self.take_up(now, index, incident, effect, phases);
        if topic != Topic::Trouble {
            return Vec::new();
        }
        let mut claimed = Vec::new();
        self.unclaimed.retain(|(at, of, touch)| {
            let is_young = now.saturating_duration_since(*at) < UNCLAIMED_TIME;
            let is_claimed = is_young && *of == cause;
            if is_claimed {
                claimed.push(touch.clone());
            }
            is_young && !is_claimed
        });
        let rows = claimed
            .into_iter()
            .filter_map(|touch| self.add(index, touch));
        rows.collect()
    }

    /// Adds an incident to a story. Returns whether the log should keep it.
    fn take_up(
        &mut self,
        now: Instant,
        index: usize,
        incident: &mut Incident,
        effect: &Effect,
        phases: &mut Vec<Phase>,
    ) -> bool {
        let Some(followed) = self.stories.get_mut(index) else {
            return true;
        };
        let state = &mut followed.state;
        incident.story = Some(state.story.id);
        let before = state.count(incident);
        followed.last = now;
        followed.is_changed = true;
        match effect {
            Effect::Begins(condition) => {
                if let Some((_, unconfirmed)) = &mut followed.restored {
                    unconfirmed.remove(condition);
                }
                state.conditions.insert(condition.clone());
                state.lasted = true;
                state.story.ended = None;
                state.ended_by.clear();
                if let Condition::Intercepting(id) = condition {
                    state.intercepts(id);
                }
            }
            Effect::Ends(Condition::Drained(None)) => {
                state
                    .conditions
                    .retain(|c| !matches!(c, Condition::Drained(_)));
                state.relief.clone_from(&incident.summary);
            }
            Effect::Ends(condition) => {
                state.conditions.remove(condition);
                state.relief.clone_from(&incident.summary);
            }
            Effect::Event => {}
        }
        // A single event after the end belongs to the story, and does not begin it again.
        if let Some(ended) = &mut state.story.ended {
            *ended = (*ended).max(incident.at);
        } else {
            phases.extend(followed.begins());
        }
        before < STORY_INCIDENTS_OF_KIND_MAX
    }

    /// Makes room for a story: forgets the oldest one that has ended, else ends the oldest one.
    fn forget_one(&mut self, at: Timestamp, phases: &mut Vec<Phase>) {
        let ended = self.stories.iter().position(|f| !f.is_open());
        let mut oldest = self.stories.remove(ended.unwrap_or(0));
        if oldest.is_open() {
            oldest.state.ended_by =
                "too many causes at once: the relay lost sight of this one".into();
            phases.extend(oldest.ends(at));
        }
        if oldest.is_changed && self.forgotten.len() < STORIES_MAX {
            self.forgotten.push(oldest.state);
        }
    }

    fn learned_for(&self, interceptor: &str) -> Option<String> {
        let mut stories = self.stories.iter().rev();
        let story = stories.find(|f| f.state.interceptors.contains(interceptor))?;
        match &story.state.story.cause {
            Subject::Engine { name, .. } => Some(name.clone()),
            _ => None,
        }
    }
}

impl Followed {
    /// The beginning to tell of, if it is worth telling and was not told in these words.
    fn begins(&mut self) -> Option<Phase> {
        let kind = self.state.story.kind;
        if !kind.is_told() || self.state.told == Some(kind) {
            return None;
        }
        self.state.told = Some(kind);
        self.state.measure();
        Some((StoryPhase::Begin, self.state.story.clone()))
    }

    /// Ends the story.
    fn ends(&mut self, at: Timestamp) -> Option<Phase> {
        self.state.story.ended = Some(at);
        self.state.measure();
        self.is_changed = true;
        self.state.told.take()?;
        Some((StoryPhase::End, self.state.story.clone()))
    }
}

/// Time.
impl Tracker {
    /// Ends the stories whose time has come, and forgets old ones. `holds` says whether a condition is there now; `None` if
    /// only an incident says so. Call this about once a second while [`follows`](Self::follows) is not 0.
    pub fn tick(
        &mut self,
        now: Instant,
        at: Timestamp,
        holds: impl Fn(&Subject, &Condition) -> Option<bool>,
    ) -> Vec<Phase> {
        let mut phases = Vec::new();
        for followed in &mut self.stories {
            followed.look(now, at, &holds);
            phases.extend(followed.end_in_time(now));
        }
        phases
    }

    /// Takes the states that the log does not have yet, and forgets stories that nothing can continue.
    pub fn changed(&mut self, now: Instant) -> Vec<StoryState> {
        let mut changed = std::mem::take(&mut self.forgotten);
        self.stories.retain_mut(|followed| {
            if std::mem::take(&mut followed.is_changed) {
                followed.state.measure();
                changed.push(followed.state.clone());
            }
            followed.is_open() || now.saturating_duration_since(followed.last) < STORY_MEMORY
        });
        changed
    }

    /// Ends all stories of which nothing is known to last, because the relay stops.
    pub fn stop(&mut self) -> Vec<Phase> {
        let idle = self.stories.iter_mut();
        let idle = idle.filter(|f| f.is_open() && f.state.conditions.is_empty());
        idle.filter_map(Followed::end).collect()
    }

    /// The number of stories that are followed, open or not.
    pub fn follows(&self) -> usize {
        self.stories.len()
    }

    /// The open stories, the oldest first.
    pub fn open(&self) -> impl Iterator<Item = &StoryState> {
        let open = self.stories.iter().filter(|followed| followed.is_open());
        open.map(|followed| &followed.state)
    }
}

impl Followed {
    /// Removes the conditions that are not there any more.
    fn look(
        &mut self,
        now: Instant,
        at: Timestamp,
        holds: &impl Fn(&Subject, &Condition) -> Option<bool>,
    ) {
        let start = self.restored.as_ref().map(|(start, _)| *start);
        if start.is_some_and(|start| now.saturating_duration_since(start) < RESTORED_BELIEVED) {
            return;
        }
        let unconfirmed = self.restored.take().map(|(_, conditions)| conditions);
        let is_restored = |c: &Condition| unconfirmed.as_ref().is_some_and(|old| old.contains(c));
        let before = self.state.conditions.len();
        let cause = &self.state.story.cause;
        // After a restart, what nothing confirms is over; else only what is known to be over is.
        let lasts = |c: &Condition| holds(cause, c).unwrap_or(!is_restored(c));
        self.state.conditions.retain(lasts);
        if self.state.conditions.len() < before {
            self.last = now;
            self.state.last = self.state.last.max(at);
            self.is_changed = true;
            self.state.relief = match unconfirmed {
                Some(_) => "ended by restart: the trouble was not there any more".to_owned(),
                None => "the trouble is not there any more".to_owned(),
            };
        }
    }

    fn end_in_time(&mut self, now: Instant) -> Option<Phase> {
        let wait = match self.state.lasted {
            true => STORY_SETTLE,
            false => STORY_QUIET,
        };
        let is_over =
            self.state.conditions.is_empty() && now.saturating_duration_since(self.last) >= wait;
        if !is_over || !self.is_open() {
            return None;
        }
        self.end()
    }

    fn end(&mut self) -> Option<Phase> {
        self.state.ended_by = match self.state.relief.is_empty() {
            true => "nothing more happened".to_owned(),
            false => std::mem::take(&mut self.state.relief),
        };
        self.ends(self.state.last)
    }
}

/// The mail.
impl Tracker {
    /// Counts a message that this cause touched. Returns the row for the log.
    pub fn touch(&mut self, now: Instant, cause: Subject, touch: Touch) -> Option<TouchRow> {
        let cause = match &cause {
            Subject::Interceptor(id) => match self.learned_for(id) {
                Some(name) => Subject::engine(name),
                None => cause,
            },
            _ => cause,
        };
        // The first story that had not ended when the message arrived is the one that made it late.
        let lasted = |f: &Followed| {
            let ended = f.state.story.ended;
            ended.is_none_or(|ended| ended >= touch.received)
        };
        let found = self
            .stories
            .iter()
            .position(|f| f.is_of(&cause, Topic::Trouble) && lasted(f));
        match found {
            Some(index) => self.add(index, touch),
            None => {
                if self.unclaimed.len() >= UNCLAIMED_MAX {
                    self.unclaimed.pop_front();
                }
                self.unclaimed.push_back((now, cause, touch));
                None
            }
        }
    }

    fn add(&mut self, index: usize, touch: Touch) -> Option<TouchRow> {
        let followed = self.stories.get_mut(index)?;
        followed.is_changed = true;
        let is_kept = followed.state.touch(&touch, STORY_MESSAGES_MAX);
        is_kept.then_some((followed.state.story.id, touch))
    }

    /// Counts refusals, about which nothing else is known, for the story with this condition.
    pub fn refused(&mut self, condition: &Condition, count: u64) {
        let has = |f: &&mut Followed| f.is_open() && f.state.conditions.contains(condition);
        if let Some(followed) = self.stories.iter_mut().rev().find(has) {
            followed.state.story.touched.refused += count;
            followed.is_changed = true;
        }
    }

    /// The numbers of open stories, by [`Subject::word`] of their causes.
    pub fn open_by_word(&self) -> BTreeMap<&'static str, u64> {
        let mut open: BTreeMap<_, _> = Subject::WORDS.into_iter().map(|word| (word, 0)).collect();
        for state in self.open() {
            *open.entry(state.story.cause.word()).or_default() += 1;
        }
        open
    }
}
