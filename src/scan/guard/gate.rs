//! The gate before one engine: who may be scanned now, who waits, who is not scanned at all. A pure state machine; time
//! is an argument, and what is to be done comes back as [`GateOrder`]s.
//!
//! One rule carries everything else (RESILIENCE section 0): **a scan keeps its slot until the engine has really ended
//! it**, whoever has stopped waiting. Slots are not more than the engine's workers, so mail waits here and not inside the
//! engine, response time is service time, and only then can anybody be blamed for it. From that follow
//!
//! - zombies: scans whose callers gave up count like any other ([`Gate::zombies`]);
//! - levels of trust ([`trust`]): mail that nothing speaks for cannot take all slots, so what it breaks stays small;
//! - turns ([`turns`]): among those whose level has room, who goes next;
//! - canaries ([`canary`]): of one fingerprint only two unproven copies are in the engine at once. If both are slow, no
//!   more of it is sent: a flood of one message costs an engine two scans;
//! - diversions: what the interceptors above have concluded from the evidence that is collected here;
//! - breakers, one for each replica, fed with what unrelated messages met.

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
use crate::message::{Fingerprint, MessageId, Standing};
use crate::scan::evidence::Evidence;
use crate::scan::{ScanReason, Turn};
use canary::Canaries;
pub use diversion::{Diversion, DiversionAct};
use stall::Latencies;
use time::{evidence, observed};
use trust::{Level, Use};
use turns::{Class, Turns};

/// The name of one scan, or of one wait for a scan.
pub(super) type Ticket = u64;

/// Answers slower than this are failures for the breaker; for large content the bound grows with [`Times::slow`].
const FAILURE: Duration = Duration::from_secs(2);
/// Evidence kept until somebody fetches it; the oldest is dropped.
const EVIDENCE: usize = 4096;
/// Content from which a scan may take longer before it is called slow.
pub(super) const LARGE: usize = 1 << 20;
/// How much longer.
pub(super) const LARGE_FACTOR: u32 = 10;
/// One scan in so many goes to a replica that failed last, although others did not.
const TRIAL: u32 = 32;
/// A bypassed class of messages sends one of them so often, to find out whether the engine has mended.
const SHADOW: Duration = Duration::from_secs(10);

/// What is to be told to whom.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum GateOrder {
    /// Scan it, on that replica.
    Start(Ticket, usize),
    /// It is not scanned.
    Refuse(Ticket, GateRefusal),
    /// Its fingerprint was convicted while it was being scanned: who still waits need not.
    Convicted(Ticket),
}

/// Why something is not scanned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GateRefusal {
    /// No slot became free in time.
    Busy,
    /// No replica may be asked.
    Open(String),
    /// A person has taken the engine out.
    Drained,
    /// It asks to be left alone for now.
    Resting,
    /// The same or similar content is slow right now.
    Parked(String),
    /// The same or similar content has been convicted.
    Suspect(String),
}

/// Durations of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    /// A scan older than this is slow (for small content): evidence, not failure.
    pub(super) slow: Duration,
    /// A scan older than this has failed for its caller: the soft timeout.
    pub(super) timeout: Duration,
    /// Wait for a slot.
    pub(super) wait: Duration,
}

impl Times {
    /// When a scan of so many octets is called slow.
    fn slow(&self, large: bool) -> Duration {
        let slow = match large {
            true => self.slow.saturating_mul(LARGE_FACTOR),
            false => self.slow,
        };
        slow.min(self.timeout)
    }
}

/// Who wants to be scanned.
#[derive(Debug, Clone)]
pub(super) struct GateRequest {
    pub(super) id: MessageId,
    pub(super) fingerprint: Option<Arc<Fingerprint>>,
    pub(super) standing: Standing,
    pub(super) scan_reason: ScanReason,
    /// It ran into the timeout of an engine before, which had slots for others then.
    pub(super) struck: bool,
    /// Whose turn it takes, and whose scans it counts among.
    pub(super) turn: Turn,
    pub(super) large: bool,
    /// When the message asked for its first scan.
    pub(super) arrived: Instant,
}

