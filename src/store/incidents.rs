//! The incident log: what the relay did by itself, and why (docs/GLOSSARY.md, "incident"). A post-mortem can be written from
//! it.
//!
//! Incidents are few, and worth more than history. Their [log](super::log) has its own file and its own queue, so that a flood
//! of messages does not crowd them out. They survive power loss a second after they happened, and a failed write is tried
//! again. This module also writes each incident to the relay's own log and to a metric.

mod read;
mod rows;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::StoreError;
use super::log::{self, Log, LogTrouble};
use crate::deadline::wall_clock;
use crate::incident::{
    ChangedStory, Condition, Incident, Phase, StillWaiting, Story, StoryListener, Subject, Touch,
    Tracker, WaitedFor,
};
use crate::message::MessageId;
pub use read::{Filter, search, stories, touched, with_id_prefix};
use rows::Row;

/// Name of the incident log inside `store.path`.
pub const FILE_NAME: &str = "incidents.db";

impl log::Entry for Incident {
    const LOG_NAME: &str = "incidents";
    const WAITING_ENTRIES_MAX: usize = 1024;
    /// 100,000 incidents take about 100 MB.
    const ROWS_MAX: u64 = 100_000;
    const IS_DURABLE: bool = true;

    fn at(&self) -> Timestamp {
        self.at
    }

    fn message(&self) -> Option<MessageId> {
        self.message
    }
}

/// Interval between two looks at the stories: 1 s, which is also how much of them kill -9 loses.
const STORY_TICK: Duration = Duration::from_secs(1);
/// Interval between two looks at the mail that still waits for causes whose trouble is over: 10 s, three of them before a story
/// ends.
const WAITING_LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Most stories of one such look: each may read ten thousand entries of an index.
const WAITING_LOOK_STORIES_MAX: usize = 16;
/// Most stories of the file that a start continues.
const STORIES_CONTINUED_MAX: usize = 256;

/// The writing end, which only the relay has. It makes stories of incidents ([`Tracker`]). [`Incidents::close`] writes what
/// waits.
pub struct Incidents {
    log: Log<Row>,
    following: Mutex<Following>,
    /// The number of stories that are followed.
    follows: AtomicUsize,
    listener: OnceLock<Arc<dyn StoryListener>>,
}

#[derive(Debug)]
struct Following {
    tracker: Tracker,
    next_tick: Instant,
    next_look: Instant,
}

impl fmt::Debug for Incidents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incidents")
            .field("log", &self.log)
            .field("following", &self.following)
            .finish_non_exhaustive()
    }
}

/// The log.
impl Incidents {
    /// Opens the incident log `path`, and creates it if it is missing. Entries are kept for `retention`. Stories that were open
    /// at the end of the last process go on. Blocks for a few milliseconds, and up to 10 seconds if another process has locked
    /// the file.
    ///
    /// A damaged file is renamed to `….damaged`, and a new one is created. A file that cannot be opened is no error: see
    /// [`Incidents::trouble`].
    ///
    /// # Errors
    /// The system has no thread for the log.
    pub fn open(path: &Path, retention: Duration) -> Result<Arc<Self>, StoreError> {
        let log = Log::open(path, retention, <Row as log::Entry>::ROWS_MAX)?;
        let states = log::open_existing(path)
            .and_then(|db| read::all_stories(&db, STORIES_CONTINUED_MAX))
            .unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "the stories of the last process cannot be read, and do not go on");
                Vec::new()
            });
        let tracker = Tracker::restore(Instant::now(), wall_clock(), states);
        Ok(Arc::new(Self::of(log, tracker)))
    }

    fn of(log: Log<Row>, tracker: Tracker) -> Self {
        let incidents = Self {
            log,
            follows: AtomicUsize::new(tracker.follows()),
            following: Mutex::new(Following {
                tracker,
                next_tick: Instant::now(),
                next_look: Instant::now(),
            }),
            listener: OnceLock::new(),
        };
        set_gauge(&incidents.following().tracker);
        incidents
    }

    /// Writes the incident to the relay's log and the metrics, adds it to its story, and stores it: durable within a second.
    /// Never waits. If the queue is full, the incident is only in the relay's log, and counted as lost.
    pub fn record(&self, mut incident: Incident) {
        let (is_kept, phases) = {
            let mut following = self.following();
            let taken_up = following.tracker.record(Instant::now(), &mut incident);
            self.followed(&following);
            taken_up
        };
        tell(&incident);
        if is_kept {
            self.log.note(Row::Incident(incident));
        }
        self.tell_phases(phases);
    }

    /// An incident log that a test reads.
    #[cfg(test)]
    pub(crate) fn detached() -> (Arc<Self>, impl FnMut() -> Option<Incident> + Send) {
        let (log, mut next) = Log::detached();
        let next = move || loop {
            match next()? {
                Row::Incident(incident) => return Some(incident),
                Row::Story { .. } => {}
            }
        };
        (Arc::new(Self::of(log, Tracker::default())), next)
    }

    /// Waits until all incidents recorded before can be read by any process. If the queue is full, this does not wait.
    ///
    /// Cancel safety: safe.
    pub async fn flush(&self) {
        self.note_changed();
        self.log.flush().await;
    }

    /// Number of incidents lost since the start, because the queue was full or writes failed.
    pub fn dropped(&self) -> u64 {
        self.log.dropped()
    }

    /// Why nothing is recorded; `None` while the log records.
    pub fn trouble(&self) -> Option<LogTrouble> {
        self.log.trouble()
    }

    /// Like [`search`], including all incidents recorded before this call.
    ///
    /// Cancel safety: safe.
    pub async fn search(&self, filter: Filter) -> Result<Vec<Incident>, StoreError> {
        self.log.flush().await;
        search(self.log.path(), filter).await
    }

    /// Writes the incidents that wait, then ends. Later incidents are dropped. Stories of which nothing lasts end.
    ///
    /// Cancel safety: the close goes on.
    pub async fn close(&self) {
        let phases = self.following().tracker.stop();
        self.tell_phases(phases);
        self.note_changed();
        self.log.close().await;
    }
}

