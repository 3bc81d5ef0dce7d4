//! What stands between a message and an engine, in one order, with the reason for each place.
//!
//! Every layer is one async function in its own file; [`guard`] is the only place that knows their order. What has to be
//! decided is decided by pure state machines that know no clock and no socket: [`gate`] (slots and zombies, lanes,
//! canaries, diversions), [`breaker`], [`answer_cache`], the retry budget. [`state`] keeps them, behind a lock, across reloads.

mod answer_cache;
mod attempt;
mod breaker;
mod coalesce;
mod drift;
mod enter;
mod gate;
mod layer;
mod probe;
mod report;
mod retry;
mod size;
mod state;

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;
use tower::{ServiceBuilder, ServiceExt};

use super::evidence::{Evidence, ScanReason};
use crate::ablation::{Mechanism, without};
use crate::incident::Incident;
use crate::message::MessageId;
use crate::scan::Settings;
use crate::scan::engine::{Engine, Sample, ScanError};
use crate::verdict::{EngineClass, Report, Reused, Same};
use gate::{Gate, Looked};
use layer::around;
use state::{GuardState, InFlight, Phase};

pub use gate::{Diversion, DiversionAct};
pub use probe::Passed;

/// One call of a guarded engine on its way through the layers.
#[derive(Debug, Clone)]
pub struct Call {
    sample: Sample,
    scan_reason: ScanReason,
    arrived: Instant,
    /// Where the scan stands, if this call begins one.
    in_flight: InFlight,
    /// Chosen at the gate.
    replica: usize,
    progress: Arc<Progress>,
}

impl Call {
    fn new(sample: Sample) -> Self {
        Self {
            scan_reason: sample.request().scan_reason,
            sample,
            arrived: Instant::now(),
            in_flight: Arc::new(watch::Sender::new(Phase::Waiting)),
            replica: 0,
            progress: Arc::default(),
        }
    }
}

/// How far a call has got, for the report that must be written whatever becomes of the call.
#[derive(Debug, Default)]
struct Progress {
    attempts: AtomicU32,
    /// Where the answer came from, if not from a scan of this call.
    reused: OnceLock<Reused>,
}

impl Progress {
    fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// The answer is one about that message.
    fn reuse(&self, from: MessageId, same: Same) {
        // A call has one answer.
        let _ = self.reused.set(Reused { from, same });
    }

    /// What it means that the deadline passes now.
    fn overdue(&self) -> ScanError {
        match self.attempts() {
            0 => ScanError::Busy,
            _ => ScanError::DeadlinePassed,
        }
    }
}

/// Puts the layers around the replicas of an engine. From the outside in: what is further out sees everything that
/// happens further in. If `before` is a guard of the same engine, what it knows and holds goes on.
pub fn guard(
    engines: Vec<Arc<dyn Engine>>,
    settings: Arc<Settings>,
    before: Option<&Guarded>,
) -> Guarded {
    let max_size = settings.max_size;
    let limit = match without(Mechanism::Zombies) {
        true => settings.timeout,
        false => settings.limit,
    };
    let innermost = layer::Innermost::new(&engines);
    let state = before
        .and_then(|before| before.state.adopted(&settings, &engines))
        .unwrap_or_else(|| GuardState::new(settings.clone(), engines));
    if let Some(before) = before {
        state.drain_as(&before.state);
    }
    let of = |state: &Arc<GuardState>| state.clone();
    let (sharing, retrying, entering) = (of(&state), of(&state), of(&state));
    let service = ServiceBuilder::new()
        // Outermost: whatever happens below becomes exactly one report.
        .layer(report::layer(settings))
        // Before any waiting: what the engine will not be given must not queue for it.
        .layer(around(move |call, next| size::gate(max_size, call, next)))
        // The border between caller and scan. Outside the rest, because the rest must outlive its caller: a slot is
        // free when the engine has ended, not when somebody has stopped waiting. One scan for all who want the same, so
        // before anything that a scan costs.
        .layer(around(move |call, next| {
            coalesce::scan(sharing.clone(), call, next)
        }))
        // Outside the gate: each attempt stands in the queue anew, behind fresh mail, and may get another replica.
        .layer(around(move |call, next| {
            retry::again(retrying.clone(), call, next)
        }))
        // Slots, zombies, lanes, canaries, diversions, breakers: all of them answer the one question whether this scan may
        // begin now, from one state, so they are one place.
        .layer(around(move |call, next| {
            enter::gate(entering.clone(), call, next)
        }))
        // Innermost: counts and bounds the one call that the engine sees.
        .layer(around(move |call, next| attempt::once(limit, call, next)))
        .service(innermost);
    Guarded {
        state,
        service: BoxCloneSyncService::new(service),
    }
}