/// How a scan ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScanEnd {
    /// With an answer.
    Answered {
        /// Whether something bad was found.
        found: bool,
    },
    /// With an error.
    Failed,
    /// The engine went away in the middle.
    Broken,
    /// It could not be reached.
    Unreachable,
    /// Not within the engine's own limit.
    Lost,
    /// The engine asks to be left alone for so long (RFC 6585 4).
    Rests(Duration),
    /// It was a probe; the breaker hears of it elsewhere.
    Probe,
}

#[derive(Debug)]
struct Scan {
    entrant: GateRequest,
    level: Level,
    replica: usize,
    started: Instant,
    /// No mail: nothing is concluded from its age, and it takes no share of any level.
    is_probe: bool,
    is_slow: bool,
    /// Past the soft timeout: a zombie, unless its caller is more patient.
    is_overdue: bool,
    /// A diversion explains why it is slow: it is not the engine's fault.
    is_explained: bool,
}

#[derive(Debug)]
struct Waiting {
    entrant: GateRequest,
    class: Class,
    level: Level,
    since: Instant,
    /// Behind copies of itself, and not for a slot.
    parked: bool,
}

#[derive(Debug)]
struct Replica {
    breaker: Breaker,
    running: usize,
    last_end: Instant,
    drained: bool,
    /// Until then it asks to be left alone.
    rests: Option<Instant>,
    /// It could not be reached, and has answered nothing since.
    is_away: bool,
}

impl Replica {
    /// Scans of mail that may run at once; in a ramp, of those begun in it.
    fn allowed(&self) -> usize {
        match self.drained || self.rests.is_some() {
            true => 0,
            false => self.breaker.allowed(),
        }
    }
}

/// A replica as it is seen from outside.
pub(super) struct Looked<'a> {
    pub(super) breaker: &'a Breaker,
    /// Scans under way.
    pub(super) running: usize,
    /// Taken out by a person.
    pub(super) drained: bool,
    /// It asks to be left alone for now.
    pub(super) resting: bool,
}

/// The gate.
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
    /// When it was last looked at the engine, and since when that was done without a pause.
    watched: Instant,
    watched_since: Instant,
    /// When scans of strangers began that ended before they were slow, the last of them.
    strangers_well: VecDeque<Instant>,
    /// The breaker that was opened last was opened because known senders' mail hung.
    hangs_on_known: bool,
    /// Whether others make up for this engine while it is out.
    covered: bool,
    /// How often a replica has answered that could not be reached before.
    returns: u64,
    canaries: Canaries,
    diversions: Arc<[Diversion]>,
    shadowed: HashMap<Arc<str>, Instant>,
    orders: Vec<GateOrder>,
    evidence: VecDeque<Evidence>,
    changes: Vec<(usize, Change)>,
}

impl Gate {
    /// A gate before `replicas` of an engine, each with so many `slots`.
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

    /// Another configuration of the same engine. With fewer slots nothing begins until enough scans have ended.
    pub(super) fn retune(&mut self, times: Times, slots: usize) {
        self.times = times;
        self.slots = slots;
        for replica in &mut self.replicas {
            replica.breaker.resize(slots);
        }
    }

    /// What has to be done since the last call.
    pub(super) fn orders(&mut self) -> Vec<GateOrder> {
        std::mem::take(&mut self.orders)
    }

    /// What was seen since the last call.
    pub(super) fn evidence(&mut self) -> Vec<Evidence> {
        self.evidence.drain(..).collect()
    }

    /// What the breakers did since the last call, by replica.
    pub(super) fn changes(&mut self) -> Vec<(usize, Change)> {
        std::mem::take(&mut self.changes)
    }

    /// Somebody wants to be scanned. The order that answers comes at once or later.
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

