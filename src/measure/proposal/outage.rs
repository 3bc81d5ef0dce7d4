//! An outage of an engine as its measures show it: whether the engine is slow or dead, and which settings would let mail through.
//!
//! In an outage the usual proposals say nothing: hardly a scan ends, and what ended before was fast. What speaks are the answers
//! that came although the breaker was open: those of scans that had begun before, and of the few trials.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::{
    Configured, Outcome, Proposal, SLOT_USE_MAX, SLOW_DIVISOR, SLOW_FACTOR, TIMEOUT_FACTOR,
    TIMEOUT_MIN, counted, finish, nice, share, shown, text,
};
use crate::measure::{EngineTimes, Latencies, MISSED_BROKEN, MISSED_FAILED, PeriodTimes};

/// Slow answers from which an outage proposes settings: 5. More hardly come: an open breaker lets through only what had begun.
pub const OUTAGE_ANSWERS_MIN: u64 = 5;
/// Share of answers longer than `slow` from which an engine without late answers counts as slow: 10 %. Healthy ones have less.
const OUTAGE_SLOW_SHARE_MIN: f64 = 0.1;

/// What the engine does in an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutageKind {
    /// It answers, but late or slowly: other thresholds help.
    Slow,
    /// Its scans end without an answer: no threshold helps.
    Failing,
    /// Nothing ends: no threshold helps.
    Dead,
}

/// An outage that lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outage {
    /// The start of its first period, from which `missing` counts.
    pub from: Timestamp,
    /// The time since which the engine is out; none if nobody knows.
    pub since: Option<Timestamp>,
    /// What the engine does.
    pub kind: OutageKind,
    /// Attempts without an answer in these periods. A message is tried several times.
    pub missing: u64,
    /// What the engine does, in one sentence with its numbers.
    pub reason: String,
    /// The threshold at which a stall opens the breaker.
    pub threshold: String,
    /// The answers that were slow, on which the proposals rest.
    #[serde(skip)]
    slow: Latencies,
    #[serde(skip)]
    has_late: bool,
}

impl Outage {
    /// The outage in the periods from `from` on; the engine is out since `since`, if somebody knows.
    pub(super) fn new(
        configured: &Configured,
        times: &EngineTimes,
        (from, since): (Timestamp, Option<Timestamp>),
    ) -> Self {
        let sum = times.since(from);
        let answers = sum.answers();
        let late = answers.longer(configured.timeout);
        let slow = answers.longer(configured.slow);
        let slow_share = share(slow.count(), answers.count());
        let failed = sum.missing(MISSED_FAILED) + sum.missing(MISSED_BROKEN);
        let has_late = !late.is_empty();
        let (kind, slow) = match (has_late, slow_share >= OUTAGE_SLOW_SHARE_MIN, failed) {
            (true, ..) => (OutageKind::Slow, late),
            (false, true, _) => (OutageKind::Slow, slow),
            (false, false, 0) => (OutageKind::Dead, Latencies::default()),
            (false, false, _) => (OutageKind::Failing, Latencies::default()),
        };
        let within = |share| slow.within(share).map(shown).unwrap_or_default();
        let count = slow.count();
        let reason = match kind {
            OutageKind::Slow if has_late => format!(
                "slow, not dead: {} came after {} (p50), {} (p99)",
                counted(count, "late answer"),
                within(0.5),
                within(0.99)
            ),
            OutageKind::Slow => format!(
                "slow, not dead: {} took longer than slow = {}: {} (p50), {} (p99); none was late",
                counted(count, "answer"),
                text(configured.slow),
                within(0.5),
                within(0.99)
            ),
            OutageKind::Failing => format!(
                "failing: {} ended with an error or a closed connection, and no late answer came",
                counted(failed, "scan")
            ),
            OutageKind::Dead => "dead: no late answer came".to_owned(),
        };
        Self {
            from,
            since,
            kind,
            missing: all_missing(&sum),
            reason,
            threshold: format!(
                "a stall opens the breaker when no scan ends for {} (slow = {} x guard.stall_factor)",
                shown(configured.stall_after),
                text(configured.slow)
            ),
            slow,
            has_late,
        }
    }

