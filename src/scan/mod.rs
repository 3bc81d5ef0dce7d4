//! Engines: one message to all of them at once, exactly one report from each.

pub mod engine;
mod evidence;
pub mod guard;
#[cfg(test)]
mod tests;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::deadline::Deadline;
use crate::incident::Incident;
use crate::message::{
    Content, Envelope, Fingerprint, MessageId, Party, Rights, Standing, Wish, edit, mime,
};
use crate::verdict::{EngineClass, Finding, FindingKind, Report};
use engine::{BuildError, Sample};

pub use evidence::{Evidence, Observed, ScanReason};
pub use guard::{Diversion, DiversionAct, Guarded, Health, Passed, ReplicaHealth};

/// Settings of one `[[engine]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Unique; in reports, rules, metrics.
    pub name: Arc<str>,
    /// For coverage.
    pub class: EngineClass,
    /// Who asks waits so long; the call itself goes on, in its slot, to `limit`.
    pub timeout: Duration,
    /// The engine's own limit for one scan: then it has ended, or nobody knows. Not less than `timeout`.
    pub limit: Duration,
    /// A scan that takes longer than this is slow: evidence, not failure. Ten times that for content from 1 MiB.
    pub slow: Duration,
    /// Wait for a slot at most.
    pub wait: Duration,
    /// Between two routine probes; none: no routine ones.
    pub probe: Option<Duration>,
    /// Signatures older than this are told; none: never.
    pub signature_age: Option<Duration>,
    /// Calls per message at most, the first included; retried only for transient reasons.
    pub attempts: u32,
    /// Calls at once at most, of each replica: its worker count or less.
    pub slots: usize,
    /// Larger content is not sent: a report with `too-large`.
    pub max_size: u64,
    /// Scores of its findings are multiplied by this.
    pub weight: f64,
    /// What it may have done to the messages that it looks at.
    pub edits: Rights,
    /// The protocol and its own settings.
    pub kind: engine::Kind,
}

impl Settings {
    /// What the engine wants done to every message, whatever becomes of its scan, as far as it may.
    pub fn always(&self) -> Vec<Wish> {
        edit::grant(self.kind.always(), self.edits, false)
    }
}

/// What an engine is asked.
#[derive(Debug, Clone)]
pub struct ScanRequest {
    /// For logs.
    pub id: MessageId,
    /// Sender, recipients, client.
    pub envelope: Arc<Envelope>,
    /// What to scan.
    pub content: Content,
    /// When the answer is of no use any more.
    pub deadline: Deadline,
    /// What it is the same as. Without one it is like nothing else: no scan is shared, and nothing is learnt from it.
    pub fingerprint: Option<Arc<Fingerprint>>,
    /// What speaks for its sender.
    pub standing: Standing,
    /// Why it is scanned.
    pub scan_reason: ScanReason,
    /// It ran into the timeout of an engine before that took other mail then: once more is the last time.
    pub struck: bool,
    /// Whether the answer about another message of the same content may stand in while an engine is short of slots. Who says so
    /// sees to it that the engine is asked about this one later.
    pub stand_ins: bool,
}

impl ScanRequest {
    fn turn(&self) -> Turn {
        let party = Party::of(&self.envelope);
        let hash = |of: &dyn Fn(&mut DefaultHasher)| {
            let mut hasher = DefaultHasher::new();
            of(&mut hasher);
            hasher.finish()
        };
        Turn {
            client: hash(&|hasher| party.client().hash(hasher)),
            party: hash(&|hasher| party.hash(hasher)),
        }
    }
}

/// Whose turn a message takes where many wait: one of its client's, and of those one of its party's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Turn {
    /// Equal for all that one user or client brings. Whoever changes the sender with each message has no more turns by that.
    client: u64,
    /// Equal for mail of one [`Party`].
    party: u64,
}

/// An engine that cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("engine \"{engine}\": {cause}")]
pub struct BadEngine {
    /// Its name in the configuration.
    pub engine: Arc<str>,
    /// What is wrong with it.
    #[source]
    pub cause: BuildError,
}

/// How long the other engines are waited for once one has found malware: what they find may name it better.
const ENOUGH: Duration = Duration::from_secs(1);

/// All configured engines, ready to scan. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Scanner {
    engines: Arc<[Guarded]>,
    limits: mime::Limits,
    workers: Arc<Semaphore>,
}

impl Scanner {
    /// Builds all engines, in order; all that cannot be built are returned at once. What the guards of `before` know and
    /// hold goes on where the engine is the same. Reads rule files: blocks.
    pub fn new(engines: Vec<Settings>, before: Option<&Self>) -> Result<Self, Vec<BadEngine>> {
        let same = |name: &str| before?.engines.iter().find(|e| *e.settings().name == *name);
        let mut ready = Vec::with_capacity(engines.len());
        let mut bad = Vec::new();
        for settings in engines {
            match build(&settings) {
                Ok(replicas) => {
                    let before = same(&settings.name);
                    ready.push(guard::guard(replicas, Arc::new(settings), before));
                }
                Err(cause) => bad.push(BadEngine {
                    engine: settings.name,
                    cause,
                }),
            }
        }
        if bad.is_empty() {
            Ok(Self::of(ready))
        } else {
            Err(bad)
        }
    }

