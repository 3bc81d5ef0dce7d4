//! The replay of the decisions of a period, read from the history page by page.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::answers::{self, AnswerCounts, LateAnswers};
use super::comparison::{Comparison, Examples};
use super::slots::{Scans, SlotsReplay};
use super::{Decided, EngineTerms, Terms};
use crate::measure::LateScan;
use crate::message::MessageId;
use crate::store::decisions::Decisions;
use crate::store::history::HistoryEntry;
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
    /// Messages that are decided as they were, and of which nobody can say, because an engine gave them no scan then: no slot was
    /// free, it was out, or they were parked. By the first such engine.
    pub not_asked: Vec<(Arc<str>, u64)>,
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
    not_asked: BTreeMap<Arc<str>, u64>,
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
    let mut replay = Replay::new(wanted, late);
    while let Some(page) = decisions.page().await? {
        replay.find_late(&page, &decisions).await?;
        page.iter().for_each(|entry| replay.add(entry));
        let (read, all) = decisions.progress();
        progress(read, all);
    }
    Ok(replay.finish())
}

impl<'a> Replay<'a> {
    fn new(wanted: &'a Wanted<'a>, scans: Vec<LateScan>) -> Self {
        let mut late = Late::new();
        for scan in scans {
            late.entry(scan.message).or_default().took(&scan);
        }
        Self {
            wanted,
            late,
            comparison: Comparison::new(Examples::First(wanted.examples)),
            again: 0,
            not_asked: BTreeMap::new(),
            answers: HashMap::new(),
            removed: BTreeSet::new(),
            scans: HashMap::new(),
        }
    }

    /// Finds what engines answered later about the messages of a page, where a longer timeout may win an answer.
    async fn find_late(
        &mut self,
        page: &[HistoryEntry],
        decisions: &Decisions,
    ) -> Result<(), StoreError> {
        let wanted = page
            .iter()
            .filter(|entry| !is_again(entry) && self.may_win(entry));
        let wanted: Vec<MessageId> = wanted.map(|entry| entry.message).collect();
        let mut found = Late::new();
        for message in &wanted {
            found.extend(self.late.remove_entry(message));
        }
        let add = |late: &mut Late, entry: &HistoryEntry| {
            if let Some(late) = late.get_mut(&entry.message) {
                late.later(entry.message, &entry.reports);
            }
        };
        let known = found.keys().copied().collect();
        self.late.extend(decisions.about(known, found, add).await?);
        Ok(())
    }

    fn add(&mut self, entry: &HistoryEntry) {
        if is_again(entry) {
            self.again += 1;
            return;
        }
        self.add_scans(entry);
        let none = LateAnswers::default();
        let late = self.late.get(&entry.message).unwrap_or(&none);
        let (decided, under) = self.wanted.terms.decide(entry, Some(late));
        self.comparison.add(entry, &decided);
        if !changes(&decided) {
            self.add_not_asked(entry);
        }
        for on in under.effects {
            let counts = self.answers.entry(on.engine).or_default();
            counts.add(on.effect, on.is_missing, on.took);
        }
        self.removed.extend(under.removed);
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

    /// Counts a message that is decided as it was only because an engine gave it no scan then.
    fn add_not_asked(&mut self, entry: &HistoryEntry) {
        let engines = self.wanted.terms.engines();
        let is_known = |report: &&Report| engines.iter().any(|e| e.name == report.engine);
        let mut missing = entry.reports.iter().filter(|report| is_not_run(report));
        if let Some(report) = missing.find(is_known) {
            *self.not_asked.entry(report.engine.clone()).or_default() += 1;
        }
    }

    /// Keeps the scans of the wanted engines. A message asks when it has arrived, which its id tells. Only its first decision
    /// counts: with enough slots there would be no second.
    fn add_scans(&mut self, entry: &HistoryEntry) {
        let asked = entry.message.received_at();
        for report in &entry.reports {
            if !self.wanted.slots.contains(&report.engine) {
                continue;
            }
            if is_not_run(report) {
                let scans = self.scans.entry(report.engine.clone()).or_default();
                scans.add_not_run(asked);
                continue;
            }
            let Some(took) = answers::scan_time(report) else {
                continue;
            };
            let late = self.late.get(&entry.message);
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
            not_asked: self.not_asked.into_iter().collect(),
            answers: known,
            removed: self.removed.into_iter().collect(),
            added,
            slots,
        }
    }
}

/// Whether the message had been judged before.
fn is_again(entry: &HistoryEntry) -> bool {
    entry.basis.as_ref().is_some_and(|basis| basis.again)
}

/// Whether the engine gave the message no scan, for a reason that other settings of the engine may remove.
fn is_not_run(report: &Report) -> bool {
    let reasons = [Reason::Busy, Reason::BreakerOpen, Reason::Parked];
    report.attempts == 0 && report.missing().is_some_and(|why| reasons.contains(&why))
}

/// Whether something else would be done with a recipient.
fn changes(decided: &Decided) -> bool {
    match decided {
        Decided::Ruled(ruled) => ruled.iter().any(|one| !one.from.is_done_alike(&one.to)),
        Decided::CannotSay(_) | Decided::ByGuard => true,
    }
}
