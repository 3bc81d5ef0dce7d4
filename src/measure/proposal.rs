//! Proposals for `timeout`, `slow` and `slots` of an engine, from what was measured of it. The rules are cautious: they propose
//! a change only if the configured value does harm, or is far from what the engine needs.

mod outage;
mod words;

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::{EngineTimes, Latencies, PeriodTimes, SizeClass};

pub use outage::{OUTAGE_ANSWERS_MIN, Outage, OutageKind};
use words::{counted, nice, percent, share};
pub use words::{grouped, shown, text};

/// Answers from which a proposal is made: 500. With fewer, a 99.9th percentile is chance.
pub const PROPOSAL_ANSWERS_MIN: u64 = 500;
/// Answers from which a size class is usual, and its longest answers count: 100.
const CLASS_ANSWERS_MIN: u64 = 100;
/// Share of answers that may take longer than `timeout` before another is proposed: 0.1 %.
const LATE_SHARE_MAX: f64 = 0.001;
/// Answers longer than `timeout` before another is proposed: with fewer than 10, their share is chance.
const LATE_ANSWERS_MIN: u64 = 10;
/// Share of answers longer than `timeout` from which `timeout` contradicts what was measured: 1 %.
const LATE_SHARE_CONTRADICTION: f64 = 0.01;
/// The proposed `timeout`, in the 99.9th percentile of the slowest usual size: twice, as an engine may have a bad day.
const TIMEOUT_FACTOR: u32 = 2;
/// A shorter `timeout` than 5 s, the default of fast engines, is never proposed: it gains nothing.
const TIMEOUT_MIN: Duration = Duration::from_secs(5);
/// A `timeout` is too long from four times the proposed one.
const TIMEOUT_EXCESS_FACTOR: u32 = 4;
/// The proposed `slow`, in the 99th percentile of small mail.
const SLOW_FACTOR: u32 = 3;
/// A shorter `slow` than 200 ms is never proposed: a machine may stand still for a tenth of a second.
const SLOW_MIN: Duration = Duration::from_millis(200);
/// `slow` is too long from ten times the proposed one.
const SLOW_EXCESS_FACTOR: u32 = 10;
/// Large content may take ten times `slow`, as in the guard.
const SLOW_LARGE_FACTOR: u32 = 10;
/// The proposed `slow` is at most half of `timeout`.
const SLOW_DIVISOR: u32 = 2;
/// Share of answers longer than `slow` before another is proposed: 1 %.
const SLOW_SHARE_MAX: f64 = 0.01;
/// Share of answers longer than `slow` from which `slow` contradicts what was measured: 5 %.
const SLOW_SHARE_CONTRADICTION: f64 = 0.05;
/// Share of the slots that may be taken in the mean of the busiest period: 70 %. Beyond it, waits grow quickly.
const SLOT_USE_MAX: f64 = 0.7;
/// Share of messages that may get no slot before more are proposed: 0.1 %.
const BUSY_SHARE_MAX: f64 = 0.001;
/// How many times the mean of the busiest period a peak may need, at most: 8.
const PEAK_FACTOR_MAX: f64 = 8.0;
/// Share of messages without a slot from which `slots` contradicts what was measured: 1 %.
const BUSY_SHARE_CONTRADICTION: f64 = 0.01;
/// The 99th percentile of the waits must be at most half of `wait`.
const WAIT_DIVISOR: u32 = 2;

/// The settings of an engine that proposals are about, and those that bound them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Configured {
    /// The setting `timeout`.
    pub timeout: Duration,
    /// The setting `slow`.
    pub slow: Duration,
    /// The silence from which the engine counts as stalled: `slow` times `guard.stall_factor`.
    pub stall_after: Duration,
    /// The setting `limit`: no proposed `timeout` is longer.
    pub limit: Duration,
    /// The setting `wait`.
    pub wait: Duration,
    /// The setting `slots`: slots of each replica.
    pub slots: usize,
    /// Number of replicas.
    pub replicas: usize,
}

impl Configured {
    /// The slots of all replicas.
    pub fn all_slots(&self) -> usize {
        self.slots.saturating_mul(self.replicas)
    }
}

