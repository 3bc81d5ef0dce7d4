//! Keeps the drains of engines over a restart, and ends them in time.
//!
//! The file has the end of each drain by the wall clock, because a restart knows no other. Until then the drain ends by the
//! monotonic clock: a clock that a person sets changes no drain, and the file follows the clock. A drain lasts never longer
//! after a restart than the time that the person gave, whatever the clock shows.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Generation, Pipeline};
use crate::deadline::{Deadline, wall_clock};
use crate::incident::{Incident, Kind, Subject};
use crate::scan::{Drain, DrainTerms, Drained, Guarded};
use crate::store::snapshot::SnapshotFile;

/// Name of the file inside `store.path`.
pub(super) const DRAINS_FILE: &str = "drains.json";
/// Maximum size of the file: 1 MiB, far more than the drains of any relay, whose reasons are short.
const DRAINS_OCTETS_MAX: usize = 1 << 20;
/// Interval between checks for drains that have ended: 1 s.
const DRAINS_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Time for one write. A command that drains an engine waits this long for a disk that hangs, and then says so.
const DRAINS_WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// The file is written again if the end of a drain by the wall clock has moved by more: 2 s, so that only a clock that was set
/// causes a write.
const END_TOLERANCE: SignedDuration = SignedDuration::from_secs(2);

/// The drains of a pipeline's engines.
pub struct Drains {
    pipeline: Arc<Pipeline>,
    file: Arc<SnapshotFile>,
    /// Locked during a write, which may hang.
    written: Arc<Mutex<Written>>,
}

/// The result of the last write.
#[derive(Debug, Default)]
struct Written {
    drains: Vec<KeptDrain>,
    failed: bool,
}

/// A drain in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KeptDrain {
    engine: String,
    replica: Option<String>,
    since: Timestamp,
    until: Option<Timestamp>,
    for_seconds: Option<u64>,
    passes: bool,
    reason: String,
    who: String,
}

impl KeptDrain {
    fn of(engine: &Guarded, drained: &Drained) -> Self {
        let now = Instant::now();
        let Drain { terms, until } = &*drained.drain;
        let left = |until: &Instant| until.saturating_duration_since(now);
        Self {
            engine: engine.settings().name.to_string(),
            replica: drained.replica.clone(),
            since: wall_clock() - now.saturating_duration_since(drained.since),
            until: until.as_ref().map(|until| wall_clock() + left(until)),
            for_seconds: terms.term.map(|term| term.as_secs()),
            passes: terms.passes,
            reason: terms.reason.clone(),
            who: terms.who.clone(),
        }
    }

    /// Whether the file says the same with the one as with the other.
    fn is_as(&self, other: &Self) -> bool {
        let moved = |(one, other): (Timestamp, Timestamp)| one.duration_since(other).abs();
        let is_near = match self.until.zip(other.until) {
            Some(both) => moved(both) <= END_TOLERANCE,
            None => self.until == other.until,
        };
        let rest = |kept: &Self| Self {
            since: Timestamp::UNIX_EPOCH,
            until: None,
            ..kept.clone()
        };
        is_near && rest(self) == rest(other)
    }

    /// The drain with the time that is left; `None` if it has ended.
    fn left(&self) -> Option<Arc<Drain>> {
        let term = self.for_seconds.map(Duration::from_secs);
        let terms = DrainTerms::new(self.passes, term, &self.reason, &self.who).ok()?;
        let left = match (self.until, terms.term) {
            (Some(until), Some(term)) => {
                let left = Duration::try_from(until.duration_since(wall_clock()));
                Some(left.unwrap_or_default().min(term))
            }
            (_, term) => term,
        };
        (left != Some(Duration::ZERO)).then(|| Drain::with_left(terms, left))
    }

    /// When it began, on the clock of this process; now, if the wall clock was set back to before it.
    fn began(&self) -> Instant {
        let now = Instant::now();
        let age = Duration::try_from(wall_clock().duration_since(self.since));
        now.checked_sub(age.unwrap_or_default()).unwrap_or(now)
    }

    /// The time and the kind of the drain, to follow "drain".
    fn lasting(&self) -> String {
        let term = self.for_seconds.map(Duration::from_secs);
        let terms = DrainTerms::new(self.passes, term, &self.reason, &self.who);
        terms.map_or_else(|_| String::new(), |terms| terms.lasting())
    }

    fn passed(&self) -> &'static str {
        match self.passes {
            true => ", and mail passes without it no more",
            false => "",
        }
    }

    fn subject(&self) -> Subject {
        Subject::Engine {
            name: self.engine.clone(),
            replica: self.replica.clone(),
        }
    }

    fn ended(&self, why: &str) -> Incident {
        let subject = self.subject();
        let summary = format!("{subject} was resumed: {why}");
        Incident::new(Kind::Resumed, subject, summary)
            .with("drained since", self.since)
            .with("by", &self.who)
            .with("reason", &self.reason)
    }
}

impl Drains {
    /// Puts the drains of the last process in force. Call this before the relay accepts or claims mail. A file that cannot be used
    /// is set aside, and no engine is drained. Blocks on the disk.
    pub fn open(pipeline: Arc<Pipeline>, store: &Path) -> Arc<Self> {
        let drains = Self {
            pipeline,
            file: Arc::new(SnapshotFile::new(store, DRAINS_FILE, DRAINS_OCTETS_MAX)),
            written: Arc::default(),
        };
        match drains.read() {
            Ok(kept) => drains.take_up(kept),
            Err(why) => {
                let aside = drains.file.set_aside();
                let aside = aside.map_or_else(
                    |error| format!("not renamed: {error}"),
                    |path| path.display().to_string(),
                );
                tracing::warn!(
                    file = %drains.file.path().display(), %why, set_aside = %aside,
                    "drains are forgotten: drain the engines again that must get no mail"
                );
            }
        }
        Arc::new(drains)
    }

