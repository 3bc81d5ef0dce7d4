//! The effects of time at the gate: scans become slow and overdue, and waiting messages give up. Also the conclusions from the
//! end of a scan, about the message, its sender, and the engine.

use std::time::Duration;

use tokio::time::Instant;

use super::trust::Level;
use super::waiting::slow_copies;
use super::{EVIDENCE_MAX, FAILURE_LATENCY_MIN, Gate, GateRefusal, Scan, ScanEnd, Ticket};
use crate::observation::{Evidence, Observed};
use crate::scan::guard::breaker::Change;

/// Mail that is scanned again waits for a slot ten times as long as fresh mail, because no SMTP session waits for the answer.
const AGAIN_WAIT_FACTOR: u32 = 10;
/// Fast scans of unknown senders whose start times are kept, for the comparison in [`Gate::suspects_unknown_senders`]: three
/// for each slot of an engine with 1,000 slots, as three fast scans are needed for each stuck scan.
const UNKNOWN_FAST_SCANS_MAX: usize = 3000;

impl Gate {
    /// Marks scans as slow and as overdue. Each mark produces evidence once.
    pub(super) fn age(&mut self, now: Instant) {
        let (mut slow, mut overdue) = (Vec::new(), Vec::new());
        for (ticket, scan) in &mut self.scans {
            let age = now - scan.started;
            if !scan.is_slow && age >= self.times.slow(scan.request.large) {
                scan.is_slow = true;
                slow.push(*ticket);
                if !scan.is_probe {
                    self.slot_use.scan_ended_or_slow(now, scan.level);
                }
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

    /// A scan has become slow: refuses the messages that are parked behind copies if all running copies are slow.
    fn refuse_copies(&mut self, ticket: Ticket) {
        let Some(fingerprint) = self.scans[&ticket].request.fingerprint.clone() else {
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

    /// Refuses messages that have waited too long. The reason is `Busy` unless there is evidence: taken slots are not the
    /// fault of the message that waited for a slot.
    pub(super) fn give_up(&mut self, now: Instant) {
        self.turns
            .tidy(|t| self.waiting.contains_key(&t), self.waiting.len());
        let refuses = self.refuses();
        let mut leaving = Vec::new();
        for (ticket, waiting) in &self.waiting {
            let waited = now - waiting.since;
            let patience = match (waiting.parked, waiting.class.is_fresh()) {
                (true, _) => self.times.timeout,
                (false, true) => self.times.wait,
                (false, false) => self.times.wait * AGAIN_WAIT_FACTOR,
            };
            if waited < patience {
                continue;
            }
            let refusal = match (&refuses, waiting.parked, waiting.level) {
                (Some(refusal), false, _) => refusal.clone(),
                (_, true, _) => GateRefusal::Parked("the same content is being scanned".to_owned()),
                // Other engines do not make up for a message on which this engine hung.
                (None, false, _) if waiting.request.timed_out_before => {
                    let why = "it ran into its timeout before; it waits for slots to be free";
                    GateRefusal::Parked(why.to_owned())
                }
                (None, false, Level::Unknown) if self.suspects_unknown_senders(now) => {
                    let why = "scans of mail from unknown senders are slow; more of it waits";
                    GateRefusal::Parked(why.to_owned())
                }
                (None, false, _) => GateRefusal::Busy,
            };
            leaving.push((*ticket, refusal));
        }
        for (ticket, refusal) in leaving {
            self.refuse(ticket, refusal);
        }
    }

    /// Updates, from the end of a scan, the use of slots, the usual latencies, the fast scans of unknown senders, and the
    /// breaker: an engine that answers while its breaker is open is probed at once.
    pub(super) fn learn(&mut self, now: Instant, scan: &Scan, age: Duration, end: ScanEnd) {
        if !scan.is_slow && !scan.is_probe {
            self.slot_use.scan_ended_or_slow(now, scan.level);
        }
        let ScanEnd::Answered { .. } = end else {
            return;
        };
        if !scan.request.large {
            self.latencies.add(age);
        }
        if !scan.is_slow && scan.level == Level::Unknown {
            if self.unknown_fast_scans.len() >= UNKNOWN_FAST_SCANS_MAX {
                self.unknown_fast_scans.pop_front();
            }
            self.unknown_fast_scans.push_back(scan.started);
        }
        self.replicas[scan.replica].breaker.answered(now);
    }

    /// Reports to the breaker whether the end of a scan is good or bad. An overdue scan has already counted when it became
    /// overdue.
    pub(super) fn weigh(&mut self, now: Instant, scan: &Scan, age: Duration, end: ScanEnd) {
        if scan.is_overdue {
            return;
        }
        let bearable = FAILURE_LATENCY_MIN.max(self.times.slow(scan.request.large) * 4);
        let good = matches!(end, ScanEnd::Answered { .. }) && age < bearable;
        if good || self.canaries.is_news(now, scan) {
            let change = self.replicas[scan.replica].breaker.outcome(now, good);
            self.changed(now, scan.replica, change);
        }
    }

    /// Keeps an observation until [`Gate::evidence`] takes it, at most [`EVIDENCE_MAX`].
    pub(super) fn push(&mut self, evidence: Option<Evidence>) {
        let Some(evidence) = evidence else {
            return;
        };
        if self.evidence.len() >= EVIDENCE_MAX {
            self.evidence.pop_front();
        }
        self.evidence.push_back(evidence);
    }

    /// Keeps a change of a breaker until [`Gate::changes`] takes it. Silence of the replica counts from the change on.
    pub(super) fn changed(&mut self, now: Instant, replica: usize, change: Option<Change>) {
        if let Some(change) = change {
            self.replicas[replica].last_end = now;
            let opened_at = &mut self.replicas[replica].opened_at;
            match change {
                // A trial that fails opens the breaker again, but the replica has been out since the first time.
                Change::Opened(_) => *opened_at = opened_at.or(Some(now)),
                Change::Closed => *opened_at = None,
                Change::Probing | Change::Readmitting => {}
            }
            self.hangs_on_known &= !matches!(change, Change::Opened(_));
            self.changes.push((replica, change));
        }
    }
}

/// What the end of a scan shows; `None` if it shows nothing about the message.
pub(super) fn observed(scan: &Scan, end: ScanEnd) -> Option<Observed> {
    Some(match (end, scan.is_slow, scan.is_overdue) {
        (ScanEnd::Answered { found }, _, true) => Observed::Late { found },
        (ScanEnd::Answered { found }, true, false) => Observed::Ended { found },
        (ScanEnd::Answered { found }, false, false) => Observed::Fast { found },
        (ScanEnd::Failed | ScanEnd::Unreachable, ..) => Observed::Failed,
        (ScanEnd::Broken, ..) => Observed::Broken,
        (ScanEnd::Lost, ..) => Observed::Lost,
        // A probe is not mail. A request for a pause says nothing about the message, and is not a failure.
        (ScanEnd::Probe | ScanEnd::Rests(_), ..) => return None,
    })
}

/// The observation of one scan; `None` for a message without a fingerprint.
pub(super) fn evidence(now: Instant, scan: &Scan, what: Observed) -> Option<Evidence> {
    Some(Evidence {
        message: scan.request.id,
        fingerprint: scan.request.fingerprint.clone()?,
        reputation: scan.request.reputation,
        scan_reason: scan.request.scan_reason,
        size: scan.request.size,
        arrived: scan.request.arrived,
        started: scan.started,
        at: now,
        what,
    })
}