/// The stories.
impl Incidents {
    /// Sets the receiver of beginnings and ends. Only the first call has an effect.
    pub fn listen(&self, listener: Arc<dyn StoryListener>) {
        // A second listener would be a mistake of the composition root, and costs nothing.
        let _ = self.listener.set(listener);
    }

    /// The stories that last, the oldest first.
    pub fn open_stories(&self) -> Vec<Story> {
        let following = self.following();
        following
            .tracker
            .open()
            .map(|state| state.story.clone())
            .collect()
    }

    /// Ends stories whose time has come, and stores what has changed, at most once in [`STORY_TICK`]. `holds` says whether a
    /// condition of a cause is there now; `None` if only an incident says so. Almost free while there is no story.
    pub fn follow(&self, holds: impl Fn(&Subject, &Condition) -> Option<bool>) {
        if self.follows.load(Ordering::Relaxed) == 0 {
            return;
        }
        let (phases, changed) = {
            let mut following = self.following();
            let now = Instant::now();
            if now < following.next_tick {
                return;
            }
            following.next_tick = now + STORY_TICK;
            let phases = following.tracker.tick(now, wall_clock(), holds);
            let changed = following.tracker.changed(now);
            self.followed(&following);
            (phases, changed)
        };
        self.note_stories(changed);
        self.tell_phases(phases);
    }

    /// The open stories for whose causes mail may wait, for [`waits`](Self::waits); none if the last look is
    /// too short ago.
    pub fn waited_for(&self) -> Vec<WaitedFor> {
        if self.follows.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let mut following = self.following();
        let now = Instant::now();
        if now < following.next_look {
            return Vec::new();
        }
        following.next_look = now + WAITING_LOOK_INTERVAL;
        let mut stories = following.tracker.waited_for();
        stories.truncate(WAITING_LOOK_STORIES_MAX);
        stories
    }

    /// Takes note of how much mail waits for the cause of a [story](Self::waited_for).
    pub fn waits(&self, of: &WaitedFor, mail: StillWaiting) {
        let mut following = self.following();
        let (now, at) = (Instant::now(), wall_clock());
        following.tracker.waits(now, at, of, mail);
    }

    /// Counts a message that the trouble of `cause` has touched. Never waits. If there is no story of that cause yet, the next
    /// incident about it may begin one, which then counts the message.
    pub fn touch(&self, cause: Subject, touch: Touch) {
        // Incidents and stories are worth more than the messages, which are counted in any case.
        let has_room = !self.log.is_crowded();
        let mut following = self.following();
        following
            .tracker
            .touch(Instant::now(), cause, touch, has_room);
    }

    /// Counts refusals because of this condition, of which nothing else is known.
    pub fn refused(&self, condition: &Condition, count: u64) {
        if count > 0 && self.follows.load(Ordering::Relaxed) > 0 {
            self.following().tracker.refused(condition, count);
        }
    }

    fn note_changed(&self) {
        let changed = self.following().tracker.changed(Instant::now());
        self.note_stories(changed);
    }

    fn note_stories(&self, changed: Vec<ChangedStory>) {
        for ChangedStory { state, messages } in changed {
            let state = Box::new(state);
            self.log.note(Row::Story { state, messages });
        }
    }

    /// Writes a line in the relay's log for each beginning and end, and tells the listener.
    fn tell_phases(&self, phases: Vec<Phase>) {
        for (phase, story) in phases {
            let touched = &story.touched;
            tracing::info!(
                story = %story.id,
                phase = phase.as_str(),
                kind = story.kind.as_str(),
                cause = %story.cause,
                title = story.title,
                delayed = touched.delayed,
                held = touched.held,
                passed = touched.passed,
                refused = touched.refused,
                "story"
            );
            if let Some(listener) = self.listener.get() {
                listener.story(phase, &story);
            }
        }
    }

    fn followed(&self, following: &Following) {
        let follows = following.tracker.follows();
        self.follows.store(follows, Ordering::Relaxed);
        set_gauge(&following.tracker);
    }

    fn following(&self) -> MutexGuard<'_, Following> {
        self.following
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn set_gauge(tracker: &Tracker) {
    for (word, open) in tracker.open_by_word() {
        metrics::gauge!("spillway_open_incidents", "subject" => word).set(open as f64);
    }
}

/// Writes the log line and the metric.
fn tell(incident: &Incident) {
    let kind = incident.kind.as_str();
    metrics::counter!("spillway_incidents_total", "kind" => kind).increment(1);
    let message = incident.message.map(tracing::field::display);
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                incident = %incident.id,
                kind,
                subject = %incident.subject,
                summary = incident.summary,
                evidence = %Evidence(incident),
                id = message,
                "incident"
            )
        };
    }
    if incident.kind.is_trouble() {
        line!(warn);
    } else {
        line!(info);
    }
}

/// The evidence as text: `precision 0.97, risk 41`.
struct Evidence<'a>(&'a Incident);

impl fmt::Display for Evidence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (what, value)) in self.0.evidence.iter().enumerate() {
            let between = if index == 0 { "" } else { ", " };
            write!(f, "{between}{what} {value}")?;
        }
        Ok(())
    }
}
