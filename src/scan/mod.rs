//! Engines: scans a message with all engines at once, and returns exactly one report from each.

pub mod engine;
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
    Content, Envelope, Fingerprint, MessageId, Party, RequestedEdit, Rights, SenderReputation,
    edit, mime,
};
use crate::observation::{Diversion, Evidence, ScanReason};
use crate::verdict::{EngineClass, Finding, FindingKind, Report};
use engine::{BuildError, Sample};

pub use guard::{
    BadTerms, Drain, DrainHealth, DrainTerms, Drained, GuardSettings, Guarded, Health, NotDrained,
    Passed, ReplicaHealth, SlotShare,
};

/// Settings of one `[[engine]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Unique name, used in reports, rules and metrics.
    pub name: Arc<str>,
    /// Class of the engine, for coverage.
    pub class: EngineClass,
    /// Time for which a caller waits for a scan under way. The scan itself goes on in its slot, up to `limit`.
    pub timeout: Duration,
    /// The engine's own limit for one scan. After it the scan counts as ended and its slot is free. Not less than `timeout`.
    pub limit: Duration,
    /// Duration from which a scan is slow: evidence, not failure. Ten times as long for content from 1 MiB.
    pub slow: Duration,
    /// Maximum wait of fresh mail for a slot; mail that is scanned again waits up to ten times as long.
    pub wait: Duration,
    /// Interval between two routine probes; none: no routine probes.
    pub probe: Option<Duration>,
    /// Age from which signatures are an incident; none: no check.
    pub signature_age: Option<Duration>,
    /// Maximum number of attempts per scan, the first included; only transient errors are retried.
    pub attempts: u32,
    /// Maximum number of concurrent scans of each replica: its worker count or less.
    pub slots: usize,
    /// Maximum content size in octets. Larger content is not sent and gets a report with `too-large`.
    pub max_size: u64,
    /// Factor for the scores of the engine's findings.
    pub weight: f64,
    /// Edits that the engine may request for the messages that it scans.
    pub edits: Rights,
    /// Settings of the engine's guard.
    pub guard: GuardSettings,
    /// The protocol and its settings.
    pub kind: engine::Kind,
}

impl Settings {
    /// The edits that the engine requests for every message, whatever the result of the scan, within its rights.
    pub fn always(&self) -> Vec<RequestedEdit> {
        edit::grant(self.kind.always(), self.edits, false)
    }
}

/// Request to scan one message.
#[derive(Debug, Clone)]
pub struct ScanRequest {
    /// The message; also the key of answers that hold for this message only.
    pub id: MessageId,
    /// Sender, recipients, client.
    pub envelope: Arc<Envelope>,
    /// The content to scan.
    pub content: Content,
    /// Instant after which the answer is of no use.
    pub deadline: Deadline,
    /// Fingerprint of the message. A message without one shares no scan with other messages, and its scan is no evidence.
    pub fingerprint: Option<Arc<Fingerprint>>,
    /// Reputation of the sender.
    pub reputation: SenderReputation,
    /// Reason for the scan.
    pub scan_reason: ScanReason,
    /// The message timed out before, in an engine that took other mail then. A second timeout is the last: the message is held.
    pub timed_out_before: bool,
    /// Whether the answer about another message of the same content may stand in while an engine is short of slots. A caller
    /// that allows this must have the engine scan this message later (ADR 7).
    pub stand_ins: bool,
}

impl ScanRequest {
    fn fairness_key(&self) -> FairnessKey {
        let party = Party::of(&self.envelope);
        let hash = |of: &dyn Fn(&mut DefaultHasher)| {
            let mut hasher = DefaultHasher::new();
            of(&mut hasher);
            hasher.finish()
        };
        FairnessKey {
            client: hash(&|hasher| party.client().hash(hasher)),
            party: hash(&|hasher| party.hash(hasher)),
        }
    }
}

/// The fairness key of a message: the gate serves clients in turn, and within a client its parties in turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct FairnessKey {
    /// Hash of the user or client that sends the message. A client that changes the sender with each message gets no more turns.
    client: u64,
    /// Hash of the message's [`Party`].
    party: u64,
}

