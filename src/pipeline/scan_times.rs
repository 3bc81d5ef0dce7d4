//! Measures the engines: how long scans took, how long fresh messages waited for a slot, and which answers were missing.
//!
//! The numbers about scans come from the evidence of the guards, four times a second, so that a scan costs its message nothing
//! here. Answers from the cache and shared scans are no scans, and probes are no mail: neither counts.

use std::sync::Arc;
use std::time::Duration;

use super::Pipeline;
use crate::deadline::wall_clock;
use crate::measure::{LateScan, MISSED_BROKEN, MISSED_FAILED, MISSED_LOST, Measured, Measures};
use crate::observation::{Evidence, Observed};
use crate::verdict::{Reason, Report};

impl Pipeline {
    /// Counts the scans of one engine that have ended. `timeout` is that of the engine now.
    pub(super) fn measure_scans(
        &self,
        engine: &Arc<str>,
        timeout: Duration,
        evidence: &[Evidence],
    ) {
        for one in evidence {
            measure_scan(&self.measures, engine, timeout, one);
        }
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

fn measure_scan(measures: &Measures, engine: &Arc<str>, timeout: Duration, evidence: &Evidence) {
    let took = evidence.at - evidence.started;
    let size = evidence.size.as_str();
    let missed = match evidence.what {
        // The scan still runs.
        Observed::Slow | Observed::TimedOut => return,
        Observed::Fast { .. } | Observed::Ended { .. } | Observed::Late { .. } => None,
        Observed::Failed => Some(MISSED_FAILED),
        Observed::Broken => Some(MISSED_BROKEN),
        Observed::Lost => Some(MISSED_LOST),
    };
    match missed {
        None => measures.add(Measured::Scan, engine, size, took),
        Some(class) => measures.add(Measured::Missed, engine, class, took),
    }
    // A further attempt keeps the arrival of the first, and mail that is scanned again waits behind fresh mail.
    if evidence.is_fresh() {
        let waited = evidence.started - evidence.arrived;
        measures.add(Measured::Wait, engine, size, waited);
    }
    let is_late = matches!(evidence.what, Observed::Late { .. });
    if is_late || missed.is_some() && took >= timeout {
        measures.add_late(LateScan {
            message: evidence.message,
            engine: engine.clone(),
            at: wall_clock() - evidence.at.elapsed(),
            took,
            found: is_late.then(|| evidence.what.found()),
        });
    }
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
