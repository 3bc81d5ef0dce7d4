//! Measured durations: how many of each kind there were, on a scale of 8 steps an octave, so that a percentile is at most 12.5 %
//! too long. The scale is that of HdrHistogram (Tene, 2014) with 3 significant bits; all numbers are integers.

mod delay;
mod late;
pub mod proposal;
mod size;
mod times;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use delay::{DELAY_WINDOW, DelayComparison, DelayTimes, Delays, written_spans};
pub use late::LateScan;
pub use size::SizeClass;
pub use times::{EngineTimes, PeriodTimes};

/// Length of the periods in which measures are kept: 600 s. An hour has six, so that "the same hour a week ago" is six periods.
pub const MEASURE_PERIOD: Duration = Duration::from_secs(600);
/// Most different series between two writes. Their names come from the configuration, which has fewer.
const SERIES_MAX: usize = 4096;
/// Logarithm of the number of steps in an octave.
const STEP_BITS: u32 = 3;
/// Number of steps in an octave.
const OCTAVE_STEPS: u64 = 1 << STEP_BITS;
/// Unit of the shortest step, in microseconds.
const UNIT_MICROSECONDS: u64 = 16;
/// Longest duration that is told from longer ones: two days.
const DURATION_MAX: Duration = Duration::from_secs(2 * 86_400);

/// Durations, counted by their length.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Latencies(BTreeMap<u16, u64>);

impl Latencies {
    /// Adds one duration. Durations of two days or more count as two days.
    pub fn add(&mut self, duration: Duration) {
        *self.0.entry(step(duration)).or_default() += 1;
    }

    /// Adds all durations of another collection.
    pub fn merge(&mut self, other: &Self) {
        for (step, count) in &other.0 {
            let sum = self.0.entry(*step).or_default();
            *sum = sum.saturating_add(*count);
        }
    }

    /// The number of durations.
    pub fn count(&self) -> u64 {
        self.0.values().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Whether there is no duration.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The duration within which the share `share` of all durations lies (0.99: the 99th percentile), at most 12.5 % too long;
    /// none if there is no duration.
    pub fn within(&self, share: f64) -> Option<Duration> {
        let all = self.count();
        // The number of a percentile is at least 1 and at most all.
        let rank = ((all as f64 * share).ceil() as u64).clamp(1, all.max(1));
        let mut sum = 0_u64;
        let found = self.0.iter().find(|(_, count)| {
            sum = sum.saturating_add(**count);
            sum >= rank
        });
        found.map(|(step, _)| upper(*step))
    }

    /// The upper end of the longest duration; none if there is no duration.
    pub fn longest(&self) -> Option<Duration> {
        self.0.last_key_value().map(|(step, _)| upper(*step))
    }

    /// The number of durations that are certainly longer than `limit`.
    pub fn longer_than(&self, limit: Duration) -> u64 {
        self.longer(limit).count()
    }

    /// The durations that are certainly longer than `limit`.
    pub fn longer(&self, limit: Duration) -> Self {
        let longer = self.0.range(step(limit).saturating_add(1)..);
        Self(longer.map(|(step, count)| (*step, *count)).collect())
    }

    /// The sum of all durations, as if each were in the middle of its step: at most 6 % too long or too short.
    pub fn sum(&self) -> Duration {
        let all = self.0.iter().map(|(step, count)| {
            let lower = step.checked_sub(1).map(upper).unwrap_or_default();
            (lower + upper(*step)).as_secs_f64() / 2.0 * *count as f64
        });
        Duration::try_from_secs_f64(all.sum()).unwrap_or(Duration::MAX)
    }

    /// The steps that have durations, the shortest first: the upper end of each, and its number of durations.
    pub fn steps(&self) -> impl Iterator<Item = (Duration, u64)> {
        self.0.iter().map(|(step, count)| (upper(*step), *count))
    }
}

fn step(duration: Duration) -> u16 {
    let units = duration.min(DURATION_MAX).as_micros() as u64 / UNIT_MICROSECONDS;
    // Below one octave the steps are single units.
    let shift = (u64::BITS - units.leading_zeros()).saturating_sub(STEP_BITS + 1);
    let step = u64::from(shift) * OCTAVE_STEPS + (units >> shift);
    u16::try_from(step).unwrap_or(u16::MAX)
}

fn upper(step: u16) -> Duration {
    let step = u64::from(step);
    let shift = (step / OCTAVE_STEPS).saturating_sub(1);
    let units = (step - shift * OCTAVE_STEPS + 1)
        .checked_shl(u32::try_from(shift).unwrap_or(u32::MAX))
        .unwrap_or(u64::MAX);
    Duration::from_micros(units.saturating_mul(UNIT_MICROSECONDS))
}

/// What a series of durations measures. The log stores it as a word, so a word never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measured {
    /// Scans that an engine answered, from the start of the scan to its answer, also after `timeout`. By engine and size.
    Scan,
    /// Waits for a slot of an engine, of fresh messages that got one. By engine and size.
    Wait,
    /// Missing answers. By engine and reason: the scans that ended without an answer ([`MISSED_FAILED`], [`MISSED_BROKEN`],
    /// [`MISSED_LOST`]), from their start to their end, and the messages that got no scan (`busy`, `parked`, `breaker-open` and
    /// so on, as in a report), from the question to the refusal.
    Missed,
    /// Delays of valid mail, from the end of data to the delivery. By lane.
    Delay,
}