    fn read(&self) -> io::Result<Vec<KeptDrain>> {
        match self.file.read()? {
            Some(octets) => Ok(serde_json::from_slice(&octets)?),
            None => Ok(Vec::new()),
        }
    }

    fn take_up(&self, kept: Vec<KeptDrain>) {
        let generation = self.pipeline.generation();
        for one in &kept {
            let mut engines = generation.scanner.engines().iter();
            let engine = engines.find(|engine| *engine.settings().name == *one.engine);
            match (engine, one.left()) {
                (Some(engine), Some(drain))
                    if engine.restore(one.replica.as_deref(), &drain, one.began()) =>
                {
                    // Not that of the file: the clock may have been set.
                    let left = |until: Instant| until.saturating_duration_since(Instant::now());
                    let until = drain.until.map(|until| wall_clock() + left(until));
                    let until = until.map(tracing::field::display);
                    tracing::info!(engine = %one.engine, replica = one.replica, until, passes = one.passes, "an engine stays drained");
                }
                (Some(_), Some(_)) | (None, _) => {
                    self.record(one.ended("it is no longer configured"))
                }
                (Some(_), None) => {
                    let (term, passed) = (one.lasting(), one.passed());
                    let why = format!("its drain{term} ended while no relay ran{passed}");
                    self.record(one.ended(&why));
                }
            }
        }
        if let Ok(mut written) = self.written.try_lock() {
            written.drains = kept;
        }
    }

    fn record(&self, incident: Incident) {
        self.pipeline.incidents.record(incident);
    }

    /// Ends drains in time and keeps the file up to date, until `closing` is cancelled.
    ///
    /// Cancel safety: safe; a write that has begun goes on.
    pub async fn keep(self: Arc<Self>, closing: CancellationToken) {
        let mut before = current(&self.pipeline.generation());
        let rounds = async {
            loop {
                Deadline::after(DRAINS_CHECK_INTERVAL).wait().await;
                self.round(&mut before);
                // A failure is logged, and the next round tries again.
                let _ = self.write().await;
            }
        };
        closing.run_until_cancelled(rounds).await;
    }

    /// Ends the drains whose time has passed. `before`: the drains after the last round.
    fn round(&self, before: &mut Vec<KeptDrain>) {
        let generation = self.pipeline.generation();
        for engine in generation.scanner.engines() {
            for ended in engine.end_drains() {
                let ended = KeptDrain::of(engine, &ended);
                let (term, passed) = (ended.lasting(), ended.passed());
                self.record(ended.ended(&format!("its drain{term} has ended{passed}")));
            }
        }
        let is_removed = |one: &KeptDrain| {
            let mut engines = generation.scanner.engines().iter();
            engines.all(|engine| *engine.settings().name != *one.engine)
        };
        for removed in before.iter().filter(|one| is_removed(one)) {
            self.record(removed.ended("it is no longer configured"));
        }
        *before = current(&generation);
    }

    /// Writes the drains in force, if the file does not have them. The error says why a restart would not know them.
    ///
    /// Cancel safety: safe; a write that has begun goes on.
    pub async fn write(&self) -> Result<(), String> {
        let write = async {
            let mut written = self.written.clone().lock_owned().await;
            let drains = current(&self.pipeline.generation());
            let is_same = |(one, other): (&KeptDrain, &KeptDrain)| one.is_as(other);
            if drains.len() == written.drains.len()
                && drains.iter().zip(&written.drains).all(is_same)
            {
                return Ok(());
            }
            let file = self.file.clone();
            let work = tokio::task::spawn_blocking(move || {
                let done = serde_json::to_vec_pretty(&drains).map_err(io::Error::from);
                let done = done.and_then(|octets| file.write(&octets));
                written.note(&file, &done);
                if done.is_ok() {
                    written.drains = drains;
                }
                done.map_err(|error| format!("cannot write {}: {error}", file.path().display()))
            });
            work.await.map_err(|error| error.to_string())?
        };
        let written = Deadline::after(DRAINS_WRITE_TIMEOUT).run(write).await;
        written.unwrap_or_else(|late| {
            let file = self.file.path().display();
            Err(format!("cannot write {file}: {late}"))
        })
    }
}

impl Written {
    /// Logs the first of several failures, and the end of them.
    fn note(&mut self, file: &SnapshotFile, done: &io::Result<()>) {
        let file = file.path().display();
        match done {
            Err(error) if !self.failed => tracing::warn!(
                %file, %error,
                "the drains of engines are not written, and this is tried again each second: a restart would not know them"
            ),
            Ok(()) if self.failed => {
                tracing::info!(%file, "the drains of engines are written again");
            }
            _ => {}
        }
        self.failed = done.is_err();
    }
}

/// The drains in force.
fn current(generation: &Generation) -> Vec<KeptDrain> {
    let engines = generation.scanner.engines().iter();
    let of = |engine: &Guarded| {
        let drains = engine.drains().into_iter();
        drains
            .map(|drained| KeptDrain::of(engine, &drained))
            .collect::<Vec<_>>()
    };
    engines.flat_map(of).collect()
}
