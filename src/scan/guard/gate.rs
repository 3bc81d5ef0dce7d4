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
//! - canaries ([`canary`]): at most two unproven copies of one fingerprint are in the engine at once. If both are slow, the
//!   gate sends no more copies: a flood of one message costs an engine two scans;
//! - diversions: the decisions of the interceptors, which use the evidence that the gate collects;
//! - breakers, one for each replica: their input is the outcomes of unrelated messages.

mod canary;
mod diversion;
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
use crate::ablation::{Mechanism, without};
use crate::message::{Fingerprint, MessageId, SenderReputation};
use crate::scan::evidence::Evidence;
use crate::scan::{ScanReason, Turn};
use canary::Canaries;
pub use diversion::{Diversion, DiversionAct};
use stall::Latencies;
use time::{evidence, observed};
use trust::{Level, Use};
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

/// A decision of the gate about one ticket.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum GateOrder {
    /// Start the scan, on the replica with this index.
    Start(Ticket, usize),
    /// Do not scan the message.
    Refuse(Ticket, GateRefusal),
    /// An interceptor has blocked the fingerprint of this running scan: callers need not wait any longer.
    Convicted(Ticket),
}

/// Why the gate refuses a message. The text of a variant is shown to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GateRefusal {
    /// No slot became free within the wait. Other engines of the class make up for the missing answer.
    Busy,
    /// The breakers of all available replicas are open, or an interceptor bypasses the engine for this message.
    Open(String),
    /// An operator has drained all replicas.
    Drained,
    /// Replicas that could take mail have asked for a pause.
    Resting,
    /// The message is to be scanned later: the same or similar content is being scanned or is slow now, mail from unknown
    /// senders is slow, the message itself timed out before, or the message may be the cause of a crash. Other engines do not
    /// make up for the missing answer.
    Parked(String),
    /// The same or similar content is blocked, or the engine crashed on this message. Other engines do not make up for the
    /// missing answer.
    Suspect(String),
}

/// Configured durations of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    /// Age from which a scan of small content counts as slow. A slow scan is evidence, not a failure.
    pub(super) slow: Duration,
    /// The soft timeout: age from which a scan has failed for its caller. The scan itself continues.
    pub(super) timeout: Duration,
    /// How long fresh mail waits for a slot. Mail that is scanned again waits ten times as long.
    pub(super) wait: Duration,
}

impl Times {
    /// Age from which a scan counts as slow, by the size of the content; at most `timeout`.
    fn slow(&self, large: bool) -> Duration {
        let slow = match large {
            true => self.slow.saturating_mul(LARGE_LATENCY_FACTOR),
            false => self.slow,
        };
        slow.min(self.timeout)
    }
}

/// A message that asks for a scan.
#[derive(Debug, Clone)]
pub(super) struct GateRequest {
    pub(super) id: MessageId,
    pub(super) fingerprint: Option<Arc<Fingerprint>>,
    pub(super) reputation: SenderReputation,
    pub(super) scan_reason: ScanReason,
    /// The message timed out before, in an engine that took other mail at that time.
    pub(super) struck: bool,
    /// Client and party of the message: they share turns, and limit the scans of one party.
    pub(super) turn: Turn,
    pub(super) large: bool,
    /// When the message asked for its first scan.
    pub(super) arrived: Instant,
}

/// How a scan ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScanEnd {
    /// The engine answered.
    Answered {
        /// Whether the engine found something bad.
        found: bool,
    },
    /// The scan ended with an error.
    Failed,
    /// The engine closed the connection during the scan.
    Broken,
    /// The relay could not reach the engine.
    Unreachable,
    /// The engine did not answer within its own limit.
    Lost,
    /// The engine asks for a pause of this length (RFC 6585 section 4).
    Rests(Duration),
    /// The scan was a probe: [`Gate::probed`] reports the result to the breaker.
    Probe,
}

