//! The running guard of one engine: the gate behind a lock, and the waiters for its orders.
//!
//! The state outlives a configuration. A reload that leaves an engine's name, addresses and protocol settings unchanged keeps
//! the scans under way, the proofs, the breakers and the cached answers.

mod orders;
mod ticks;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::answer_cache::{AnswerCache, is_bad};
use super::coalesce::InFlightScans;
use super::drift::DriftDetector;
use super::gate::{Gate, GateRefusal, GateRequest, ScanEnd, Ticket, Times};
use super::layers::Outcome;
use super::probe_schedule::ProbeSchedule;
use super::probe_trust::ProbeTrust;
use super::retry_budget::RetryBudget;
use crate::ablation::{Mechanism, without};
use crate::incident::{Incident, Subject};
use crate::observation::{Diversion, Evidence};
use crate::scan::Settings;
use crate::scan::engine::{Engine, EngineAnswer};
use crate::verdict::Answer;

/// Incidents that wait for the pipeline, which takes them four times a second. Further ones are dropped, to bound memory.
const INCIDENTS_MAX: usize = 256;

/// Phase of a scan, as its callers see it.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    /// The scan waits for a slot.
    Waiting,
    /// The engine works on the scan.
    Running {
        /// Start of the scan.
        since: Instant,
        /// An interceptor has blocked the message's fingerprint since then.
        blocked: bool,
    },
    /// The scan has ended.
    Done(Outcome),
}

/// The [`Presence`] of the engine, shared with all callers of its scans. The guard sets it with each change of a breaker. A
/// [`Notify`] wakes the callers in the order of their arrival, so that a simulation replays identically from its seed.
#[derive(Debug, Default)]
pub(super) struct Out {
    /// No replica takes mail.
    is: AtomicBool,
    /// See [`Gate::hangs_on_known`].
    hangs_on_known: AtomicBool,
    /// Notified when `is` changes.
    changed: Notify,
}

/// Whether an engine takes mail, as the callers of its scans see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// At least one replica takes mail.
    Here,
    /// No replica takes mail, and the content of unknown senders may be the cause.
    Out,
    /// No replica takes mail, and the last breaker opened because proven mail of known senders or a probe hung in the engine:
    /// mail of unknown senders is not the cause.
    Hangs,
}

impl Out {
    fn set(&self, is: bool, hangs_on_known: bool) {
        self.hangs_on_known.store(hangs_on_known, Ordering::Release);
        if self.is.swap(is, Ordering::AcqRel) != is {
            self.changed.notify_waiters();
        }
    }

    /// The current value.
    pub(super) fn presence(&self) -> Presence {
        let is = self.is.load(Ordering::Acquire);
        match (is, self.hangs_on_known.load(Ordering::Acquire)) {
            (false, _) => Presence::Here,
            (true, false) => Presence::Out,
            (true, true) => Presence::Hangs,
        }
    }