/// Error: an engine cannot be built from its settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("engine \"{engine}\": {cause}")]
pub struct BadEngine {
    /// Name of the engine in the configuration.
    pub engine: Arc<str>,
    /// Cause of the error.
    #[source]
    pub cause: BuildError,
}

/// Wait for the other engines after one engine has found malware. That finding decides; the others may only name the malware
/// better, so one second is enough.
pub const WAIT_AFTER_MALWARE: Duration = Duration::from_secs(1);

/// All configured engines, ready to scan. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Scanner {
    engines: Arc<[Guarded]>,
    limits: mime::Limits,
    workers: Arc<Semaphore>,
}

impl Scanner {
    /// Builds all engines, in the configured order. A guard of `before` for the same engine hands over its state: scans under
    /// way, breakers, proofs, cached answers. Blocks the thread while rule files are read.
    ///
    /// # Errors
    /// All engines that cannot be built, together.
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

    /// Guards around a test's own engines; otherwise as [`new`](Self::new).
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

    /// The settings of all engines in the configured order, for coverage and status.
    pub fn settings(&self) -> impl Iterator<Item = &Settings> {
        self.engines.iter().map(Guarded::settings)
    }

    /// A new inspection for [`scan_inspected`](Self::scan_inspected); the first user of its facts makes it.
    pub fn inspection(&self) -> mime::SharedInspection {
        mime::SharedInspection::new(self.limits, self.workers.clone())
    }

    /// Scans the message with every engine at once and waits for all reports, at the latest until the deadline. Then a missing
    /// answer is a report with `timeout`, or with `busy` if the engine gave no slot. After a malware finding the other engines
    /// get one more second; then their reports are `unneeded`. The reports are in the configured order. Without engines this
    /// returns at once.
    ///
    /// Cancel safety: safe. Scans under way run to their end in their slots, and their answers are cached for a while.
    pub async fn scan(&self, request: ScanRequest) -> Vec<Report> {
        self.scan_inspected(request, self.inspection()).await
    }

    /// Like [`scan`](Self::scan), with an inspection that the caller uses too, which must be one of the request's content.
    ///
    /// Cancel safety: safe, as [`scan`](Self::scan).
    pub async fn scan_inspected(
        &self,
        request: ScanRequest,
        inspection: mime::SharedInspection,
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
        // Every engine reports by the deadline, so a timeout of its own is needed only after `patience` has become shorter.
        while let Ok(Some((at, report))) = match patience == sample.deadline() {
            true => Ok(asking.next().await),
            false => patience.run(asking.next()).await,
        } {
            let malware = |f: &Finding| f.kind == FindingKind::Malware;
            if report.findings().iter().any(malware) {
                patience = patience.within(WAIT_AFTER_MALWARE);
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

    /// Starts the background work of all engines, as [`Guarded::watch`]. Must be called on the tokio runtime.
    pub fn watch(&self) {
        for engine in self.engines.iter() {
            engine.watch();
        }
    }

    /// Takes the evidence about scans since the last call, by engine.
    pub fn evidence(&self) -> Vec<(Arc<str>, Vec<Evidence>)> {
        let of = |engine: &Guarded| (engine.settings().name.clone(), engine.evidence());
        self.engines.iter().map(of).collect()
    }

    /// Takes the incidents of all engines since the last call.
    pub fn incidents(&self) -> Vec<Incident> {
        self.engines.iter().flat_map(Guarded::incidents).collect()
    }

    /// Replaces the diversions of one engine. An unknown name changes nothing.
    pub fn divert(&self, engine: &str, diversions: Arc<[Diversion]>) {
        let named = self.engines.iter().find(|e| &*e.settings().name == engine);
        if let Some(engine) = named {
            engine.divert(diversions);
        }
    }

    /// Whether any engine gets probes: a daemon, which may be out or may answer wrongly.
    pub fn is_probed(&self) -> bool {
        self.engines.iter().any(Guarded::is_probed)
    }

    /// All engines in the configured order.
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

/// The limits of the shared inspection: the largest that any engine needs. Each engine then judges by its own settings.
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