impl Measured {
    /// The word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Wait => "wait",
            Self::Missed => "missed",
            Self::Delay => "delay",
        }
    }
}

/// The class of scans that failed: the engine was unreachable, or answered with an error.
pub const MISSED_FAILED: &str = "failed";
/// The class of scans whose connection the engine closed.
pub const MISSED_BROKEN: &str = "broken";
/// The class of scans that the engine did not end within its limit.
pub const MISSED_LOST: &str = "lost";

/// The name of a series.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    /// What is measured.
    pub measured: Measured,
    /// The engine, the next hop or the lane.
    pub name: Arc<str>,
    /// The class, for example a size class; may be empty.
    pub class: Cow<'static, str>,
}

/// What was measured since the last write: durations for all series, and late scans.
#[derive(Debug, Default)]
pub struct Measures {
    series: Mutex<Vec<(Series, Latencies)>>,
    delays: Delays,
    late_scans: Mutex<Vec<LateScan>>,
}

impl Measures {
    /// Adds a duration to a series. Takes one lock, and allocates nothing if the series exists.
    pub fn add(&self, measured: Measured, name: &str, class: &'static str, duration: Duration) {
        let mut all = self.lock();
        let is_wanted = |(series, _): &&mut (Series, Latencies)| {
            series.measured == measured && *series.name == *name && series.class == class
        };
        if let Some((_, latencies)) = all.iter_mut().find(is_wanted) {
            latencies.add(duration);
        } else if all.len() < SERIES_MAX {
            let (name, class) = (name.into(), class.into());
            let series = Series {
                measured,
                name,
                class,
            };
            let mut latencies = Latencies::default();
            latencies.add(duration);
            all.push((series, latencies));
        }
    }

    /// The delays of valid mail. They have a lock of their own.
    pub fn delays(&self) -> &Delays {
        &self.delays
    }

    /// Takes everything that was measured since the last call.
    pub fn take(&self) -> Vec<(Series, Latencies)> {
        self.put_back(self.delays.take());
        std::mem::take(&mut *self.lock())
    }

    /// A copy of what was measured since the last call of [`take`](Self::take). A series may come twice, after a failed write.
    pub fn pending(&self) -> Vec<(Series, Latencies)> {
        let mut all = self.lock().clone();
        all.extend(self.delays.pending());
        all
    }