/// An engine behind its guard. Cloning shares it.
#[derive(Clone)]
pub struct Guarded {
    state: Arc<GuardState>,
    service: BoxCloneSyncService<Sample, Report, Infallible>,
}

impl Guarded {
    /// The engine's settings.
    pub fn settings(&self) -> &Settings {
        &self.state.settings
    }

    /// The engine's one report about the sample, at the sample's deadline at the latest.
    ///
    /// Cancel safety: safe; a scan that has begun goes on to its end, and its answer is kept for the next who asks.
    pub async fn scan(&self, sample: Sample) -> Report {
        match self.service.clone().oneshot(sample).await {
            Ok(report) => report,
            Err(never) => match never {},
        }
    }

    /// The report of an engine that was not waited for, as another engine's finding had decided.
    pub fn unneeded(&self, since: Instant) -> Report {
        let settings = &self.state.settings;
        report::write(
            settings,
            Err(ScanError::Unneeded),
            &Progress::default(),
            since.elapsed(),
            false,
        )
    }

    /// Begins to probe it now and then, also while there is no mail for it. To be called on the runtime.
    pub fn watch(&self) {
        self.state.watch();
    }

    /// What was seen of its scans since the last call.
    pub fn evidence(&self) -> Vec<Evidence> {
        self.state.evidence()
    }

    /// What happened to it since the last call.
    pub fn incidents(&self) -> Vec<Incident> {
        self.state.incidents()
    }

    /// Whether probes are sent to it.
    pub fn is_probed(&self) -> bool {
        self.state.is_probed()
    }

    /// Since when its answers are in doubt, because it answered probes wrongly; told once. Probes are sent every
    /// [`Settings::probe`], and it takes two wrong ones.
    pub fn doubted(&self) -> Option<Instant> {
        self.state.doubted()
    }

    /// Puts diversions in force for its mail.
    pub fn divert(&self, diversions: Arc<[Diversion]>) {
        self.state.divert(diversions);
    }

    /// Says whether mail can be judged without it: if not, fresh mail waits [`Settings::wait`] for it while it is out.
    pub fn cover(&self, covered: bool) {
        self.state.work(|gate, _| gate.cover(covered));
    }

    /// Takes a replica out, or puts it back; all of them if none is named. Scans under way go on. Whether any was not so before;
    /// none if there is no replica of that name.
    pub fn drain(&self, replica: Option<&str>, drained: bool) -> Option<bool> {
        let named = |at: &usize| replica.is_none() || self.state.engines[*at].replica() == replica;
        let replicas: Vec<usize> = (0..self.state.engines.len()).filter(named).collect();
        let mut changed = None;
        for at in replicas {
            let was = self.state.work(|gate, now| gate.drain(now, at, drained));
            changed = Some(changed.unwrap_or(false) | (was != drained));
        }
        changed
    }