    /// The proposals for `timeout`, `slow` and `slots` while the outage lasts.
    pub(super) fn propose(&self, configured: &Configured, times: &EngineTimes) -> [Proposal; 3] {
        let values = [
            ("timeout", text(configured.timeout)),
            ("slow", text(configured.slow)),
            ("slots", configured.slots.to_string()),
        ];
        let count = self.slow.count();
        let [longest, most] = [1.0, 0.99].map(|share| self.slow.within(share).unwrap_or_default());
        if self.kind != OutageKind::Slow {
            let kind = match self.kind {
                OutageKind::Failing => "fails",
                OutageKind::Slow | OutageKind::Dead => "is dead",
            };
            let outcome = || Outcome::no_threshold(format!("the engine {kind}; repair it"));
            return values.map(|(setting, value)| finish(setting, value, outcome()));
        }
        if count < OUTAGE_ANSWERS_MIN {
            let outcome = || {
                Outcome::too_few(format!(
                    "too little evidence: {} of at least {OUTAGE_ANSWERS_MIN}, the longest took {}",
                    counted(count, "slow answer"),
                    shown(longest)
                ))
            };
            return values.map(|(setting, value)| finish(setting, value, outcome()));
        }
        let (timeout, allowed) = self.timeout(configured, longest);
        let slow = slow(configured, most, allowed);
        let slots = self.slots(configured, times);
        let [for_timeout, for_slow, for_slots] = values;
        [(for_timeout, timeout), (for_slow, slow), (for_slots, slots)]
            .map(|((setting, value), outcome)| finish(setting, value, outcome))
    }

    fn timeout(&self, configured: &Configured, longest: Duration) -> (Outcome, Duration) {
        let now = configured.timeout;
        let wanted = nice(longest * TIMEOUT_FACTOR).max(TIMEOUT_MIN);
        let wanted = wanted.min(configured.limit.max(now));
        let longest = shown(longest);
        if !self.has_late {
            let reason = format!("no answer was late, the longest took {longest}");
            return (Outcome::keep(reason), now);
        }
        if wanted > now {
            let reason = format!("the engine is slow, and its longest answer took {longest}");
            return (Outcome::change(text(wanted), true, reason), wanted);
        }
        let reason = format!(
            "the longest answer took {longest}; timeout cannot be longer than limit = {}: raise limit first",
            text(configured.limit)
        );
        (Outcome::keep(reason), now)
    }

    /// The slots that the engine needs if it stays as slow: the rate of its busiest full period without outage, times the mean
    /// duration of its slow answers.
    fn slots(&self, configured: &Configured, times: &EngineTimes) -> Outcome {
        let Some(rate) = times.full_rate() else {
            return Outcome::too_few(
                "too little evidence: no full 10 minutes without an outage; what-if --slots counts the recorded mail"
                    .to_owned(),
            );
        };
        let mean = self.slow.sum().as_secs_f64() / self.slow.count().max(1) as f64;
        let wanted = (rate * mean / SLOT_USE_MAX).ceil() as usize;
        let wanted = wanted.div_ceil(configured.replicas.max(1));
        let reason = format!(
            "before the outage up to {rate:.1} messages a second came, and each takes {mean:.1} s now: {:.1} of {} slots",
            rate * mean,
            configured.all_slots()
        );
        match wanted <= configured.slots {
            true => Outcome::keep(reason),
            false => Outcome::change(
                wanted.to_string(),
                true,
                format!("{reason}; the engine must have as many workers"),
            ),
        }
    }
}

fn slow(configured: &Configured, most: Duration, timeout: Duration) -> Outcome {
    let wanted = nice(most * SLOW_FACTOR).min(timeout / SLOW_DIVISOR);
    let reason = format!(
        "99 % of the slow answers came within {}, and a silence of {} is a stall",
        shown(most),
        shown(configured.stall_after)
    );
    match wanted > configured.slow {
        true => Outcome::change(text(wanted), true, reason),
        false => Outcome::keep(reason),
    }
}

fn all_missing(sum: &PeriodTimes) -> u64 {
    let all = sum.missed.values();
    all.fold(0, |all, latencies| all.saturating_add(latencies.count()))
}
