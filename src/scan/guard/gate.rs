//! The gate of one engine decides which message is scanned now, which message waits, and which message is not scanned at all.
//! The gate is a pure state machine: time is an argument, and the gate returns its decisions as [`GateOrder`]s.
//!
//! All other rules follow from one rule (RESILIENCE section 2, "Slots and zombies"): **a scan keeps its slot until the engine
//! has really ended the scan**, even if every caller has stopped waiting. There are at most as many slots as the engine has
//! workers, so mail waits here and not inside the engine. Response time therefore equals service time, and a slow scan can be
//! blamed on the message or on the engine. The parts that follow from the rule:
//!
//! - zombies: scans whose callers gave up count like all other scans ([`Gate::zombies`]);
//! - levels of trust ([`trust`]): mail of low trust cannot take all slots, which limits the damage from that mail;
//! - turns ([`turns`]): the order in which waiting messages start, among the levels that have room;
//! - canaries ([`canary`]): at most two unproven copies of one fingerprint (by default) are in the engine at once. If both are slow, the
//!   gate sends no more copies: a flood of one message costs an engine two scans;
//! - diversions: the decisions of the interceptors, which use the evidence that the gate collects;
//! - breakers, one for each replica: their input is the outcomes of unrelated messages.

mod canary;
mod diversion;
mod replica;
mod request;
mod stall;
#[cfg(test)]
mod tests;
mod time;
mod trust;
mod turns;
mod waiting;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{Breaker, BreakerState, Change};
use super::settings::GuardSettings;
use crate::observation::{Diversion, DiversionAct, Evidence};
use canary::Canaries;
use replica::Replica;
pub(super) use replica::{ReplicaState, Taken};
pub(super) use request::{GateOrder, GateRefusal, GateRequest, ScanEnd, Times};
use stall::Latencies;
use time::{evidence, observed};
use trust::{Level, SlotUse};
use turns::{Class, Turns};

/// Identifies one message at the gate, from its request to the end of its wait or of its scan.
pub(super) type Ticket = u64;

/// An answer that takes at least 2 s, or four times [`Times::slow`] if that is longer, is a failure for the breaker: the
/// answer is too slow for the callers that wait. 2 s is four times a `slow` of 500 ms. The bound for large content is longer
/// because `slow` is.
const FAILURE_LATENCY_MIN: Duration = Duration::from_secs(2);
/// Observations that are kept until [`Gate::evidence`] fetches them. The gate drops the oldest beyond that, to bound its
/// memory.
const EVIDENCE_MAX: usize = 4096;
/// Content of at least 1 MiB is large: a scan of large content may take longer before the scan counts as slow.
pub(super) const LARGE_OCTETS_MIN: usize = 1 << 20;
/// The slow threshold of large content is ten times that of small content, as engines need longer for large content.
pub(super) const LARGE_LATENCY_FACTOR: u32 = 10;
/// While some replicas with a free slot work, one scan in 32 may still go to a replica whose last outcome was a failure. This
/// shows that the replica has recovered where probes do not, and puts few messages at risk.
const SCANS_PER_REPLICA_TRIAL: u32 = 32;
/// Interval between the test messages of one bypass. A bypassed class of messages still sends one message to the engine every
/// 10 s, to detect that the engine has recovered.
const BYPASS_TEST_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Scan {
    request: GateRequest,
    level: Level,
    replica: usize,
    started: Instant,
    /// A probe is not mail: a probe holds a slot, but does not count against a level of trust.
    is_probe: bool,
    is_slow: bool,
    /// The scan is past the soft timeout: a zombie, unless a caller waits longer than that.
    is_overdue: bool,
    /// An interceptor explains why the scan is slow, so the scan does not count against the engine.
    is_explained: bool,
}

#[derive(Debug)]
struct Waiting {
    request: GateRequest,
    class: Class,
    level: Level,
    since: Instant,
    /// The message waits for running copies of the same content, not for a slot.
    parked: bool,
}

/// The gate of one engine, with all its replicas. See the [module](self).
#[derive(Debug)]
pub(super) struct Gate {
    times: Times,
    slots: usize,
    settings: GuardSettings,
    replicas: Vec<Replica>,
    next: Ticket,
    scans: BTreeMap<Ticket, Scan>,
    waiting: BTreeMap<Ticket, Waiting>,
    turns: Turns,
    slot_use: SlotUse,
    latencies: Latencies,
    /// Time of the last tick, and the start of the current series of ticks without a gap.
    watched: Instant,
    watched_since: Instant,
    /// Start times of scans of unknown senders that were answered before they were slow; the newest ones only.
    unknown_fast_scans: VecDeque<Instant>,
    /// For each slot that is free again and takes no mail of unknown senders yet, the end of that pause.
    pauses: Vec<Instant>,
    /// End of the suspicion that scans which have ended cast on the mail of unknown senders.
    suspected_until: Option<Instant>,
    /// The last breaker that opened did so because proven mail of known senders hung, or a probe.
    hangs_on_known: bool,
    /// Whether other engines make up for this engine while its breakers are open.
    covered: bool,
    /// See [`Gate::returns`].
    returns: u64,
    canaries: Canaries,
    diversions: Arc<[Diversion]>,
    shadowed: HashMap<Arc<str>, Instant>,
    orders: Vec<GateOrder>,
    evidence: VecDeque<Evidence>,
    changes: Vec<(usize, Change)>,
}