    /// Resolves at the next change after this call.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}

/// The phase of a scan; other callers may subscribe to it.
pub(super) type InFlight = Arc<watch::Sender<Phase>>;

/// The guard of one engine under one configuration.
#[derive(Debug)]
pub(super) struct GuardState {
    pub(super) settings: Arc<Settings>,
    pub(super) engines: Vec<Arc<dyn Engine>>,
    /// Number of reloads since the first configuration with this core.
    generation: u64,
    core: Arc<Core>,
}

/// The state of a guard that outlives its configuration.
///
/// Lock order: a thread that holds `gate_state` may lock one of the three others. A thread that holds one of the three others
/// locks nothing else, so no deadlock is possible.
#[derive(Debug)]
struct Core {
    gate_state: Mutex<GateState>,
    in_flight_scans: Mutex<InFlightScans>,
    answers: Mutex<AnswerCache>,
    records: Mutex<Records>,
    out: Out,
}

/// What the guard notes about the engine beside the gate. Each access is short.
#[derive(Debug)]
pub(super) struct Records {
    pub(super) retries: RetryBudget,
    incidents: Vec<Incident>,
    drift: DriftDetector,
    probe_trust: ProbeTrust,
}

#[derive(Debug)]
struct GateState {
    gate: Gate,
    waiters: HashMap<Ticket, Waiter>,
    probes: Vec<ProbeSchedule>,
    /// Generation of the [`GuardState`] that runs the gate's ticks. A newer generation takes over when it has work.
    ticking: Option<u64>,
    /// The ticks go on while the gate is idle, for routine probes and for queries for the signature version.
    watched: bool,
    /// Time of the next query for the signature version.
    ask: Instant,
}

#[derive(Debug)]
struct Waiter {
    start: Option<oneshot::Sender<Result<usize, GateRefusal>>>,
    in_flight: InFlight,
}

/// A scan that has entered the gate. Dropping it gives back its place in the queue or its slot: the engine's connection is
/// closed by then, so the engine has ended the scan.
pub(super) struct Entered {
    state: Arc<GuardState>,
    ticket: Ticket,
    end: ScanEnd,
}

impl Entered {
    /// Notes how the scan ended, and gives the slot back.
    pub(super) fn end(mut self, end: ScanEnd) {
        self.end = end;
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let (ticket, end) = (self.ticket, self.end);
        self.state.work(|gate, now| {
            gate.leave(ticket);
            gate.end(now, ticket, end);
        });
        self.state.lock().waiters.remove(&ticket);
    }
}

impl GuardState {
    /// The guard of an engine with at least one replica.
    pub(super) fn new(settings: Arc<Settings>, engines: Vec<Arc<dyn Engine>>) -> Arc<Self> {
        let now = Instant::now();
        let probed = engines.iter().all(is_probed);
        let replicas = engines.len();
        let tuning = (settings.slots, settings.guard);
        let gate = Gate::new(now, times(&settings), tuning, replicas, probed);
        let core = Core {
            gate_state: Mutex::new(GateState {
                gate,
                waiters: HashMap::new(),
                probes: vec![ProbeSchedule::new(now); replicas],
                ticking: None,
                watched: false,
                ask: now,
            }),
            in_flight_scans: Mutex::default(),
            answers: Mutex::new(AnswerCache::new()),
            records: Mutex::new(Records {
                retries: RetryBudget::new(now),
                incidents: Vec::new(),
                drift: DriftDetector::new(now, replicas),
                probe_trust: ProbeTrust::new(now, replicas),
            }),
            out: Out::default(),
        };
        Arc::new(Self {
            settings,
            engines,
            generation: 0,
            core: Arc::new(core),
        })
    }

    /// The guard of the same engine under another configuration, with the state of `self`: scans under way and their slots,
    /// breakers, proofs, answers. None if the name, the protocol or its settings (addresses included) differ, and for an
    /// engine in process: its answers end with its rules.
    pub(super) fn adopted(
        &self,
        settings: &Arc<Settings>,
        engines: &[Arc<dyn Engine>],
    ) -> Option<Arc<Self>> {
        let apart = engines.iter().all(|engine| engine.replica().is_some());
        if !apart || self.settings.name != settings.name || self.settings.kind != settings.kind {
            return None;
        }
        let state = Arc::new(Self {
            settings: settings.clone(),
            engines: engines.to_vec(),
            generation: self.generation + 1,
            core: self.core.clone(),
        });
        Some(state)
    }

    /// Drains the replicas that a person had drained in `before`. A drain outlasts every reload, until it ends. If all replicas
    /// were drained, new replicas are drained too, because the person had drained the engine.
    pub(super) fn drain_as(self: &Arc<Self>, before: &Self) {
        let drains: Vec<_> =
            before.look(|gate| gate.replicas().map(|r| r.drain.cloned()).collect());
        let all = drains.iter().all(Option::is_some);
        let first = drains.first().filter(|_| all).cloned().flatten();
        for (at, engine) in self.engines.iter().enumerate() {
            let mut old = before.engines.iter().zip(&drains);
            let same = old.find(|(old, _)| old.replica() == engine.replica());
            let drain = same.and_then(|(_, drain)| drain.clone());
            if let Some(drain) = drain.or(first.clone()) {
                self.work(|gate, now| gate.drain(now, at, Some(drain)));
            }
        }
    }

