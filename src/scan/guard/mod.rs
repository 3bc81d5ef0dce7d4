//! The tower layers between a message and an engine: their order, and the reason for each position.
//!
//! Each layer is one async function; only [`guard`] knows their order. Pure state machines without clock
//! and socket make the decisions: [`gate`] (slots and zombies, levels of trust, canaries, diversions), [`breaker`],
//! [`answer_cache`], the retry budget. [`state`] keeps them behind a lock, and across reloads.

mod answer_cache;
mod breaker;
mod coalesce;
mod drain;
mod drift;
mod gate;
mod health;
mod layers;
mod probe;
mod probe_schedule;
mod probe_trust;
mod report;
mod retry_budget;
#[cfg(test)]
mod samples;
mod settings;
mod state;

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::counter;
use tokio::sync::watch;
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;
use tower::{ServiceBuilder, ServiceExt};

use crate::ablation::{Mechanism, without};
use crate::deadline::wall_clock;
use crate::incident::Incident;
use crate::message::MessageId;
use crate::observation::{Diversion, Evidence, ScanReason};
use crate::scan::Settings;
use crate::scan::engine::{Engine, Sample, ScanError};
use crate::verdict::{Report, Reused, Same};
use breaker::BreakerState;
use gate::{Gate, ReplicaState};
use layers::around;
use state::{GuardState, InFlight, Phase};

pub use drain::{BadTerms, Drain, DrainHealth, DrainTerms, Drained, NotDrained};
pub use health::{Health, ReplicaHealth};
pub use probe::Passed;
pub use settings::{GuardSettings, SlotShare};

/// One call of a guarded engine on its way through the layers.
#[derive(Debug, Clone)]
pub struct Call {
    sample: Sample,
    scan_reason: ScanReason,
    arrived: Instant,
    /// Phase of the scan that this call starts, if it starts one.
    in_flight: InFlight,
    /// Index of the replica; the gate chooses it.
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

/// Progress of a call. The caller keeps it, because every call ends in a report, also a call that was dropped.
#[derive(Debug, Default)]
struct Progress {
    attempts: AtomicU32,
    /// Time from the arrival to the first attempt.
    waited: OnceLock<Duration>,
    /// Source of the answer, if this call shared a scan or used a cached answer.
    reused: OnceLock<Reused>,
}

impl Progress {
    fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Notes that the answer is about the message `from`.
    fn reuse(&self, from: MessageId, same: Same) {
        // A call has one answer, so the cell is empty here.
        let _ = self.reused.set(Reused { from, same });
    }

    /// Why the answer is missing if the caller's deadline passes now: a call without an attempt got no slot.
    fn missing_at_deadline(&self) -> ScanError {
        match self.attempts() {
            0 => ScanError::Busy,
            _ => ScanError::DeadlinePassed,
        }
    }
}

/// Builds the layers around the replicas of one engine.
///
/// The code lists the layers from the outermost to the innermost; an outer layer sees everything that an inner layer does.
/// If `before` guards the same engine, the new guard takes over its state: scans under way, breakers, proofs, answers. An
/// engine in process starts with new state. Replicas that a person drained in `before` stay drained.
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
    let innermost = layers::Innermost::new(&engines);
    let state = before
        .and_then(|before| before.state.adopted(&settings, &engines))
        .unwrap_or_else(|| GuardState::new(settings.clone(), engines));
    if let Some(before) = before {
        state.drain_as(&before.state);
    }
    // The handle is made once: the macro would allocate for each scan.
    let attempts = counter!("spillway_scan_attempts_total", "engine" => settings.name.to_string());
    let of = |state: &Arc<GuardState>| state.clone();
    let (sharing, retrying, entering) = (of(&state), of(&state), of(&state));
    let service = ServiceBuilder::new()
        // Outermost, because every outcome of the layers below must become exactly one report.
        .layer(report::layer(settings))
        // Before any queue: a message that is too large for the engine must not wait for a slot.
        .layer(around(move |call, next| {
            layers::bound_size(max_size, call, next)
        }))
        // The border between caller and scan. The layers below belong to the scan and must outlive the caller: a slot is
        // free when the engine ends the scan, not when the caller gives up. Callers with equal content share one scan, so
        // this layer stands before every layer that costs engine time.
        .layer(around(move |call, next| {
            coalesce::scan(sharing.clone(), call, next)
        }))
        // Outside the gate: each further attempt queues again, behind fresh mail, and may get another replica.
        .layer(around(move |call, next| {
            layers::retry(retrying.clone(), call, next)
        }))
        // Slots, zombies, levels of trust, canaries, diversions and breakers together decide whether a scan may start now.
        // They read one state, so they are one layer.
        .layer(around(move |call, next| {
            layers::pass_gate(entering.clone(), call, next)
        }))
        // Innermost: counts the call to the engine and bounds its duration.
        .layer(around(move |call, next| {
            layers::attempt(limit, attempts.clone(), call, next)
        }))
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