    /// Nobody waits for that scan any more. One that has begun goes on, with its slot.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        // Its place in a queue is skipped when its turn comes.
        self.waiting.remove(&ticket);
    }

    /// A scan has really ended.
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

    /// A replica has answered.
    fn is_back(&mut self, replica: usize) {
        let was_away = std::mem::take(&mut self.replicas[replica].is_away);
        self.returns += u64::from(was_away);
    }

    /// How often a replica has answered that could not be reached before, whether or not its breaker had opened.
    pub(super) fn returns(&self) -> u64 {
        self.returns
    }

    /// Takes a slot of that replica for a probe, breaker or not; none if there is no free one. A replica that is out is sent one
    /// probe all the same, or it could not show that it works as long as it has not ended what it had.
    pub(super) fn probe(&mut self, now: Instant, replica: usize) -> Option<Ticket> {
        let here = |scan: &&Scan| scan.is_probe && scan.replica == replica;
        let probes = self.scans.values().filter(here).count();
        let is_full = self.replicas[replica].running >= self.slots;
        let is_alone = probes == 0 && self.is_out(replica);
        // Probes that hang must not take all slots either.
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
                standing: Standing::Known,
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

    /// A probe pair of that replica was answered.
    pub(super) fn probed(&mut self, now: Instant, replica: usize, passed: bool) {
        if passed {
            self.is_back(replica);
        }
        let stuck = self.stuck_trials(replica);
        let change = self.replicas[replica].breaker.probed(now, passed, stuck);
        self.changed(now, replica, change);
        self.pump(now);
    }

    /// Whether others make up for the engine while it is out: then fresh mail does not wait for it.
    pub(super) fn cover(&mut self, covered: bool) {
        self.covered = covered;
    }

    /// Scans of mail that were begun in trials of that replica and have not ended.
    fn stuck_trials(&self, replica: usize) -> usize {
        let Some(began) = self.replicas[replica].breaker.tried_since() else {
            return 0;
        };
        let here = self.scans.values().filter(|scan| scan.replica == replica);
        here.filter(|scan| !scan.is_probe && scan.started >= began)
            .count()
    }

    /// Replaces the diversions; those who wait are looked at again.
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

    /// Takes a replica out, or puts it back. Whether it was out before.
    pub(super) fn drain(&mut self, now: Instant, replica: usize, drained: bool) -> bool {
        let before = std::mem::replace(&mut self.replicas[replica].drained, drained);
        self.pump(now);
        before
    }

    /// A person has tested that replica, and it passed: if it is out it is probed at once.
    pub(super) fn tested(&mut self, now: Instant, replica: usize) {
        self.replicas[replica].breaker.answered(now);
    }

    /// Signatures have changed: what was proven or convicted with others is open again.
    pub(super) fn forget_proofs(&mut self, now: Instant) {
        self.canaries = self.canaries.without_proofs(now);
    }

    /// Lets time pass. To be called about ten times a second while [`is_busy`](Self::is_busy).
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
        // First those who are told that the engine is out: it is the better reason.
        self.pump(now);
        self.give_up(now);
    }

    /// Whether time makes a difference: scans run, or wait, or a replica is out.
    pub(super) fn is_busy(&self) -> bool {
        let out = |r: &Replica| r.breaker.state() != BreakerState::Closed || r.rests.is_some();
        !self.scans.is_empty() || !self.waiting.is_empty() || self.replicas.iter().any(out)
    }

    /// Whether something is wrong on that replica and nothing has ended well lately, or nothing at all since a scan began that is
    /// slow: then a probe tells whose fault it is.
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

    /// Whether that replica gets no mail now, for whatever reason.
    pub(super) fn is_out(&self, replica: usize) -> bool {
        let state = self.replicas[replica].breaker.state();
        matches!(
            state,
            BreakerState::Open { .. } | BreakerState::HalfOpen { .. }
        )
    }

    /// Whether those whom nothing speaks for may leave with the breaker too, as it is not their mail that the engine hangs on.
    pub(super) fn hangs_on_known(&self) -> bool {
        self.hangs_on_known
    }

    /// Whether no replica takes mail, and why.
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

    /// Scans that run, those that nobody waits for included.
    pub(super) fn running(&self) -> usize {
        self.scans.len()
    }

    /// Scans past their timeout that still hold their slot.
    pub(super) fn zombies(&self) -> usize {
        self.scans.values().filter(|s| s.is_overdue).count()
    }

    /// Those that wait.
    pub(super) fn queued(&self) -> usize {
        self.waiting.len()
    }

    /// BreakerState of each replica.
    pub(super) fn replicas(&self) -> impl Iterator<Item = Looked<'_>> {
        self.replicas.iter().map(|replica| Looked {
            breaker: &replica.breaker,
            running: replica.running,
            drained: replica.drained,
            resting: replica.rests.is_some(),
        })
    }
}
