//! The replay of the decisions of a period, read from the history page by page.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::answers::{self, AnswerCounts, LateAnswers};
use super::comparison::{Comparison, Examples};
use super::slots::{Scans, SlotsReplay};
use super::{EngineTerms, Terms};
use crate::measure::LateScan;
use crate::message::MessageId;
use crate::store::decisions::Decisions;
use crate::store::history::{self, HistoryEntry};
use crate::store::{StoreError, late_scans};
use crate::verdict::{Reason, Report};

/// What to replay.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The history file.
    pub history: &'a Path,
    /// The start of the period.
    pub since: Timestamp,
    /// The terms of the other configuration.
    pub terms: &'a Terms,
    /// The number of examples of each kind of change.
    pub examples: usize,
    /// The engines whose scans are replayed through slots.
    pub slots: Vec<Arc<str>>,
}

/// What the other configuration would have done in a period.
#[derive(Debug)]
pub struct Replayed {
    /// The decisions.
    pub comparison: Comparison,
    /// Later decisions about messages that had been judged before; they are not replayed.
    pub again: u64,
    /// The answers, for each engine of the other configuration that was asked, in the configured order.
    pub answers: Vec<(EngineTerms, AnswerCounts)>,
    /// The engines that were asked, and that the other configuration does not have.
    pub removed: Vec<Arc<str>>,
    /// The engines that the other configuration has, and that were not asked.
    pub added: Vec<Arc<str>>,
    /// The replay through slots of each wanted engine.
    pub slots: Vec<SlotsReplay>,
}

/// Late scans by message and engine.
type Late = HashMap<MessageId, LateAnswers>;

/// The work on a period.
struct Replay<'a> {
    wanted: &'a Wanted<'a>,
    late: Late,
    comparison: Comparison,
    again: u64,
    answers: HashMap<Arc<str>, AnswerCounts>,
    removed: BTreeSet<Arc<str>>,
    scans: HashMap<Arc<str>, Scans>,
}

/// Replays the decisions of a period. `progress` hears after each page how many rows of the history are read, and how many there
/// are.
///
/// Cancel safety: safe.
pub async fn replay(
    wanted: &Wanted<'_>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Replayed, StoreError> {
    let mut decisions = Decisions::since(wanted.history, wanted.since).await?;
    let late = late_scans::read(wanted.history, wanted.since, Timestamp::MAX).await?;
    let mut replay = Replay::new(wanted, &late);
    while let Some(page) = decisions.page().await? {
        for entry in &page {
            replay.add(entry).await?;
        }
        let (read, all) = decisions.progress();
        progress(read, all);
    }
    Ok(replay.finish())
}

impl<'a> Replay<'a> {
    fn new(wanted: &'a Wanted<'a>, scans: &[LateScan]) -> Self {
        let mut late = Late::new();
        for scan in scans {
            late.entry(scan.message).or_default().took(scan);
        }
        Self {
            wanted,
            late,
            comparison: Comparison::new(Examples::First(wanted.examples)),
            again: 0,
            answers: HashMap::new(),
            removed: BTreeSet::new(),
            scans: HashMap::new(),
        }
    }

    async fn add(&mut self, entry: &HistoryEntry) -> Result<(), StoreError> {
        let again = entry.basis.as_ref().is_some_and(|basis| basis.again);
        self.add_scans(entry, again);
        if again {
            self.again += 1;
            return Ok(());
        }
        let mut late = self.late.get(&entry.message).cloned().unwrap_or_default();
        if !late.took.is_empty() && self.may_win(entry) {
            let path = self.wanted.history;
            for later in history::read(path, entry.message).await? {
                late.later(entry.message, &later.reports);
            }
        }
        let (decided, under) = self.wanted.terms.decide(entry, Some(&late));
        self.comparison.add(entry, &decided);
        for on in under.effects {
            let counts = self.answers.entry(on.engine).or_default();
            counts.add(on.effect, on.is_missing, on.took);
        }
        self.removed.extend(under.removed);
        Ok(())
    }

    /// Whether a longer timeout may win an answer.
    fn may_win(&self, entry: &HistoryEntry) -> bool {
        let engines = self.wanted.terms.engines();
        let longer = |report: &Report| {
            let waited = report.elapsed.saturating_sub(report.waited);
            let mut named = engines.iter().filter(|e| e.name == report.engine);
            named.any(|engine| engine.timeout > waited)
        };
        let timed_out = |report: &&Report| report.missing() == Some(Reason::Timeout);
        entry.reports.iter().filter(timed_out).any(longer)
    }

    /// Keeps the scans of the wanted engines. A fresh message asks when it has arrived, which its id tells; others have asked
    /// before their entry was written by the time that the scan took.
    fn add_scans(&mut self, entry: &HistoryEntry, again: bool) {
        for report in &entry.reports {
            if !self.wanted.slots.contains(&report.engine) {
                continue;
            }
            let asked = match again {
                false => entry.message.received_at(),
                true => entry.at - report.elapsed,
            };
            if report.missing() == Some(Reason::Busy) && report.attempts == 0 {
                let scans = self.scans.entry(report.engine.clone()).or_default();
                scans.add_busy(asked);
                continue;
            }
            let Some(took) = answers::scan_time(report) else {
                continue;
            };
            let late = self.late.get(&entry.message).filter(|_| !again);
            let held = late.and_then(|late| late.took.get(&report.engine));
            let took: Duration = held.copied().map_or(took, |held| held.max(took));
            let scans = self.scans.entry(report.engine.clone()).or_default();
            scans.add(asked, took);
        }
    }

    fn finish(mut self) -> Replayed {
        let engines = self.wanted.terms.engines();
        let mut slots = Vec::new();
        for engine in engines
            .iter()
            .filter(|e| self.wanted.slots.contains(&e.name))
        {
            let scans = self.scans.remove(&engine.name).unwrap_or_default();
            slots.push(scans.replay(&engine.name, engine.slots, engine.wait));
        }
        let (mut known, mut added) = (Vec::new(), Vec::new());
        for engine in engines {
            match self.answers.remove(&engine.name) {
                Some(counts) => known.push((engine.clone(), counts)),
                None => added.push(engine.name.clone()),
            }
        }
        Replayed {
            comparison: self.comparison,
            again: self.again,
            answers: known,
            removed: self.removed.into_iter().collect(),
            added,
            slots,
        }
    }
}
