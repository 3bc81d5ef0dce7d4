//! What time does at the gate: scans become slow and overdue, replicas stall, those who wait give up. And what the end
//! of a scan says about whom.

use std::time::Duration;

use tokio::time::Instant;

use super::lanes::Lane;
use super::{
    EVIDENCE, End, Entrant, FAILURE, Gate, Refusal, STALL, Scan, Ticket, Waiting, slow_copies,
};
use crate::message::Fingerprint;
use crate::scan::evidence::{Evidence, Observed};
use crate::scan::guard::breaker::Change;

impl Gate {
    /// Marks scans as slow and as overdue, once each.
    pub(super) fn age(&mut self, now: Instant) {
        let (mut slow, mut overdue) = (Vec::new(), Vec::new());
        for (ticket, scan) in &mut self.scans {
            let age = now - scan.started;
            if !scan.is_slow && age >= self.times.slow(scan.entrant.large) {
                scan.is_slow = true;
                slow.push(*ticket);
            }
            if !scan.is_overdue && age >= self.times.timeout {
                scan.is_overdue = true;
                overdue.push(*ticket);
            }
        }
        for ticket in slow {
            let scan = &self.scans[&ticket];
            let evidence = evidence(now, scan, Observed::Slow);
            self.push(evidence);
            self.refuse_copies(ticket);
        }
        for ticket in overdue {
            let scan = &self.scans[&ticket];
            let (replica, blames_engine) = (scan.replica, self.canaries.is_news(now, scan));
            let evidence = evidence(now, scan, Observed::TimedOut);
            self.push(evidence);
            if blames_engine {
                let change = self.replicas[replica].breaker.outcome(now, false);
                self.changed(now, replica, change);
            }
        }
    }

    /// A scan has become slow: whoever waits behind copies that are all slow is told so.
    fn refuse_copies(&mut self, ticket: Ticket) {
        let Some(fingerprint) = self.scans[&ticket].entrant.fingerprint.clone() else {
            return;
        };
        for key in fingerprint.traits() {
            if self.canaries.has_parked(key) && self.is_suspicious(key) {
                for parked in self.canaries.parked(key) {
                    self.refuse(parked, slow_copies(key));
                }
            }
        }
    }

    /// All slots are taken by slow scans and mail waits, which it would not do for longer than this anyway. Whoever is to
    /// blame, nobody else's mail should wait for it to end.
    pub(super) fn stall(&mut self, now: Instant, at: usize) {
        let replica = &mut self.replicas[at];
        let full = replica.running >= replica.breaker.allowed() && replica.running > 0;
        let mut here = self.scans.values().filter(|s| s.replica == at);
        let waits = || self.waiting.values().any(|w| !w.parked);
        if full && here.all(|s| s.is_slow) && now >= replica.last_end + STALL && waits() {
            let change = replica.breaker.stalled(now);
            self.changed(now, at, change);
        }
    }

    /// Those who have waited long enough.
    pub(super) fn give_up(&mut self, now: Instant) {
        self.queue
            .tidy(|t| self.waiting.contains_key(&t), self.waiting.len());
        // Where such mail is slow already, it may be the mail's fault that there is no slot, and not the engine's: then
        // others do not make up for this engine.
        let is_slow = |waiting: &Waiting| {
            let mut slow = self.scans.values().filter(|s| s.is_slow);
            slow.any(|scan| is_like(scan, waiting))
        };
        let mut leaving = Vec::new();
        for (ticket, waiting) in &self.waiting {
            let (waited, lane) = (now - waiting.since, waiting.lane);
            let refusal = match (waiting.parked, lane) {
                (true, _) if waited >= self.times.timeout => {
                    Refusal::Parked("the same content is being scanned".to_owned())
                }
                (false, Lane::Unknown | Lane::Again)
                    if waited >= self.times.wait && is_slow(waiting) =>
                {
                    Refusal::Parked("scans of such mail are slow; more of it waits".to_owned())
                }
                (false, Lane::Again) if waited >= self.times.wait * 10 => Refusal::Busy,
                (false, Lane::Proven | Lane::Unproven | Lane::Unknown)
                    if waited >= self.times.wait =>
                {
                    Refusal::Busy
                }
                _ => continue,
            };
            leaving.push((*ticket, refusal));
        }
        for (ticket, refusal) in leaving {
            self.refuse(ticket, refusal);
        }
    }

    /// What an end means for the breaker. A scan that was overdue has counted already, when it became so.
    pub(super) fn weigh(&mut self, now: Instant, scan: &Scan, age: Duration, end: End) {
        if scan.is_overdue {
            return;
        }
        let bearable = FAILURE.max(self.times.slow(scan.entrant.large) * 4);
        let good = matches!(end, End::Answered { .. }) && age < bearable;
        if good || self.canaries.is_news(now, scan) {
            let change = self.replicas[scan.replica].breaker.outcome(now, good);
            self.changed(now, scan.replica, change);
        }
    }

    pub(super) fn push(&mut self, evidence: Option<Evidence>) {
        let Some(evidence) = evidence else {
            return;
        };
        if self.evidence.len() >= EVIDENCE {
            self.evidence.pop_front();
        }
        self.evidence.push_back(evidence);
    }

    pub(super) fn changed(&mut self, now: Instant, replica: usize, change: Option<Change>) {
        if let Some(change) = change {
            self.replicas[replica].last_end = now;
            self.changes.push((replica, change));
        }
    }
}

/// Whether what nothing speaks for is of one kind with a scan of which the same is true: both from strangers or both not,
/// both with attachments or both without.
fn is_like(scan: &Scan, waiting: &Waiting) -> bool {
    let doubtful = matches!(scan.lane, Lane::Unknown | Lane::Again);
    let (one, other) = (&scan.entrant, &waiting.entrant);
    let kind = |entrant: &Entrant| {
        let fingerprint = entrant.fingerprint.as_deref();
        fingerprint.is_some_and(Fingerprint::has_attachments)
    };
    doubtful && one.standing == other.standing && kind(one) == kind(other)
}

pub(super) fn observed(scan: &Scan, end: End) -> Option<Observed> {
    Some(match (end, scan.is_slow, scan.is_overdue) {
        (End::Answered { found }, _, true) => Observed::Late { found },
        (End::Answered { found }, true, false) => Observed::Ended { found },
        (End::Answered { found }, false, false) => Observed::Fast { found },
        (End::Failed, ..) => Observed::Failed,
        (End::Broken, ..) => Observed::Broken,
        (End::Lost, ..) => Observed::Lost,
        // It says nothing about this message, and that it speaks is no failure.
        (End::Probe | End::Rests(_), ..) => return None,
    })
}

pub(super) fn evidence(now: Instant, scan: &Scan, what: Observed) -> Option<Evidence> {
    Some(Evidence {
        message: scan.entrant.id,
        fingerprint: scan.entrant.fingerprint.clone()?,
        standing: scan.entrant.standing,
        errand: scan.entrant.errand,
        arrived: scan.entrant.arrived,
        started: scan.started,
        at: now,
        what,
    })
}
