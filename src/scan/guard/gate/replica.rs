//! The replicas of an engine at the gate: which take mail, their probes, and the drain by an operator.

use std::sync::Arc;

use tokio::time::Instant;

use super::trust::Level;
use super::{Gate, GateRefusal, GateRequest, Scan, Ticket};
use crate::ablation::{Mechanism, without};
use crate::measure::SizeClass;
use crate::message::{MessageId, SenderReputation};
use crate::observation::ScanReason;
use crate::scan::FairnessKey;
use crate::scan::guard::breaker::{Breaker, BreakerState};
use crate::scan::guard::drain::Drain;

#[derive(Debug)]
pub(super) struct Replica {
    pub(super) breaker: Breaker,
    pub(super) running: usize,
    pub(super) last_end: Instant,
    pub(super) drain: Option<Arc<Drain>>,
    /// Time at which the replica was drained.
    pub(super) drained_at: Option<Instant>,
    /// Time since which a drained replica takes no mail: its breaker may have been open before the drain.
    pub(super) idle_since: Option<Instant>,
    /// Time at which the breaker opened; none once it has closed. If the replica was drained then, the begin of that.
    pub(super) opened_at: Option<Instant>,
    /// End of the pause that the replica has asked for.
    pub(super) rests: Option<Instant>,
    /// The relay could not reach the replica, and the replica has answered nothing since.
    pub(super) is_away: bool,
}

impl Replica {
    /// Scans of mail that may run at once. In a ramp, the limit covers only scans that began in the ramp.
    pub(super) fn allowed(&self) -> usize {
        match self.drain.is_some() || self.rests.is_some() {
            true => 0,
            false => self.breaker.allowed(),
        }
    }
}

/// The state of a replica, for callers outside the gate.
pub(in crate::scan::guard) struct ReplicaState<'a> {
    pub(in crate::scan::guard) breaker: &'a Breaker,
    /// Scans that hold a slot, including probes and zombies.
    pub(in crate::scan::guard) running: usize,
    /// The drain by an operator.
    pub(in crate::scan::guard) drain: Option<&'a Arc<Drain>>,
    /// Whether the replica has asked for a pause that has not ended.
    pub(in crate::scan::guard) resting: bool,
    /// Time since which the replica gets not all its mail, because it was drained or its breaker opened.
    pub(in crate::scan::guard) since: Option<Instant>,
    /// Time at which the replica was drained.
    pub(in crate::scan::guard) drained_at: Option<Instant>,
}

/// What holds the slots of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::scan::guard) struct Taken {
    /// The slots of the replica.
    pub(in crate::scan::guard) slots: usize,
    /// The scans that hold one, probes included.
    pub(in crate::scan::guard) running: usize,
    /// The probes among them.
    pub(in crate::scan::guard) probes: usize,
    /// The scans among them that are past their timeout.
    pub(in crate::scan::guard) overdue: usize,
}

impl Gate {
    /// What holds the slots of a replica.
    pub(in crate::scan::guard) fn taken(&self, replica: usize) -> Taken {
        let here = || self.scans.values().filter(|scan| scan.replica == replica);
        Taken {
            slots: self.slots,
            running: self.replicas[replica].running,
            probes: here().filter(|scan| scan.is_probe).count(),
            overdue: here().filter(|scan| scan.is_overdue).count(),
        }
    }