/// What a proposal comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Advice {
    /// The configured value fits.
    Keep,
    /// Another value fits better.
    Change,
    /// There is too little evidence to say.
    TooFew,
    /// The engine is out, and no value would change that.
    NoThresholdHelps,
}

/// A proposal for one setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proposal {
    /// The name of the setting.
    pub setting: &'static str,
    /// The configured value, as in the configuration.
    pub configured: String,
    /// What the proposal comes to.
    pub advice: Advice,
    /// The proposed value, if it is another one.
    pub proposed: Option<String>,
    /// Whether the configured value contradicts what was measured: it does clear harm, and `check-config` warns.
    pub contradicts: bool,
    /// The reason, in one sentence with its numbers.
    pub reason: String,
}

/// Whether the engine is out now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Out {
    /// Nobody says: it is out if its newest period is an outage.
    Unknown,
    /// It is not.
    No,
    /// It is.
    Since {
        /// The start of the outage.
        at: Timestamp,
        /// The start of the period in which `at` lies.
        period: Timestamp,
    },
}

/// What is known besides the measures.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// The number of answers after `timeout` that found something.
    pub found_late: u64,
    /// Whether the engine is out now.
    pub out: Out,
    /// The present.
    pub now: Timestamp,
    /// The first sign of work in the period in which the running relay began; none if nobody knows. The periods before are taken as
    /// measured in full.
    pub began: Option<Timestamp>,
}

/// Proposals for an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposals {
    /// The outage that lasts, if there is one: then the proposals are about it.
    pub outage: Option<Outage>,
    /// The proposals for `timeout`, `slow` and `slots`, in this order.
    pub settings: [Proposal; 3],
}

/// Proposes `timeout`, `slow` and `slots`.
pub fn propose(configured: &Configured, times: &EngineTimes, known: &Known) -> Proposals {
    let from = match known.out {
        Out::No => None,
        Out::Unknown => times.outage_at_the_end().map(|from| (from, None)),
        Out::Since { at, period } => Some((period, Some(at))),
    };
    if let Some(from) = from {
        let outage = Outage::new(configured, times, from);
        return Proposals {
            settings: outage.propose(configured, times),
            outage: Some(outage),
        };
    }
    Proposals {
        outage: None,
        settings: usual(configured, times, known),
    }
}

/// Proposals from the periods without outages; from those of the last hour alone, if the engine has become slower.
fn usual(configured: &Configured, times: &EngineTimes, known: &Known) -> [Proposal; 3] {
    let (mut usual, outages) = times.usual();
    let slower = usual.slower(known.now);
    if let Some((recent, _)) = &slower {
        usual = recent.clone();
    }
    let sum = usual.all();
    let facts = Facts {
        configured,
        answers: sum.answers(),
        busiest: usual
            .busiest(known.now, known.began)
            .map_or(0.0, |(_, at_once)| at_once),
        sum,
        found_late: known.found_late,
    };
    let (timeout, allowed) = facts.timeout();
    let mut proposals = [timeout, facts.slow(allowed), facts.slots()];
    if let Some((_, factor)) = slower {
        for proposal in &mut proposals {
            let of = format!(" (of the last hour: it takes {factor:.1} times as long as before)");
            proposal.reason.push_str(&of);
        }
    }
    if outages > 0 {
        for proposal in &mut proposals {
            let without = format!(
                " (without {} of 10 minutes)",
                counted(outages as u64, "outage")
            );
            proposal.reason.push_str(&without);
        }
    }
    proposals
}

struct Facts<'a> {
    configured: &'a Configured,
    sum: PeriodTimes,
    answers: Latencies,
    busiest: f64,
    found_late: u64,
}

