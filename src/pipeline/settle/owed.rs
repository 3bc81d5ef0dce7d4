//! The scan that an engine still owes a delivered message.

use std::sync::Arc;

use super::{Settling, select};
use crate::delivery::Outcome;
use crate::pipeline::Generation;
use crate::store::{Cause, Lane};
use crate::verdict::{Decision, Reason, Report};

impl Settling<'_> {
    /// Keeps delivered recipients for a later scan, with a cause if an engine owes that scan ([`owed`]).
    pub(super) fn remember(
        &mut self,
        decision: &Decision,
        recipients: &[usize],
        outcomes: &[Outcome],
    ) {
        let delivered: Vec<usize> = recipients
            .iter()
            .zip(outcomes)
            .filter(|(_, outcome)| matches!(outcome, Outcome::Delivered(_)))
            .map(|(at, _)| *at)
            .collect();
        // Mail that this relay has written has no reports. Engines in process have no probes: their answers are not in doubt.
        let generation = self.draft.generation;
        let reports = self.draft.judged.map_or(&[][..], |judged| &judged.reports);
        let owed = owed(generation, reports);
        let doubtful = !reports.is_empty() && generation.scanner.is_probed();
        if delivered.is_empty() || owed.is_none() && !doubtful {
            return;
        }
        let (engine, status) = match owed {
            Some((engine, status)) => (Some(engine), status),
            None => (None, "delivered".to_owned()),
        };
        // Recipients of another group: one record for the whole message, so that one incident names all recipients.
        if let Some(record) = &mut self.rescan {
            let recipients = select(self.draft.message, &delivered).recipients.clone();
            return record.envelope.recipients.extend(recipients);
        }
        let mut record = self
            .draft
            .record(Lane::Rescan, Some(decision), &delivered, &status);
        record.cause = engine.map(|engine| Cause::Engine(engine.to_string()));
        self.rescan = Some(record);
    }
}

/// The engines that did not answer for a transient reason, in a class that needs coverage.
fn absent<'a>(
    generation: &'a Generation,
    reports: &'a [Report],
) -> impl Iterator<Item = &'a Report> + Clone {
    reports.iter().filter(|report| {
        let reason = report.missing();
        generation.policy.required(report.class) > 0 && reason.is_some_and(Reason::is_transient)
    })
}

/// The engine for which a message waits by the rule of its decision: the first whose answer would do. An engine without which
/// mail passes keeps no message, and neither does one of a class that others cover.
pub(in crate::pipeline) fn awaited(
    generation: &Generation,
    reports: &[Report],
    rule: &str,
) -> Option<Arc<str>> {
    let mut absent = absent(generation, reports).filter(|report| report.passed.is_none());
    let class = rule.strip_prefix("coverage.");
    let of_class = |report: &&Report| Some(report.class.as_str()) == class;
    let report = absent.clone().find(of_class).or_else(|| absent.next())?;
    Some(report.engine.clone())
}

/// Whether an engine has not scanned this message: the engine did not answer, or an answer about another message stood in.
pub(in crate::pipeline) fn is_owed(report: &Report) -> bool {
    report.missing().is_some() || report.stand_in().is_some()
}

/// Whether an answer about another message stands in for an engine's own answer.
pub(in crate::pipeline) fn has_stand_in(reports: &[Report]) -> bool {
    reports.iter().any(|report| report.stand_in().is_some())
}

/// The engine that still has to scan a delivered message, and the status text of its record.
pub(in crate::pipeline) fn owed(
    generation: &Generation,
    reports: &[Report],
) -> Option<(Arc<str>, String)> {
    if let Some(report) = absent(generation, reports).next() {
        let engine = report.engine.clone();
        let status = format!("delivered without {engine}");
        return Some((engine, status));
    }
    let of = |report: &Report| {
        let (from, engine) = (report.stand_in()?, report.engine.clone());
        let status = format!("delivered on what {engine} said of {from}");
        Some((engine, status))
    };
    reports.iter().find_map(of)
}