    /// Scans the sample and returns exactly one report, at the latest at the sample's deadline. A missing answer is a
    /// report with a reason, so this method has no error.
    ///
    /// Cancel safety: safe. A scan that has started runs to its end in its slot, and its answer is cached for the next
    /// caller with the same content.
    pub async fn scan(&self, sample: Sample) -> Report {
        match self.service.clone().oneshot(sample).await {
            Ok(report) => report,
            Err(never) => match never {},
        }
    }

    /// The report `unneeded` for an engine that has not answered when another engine's finding decides. `since` is the
    /// start of the scan.
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

    /// Starts the routine probes, the queries for the signature version and the engine's own background work, also while
    /// the engine gets no mail. Puts the settings of this guard in force at the gate. Must be called on the tokio runtime.
    pub fn watch(&self) {
        self.state.watch();
    }

    /// Takes the evidence about scans since the last call.
    pub fn evidence(&self) -> Vec<Evidence> {
        self.state.evidence()
    }

    /// Takes the incidents since the last call.
    pub fn incidents(&self) -> Vec<Incident> {
        self.state.incidents()
    }

    /// Whether the guard sends probes to the engine.
    pub fn is_probed(&self) -> bool {
        self.state.is_probed()
    }

    /// The instant since which the engine's answers are untrusted, because the engine answered probes wrongly. Returns each
    /// instant once. Probes are sent every [`Settings::probe`], and two consecutive wrong answers open the breaker.
    pub fn doubted(&self) -> Option<Instant> {
        self.state.doubted()
    }

    /// Replaces the diversions of the engine. The gate checks messages that wait for a slot against them at once.
    pub fn divert(&self, diversions: Arc<[Diversion]>) {
        self.state.divert(diversions);
    }

    /// Sets whether other engines cover for this engine. If they do not, fresh mail waits up to [`Settings::wait`] for the
    /// engine while its breaker is open.
    pub fn cover(&self, covered: bool) {
        self.state.work(|gate, _| gate.cover(covered));
    }

    /// The state of the engine now, for status output.
    pub fn health(&self) -> Health {
        let (versions, latencies) = self.state.versions_and_latencies();
        self.state.look(|gate| {
            let passes = gate.passes().is_some();
            let engines = self.state.engines.iter().zip(gate.replicas()).zip(versions);
            let replica = |((engine, replica_state), version): (
                (&Arc<dyn Engine>, ReplicaState<'_>),
                Option<String>,
            )| {
                ReplicaHealth {
                    address: engine.replica().map(str::to_owned),
                    breaker: replica_state.breaker.state().to_string(),
                    running: replica_state.running,
                    drained: replica_state.drain.is_some(),
                    drain: replica_state
                        .drain
                        .map(|drain| DrainHealth::of(drain, passes)),
                    resting: replica_state.resting,
                    since: replica_state
                        .since
                        .map(|since| wall_clock() - since.elapsed()),
                    next_probe_in: match replica_state.breaker.state() {
                        BreakerState::Open { until, .. } if engine.probes().is_some() => {
                            Some(until.saturating_duration_since(Instant::now()))
                        }
                        _ => None,
                    },
                    signed: version.as_deref().and_then(|v| engine.signed(v)),
                    signatures: version,
                }
            };
            Health {
                engine: self.settings().name.clone(),
                class: self.settings().class,
                timeout: self.settings().timeout,
                slots: self.settings().slots * self.state.engines.len(),
                running: gate.running(),
                zombies: gate.zombies(),
                waiting: gate.queued(),
                oldest_call_age: gate.oldest_call().map(|arrived| arrived.elapsed()),
                half_within: latencies.map(|(half, _)| half),
                most_within: latencies.map(|(_, most)| most),
                replicas: engines.map(replica).collect(),
            }
        })
    }

    /// Sends the probe pair to each replica, one replica after the other, because a person asked. Returns, for each replica,
    /// its address (`None` for an engine in process) and what the replica passed, or the reason why it failed.
    ///
    /// Cancel safety: safe. A probe that was sent keeps its slot until the engine ends it.
    pub async fn test(&self) -> Vec<(Option<String>, Result<Passed, String>)> {
        let mut shown = Vec::new();
        for (at, engine) in self.state.engines.iter().enumerate() {
            let result = probe::test(&self.state, at).await;
            shown.push((engine.replica().map(str::to_owned), result));
        }
        shown
    }

    /// Number of times the engine could do more again although its breaker had not opened: a replica answered after it was
    /// unreachable, or a scan past its timeout has ended.
    pub fn returns(&self) -> u64 {
        self.state.look(Gate::returns)
    }

    /// Number of waiting messages that wait for running copies of the same content, and not for a slot.
    pub fn parked(&self) -> usize {
        self.state.look(Gate::parked)
    }

    /// Whether no replica takes mail now: each replica is drained, has an open or half-open breaker, or has asked for a
    /// pause.
    pub fn is_out(&self) -> bool {
        self.state.look(|gate| gate.refuses().is_some())
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guarded").field(self.settings()).finish()
    }
}
