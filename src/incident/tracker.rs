//! Which incidents have one cause: a state machine that makes stories of incidents, and counts the mail that a cause touched.
//! Pure: time is an argument, and nothing here waits.
//!
//! A story begins with the first sign of trouble of its cause. It ends when all its [conditions](Condition) are over, after
//! [`STORY_SETTLE`], in which the recovery from it begins, and when no mail waits for the cause any more ([`waiting`]). A story
//! of single events ends after [`STORY_QUIET`] without one. Trouble that comes back within [`STORY_QUIET`] continues the story,
//! so that flapping does not make a hundred stories.
//!
//! Mail may be touched before the first incident (the timeouts that open a breaker) and after the end (mail that waited).
//! So touched mail is remembered until a story claims it, and a story counts mail that arrived before its end for
//! [`STORY_MEMORY`] ([`mail`]).

mod mail;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::cause::{Condition, Effect, Topic, cause_of};
use super::{Incident, Kind, Story, StoryPhase, StoryState, Subject, Touch};
pub use waiting::{StillWaiting, WaitedFor, WaitingMail};

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

/// A beginning or end to tell a listener of.
pub type Phase = (StoryPhase, Story);

/// What the log is to keep of a story in one step, so that the counts and the messages agree whenever the process ends.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangedStory {
    /// The story as it is now.
    pub state: StoryState,
    /// The messages for the log that the story counts since the last time.
    pub messages: Vec<Touch>,
}

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
    /// Counted messages that the log does not have yet.
    messages: Vec<Touch>,
    /// The least mail that was seen to wait for the cause since the trouble ended.
    least: Option<StillWaiting>,
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
    forgotten: Vec<ChangedStory>,
    /// The number of counted messages that the log does not have yet.
    unwritten: usize,
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
                messages: Vec::new(),
                least: None,
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

    /// Takes up an incident: sets its story, if it belongs to one. Returns whether the log should keep the incident, and the
    /// phases to tell of.
    pub fn record(&mut self, now: Instant, incident: &mut Incident) -> (bool, Vec<Phase>) {
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
            if !is_by_hand && incident.kind.begins_story() {
                self.begin(now, incident, (cause, topic), &effect, &mut phases);
            }
            return (true, phases);
        };
        let is_kept = self.take_up(now, index, incident, &effect, &mut phases);
        (is_kept, phases)
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
        // What a person does after the end is no trouble that comes back.
        let is_new = |f: &Followed| kind == Kind::Drained && !f.is_open();
        let is_it = |f: &Followed| f.is_of(cause, topic) && f.goes_on(now) && !is_new(f);
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
    ) {
        if self.stories.len() >= STORIES_MAX {
            self.forget_one(incident.at, phases);
        }
        self.stories.push(Followed {
            state: StoryState::begin(incident, cause.clone(), topic),
            last: now,
            restored: None,
            is_changed: true,
            messages: Vec::new(),
            least: None,
        });
        let index = self.stories.len() - 1;
        if let Effect::Begins(Condition::Refusing) = effect {
            self.hand_over(now, index);
        }
        self.take_up(now, index, incident, effect, phases);
        if topic == Topic::Trouble {
            self.claim(now, index, &cause);
        }
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
        // Single signs (a late answer, a strike) keep no story open whose trouble is over: whoever sends them could otherwise
        // hold it open, and the next outage would be no news.
        let is_sign =
            matches!(effect, Effect::Event) && state.lasted && state.conditions.is_empty();
        if !is_sign {
            followed.last = now;
        }
        followed.is_changed = true;
        followed.apply(effect, incident);
        // A single event after the end belongs to the story, and does not begin it again.
        if let Some(ended) = &mut followed.state.story.ended {
            if !is_sign {
                *ended = (*ended).max(incident.at);
            }
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
            self.forgotten.push(oldest.change());
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
    /// Takes the effect of an incident on the conditions.
    fn apply(&mut self, effect: &Effect, incident: &Incident) {
        let state = &mut self.state;
        match effect {
            // What was left over is scanned again after the end: that is no new trouble.
            Effect::Begins(Condition::Recovering(_)) if state.story.ended.is_some() => {}
            Effect::Begins(condition) => {
                if let Some((_, unconfirmed)) = &mut self.restored {
                    unconfirmed.remove(condition);
                }
                state.conditions.insert(condition.clone());
                state.lasted = true;
                if state.story.ended.take().is_some() {
                    state.story.back = Some(incident.at);
                }
                state.ended_by.clear();
                if let Condition::Intercepting(id) = condition {
                    state.intercepts(id);
                }
                if !matches!(condition, Condition::Recovering(_)) {
                    state.waiting = None;
                    self.least = None;
                }
            }
            Effect::Ends(Condition::Drained(None)) => {
                state
                    .conditions
                    .retain(|c| !matches!(c, Condition::Drained(_)));
                state.relief.clone_from(&incident.summary);
                self.settles();
            }
            Effect::Ends(condition) => {
                state.conditions.remove(condition);
                // What ended the trouble says more than what was done about its consequences.
                if state.relief.is_empty() || !matches!(condition, Condition::Recovering(_)) {
                    state.relief.clone_from(&incident.summary);
                }
                self.settles();
            }
            Effect::Event => {}
        }
    }

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

    /// What the log does not have yet.
    fn change(&mut self) -> ChangedStory {
        self.state.measure();
        ChangedStory {
            state: self.state.clone(),
            messages: std::mem::take(&mut self.messages),
        }
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

    /// Takes the states and messages that the log does not have yet, and forgets stories that nothing can continue.
    pub fn changed(&mut self, now: Instant) -> Vec<ChangedStory> {
        let mut changed = std::mem::take(&mut self.forgotten);
        self.unwritten = 0;
        self.stories.retain_mut(|followed| {
            if std::mem::take(&mut followed.is_changed) {
                changed.push(followed.change());
            }
            followed.is_open() || now.saturating_duration_since(followed.last) < STORY_MEMORY
        });
        changed
    }

    /// Ends all stories of which nothing is known to last, because the relay stops.
    pub fn stop(&mut self) -> Vec<Phase> {
        let idle = self.stories.iter_mut();
        let idle = idle.filter(|f| f.is_open() && f.state.lasts().is_empty());
        idle.filter_map(Followed::end).collect()
    }

    /// The number of stories that are followed, open or not.
    pub fn follows(&self) -> usize {
        self.stories.len()
    }

    /// The numbers of open stories, by [`Subject::word`] of their causes.
    pub fn open_by_word(&self) -> BTreeMap<&'static str, u64> {
        let mut open: BTreeMap<_, _> = Subject::WORDS.into_iter().map(|word| (word, 0)).collect();
        for state in self.open() {
            *open.entry(state.story.cause.word()).or_default() += 1;
        }
        open
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
        let cause = &self.state.story.cause;
        // After a restart, what nothing confirms is over; else only what is known to be over is.
        let lasts = |c: &Condition| holds(cause, c).unwrap_or(!is_restored(c));
        let mut over = None;
        self.state.conditions.retain(|condition| {
            let lasts = lasts(condition);
            if !lasts {
                over.get_or_insert(condition.over());
            }
            lasts
        });
        if let Some(over) = over {
            self.settles();
            self.last = now;
            self.state.last = self.state.last.max(at);
            self.is_changed = true;
            self.state.relief = match unconfirmed {
                Some(_) => format!("ended by restart: {over}"),
                None => over.to_owned(),
            };
        }
    }

    fn end_in_time(&mut self, now: Instant) -> Option<Phase> {
        let wait = match self.state.lasted && !self.state.is_waited_for() {
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
        let relief = std::mem::take(&mut self.state.relief);
        let mut ended_by = match relief.is_empty() {
            true => "nothing more happened".to_owned(),
            false => relief,
        };
        ended_by.push_str(&self.state.rest());
        self.state.ended_by = ended_by;
        self.ends(self.state.last)
    }
}