#[derive(Debug)]
struct Scan {
    entrant: GateRequest,
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
    entrant: GateRequest,
    class: Class,
    level: Level,
    since: Instant,
    /// The message waits for running copies of the same content, not for a slot.
    parked: bool,
}

#[derive(Debug)]
struct Replica {
    breaker: Breaker,
    running: usize,
    last_end: Instant,
    drained: bool,
    /// End of the pause that the replica has asked for.
    rests: Option<Instant>,
    /// The relay could not reach the replica, and the replica has answered nothing since.
    is_away: bool,
}

impl Replica {
    /// Scans of mail that may run at once. In a ramp, the limit covers only scans that began in the ramp.
    fn allowed(&self) -> usize {
        match self.drained || self.rests.is_some() {
            true => 0,
            false => self.breaker.allowed(),
        }
    }
}

/// The state of a replica, for callers outside the gate.
pub(super) struct Looked<'a> {
    pub(super) breaker: &'a Breaker,
    /// Scans that hold a slot, including probes and zombies.
    pub(super) running: usize,
    /// Whether an operator has drained the replica.
    pub(super) drained: bool,
    /// Whether the replica has asked for a pause that has not ended.
    pub(super) resting: bool,
}

/// The gate of one engine, with all its replicas. See the [module](self).
#[derive(Debug)]
pub(super) struct Gate {
    times: Times,
    slots: usize,
    replicas: Vec<Replica>,
    next: Ticket,
    scans: BTreeMap<Ticket, Scan>,
    waiting: BTreeMap<Ticket, Waiting>,
    turns: Turns,
    used: Use,
    latencies: Latencies,
    /// Time of the last tick, and the start of the current series of ticks without a gap.
    watched: Instant,
    watched_since: Instant,
    /// Start times of scans of unknown senders that were answered before they were slow; the newest ones only.
    strangers_well: VecDeque<Instant>,
    /// The last breaker that opened did so because proven mail of known senders hung, or a probe.
    hangs_on_known: bool,
    /// Whether other engines make up for this engine while its breakers are open.
    covered: bool,
    /// Number of times that a replica answered after being unreachable.
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
        slots: usize,
        replicas: usize,
        probed: bool,
    ) -> Self {
        let replica = Replica {
            breaker: Breaker::new(now, slots, probed),
            running: 0,
            last_end: now,
            drained: false,
            rests: None,
            is_away: false,
        };
        Self {
            times,
            slots,
            replicas: std::iter::repeat_with(|| Replica {
                breaker: replica.breaker.clone(),
                ..replica
            })
            .take(replicas)
            .collect(),
            next: 0,
            scans: BTreeMap::new(),
            waiting: BTreeMap::new(),
            turns: Turns::default(),
            used: Use::new(now),
            latencies: Latencies::new(times.slow),
            watched: now,
            watched_since: now,
            strangers_well: VecDeque::new(),
            hangs_on_known: false,
            covered: true,
            returns: 0,
            canaries: Canaries::new(now),
            diversions: Arc::new([]),
            shadowed: HashMap::new(),
            orders: Vec::new(),
            evidence: VecDeque::new(),
            changes: Vec::new(),
        }
    }

    /// Applies another configuration of the same engine. If there are fewer slots now, no scan starts until enough scans have
    /// ended.
    pub(super) fn retune(&mut self, times: Times, slots: usize) {
        self.times = times;
        self.slots = slots;
        for replica in &mut self.replicas {
            replica.breaker.resize(slots);
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
    pub(super) fn enter(&mut self, now: Instant, entrant: GateRequest) -> Ticket {
        let ticket = self.ticket();
        if let Some(refusal) = self.refusal(now, &entrant) {
            self.orders.push(GateOrder::Refuse(ticket, refusal));
            return ticket;
        }
        let (class, level) = (self.class(&entrant), self.level(&entrant));
        self.turns.push(class, level, entrant.turn, ticket);
        let waiting = Waiting {
            entrant,
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
        let in_time = age < self.times.timeout;
        let parked = self.canaries.end(now, &scan.entrant, end, in_time);
        self.offer_again(parked);
        self.pump(now);
    }

    /// Counts a return if the replica was unreachable before this answer.
    fn is_back(&mut self, replica: usize) {
        let was_away = std::mem::take(&mut self.replicas[replica].is_away);
        self.returns += u64::from(was_away);
    }

    /// Number of times that a replica answered after being unreachable, even if the breaker had not opened.
    pub(super) fn returns(&self) -> u64 {
        self.returns
    }

    /// Takes a slot of a replica for a probe, even if the breaker is open. Returns `None` if no slot is free. A replica that
    /// is out gets one probe even if no slot is free: otherwise a replica whose old scans hang could not show that it works.
    pub(super) fn probe(&mut self, now: Instant, replica: usize) -> Option<Ticket> {
        let here = |scan: &&Scan| scan.is_probe && scan.replica == replica;
        let probes = self.scans.values().filter(here).count();
        let is_full = self.replicas[replica].running >= self.slots;
        let is_alone = probes == 0 && self.is_out(replica);
        // Hanging probes must not take all slots: at most a third of them.
        let too_many = probes > 0 && probes >= self.slots / 3;
        if too_many || is_full && !is_alone {
            return None;
        }
        let ticket = self.ticket();
        self.replicas[replica].running += 1;
        let scan = Scan {
            entrant: GateRequest {
                id: MessageId::new(),
                fingerprint: None,
                reputation: SenderReputation::Known,
                scan_reason: ScanReason::Again,
                struck: false,
                turn: Turn::default(),
                large: false,
                arrived: now,
            },
            level: Level::Proven,
            replica,
            started: now,
            is_probe: true,
            is_slow: false,
            is_overdue: false,
            is_explained: true,
        };
        self.scans.insert(ticket, scan);
        Some(ticket)
    }

    /// Reports the result of a probe pair to the breaker of a replica. A pair passes if the replica answered correctly and in
    /// time.
    pub(super) fn probed(&mut self, now: Instant, replica: usize, passed: bool) {
        if passed {
            self.is_back(replica);
        }
        let stuck = self.stuck_trials(replica);
        let change = self.replicas[replica].breaker.probed(now, passed, stuck);
        self.changed(now, replica, change);
        self.pump(now);
    }

    /// Sets whether other engines make up for this engine while its breakers are open. If so, fresh mail does not wait for the
    /// return of this engine.
    pub(super) fn cover(&mut self, covered: bool) {
        self.covered = covered;
    }

    /// Running scans of mail that began in a trial of the replica.
    fn stuck_trials(&self, replica: usize) -> usize {
        let Some(began) = self.replicas[replica].breaker.tried_since() else {
            return 0;
        };
        let here = self.scans.values().filter(|scan| scan.replica == replica);
        here.filter(|scan| !scan.is_probe && scan.started >= began)
            .count()
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
            if scan.entrant.fingerprint.is_none() {
                continue;
            }
            let act = |d: &Diversion| d.act(&scan.entrant);
            let matching =
                |d: &&Diversion| d.act != DiversionAct::Bypass && d.matches(&scan.entrant);
            let diversion = self.diversions.iter().find(matching);
            scan.is_explained = diversion.is_some() && scan.is_slow;
            if diversion.is_some_and(|d| act(d) == DiversionAct::Hold) {
                self.orders.push(GateOrder::Convicted(*ticket));
            }
        }
        let waiting = self.waiting.iter();
        let waiting: Vec<(Ticket, GateRequest)> =
            waiting.map(|(t, w)| (*t, w.entrant.clone())).collect();
        for (ticket, entrant) in waiting {
            if let Some(refusal) = self.diversion(now, &entrant) {
                self.refuse(ticket, refusal);
            }
        }
        self.pump(now);
    }

    /// Drains a replica, or puts it back into service. Returns whether the replica was drained before.
    pub(super) fn drain(&mut self, now: Instant, replica: usize, drained: bool) -> bool {
        let before = std::mem::replace(&mut self.replicas[replica].drained, drained);
        self.pump(now);
        before
    }

    /// Notes that a replica passed a test that an operator ran. If the breaker is open, the next probe pair is due at once.
    pub(super) fn tested(&mut self, now: Instant, replica: usize) {
        self.replicas[replica].breaker.answered(now);
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
        self.used.pass(now);
        for at in 0..self.replicas.len() {
            let stuck = self.stuck_trials(at);
            let replica = &mut self.replicas[at];
            let change = replica.breaker.tick(now, stuck);
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

    /// Whether the replica needs a probe at once, to find out whether the engine or a message is at fault. There are two
    /// cases. The window of the breaker holds no good outcome, and holds a failure or a scan is slow. Or no scan has ended
    /// since the start of a scan that is slow now.
    pub(super) fn is_doubtful(&self, now: Instant, replica: usize) -> bool {
        let Replica {
            breaker, last_end, ..
        } = &self.replicas[replica];
        let slow = |scan: &&Scan| scan.replica == replica && scan.is_slow && !scan.is_probe;
        let mut slow = self.scans.values().filter(slow).peekable();
        let (good, bad) = breaker.counts(now);
        let is_any = slow.peek().is_some();
        good == 0 && (bad > 0 || is_any) || slow.any(|scan| scan.started >= *last_end)
    }

    /// Whether the breaker of the replica is open or half-open. A drained or resting replica is not out in this sense.
    pub(super) fn is_out(&self, replica: usize) -> bool {
        let state = self.replicas[replica].breaker.state();
        matches!(
            state,
            BreakerState::Open { .. } | BreakerState::HalfOpen { .. }
        )
    }

    /// Whether callers with mail of unknown senders may give up too when the breaker opens. They may if proven mail of known
    /// senders or a probe hung as well, because then the mail of unknown senders is not the cause.
    pub(super) fn hangs_on_known(&self) -> bool {
        self.hangs_on_known
    }

    /// Why no replica takes mail; `None` if at least one replica does.
    pub(super) fn refuses(&self) -> Option<GateRefusal> {
        if self.replicas.iter().all(|r| r.drained) {
            return Some(GateRefusal::Drained);
        }
        if without(Mechanism::Breaker) {
            return None;
        }
        let mut why = Vec::new();
        let mut rests = false;
        for replica in self.replicas.iter().filter(|r| !r.drained) {
            match replica.breaker.state() {
                BreakerState::Closed | BreakerState::Ramp { .. } if replica.rests.is_some() => {
                    rests = true
                }
                BreakerState::Closed | BreakerState::Ramp { .. } => return None,
                BreakerState::Open { cause, .. } | BreakerState::HalfOpen { cause, .. } => {
                    why.push(format!("the engine is {cause}"));
                }
            }
        }
        why.dedup();
        Some(match rests {
            true => GateRefusal::Resting,
            false => GateRefusal::Open(why.join("; ")),
        })
    }

    /// Running scans, including probes and zombies.
    pub(super) fn running(&self) -> usize {
        self.scans.len()
    }

    /// Scans past the soft timeout that still hold a slot.
    pub(super) fn zombies(&self) -> usize {
        self.scans.values().filter(|s| s.is_overdue).count()
    }

    /// Messages that wait at the gate.
    pub(super) fn queued(&self) -> usize {
        self.waiting.len()
    }

    /// The state of each replica, by index.
    pub(super) fn replicas(&self) -> impl Iterator<Item = Looked<'_>> {
        self.replicas.iter().map(|replica| Looked {
            breaker: &replica.breaker,
            running: replica.running,
            drained: replica.drained,
            resting: replica.rests.is_some(),
        })
    }
}