impl Facts<'_> {
    /// The proposal for `timeout`, and the value that it comes to.
    fn timeout(&self) -> (Proposal, Duration) {
        let configured = self.configured.timeout;
        let proposal = |outcome| (finish("timeout", text(configured), outcome), configured);
        let count = self.answers.count();
        let Some((tail, of)) = self.tail().filter(|_| count >= PROPOSAL_ANSWERS_MIN) else {
            return proposal(too_few(count));
        };
        let wanted = nice(tail * TIMEOUT_FACTOR).max(TIMEOUT_MIN);
        let wanted = wanted.min(self.configured.limit.max(configured));
        let most = format!(
            "99.9 % of the answers about mail {of} came within {}",
            shown(tail)
        );
        let late = self.late();
        if let Some((late_share, late)) = &late
            && wanted > configured
        {
            let reason =
                format!("{late} took longer, and each of them was a missing answer; {most}");
            let contradicts = *late_share >= LATE_SHARE_CONTRADICTION;
            let outcome = Outcome::change(text(wanted), contradicts, reason);
            return (finish("timeout", text(configured), outcome), wanted);
        }
        if let Some((_, late)) = &late
            && configured >= self.configured.limit
        {
            let reason = format!(
                "{late} took longer, but timeout cannot be longer than limit = {}: raise limit first, if the engine works for \
                 longer",
                text(self.configured.limit)
            );
            return proposal(Outcome::keep(reason));
        }
        if configured > wanted.saturating_mul(TIMEOUT_EXCESS_FACTOR) {
            if self.found_late == 0 {
                let reason = format!(
                    "{most}, of {}; a hang makes its message wait {}",
                    counted(count, "answer"),
                    text(configured)
                );
                let outcome = Outcome::change(text(wanted), false, reason);
                return (finish("timeout", text(configured), outcome), wanted);
            }
            let found = counted(self.found_late, "later answer");
            return proposal(Outcome::keep(format!(
                "{most}, but {found} found something"
            )));
        }
        let late = self.answers.longer_than(configured);
        let reason = format!("{most}, {late} of {} later", counted(count, "answer"));
        proposal(Outcome::keep(reason))
    }

    /// The largest share of answers later than `timeout`, of all mail or of a usual size, with its words; none if it is small.
    fn late(&self) -> Option<(f64, String)> {
        let usual = self.sum.scans.iter();
        let usual = usual.filter(|(_, latencies)| latencies.count() >= CLASS_ANSWERS_MIN);
        let sizes = usual.map(|(size, latencies)| (latencies, format!(" about mail {size}")));
        let groups = std::iter::once((&self.answers, String::new())).chain(sizes);
        let late = groups.filter_map(|(latencies, of)| {
            let late = latencies.longer_than(self.configured.timeout);
            let late_share = share(late, latencies.count());
            let counts = late >= LATE_ANSWERS_MIN && late_share > LATE_SHARE_MAX;
            let answers = counted(latencies.count(), "answer");
            counts.then(|| {
                (
                    late_share,
                    format!("{} of {answers}{of}", percent(late_share)),
                )
            })
        });
        // Of two equal shares, that of all mail is named.
        late.reduce(|one, other| if other.0 > one.0 { other } else { one })
    }

    /// The longest 99.9th percentile of all usual sizes, and that size.
    fn tail(&self) -> Option<(Duration, String)> {
        let usual = self.sum.scans.iter();
        let usual = usual.filter(|(_, latencies)| latencies.count() >= CLASS_ANSWERS_MIN);
        let tails = usual.filter_map(|(size, l)| Some((l.within(0.999)?, size.to_string())));
        let all = || Some((self.answers.within(0.999)?, "of all sizes".to_owned()));
        tails.max_by_key(|(tail, _)| *tail).or_else(all)
    }

    /// The proposal for `slow`: at most half of `timeout`, so that there is evidence before an answer is missing.
    fn slow(&self, timeout: Duration) -> Proposal {
        let configured = self.configured.slow;
        let proposal = |outcome| finish("slow", text(configured), outcome);
        let small = self.sum.scans_of(|size| !size.is_large());
        let large = self.sum.scans_of(SizeClass::is_large);
        let count = small.count();
        let Some(most) = small.within(0.99).filter(|_| count >= PROPOSAL_ANSWERS_MIN) else {
            return proposal(too_few(count));
        };
        let large = large
            .within(0.99)
            .filter(|_| large.count() >= CLASS_ANSWERS_MIN);
        let for_large = nice(large.unwrap_or_default() / SLOW_LARGE_FACTOR);
        let wanted = nice(most * SLOW_FACTOR).max(for_large).max(SLOW_MIN);
        let wanted = wanted.min(timeout / SLOW_DIVISOR);
        let slow_share = share(small.longer_than(configured), count);
        let usual = format!(
            "99 % of {} about mail below 1 MiB came within {}",
            counted(count, "answer"),
            shown(most)
        );
        if slow_share > SLOW_SHARE_MAX && wanted > configured {
            let reason = format!(
                "{usual}, and {} counted as slow, which is evidence against mail and engine",
                percent(slow_share)
            );
            let contradicts = slow_share >= SLOW_SHARE_CONTRADICTION;
            return proposal(Outcome::change(text(wanted), contradicts, reason));
        }
        if configured > wanted.saturating_mul(SLOW_EXCESS_FACTOR) {
            let reason = format!("{usual}; mail that makes the engine slow is noticed late");
            return proposal(Outcome::change(text(wanted), false, reason));
        }
        proposal(Outcome::keep(format!(
            "{usual}, {} slow",
            percent(slow_share)
        )))
    }

    fn slots(&self) -> Proposal {
        let (each, all) = (self.configured.slots, self.configured.all_slots());
        let proposal = |outcome| finish("slots", each.to_string(), outcome);
        let count = self.answers.count();
        if count < PROPOSAL_ANSWERS_MIN {
            return proposal(too_few(count));
        }
        let busy = self.sum.missing("busy");
        let busy_share = share(busy, busy + count);
        let waited = self.sum.waits.within(0.99).unwrap_or_default();
        let waits_long = waited > self.configured.wait / WAIT_DIVISOR;
        let mut reason = format!(
            "in the busiest 10 minutes {:.1} of {all} slots were taken on average, 99 % of fresh messages waited at most {}, \
             and {busy} of {} got none",
            self.busiest,
            shown(waited),
            counted(busy + count, "message")
        );
        // The mean hides peaks, and those show in the waits.
        let for_waits = match busy_share > BUSY_SHARE_MAX || waits_long {
            // Where slots are hardly used, mail waited under fewer slots than today, or for an engine that was out.
            true => (all + all.div_ceil(2)).min((self.busiest * PEAK_FACTOR_MAX).ceil() as usize),
            false => 0,
        };
        let needed = ((self.busiest / SLOT_USE_MAX).ceil() as usize).max(for_waits);
        let wanted = needed.div_ceil(self.configured.replicas.max(1));
        if wanted <= each {
            return proposal(Outcome::keep(reason));
        }
        reason.push_str("; the engine must have as many workers");
        let contradicts = busy_share >= BUSY_SHARE_CONTRADICTION;
        proposal(Outcome::change(wanted.to_string(), contradicts, reason))
    }
}