    /// Adds durations that were counted elsewhere, or puts back what could not be written.
    pub fn put_back(&self, taken: Vec<(Series, Latencies)>) {
        let mut all = self.lock();
        for (series, latencies) in taken {
            if let Some((_, known)) = all.iter_mut().find(|(known, _)| *known == series) {
                known.merge(&latencies);
            } else if all.len() < SERIES_MAX {
                all.push((series, latencies));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Series, Latencies)>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    /// A percentile is never too short, and at most 12.5 % (or one unit of 16 µs) too long, from microseconds to two days.
    #[test]
    fn a_percentile_is_at_most_an_eighth_too_long() {
        let mut before = Duration::ZERO;
        for exponent in 0..370 {
            let micros = 1.08_f64.powi(exponent).ceil() as u64;
            let duration = Duration::from_micros(micros).min(DURATION_MAX);
            let mut latencies = Latencies::default();
            latencies.add(duration);
            let shown = latencies.within(0.5).expect("one duration");
            assert!(shown > duration, "{duration:?} is shown as {shown:?}");
            let most = duration + duration / 8 + Duration::from_micros(UNIT_MICROSECONDS);
            assert!(shown <= most, "{duration:?} is shown as {shown:?}");
            assert!(shown >= before, "the scale rises");
            assert_eq!(latencies.longer_than(duration), 0);
            before = shown;
        }
    }

    /// Percentiles are those of the sorted list, and parts that are merged give the same as the whole.
    #[test]
    fn percentiles_are_those_of_the_sorted_list() {
        let mut rng = StdRng::seed_from_u64(14);
        for _ in 0..50 {
            let durations: Vec<Duration> = (0..rng.random_range(1..500))
                .map(|_| Duration::from_micros(rng.random_range(0..90_000_000)))
                .collect();
            let (mut whole, mut parts) =
                (Latencies::default(), [(); 2].map(|()| Latencies::default()));
            for (at, duration) in durations.iter().enumerate() {
                whole.add(*duration);
                parts[at % 2].add(*duration);
            }
            let [mut merged, other] = parts;
            merged.merge(&other);
            assert_eq!(merged, whole);
            let mut sorted = durations.clone();
            sorted.sort();
            for share in [0.01, 0.5, 0.99, 1.0] {
                let rank = (sorted.len() as f64 * share).ceil() as usize;
                let exact = sorted[rank.max(1) - 1];
                let shown = whole.within(share).expect("durations");
                assert_eq!(shown, upper(step(exact)), "share {share}");
            }
            let json = serde_json::to_string(&whole).expect("json");
            assert_eq!(
                serde_json::from_str::<Latencies>(&json).expect("read"),
                whole
            );
        }
        assert_eq!(Latencies::default().within(0.5), None);
    }

    /// The sum of many durations is nearly exact: the errors of the steps cancel out.
    #[test]
    fn a_sum_is_nearly_exact() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.sum(), Duration::ZERO);
        let mut exact = Duration::ZERO;
        for n in 1..10_000 {
            let duration = Duration::from_micros(n * 700);
            exact += duration;
            latencies.add(duration);
        }
        let ratio = latencies.sum().div_duration_f64(exact);
        assert!((0.99..1.01).contains(&ratio), "{ratio}");
        latencies = Latencies::default();
        latencies.add(Duration::from_secs(1));
        let ratio = latencies.sum().as_secs_f64();
        assert!((0.94..1.06).contains(&ratio), "{ratio}");
    }

    /// What could not be written is not lost, and is not counted twice.
    #[test]
    fn measures_that_were_put_back_are_taken_again() {
        let measures = Measures::default();
        let second = Duration::from_secs(1);
        measures.add(Measured::Scan, "clamd", "small", second);
        let taken = measures.take();
        assert_eq!(measures.take(), []);
        measures.add(Measured::Scan, "clamd", "small", second);
        measures.add(Measured::Scan, "clamd", "large", second);
        measures.put_back(taken);
        let counts = measures.take();
        let counts = counts.iter().map(|(s, l)| (&*s.class, l.count()));
        assert_eq!(counts.collect::<Vec<_>>(), [("small", 2), ("large", 1)]);
    }
}
