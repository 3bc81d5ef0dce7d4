//! Measures the engines: how long scans took, how long fresh messages waited for a slot, and which answers were missing.
//!
//! The numbers about scans come from the evidence of the guards, four times a second, so that a scan costs its message nothing
//! here. Answers from the cache and shared scans are no scans, and probes are no mail: neither counts. A message whose content could
//! not be inspected has no fingerprint, and its scan does not count.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::Pipeline;
use crate::deadline::wall_clock;
use crate::measure::{
    LateScan, Latencies, MISSED_BROKEN, MISSED_FAILED, MISSED_LOST, Measured, Series, SizeClass,
};
use crate::observation::{Evidence, Observed};
use crate::verdict::{Reason, Report};

/// The classes of scans without an answer.
const MISSED_CLASSES: [&str; 3] = [MISSED_FAILED, MISSED_BROKEN, MISSED_LOST];

impl Pipeline {
    /// Counts the scans of one engine that have ended. `timeout` is that of the engine now.
    pub(super) fn measure_scans(
        &self,
        engine: &Arc<str>,
        timeout: Duration,
        evidence: &[Evidence],
    ) {
        let mut counted = Counted::default();
        for one in evidence {
            counted.add(one);
            if let Some(late) = late(engine, timeout, one) {
                self.measures.add_late(late);
            }
        }
        self.measures.put_back(counted.series(engine));
    }

    /// Counts the engines that gave a message no scan. Takes no lock unless there is one.
    pub(super) fn measure_refusals(&self, reports: &[Report]) {
        for report in reports {
            if let Some(reason) = report.missing()
                && is_refusal(reason)
                && report.attempts == 0
            {
                let (engine, class) = (&report.engine, reason.as_str());
                self.measures
                    .add(Measured::Missed, engine, class, report.elapsed);
            }
        }
    }
}

/// What the evidence of one round comes to, counted without a lock.
#[derive(Default)]
struct Counted {
    scans: [Latencies; SizeClass::ALL.len()],
    waits: [Latencies; SizeClass::ALL.len()],
    missed: [Latencies; MISSED_CLASSES.len()],
}

impl Counted {
    fn add(&mut self, evidence: &Evidence) {
        let took = evidence.at - evidence.started;
        let size = evidence.size as usize;
        let counted = match evidence.what {
            // The scan still runs.
            Observed::Slow | Observed::TimedOut => return,
            Observed::Fast { .. } | Observed::Ended { .. } | Observed::Late { .. } => {
                &mut self.scans[size]
            }
            Observed::Failed => &mut self.missed[0],
            Observed::Broken => &mut self.missed[1],
            Observed::Lost => &mut self.missed[2],
        };
        counted.add(took);
        // A further attempt keeps the arrival of the first, and mail that is scanned again waits behind fresh mail.
        if evidence.is_fresh() {
            self.waits[size].add(evidence.started - evidence.arrived);
        }
    }

    fn series(self, engine: &Arc<str>) -> Vec<(Series, Latencies)> {
        let sizes = || SizeClass::ALL.map(SizeClass::as_str);
        let scans = std::iter::repeat(Measured::Scan)
            .zip(sizes())
            .zip(self.scans);
        let waits = std::iter::repeat(Measured::Wait)
            .zip(sizes())
            .zip(self.waits);
        let missed = std::iter::repeat(Measured::Missed)
            .zip(MISSED_CLASSES)
            .zip(self.missed);
        let all = scans.chain(waits).chain(missed);
        let all = all.filter(|(_, latencies)| !latencies.is_empty());
        let series = |((measured, class), latencies)| {
            let (name, class) = (engine.clone(), Cow::Borrowed(class));
            (
                Series {
                    measured,
                    name,
                    class,
                },
                latencies,
            )
        };
        all.map(series).collect()
    }
}

/// The scan, if it lasted longer than `timeout`.
fn late(engine: &Arc<str>, timeout: Duration, evidence: &Evidence) -> Option<LateScan> {
    let took = evidence.at - evidence.started;
    let found = match evidence.what {
        Observed::Late { found } => Some(found),
        Observed::Failed | Observed::Broken | Observed::Lost if took >= timeout => None,
        _ => return None,
    };
    Some(LateScan {
        message: evidence.message,
        engine: engine.clone(),
        at: wall_clock() - evidence.at.elapsed(),
        took,
        found,
    })
}

/// Whether the guard gave the message no scan, for a reason that lies in the engine or in other mail. A reason that lies in the
/// message itself would remain whatever the settings are.
fn is_refusal(reason: Reason) -> bool {
    match reason {
        Reason::Busy | Reason::BreakerOpen | Reason::Parked | Reason::BudgetSpent => true,
        Reason::Timeout
        | Reason::Unreachable
        | Reason::Disconnected
        | Reason::Garbage
        | Reason::EngineError
        | Reason::TooLarge
        | Reason::LimitsReached
        | Reason::Encrypted
        | Reason::Drained
        | Reason::Panicked
        | Reason::Suspect
        | Reason::Unneeded => false,
    }
}