struct Outcome {
    advice: Advice,
    proposed: Option<String>,
    contradicts: bool,
    reason: String,
}

impl Outcome {
    fn too_few(reason: String) -> Self {
        Self {
            advice: Advice::TooFew,
            ..Self::keep(reason)
        }
    }

    fn no_threshold(reason: String) -> Self {
        Self {
            advice: Advice::NoThresholdHelps,
            ..Self::keep(reason)
        }
    }

    fn keep(reason: String) -> Self {
        Self {
            advice: Advice::Keep,
            proposed: None,
            contradicts: false,
            reason,
        }
    }

    fn change(proposed: String, contradicts: bool, reason: String) -> Self {
        Self {
            advice: Advice::Change,
            proposed: Some(proposed),
            contradicts,
            reason,
        }
    }
}

fn too_few(count: u64) -> Outcome {
    Outcome::too_few(format!(
        "too little evidence ({count} of at least {PROPOSAL_ANSWERS_MIN} scans)"
    ))
}

fn finish(setting: &'static str, configured: String, outcome: Outcome) -> Proposal {
    Proposal {
        setting,
        configured,
        advice: outcome.advice,
        proposed: outcome.proposed,
        contradicts: outcome.contradicts,
        reason: outcome.reason,
    }
}

#[cfg(test)]
mod tests;