    /// Requests a slot. The gate's order arrives through the receiver.
    pub(super) fn enter(
        self: &Arc<Self>,
        request: GateRequest,
        in_flight: InFlight,
    ) -> (Entered, oneshot::Receiver<Result<usize, GateRefusal>>) {
        let (start, started) = oneshot::channel();
        let mut gate_state = self.lock();
        let ticket = gate_state.gate.enter(Instant::now(), request);
        let start = Some(start);
        gate_state
            .waiters
            .insert(ticket, Waiter { start, in_flight });
        self.carry_out(&mut gate_state);
        self.keep_time(&mut gate_state);
        let entered = Entered {
            state: self.clone(),
            ticket,
            end: ScanEnd::Failed,
        };
        (entered, started)
    }

    /// Takes a slot of a replica for a probe; none if the gate gives none.
    pub(super) fn enter_probe(self: &Arc<Self>, replica: usize) -> Option<Entered> {
        let ticket = self.work(|gate, now| gate.probe(now, replica))?;
        Some(Entered {
            state: self.clone(),
            ticket,
            end: ScanEnd::Probe,
        })
    }

    /// Changes the gate and carries out the orders that result.
    pub(super) fn work<T>(self: &Arc<Self>, what: impl FnOnce(&mut Gate, Instant) -> T) -> T {
        let mut gate_state = self.lock();
        let done = what(&mut gate_state.gate, Instant::now());
        self.carry_out(&mut gate_state);
        self.keep_time(&mut gate_state);
        done
    }

    /// Whether this call would have to wait for a slot now.
    pub(super) fn is_short(&self, request: &GateRequest) -> bool {
        self.look(|gate| gate.is_short(Instant::now(), request))
    }

    /// Reads the gate.
    pub(super) fn look<T>(&self, at: impl FnOnce(&Gate) -> T) -> T {
        at(&self.lock().gate)
    }

    /// Replaces the diversions.
    pub(super) fn divert(self: &Arc<Self>, diversions: Arc<[Diversion]>) {
        self.work(|gate, now| gate.divert(now, diversions));
    }

    /// Takes the evidence since the last call.
    pub(super) fn evidence(&self) -> Vec<Evidence> {
        self.lock().gate.evidence()
    }

    /// Takes the incidents since the last call.
    pub(super) fn incidents(&self) -> Vec<Incident> {
        std::mem::take(&mut self.records().incidents)
    }

    /// Keeps an incident until [`incidents`](Self::incidents) takes it.
    pub(super) fn report_incident(&self, incident: Incident) {
        let mut records = self.records();
        if records.incidents.len() < INCIDENTS_MAX {
            records.incidents.push(incident);
        }
    }

    /// The presence of the engine, for callers of its scans.
    pub(super) fn out(&self) -> &Out {
        &self.core.out
    }

    /// Scans under way that other callers can join.
    pub(super) fn in_flight_scans(&self) -> MutexGuard<'_, InFlightScans> {
        lock(&self.core.in_flight_scans)
    }