impl Gate {
    /// A gate for an engine with this number of `replicas`, each with `slots` slots. `probed` says whether the engine has
    /// probes.
    pub(super) fn new(
        now: Instant,
        times: Times,
        (slots, settings): (usize, GuardSettings),
        replicas: usize,
        probed: bool,
    ) -> Self {
        let replica = Replica {
            breaker: Breaker::new(now, slots, settings, probed),
            running: 0,
            last_end: now,
            drain: None,
            drained_at: None,
            idle_since: None,
            opened_at: None,
            rests: None,
            is_away: false,
        };
        Self {
            times,
            slots,
            settings,
            replicas: std::iter::repeat_with(|| Replica {
                breaker: replica.breaker.clone(),
                drain: None,
                ..replica
            })
            .take(replicas)
            .collect(),
            next: 0,
            scans: BTreeMap::new(),
            waiting: BTreeMap::new(),
            turns: Turns::default(),
            slot_use: SlotUse::new(now),
            latencies: Latencies::new(times.slow),
            watched: now,
            watched_since: now,
            unknown_fast_scans: VecDeque::new(),
            pauses: Vec::new(),
            suspected_until: None,
            hangs_on_known: false,
            covered: true,
            returns: 0,
            canaries: Canaries::new(now, settings.canaries),
            diversions: Arc::new([]),
            shadowed: HashMap::new(),
            orders: Vec::new(),
            evidence: VecDeque::new(),
            changes: Vec::new(),
        }
    }

    /// Applies another configuration of the same engine. If there are fewer slots now, no scan starts until enough scans have
    /// ended.
    pub(super) fn retune(
        &mut self,
        now: Instant,
        times: Times,
        (slots, settings): (usize, GuardSettings),
    ) {
        self.times = times;
        self.slots = slots;
        self.settings = settings;
        self.canaries.retune(settings.canaries);
        for replica in &mut self.replicas {
            replica.breaker.retune(now, slots, settings);
        }
    }

    /// Takes the orders since the last call.
    pub(super) fn orders(&mut self) -> Vec<GateOrder> {
        std::mem::take(&mut self.orders)
    }

    /// Takes the observations since the last call, at most [`EVIDENCE_MAX`].
    pub(super) fn evidence(&mut self) -> Vec<Evidence> {
        self.evidence.drain(..).collect()
    }

    /// Takes the state changes of the breakers since the last call, with the index of the replica.
    pub(super) fn changes(&mut self) -> Vec<(usize, Change)> {
        std::mem::take(&mut self.changes)
    }

    /// Registers a message that asks for a scan. [`Gate::orders`] returns the decision at once or after a later call.
    pub(super) fn enter(&mut self, now: Instant, request: GateRequest) -> Ticket {
        let ticket = self.ticket();
        if let Some(refusal) = self.refusal(now, &request) {
            self.orders.push(GateOrder::Refuse(ticket, refusal));
            return ticket;
        }
        let (class, level) = (self.class(&request), self.level(&request));
        self.turns.push(class, level, request.fairness_key, ticket);
        let waiting = Waiting {
            request,
            class,
            level,
            since: now,
            parked: false,
        };
        self.waiting.insert(ticket, waiting);
        self.pump(now);
        ticket
    }

