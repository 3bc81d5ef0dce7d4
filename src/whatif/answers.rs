//! The answers of engines under other terms: which would have been missed with another timeout, and which won.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::EngineTerms;
use crate::measure::LateScan;
use crate::message::MessageId;
use crate::scan::WAIT_AFTER_MALWARE;
use crate::store::history::HistoryEntry;
use crate::verdict::{Answer, Finding, FindingKind, Reason, Report, Same};

/// What became of the scans of one message that ran into their timeouts.
#[derive(Debug, Clone, Default)]
pub struct LateAnswers {
    /// For each engine, how long the scan really took.
    pub took: HashMap<Arc<str>, Duration>,
    /// For each engine, what it found in the end.
    pub found: HashMap<Arc<str>, Vec<Finding>>,
}

impl LateAnswers {
    /// Adds the time that a scan took. Of several scans of one engine the first counts: the first decision waited for it.
    pub fn took(&mut self, scan: &LateScan) {
        self.took.entry(scan.engine.clone()).or_insert(scan.took);
    }

    /// Adds what engines answered about the same message later.
    pub fn later(&mut self, message: MessageId, reports: &[Report]) {
        for report in reports {
            let is_own = |reused: crate::verdict::Reused| {
                reused.from == message || reused.same == Same::Octets
            };
            if let Answer::Answered(findings) = &report.answer
                && report.reused.is_none_or(is_own)
            {
                let found = self.found.entry(report.engine.clone());
                found.or_insert_with(|| findings.clone());
            }
        }
    }
}

/// What another timeout changes for the answers of one engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerCounts {
    /// Answers that came in time.
    pub answered: u64,
    /// The longest scan of these, in milliseconds.
    pub longest_ms: u64,
    /// Answers that are missing, whatever the timeout.
    pub missing: u64,
    /// Answers that the other timeout would have missed.
    pub missed: u64,
    /// Missed answers that the other timeout would have won, and of which the finding is known.
    pub won: u64,
    /// Answers that nobody knows: the scan may have ended in time, or what it found was not recorded.
    pub unknown: u64,
}

/// What happens to one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It is the same.
    Same,
    /// It came too late.
    Missed,
    /// It comes in time now.
    Won,
    /// Nobody knows.
    Unknown,
}

/// What happens to the answer of one engine.
#[derive(Debug, Clone)]
pub(super) struct EffectOn {
    pub(super) engine: Arc<str>,
    pub(super) effect: Effect,
    /// Whether it was missing then.
    pub(super) is_missing: bool,
    /// The time of the scan that gave it; none if it was missing, or given by the scan of another message.
    pub(super) took: Option<Duration>,
}

/// The reports of a message under other terms.
#[derive(Debug, Clone, Default)]
pub(super) struct Under {
    /// One for each engine that both configurations have.
    pub(super) reports: Vec<Report>,
    /// What happened to the answer of each of these engines.
    pub(super) effects: Vec<EffectOn>,
    /// The engines that the other configuration does not have.
    pub(super) removed: Vec<Arc<str>>,
    /// Why nobody can say which answers there would be.
    pub(super) unknown: Option<String>,
}

/// An answer under other terms, and when it comes, from the start of the scans. An unknown answer does not come before that.
struct Changed {
    answer: Answer,
    effect: Effect,
    at: Duration,
}

/// The reports of a recorded decision under the terms of these engines. Without `late`, only the set of engines counts.
pub(super) fn under(
    engines: &[EngineTerms],
    entry: &HistoryEntry,
    late: Option<&LateAnswers>,
) -> Under {
    let mut under = Under::default();
    let mut changed: Vec<(&Report, &EngineTerms, Changed)> = Vec::new();
    for report in &entry.reports {
        let Some(terms) = engines.iter().find(|engine| engine.name == report.engine) else {
            under.removed.push(report.engine.clone());
            continue;
        };
        let answer = match late {
            Some(late) => change(terms, report, entry.size, late),
            None => Changed::same(report),
        };
        changed.push((report, terms, answer));
    }
    let decided = malware(&changed);
    for (report, terms, mut changed) in changed {
        if let Some(decided) = decided {
            changed.not_waited_for(report, decided);
        }
        if changed.effect == Effect::Unknown {
            let why = format!("nobody knows what {} would have answered", report.engine);
            under.unknown.get_or_insert(why);
        }
        let is_missing = report.missing().is_some();
        under.effects.push(EffectOn {
            engine: report.engine.clone(),
            effect: changed.effect,
            is_missing,
            took: scan_time(report).filter(|_| !is_missing),
        });
        under.reports.push(Report {
            class: terms.class,
            answer: changed.answer,
            ..report.clone()
        });
    }
    if under.unknown.is_none() {
        under.unknown = unneeded(&under.reports);
    }
    under
}