    /// The cached answers.
    pub(super) fn answers(&self) -> MutexGuard<'_, AnswerCache> {
        lock(&self.core.answers)
    }

    /// Fills in the name of the replica in its answer or its error, because engines leave this to the guard.
    pub(super) fn named(&self, replica: usize, outcome: Outcome) -> Outcome {
        let Some(name) = self.engines.get(replica).and_then(|e| e.replica()) else {
            return outcome;
        };
        match outcome {
            Ok(answer) => Ok(EngineAnswer {
                replica: Some(name.to_owned()),
                ..answer
            }),
            Err(error) => Err(error.of(name)),
        }
    }

    /// Gives an answer about mail to the drift detector.
    pub(super) fn observe_answer(
        self: &Arc<Self>,
        replica: usize,
        answer: &EngineAnswer,
        took: Duration,
    ) {
        self.signed(replica, answer.signatures.as_deref());
        if let Answer::Answered(findings) = &answer.answer {
            self.records().drift.answered(took, is_bad(findings));
        }
    }

    /// Takes the signature version from an answer about a probe, and returns the answer. Probes are not drift data.
    pub(super) fn probe_answer(self: &Arc<Self>, replica: usize, answer: EngineAnswer) -> Answer {
        self.signed(replica, answer.signatures.as_deref());
        answer.answer
    }

    /// Notes the signature version that a replica has reported. A new version ends all cached answers and proofs. An engine in
    /// process states its current version, which is newer than the version in the answer to an earlier scan.
    pub(super) fn signed(self: &Arc<Self>, replica: usize, reported: Option<&str>) {
        let known = self.engines.get(replica).and_then(|e| e.signatures());
        let Some(version) = known.as_deref().or(reported) else {
            return;
        };
        let is_new = self.records().drift.signed(replica, version);
        self.answers().signed(Instant::now(), is_new);
        if is_new {
            self.work(|gate, now| gate.forget_proofs(now));
        }
    }

    /// Reads the signature versions of engines in process, and ends the cached answers if a version is new. The versions are in
    /// memory, so this costs nothing and precedes each use of a cached answer. Other engines are not asked: scans, probes and
    /// queries report their versions.
    pub(super) fn note_signatures_in_process(self: &Arc<Self>) {
        for at in 0..self.engines.len() {
            self.signed(at, None);
        }
    }

    /// The signature version of each replica, and the median and 99th percentile of the scan durations.
    pub(super) fn versions_and_latencies(
        &self,
    ) -> (Vec<Option<String>>, Option<(Duration, Duration)>) {
        let records = self.records();
        let drift = &records.drift;
        let version = |at| drift.version(at).map(str::to_owned);
        let versions = (0..self.engines.len()).map(version).collect();
        (versions, drift.latencies())
    }

    /// A replica has answered rightly a probe pair that started at `began`.
    pub(super) fn trust_from(&self, replica: usize, began: Instant) {
        self.records().probe_trust.trust_from(replica, began);
    }

    /// A replica has answered a probe wrongly.
    pub(super) fn answered_wrongly(&self, replica: usize) {
        self.records().probe_trust.answered_wrongly(replica);
    }

    /// Whether a replica has answered a probe wrongly since its last right pair. Answers are not cached meanwhile.
    pub(super) fn has_wrong_answers(&self) -> bool {
        self.records().probe_trust.has_wrong_answers()
    }

    /// Distrusts a replica whose breaker is open, if the replica has answered a probe wrongly: its answers since the last right
    /// probe pair are untrusted, and the engine's cached answers end. The cause of the open breaker does not matter: a replica
    /// that hangs after a wrong answer has still given that answer.
    pub(super) fn doubt(&self, replica: usize) {
        let is_doubted = self.records().probe_trust.doubt(replica);
        if is_doubted {
            self.answers().end();
        }
    }

    /// The instant since which answers are untrusted; each is returned once.
    pub(super) fn doubted(&self) -> Option<Instant> {
        self.records().probe_trust.take_doubted()
    }

    /// The engine as subject of an incident. The replica is named only if the engine has several.
    pub(super) fn subject(&self, replica: Option<usize>) -> Subject {
        let replica = replica.filter(|_| self.engines.len() > 1);
        Subject::Engine {
            name: self.settings.name.to_string(),
            replica: replica.and_then(|at| Some(self.engines.get(at)?.replica()?.to_owned())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        lock(&self.core.gate_state)
    }

    /// The retry budget and the other records.
    pub(super) fn records(&self) -> MutexGuard<'_, Records> {
        lock(&self.core.records)
    }

    /// Whether any replica accepts probes.
    pub(super) fn is_probed(&self) -> bool {
        self.engines.iter().any(is_probed)
    }
}

impl GateState {
    fn needs_time(&self) -> bool {
        self.watched || self.gate.is_busy()
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<usize, GateRefusal>) {
        let start = self.waiters.get_mut(&ticket).and_then(|s| s.start.take());
        if let Some(start) = start {
            // The receiver may be gone: dropping its `Entered` gives the slot back.
            let _ = start.send(answer);
        }
    }
}

fn is_probed(engine: &Arc<dyn Engine>) -> bool {
    engine.probes().is_some() && !without(Mechanism::Probes)
}

fn times(settings: &Settings) -> Times {
    Times {
        slow: settings.slow,
        timeout: settings.timeout,
        wait: settings.wait,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