    /// Guards around engines that a test has made; otherwise as [`new`](Self::new).
    #[cfg(test)]
    pub(crate) fn of_engines(
        engines: Vec<(Settings, Vec<Arc<dyn engine::Engine>>)>,
        before: Option<&Self>,
    ) -> Self {
        let guarded = |(settings, replicas): (Settings, _)| {
            let same = |e: &&Guarded| e.settings().name == settings.name;
            let before = before.and_then(|before| before.engines.iter().find(same));
            guard::guard(replicas, Arc::new(settings), before)
        };
        Self::of(engines.into_iter().map(guarded).collect())
    }

    fn of(engines: Vec<Guarded>) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            limits: limits(engines.iter().map(Guarded::settings)),
            engines: engines.into(),
            workers: Arc::new(Semaphore::new(cores)),
        }
    }

    /// The settings of all engines, in order: names and classes for coverage and status.
    pub fn settings(&self) -> impl Iterator<Item = &Settings> {
        self.engines.iter().map(Guarded::settings)
    }

    /// An inspection of a message, not yet made, for [`scan_inspected`](Self::scan_inspected).
    pub fn inspection(&self) -> mime::Shared {
        mime::Shared::new(self.limits, self.workers.clone())
    }

    /// Asks every engine at once and waits for all of them, at most until the deadline; then the missing ones have a
    /// report with `timeout`. Once one has found malware the others get a second more. The order is the configured one.
    /// Without engines it returns at once.
    ///
    /// Cancel safety: safe. Scans under way go on to their end, in their slots, and their answers are kept for a while.
    pub async fn scan(&self, request: ScanRequest) -> Vec<Report> {
        self.scan_inspected(request, self.inspection()).await
    }

    /// The same, with an inspection that the caller wants to use too; it must be one of this content.
    pub async fn scan_inspected(
        &self,
        request: ScanRequest,
        inspection: mime::Shared,
    ) -> Vec<Report> {
        let began = Instant::now();
        let mut patience = request.deadline;
        let sample = Sample::new(request, inspection);
        let mut asking = FuturesUnordered::new();
        for (at, engine) in self.engines.iter().enumerate() {
            let sample = sample.clone();
            asking.push(async move { (at, engine.scan(sample).await) });
        }
        let mut reports: Vec<Option<Report>> = vec![None; self.engines.len()];
        // Every engine has its report at the deadline at the latest, so the longer wait is only there for the shorter.
        while let Ok(Some((at, report))) = match patience == sample.deadline() {
            true => Ok(asking.next().await),
            false => patience.run(asking.next()).await,
        } {
            let malware = |f: &Finding| f.kind == FindingKind::Malware;
            if report.findings().iter().any(malware) {
                patience = patience.within(ENOUGH);
            }
            reports[at] = Some(report);
        }
        let missing = |(report, engine): (Option<Report>, &Guarded)| {
            report.unwrap_or_else(|| engine.unneeded(began))
        };
        reports
            .into_iter()
            .zip(self.engines.iter())
            .map(missing)
            .collect()
    }

    /// Begins to probe all engines now and then. To be called on the runtime.
    pub fn watch(&self) {
        for engine in self.engines.iter() {
            engine.watch();
        }
    }

    /// What was seen of all scans since the last call, by engine.
    pub fn evidence(&self) -> Vec<(Arc<str>, Vec<Evidence>)> {
        let of = |engine: &Guarded| (engine.settings().name.clone(), engine.evidence());
        self.engines.iter().map(of).collect()
    }

    /// What happened to the engines since the last call.
    pub fn incidents(&self) -> Vec<Incident> {
        self.engines.iter().flat_map(Guarded::incidents).collect()
    }

    /// Puts diversions in force for the mail of one engine.
    pub fn divert(&self, engine: &str, diversions: Arc<[Diversion]>) {
        let named = self.engines.iter().find(|e| &*e.settings().name == engine);
        if let Some(engine) = named {
            engine.divert(diversions);
        }
    }

    /// Whether any engine is one that probes are sent to: a daemon, that may be out, or lie.
    pub fn is_probed(&self) -> bool {
        self.engines.iter().any(Guarded::is_probed)
    }

    /// All engines, in order.
    pub fn engines(&self) -> &[Guarded] {
        &self.engines
    }
}

fn build(settings: &Settings) -> Result<Vec<Arc<dyn engine::Engine>>, BuildError> {
    if settings.slots == 0 {
        return Err(BuildError::Zero("slots"));
    }
    if settings.attempts == 0 {
        return Err(BuildError::Zero("attempts"));
    }
    engine::build(&settings.kind)
}

/// The inspection is shared, so it must go as far as the most curious engine wants; each judges by its own settings.
fn limits<'a>(engines: impl Iterator<Item = &'a Settings>) -> mime::Limits {
    engines.fold(
        mime::Limits::default(),
        |limits, settings| match &settings.kind {
            engine::Kind::Attachment(wants) => mime::Limits {
                depth: limits.depth.max(wants.max_depth),
                parts: limits.parts.max(wants.max_parts),
                ..limits
            },
            engine::Kind::Clamd { .. }
            | engine::Kind::Spamd { .. }
            | engine::Kind::Rspamd { .. }
            | engine::Kind::Http { .. }
            | engine::Kind::Icap { .. }
            | engine::Kind::Command(_)
            | engine::Kind::Milter { .. }
            | engine::Kind::Rules { .. }
            | engine::Kind::Dns(_)
            | engine::Kind::Auth(_) => limits,
        },
    )
}