    /// Removes a message from the queue. A scan that has begun continues, and keeps its slot.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        // `Turns` skips the place of the message later.
        self.waiting.remove(&ticket);
    }

    /// Frees the slot of a scan that the engine has really ended.
    pub(super) fn end(&mut self, now: Instant, ticket: Ticket, end: ScanEnd) {
        let Some(scan) = self.scans.remove(&ticket) else {
            return;
        };
        let replica = &mut self.replicas[scan.replica];
        replica.running -= 1;
        replica.last_end = now;
        match end {
            ScanEnd::Rests(pause) => replica.rests = replica.rests.max(Some(now + pause)),
            ScanEnd::Unreachable => replica.is_away = true,
            ScanEnd::Answered { .. } => self.is_back(scan.replica),
            ScanEnd::Failed | ScanEnd::Broken | ScanEnd::Lost | ScanEnd::Probe => {}
        }
        let age = now - scan.started;
        self.learn(now, &scan, age, end);
        if let Some(what) = observed(&scan, end) {
            self.weigh(now, &scan, age, end);
            self.push(evidence(now, &scan, what));
        }
        self.returns += u64::from(scan.is_overdue && !scan.is_probe);
        self.pause_slot(now, &scan);
        let in_time = age < self.times.timeout;
        let parked = self.canaries.end(now, &scan.request, end, in_time);
        self.offer_again(parked);
        self.pump(now);
    }

    /// Counts a return if the replica was unreachable before this answer.
    fn is_back(&mut self, replica: usize) {
        let was_away = std::mem::take(&mut self.replicas[replica].is_away);
        self.returns += u64::from(was_away);
    }

    /// Number of times that the engine could do more again although its breaker had not opened: a replica answered after being
    /// unreachable, or a scan past its timeout has ended and its slot is free again.
    pub(super) fn returns(&self) -> u64 {
        self.returns
    }

    /// Sets whether other engines make up for this engine while its breakers are open. If so, fresh mail does not wait for the
    /// return of this engine.
    pub(super) fn cover(&mut self, covered: bool) {
        self.covered = covered;
    }

    /// Replaces the diversions, and checks waiting messages and running scans against the new ones.
    pub(super) fn divert(&mut self, now: Instant, diversions: Arc<[Diversion]>) {
        if self.diversions == diversions {
            return;
        }
        self.diversions = diversions;
        self.shadowed
            .retain(|id, _| self.diversions.iter().any(|d| d.id == *id));
        for (ticket, scan) in &mut self.scans {
            if scan.request.fingerprint.is_none() {
                continue;
            }
            let act = |d: &Diversion| d.act(&scan.request);
            let matching =
                |d: &&Diversion| d.act != DiversionAct::Bypass && d.matches(&scan.request);
            let diversion = self.diversions.iter().find(matching);
            scan.is_explained = diversion.is_some() && scan.is_slow;
            if diversion.is_some_and(|d| act(d) == DiversionAct::Hold) {
                self.orders.push(GateOrder::Blocked(*ticket));
            }
        }
        let waiting = self.waiting.iter();
        let waiting: Vec<(Ticket, GateRequest)> =
            waiting.map(|(t, w)| (*t, w.request.clone())).collect();
        for (ticket, request) in waiting {
            if let Some(refusal) = self.diversion(now, &request) {
                self.refuse(ticket, refusal);
            }
        }
        self.pump(now);
    }

    /// Forgets the proofs and the failure counts of all fingerprints, as they do not hold for the new signatures of the
    /// engine.
    pub(super) fn forget_proofs(&mut self, now: Instant) {
        self.canaries = self.canaries.without_proofs(now);
    }

    /// Advances time. The caller calls this about ten times a second while [`is_busy`](Self::is_busy).
    pub(super) fn tick(&mut self, now: Instant) {
        self.watch(now);
        self.age(now);
        self.slot_use.update_means(now);
        for at in 0..self.replicas.len() {
            let unended = self.unended_trial_scans(at);
            let replica = &mut self.replicas[at];
            let change = replica.breaker.tick(now, unended);
            replica.rests = replica.rests.filter(|until| now < *until);
            self.changed(now, at, change);
            self.stall(now, at);
        }
        // `pump` runs first, so that waiting messages get the better reason if the engine is out.
        self.pump(now);
        self.give_up(now);
    }

    /// Whether the gate needs ticks: a scan runs, a message waits, a breaker is not closed, or a replica rests.
    pub(super) fn is_busy(&self) -> bool {
        let out = |r: &Replica| r.breaker.state() != BreakerState::Closed || r.rests.is_some();
        !self.scans.is_empty() || !self.waiting.is_empty() || self.replicas.iter().any(out)
    }

    /// Whether callers with mail of unknown senders may give up too when the breaker opens. They may if proven mail of known
    /// senders or a probe hung as well, because then the mail of unknown senders is not the cause.
    pub(super) fn hangs_on_known(&self) -> bool {
        self.hangs_on_known
    }

    /// Running scans, including probes and zombies.
    pub(super) fn running(&self) -> usize {
        self.scans.len()
    }

    /// Scans past the soft timeout that still hold a slot.
    pub(super) fn zombies(&self) -> usize {
        self.scans.values().filter(|s| s.is_overdue).count()
    }

    /// When the oldest message came that waits at the gate, or whose caller may still wait for the answer.
    pub(super) fn oldest_call(&self) -> Option<Instant> {
        let scans = self.scans.values();
        let scans = scans.filter(|scan| !scan.is_probe && !scan.is_overdue);
        let waiting = self.waiting.values().map(|waiting| waiting.request.arrived);
        waiting.chain(scans.map(|scan| scan.request.arrived)).min()
    }

    /// Waiting messages that wait for running copies of the same content, not for a slot.
    pub(super) fn parked(&self) -> usize {
        self.waiting.values().filter(|w| w.parked).count()
    }

    /// Messages that wait at the gate.
    pub(super) fn queued(&self) -> usize {
        self.waiting.len()
    }
}