    /// Takes a slot of a replica for a probe, even if the breaker is open. Returns `None` if no slot is free. A replica that
    /// is out gets one probe even if no slot is free: otherwise a replica whose old scans hang could not show that it works.
    pub(in crate::scan::guard) fn probe(&mut self, now: Instant, replica: usize) -> Option<Ticket> {
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
            request: GateRequest {
                id: MessageId::new(),
                fingerprint: None,
                reputation: SenderReputation::Known,
                scan_reason: ScanReason::Again,
                timed_out_before: false,
                fairness_key: FairnessKey::default(),
                large: false,
                size: SizeClass::Tiny,
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
    pub(in crate::scan::guard) fn probed(&mut self, now: Instant, replica: usize, passed: bool) {
        if passed {
            self.is_back(replica);
        }
        let unended = self.unended_trial_scans(replica);
        let change = self.replicas[replica].breaker.probed(now, passed, unended);
        self.changed(now, replica, change);
        self.pump(now);
    }

    /// Running scans of mail that began in a trial of the replica.
    pub(super) fn unended_trial_scans(&self, replica: usize) -> usize {
        let Some(began) = self.replicas[replica].breaker.tried_since() else {
            return 0;
        };
        let here = self.scans.values().filter(|scan| scan.replica == replica);
        here.filter(|scan| !scan.is_probe && scan.started >= began)
            .count()
    }

    /// Drains a replica, or puts it back into service (`None`). Returns the drain before.
    pub(in crate::scan::guard) fn drain(
        &mut self,
        now: Instant,
        replica: usize,
        drain: Option<Arc<Drain>>,
    ) -> Option<Arc<Drain>> {
        let is_out = self.is_out(replica);
        let one = &mut self.replicas[replica];
        let out_since = one.opened_at.filter(|_| is_out);
        if drain.is_none() && is_out {
            one.opened_at = one.idle_since.or(one.opened_at);
        }
        let drained_at = one.drained_at.unwrap_or(now);
        let idle_since = one.idle_since.or(out_since).unwrap_or(now);
        one.drained_at = drain.is_some().then_some(drained_at);
        one.idle_since = drain.is_some().then_some(idle_since);
        let before = std::mem::replace(&mut one.drain, drain);
        self.pump(now);
        before
    }

    /// Sets the time at which a drained replica was drained, in an earlier process.
    pub(in crate::scan::guard) fn drained_since(&mut self, replica: usize, since: Instant) {
        self.replicas[replica].drained_at = Some(since);
    }

    /// The drain with which mail passes without the engine: all replicas are drained, and a drain of one lets mail pass.
    pub(in crate::scan::guard) fn passes(&self) -> Option<Arc<Drain>> {
        let mut passes = None;
        for replica in &self.replicas {
            let drain = replica.drain.as_ref()?;
            passes = passes.or(drain.terms.passes.then_some(drain));
        }
        passes.cloned()
    }

    /// Notes that a replica passed a test that an operator ran. If the breaker is open, the next probe pair is due at once.
    pub(in crate::scan::guard) fn tested(&mut self, now: Instant, replica: usize) {
        self.replicas[replica].breaker.answered(now);
    }

    /// Whether the replica needs a probe at once, to find out whether the engine or a message is at fault. There are two
    /// cases. The window of the breaker holds no good outcome, and holds a failure or a scan is slow. Or no scan has ended
    /// since the start of a scan that is slow now.
    pub(in crate::scan::guard) fn is_doubtful(&self, now: Instant, replica: usize) -> bool {
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
    pub(in crate::scan::guard) fn is_out(&self, replica: usize) -> bool {
        let state = self.replicas[replica].breaker.state();
        matches!(
            state,
            BreakerState::Open { .. } | BreakerState::HalfOpen { .. }
        )
    }

    /// Why no replica takes mail; `None` if at least one replica does.
    pub(in crate::scan::guard) fn refuses(&self) -> Option<GateRefusal> {
        if self.replicas.iter().all(|r| r.drain.is_some()) {
            return Some(GateRefusal::Drained);
        }
        if without(Mechanism::Breaker) {
            return None;
        }
        let mut why = Vec::new();
        let mut rests = false;
        for replica in self.replicas.iter().filter(|r| r.drain.is_none()) {
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

    /// The state of each replica, by index.
    pub(in crate::scan::guard) fn replicas(&self) -> impl Iterator<Item = ReplicaState<'_>> {
        self.replicas.iter().map(|replica| ReplicaState {
            breaker: &replica.breaker,
            running: replica.running,
            drain: replica.drain.as_ref(),
            resting: replica.rests.is_some(),
            since: replica.idle_since.or(replica.opened_at),
            drained_at: replica.drained_at,
        })
    }
}