    /// How it is doing.
    pub fn health(&self) -> Health {
        let (versions, latencies) = self.state.told();
        self.state.look(|gate| {
            let engines = self.state.engines.iter().zip(gate.replicas()).zip(versions);
            let replica =
                |((engine, looked), version): ((&Arc<dyn Engine>, Looked<'_>), Option<String>)| {
                    ReplicaHealth {
                        address: engine.replica().map(str::to_owned),
                        breaker: looked.breaker.state().to_string(),
                        running: looked.running,
                        drained: looked.drained,
                        resting: looked.resting,
                        signed: version.as_deref().and_then(|v| engine.signed(v)),
                        signatures: version,
                    }
                };
            Health {
                engine: self.settings().name.clone(),
                class: self.settings().class,
                slots: self.settings().slots * self.state.engines.len(),
                running: gate.running(),
                zombies: gate.zombies(),
                waiting: gate.queued(),
                half_within: latencies.map(|(half, _)| half),
                most_within: latencies.map(|(_, most)| most),
                replicas: engines.map(replica).collect(),
            }
        })
    }

    /// Sends the probe pair to each replica; what came of it, by address: what it passed, or what was wrong.
    ///
    /// Cancel safety: safe; probes that were sent keep their slots to their ends.
    pub async fn test(&self) -> Vec<(Option<String>, Result<Passed, String>)> {
        let mut shown = Vec::new();
        for (at, engine) in self.state.engines.iter().enumerate() {
            let result = probe::test(&self.state, at).await;
            shown.push((engine.replica().map(str::to_owned), result));
        }
        shown
    }

    /// How often it has answered after it could not be reached, for however short a time.
    pub fn returns(&self) -> u64 {
        self.state.look(Gate::returns)
    }

    /// Whether no replica takes mail now: the engine is at fault, or drained.
    pub fn is_out(&self) -> bool {
        self.state.look(|gate| gate.refuses().is_some())
    }
}

/// How an engine is doing, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Its name.
    pub engine: Arc<str>,
    /// What it is good for.
    pub class: EngineClass,
    /// Scans at once at most, of all replicas.
    pub slots: usize,
    /// Scans under way, zombies included.
    pub running: usize,
    /// Scans past their timeout that still hold their slot.
    pub zombies: usize,
    /// Messages that wait for a slot.
    pub waiting: usize,
    /// Half of the last scans took so long at most; none before the first.
    pub half_within: Option<Duration>,
    /// 99 of 100 did.
    pub most_within: Option<Duration>,
    /// Each replica.
    pub replicas: Vec<ReplicaHealth>,
}

impl Health {
    /// The states of its replicas, each state once: `closed`, `closed, open (failing)`, `drained`, `resting`.
    pub fn states(&self) -> String {
        let mut states: Vec<&str> = self.replicas.iter().map(ReplicaHealth::state).collect();
        states.sort_unstable();
        states.dedup();
        states.join(", ")
    }

    /// The versions of its replicas' signatures, each once.
    pub fn signatures(&self) -> String {
        let replicas = self.replicas.iter();
        let mut versions: Vec<&str> = replicas.filter_map(|r| r.signatures.as_deref()).collect();
        versions.sort_unstable();
        versions.dedup();
        versions.join(", ")
    }

    /// Whether every replica gets all its mail.
    pub fn is_well(&self) -> bool {
        self.replicas
            .iter()
            .all(|replica| replica.state() == "closed")
    }
}

impl ReplicaHealth {
    /// `drained`, `resting`, or the state of its breaker.
    pub fn state(&self) -> &str {
        match (self.drained, self.resting) {
            (true, _) => "drained",
            (false, true) => "resting",
            (false, false) => &self.breaker,
        }
    }
}

/// How a replica is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaHealth {
    /// Its address; none for an engine in process.
    pub address: Option<String>,
    /// `closed`, `open (failing)`, `half-open`, `ramp (3 at once)`.
    pub breaker: String,
    /// Scans under way.
    pub running: usize,
    /// Taken out by a person.
    pub drained: bool,
    /// It has asked to be left alone for now.
    pub resting: bool,
    /// Version of its signatures, as last told.
    pub signatures: Option<String>,
    /// When they were made, where the version tells.
    pub signed: Option<Timestamp>,
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guarded").field(self.settings()).finish()
    }
}