/// When the first malware is found.
fn malware(changed: &[(&Report, &EngineTerms, Changed)]) -> Option<Duration> {
    let found = changed.iter().filter(|(_, _, changed)| {
        let (Answer::Answered(findings) | Answer::None { findings, .. }) = &changed.answer;
        findings.iter().any(is_malware)
    });
    found.map(|(_, _, changed)| changed.at).min()
}

fn is_malware(finding: &Finding) -> bool {
    finding.kind == FindingKind::Malware
}

impl Changed {
    fn same(report: &Report) -> Self {
        Self {
            answer: report.answer.clone(),
            effect: Effect::Same,
            at: report.elapsed,
        }
    }

    fn unknown(report: &Report) -> Self {
        Self {
            effect: Effect::Unknown,
            ..Self::same(report)
        }
    }

    /// After a malware finding at `decided`, the message waits only a little longer for answers that it did not have.
    fn not_waited_for(&mut self, report: &Report, decided: Duration) {
        let timed_out = report.missing() == Some(Reason::Timeout);
        if timed_out && self.at > decided + WAIT_AFTER_MALWARE {
            self.answer = Answer::none(Reason::Unneeded, "another engine has found malware");
            self.effect = Effect::Same;
        }
    }
}

/// An engine whose answer was not waited for, because another had found malware, if that finding is missing now.
fn unneeded(reports: &[Report]) -> Option<String> {
    let waits = |report: &&Report| report.missing() == Some(Reason::Unneeded);
    let left_out = reports.iter().find(waits)?;
    let decided = reports.iter().flat_map(Report::findings).any(is_malware);
    let why = || format!("nobody waited for the answer of {}", left_out.engine);
    (!decided).then(why)
}

/// The time of the scan that a report is about, as the timeout counts it; none if this message was not scanned itself.
pub(super) fn scan_time(report: &Report) -> Option<Duration> {
    let is_own = report.attempts > 0 && report.reused.is_none();
    is_own.then(|| report.elapsed.saturating_sub(report.waited))
}

fn change(terms: &EngineTerms, report: &Report, size: u64, late: &LateAnswers) -> Changed {
    if size > terms.max_size {
        return Changed {
            answer: Answer::none(Reason::TooLarge, "larger than max_size"),
            ..Changed::same(report)
        };
    }
    match report.missing() {
        None => too_late(terms, report),
        Some(Reason::Timeout) => gained(terms, report, late),
        Some(Reason::TooLarge) => Changed::unknown(report),
        Some(_) => Changed::same(report),
    }
}

/// What becomes of an answer that came.
fn too_late(terms: &EngineTerms, report: &Report) -> Changed {
    let took = report.elapsed.saturating_sub(report.waited);
    if took < terms.timeout {
        return Changed::same(report);
    }
    // The scan that counts may have been a later attempt, or that of another message.
    if report.attempts != 1 || report.reused.is_some() {
        return Changed::unknown(report);
    }
    Changed {
        answer: Answer::none(Reason::Timeout, "did not answer within its timeout"),
        effect: Effect::Missed,
        at: report.waited + terms.timeout,
    }
}

/// What becomes of a scan that ran into its timeout.
fn gained(terms: &EngineTerms, report: &Report, late: &LateAnswers) -> Changed {
    let waited = report.elapsed.saturating_sub(report.waited);
    if terms.timeout <= waited {
        return Changed::same(report);
    }
    match late.took.get(&report.engine) {
        None => Changed::unknown(report),
        Some(took) if *took >= terms.timeout => Changed {
            at: report.waited + terms.timeout,
            ..Changed::same(report)
        },
        Some(took) => match late.found.get(&report.engine) {
            None => Changed {
                at: report.waited + *took,
                ..Changed::unknown(report)
            },
            Some(findings) => Changed {
                answer: Answer::Answered(findings.clone()),
                effect: Effect::Won,
                at: report.waited + *took,
            },
        },
    }
}

impl AnswerCounts {
    /// Counts one answer, which a scan of that time gave.
    pub(super) fn add(&mut self, effect: Effect, is_missing: bool, took: Option<Duration>) {
        if let Some(took) = took {
            let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            self.answered += 1;
            self.longest_ms = self.longest_ms.max(milliseconds);
        }
        match effect {
            Effect::Same if is_missing => self.missing += 1,
            Effect::Same => {}
            Effect::Missed => self.missed += 1,
            Effect::Won => self.won += 1,
            Effect::Unknown => self.unknown += 1,
        }
    }
}
