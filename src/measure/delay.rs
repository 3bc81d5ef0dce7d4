//! Delays of valid mail: those of the last minutes, finer than the periods of the history, and the comparison that a status shows.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Latencies, MEASURE_PERIOD, Measured, Series};

/// What "now" is in a status: the last five minutes. Shorter, and a quiet relay has no mail to measure; longer, and a person who
/// repairs something waits for a sign that it helped.
pub const DELAY_WINDOW: Duration = Duration::from_secs(300);
/// The window forgets in steps of 30 s, so that it holds between 4.5 and 5 minutes.
const WINDOW_STEP: Duration = Duration::from_secs(30);
/// Steps of the window.
const WINDOW_STEPS: usize = (DELAY_WINDOW.as_secs() / WINDOW_STEP.as_secs()) as usize;
/// The "hour" of a status: this period and the five before it, so between 50 and 60 minutes.
const HOUR_PERIODS: i32 = 6;
/// A week: the same hour a week ago has the same weekday and time of day, and so the usual load.
const WEEK: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Names of the series: the lanes from which mail is delivered, and the session. They are the labels of the metric, too.
const LANES: usize = 4;
/// Classes of senders: known, unknown, and not looked up.
const SENDERS: usize = 3;

/// The delays of valid mail since the last write, and those of the last minutes. Valid mail is what users wait for: it was
/// delivered by a decision that found nothing malicious, is no mail of the relay's own, and no reviewer released it.
#[derive(Debug)]
pub struct Delays(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    /// Not written yet, by lane and class of senders. The places are taken in the order of the first delivery.
    pending: [(&'static str, &'static str, Latencies); LANES * SENDERS],
    /// The last steps, in a ring.
    window: [Latencies; WINDOW_STEPS],
    /// Number of the newest step.
    step: u64,
    /// The beginning of step 0.
    origin: Instant,
    /// Written delays by period: of the last hour, and of the hours around the same time a week ago.
    written: Vec<(Timestamp, Latencies)>,
}

impl Default for Delays {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            pending: std::array::from_fn(|_| ("", "", Latencies::default())),
            window: std::array::from_fn(|_| Latencies::default()),
            step: 0,
            origin: Instant::now(),
            written: Vec::new(),
        }))
    }
}

impl Delays {
    /// Adds the delay of one delivery. Takes one lock. Beyond the number of lanes and classes there are, nothing is added to the
    /// history.
    pub fn add(&self, lane: &'static str, senders: &'static str, delay: Duration) {
        let mut inner = self.lock();
        inner.forget(Instant::now());
        let step = inner.place();
        inner.window[step].add(delay);
        let is_place = |(l, s, latencies): &&mut (&'static str, &'static str, Latencies)| {
            (*l, *s) == (lane, senders) || latencies.is_empty()
        };
        if let Some(place) = inner.pending.iter_mut().find(is_place) {
            (place.0, place.1) = (lane, senders);
            place.2.add(delay);
        }
    }

    /// Takes what was not written yet.
    pub(super) fn take(&self) -> Vec<(Series, Latencies)> {
        let mut inner = self.lock();
        let all = inner.pending.iter_mut().filter(|(.., l)| !l.is_empty());
        let taken = all.map(|(lane, senders, l)| (series(lane, senders), std::mem::take(l)));
        taken.collect()
    }

    /// A copy of what was not written yet.
    pub(super) fn pending(&self) -> Vec<(Series, Latencies)> {
        let inner = self.lock();
        let all = inner.pending.iter().filter(|(.., l)| !l.is_empty());
        all.map(|(lane, senders, l)| (series(lane, senders), l.clone()))
            .collect()
    }

    /// Sets the written delays, each with the start of its period, as [`written_spans`] asks for them.
    pub fn set_written(&self, written: Vec<(Timestamp, Latencies)>) {
        self.lock().written = written;
    }

    /// The comparison for a status at `now`. `unwritten` are delays since the last write ([`super::Measures::pending`]).
    pub fn compare(&self, now: Timestamp, unwritten: &[(Series, Latencies)]) -> DelayComparison {
        let mut inner = self.lock();
        inner.forget(Instant::now());
        let mut recent = Latencies::default();
        inner.window.iter().for_each(|step| recent.merge(step));
        let within = |[begin, end]: [Timestamp; 2]| {
            let mut sum = Latencies::default();
            let written = inner.written.iter();
            let written = written.filter(|(period, _)| (begin..end).contains(period));
            written.for_each(|(_, latencies)| sum.merge(latencies));
            sum
        };
        let [mut hour, week_ago] = hours(now).map(within);
        let delays = unwritten
            .iter()
            .filter(|(s, _)| s.measured == Measured::Delay);
        delays.for_each(|(_, latencies)| hour.merge(latencies));
        DelayComparison {
            now: DelayTimes::of(&recent),
            last_hour: DelayTimes::of(&hour),
            week_ago: DelayTimes::of(&week_ago),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Clears the steps that have passed since the last call.
    fn forget(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.origin).as_millis();
        let step = u64::try_from(passed / WINDOW_STEP.as_millis()).unwrap_or(u64::MAX);
        let old = step.saturating_sub(self.step).min(WINDOW_STEPS as u64);
        for _ in 0..old {
            self.step += 1;
            let place = self.place();
            self.window[place] = Latencies::default();
        }
        self.step = self.step.max(step);
    }

    fn place(&self) -> usize {
        (self.step % WINDOW_STEPS as u64) as usize
    }
}

fn series(lane: &'static str, senders: &'static str) -> Series {
    Series {
        measured: Measured::Delay,
        name: lane.into(),
        class: senders.into(),
    }
}

/// The last hour at `now`, and the same hour a week ago, each from its first period to the end of its last.
fn hours(now: Timestamp) -> [[Timestamp; 2]; 2] {
    let length = SignedDuration::try_from(MEASURE_PERIOD).unwrap_or_default();
    let seconds = length.as_secs();
    let period = now.as_second().div_euclid(seconds) * seconds;
    let period = Timestamp::from_second(period).unwrap_or(now);
    let hour = [
        period.saturating_sub(length * (HOUR_PERIODS - 1)),
        period.saturating_add(length),
    ];
    let hour = hour.map(|at| at.unwrap_or(now));
    [hour, hour.map(|at| at.saturating_sub(WEEK).unwrap_or(at))]
}

/// The times from which [`Delays::set_written`] wants the written delays: the last hour, and the same hour a week ago, with one
/// period more for a status that comes later.
pub fn written_spans(now: Timestamp) -> [[Timestamp; 2]; 2] {
    let more = |at: Timestamp| at.saturating_add(MEASURE_PERIOD).unwrap_or(at);
    hours(now).map(|[begin, end]| [begin, more(end)])
}

/// The delays of valid mail in three spans of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelayComparison {
    /// The last five minutes ([`DELAY_WINDOW`]), by the monotonic clock.
    pub now: DelayTimes,
    /// This period of ten minutes, and the five before.
    pub last_hour: DelayTimes,
    /// The same six periods a week ago.
    pub week_ago: DelayTimes,
}

/// The delays of valid mail in one span of time, in milliseconds, rounded up. Mail that still waits is not among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelayTimes {
    /// The number of deliveries.
    pub messages: u64,
    /// The median; none without mail.
    pub p50_ms: Option<u64>,
    /// The 99th percentile; none without mail.
    pub p99_ms: Option<u64>,
}

impl DelayTimes {
    fn of(latencies: &Latencies) -> Self {
        let within = |share| {
            let delay = latencies.within(share)?;
            u64::try_from(delay.as_micros().div_ceil(1000)).ok()
        };
        Self {
            messages: latencies.count(),
            p50_ms: within(0.5),
            p99_ms: within(0.99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn compare(delays: &Delays) -> DelayTimes {
        delays.compare(Timestamp::UNIX_EPOCH, &[]).now
    }

    /// The window forgets what is older than five minutes, whether mail comes or not, and nothing that is younger than four and
    /// a half.
    #[tokio::test(start_paused = true)]
    async fn the_window_forgets_after_five_minutes() {
        for pause in [1, 29, 31, 100, 269] {
            let delays = Delays::default();
            tokio::time::advance(Duration::from_secs(7)).await;
            delays.add("session", "known", 9 * SECOND);
            let mut passed = 0;
            while passed + pause < 270 {
                tokio::time::advance(Duration::from_secs(pause)).await;
                passed += pause;
                assert_eq!(
                    compare(&delays).messages,
                    1,
                    "{passed} s in steps of {pause}"
                );
            }
            while passed < 300 {
                tokio::time::advance(Duration::from_secs(pause)).await;
                passed += pause;
                delays.add("session", "known", SECOND);
            }
            let now = compare(&delays);
            assert!(now.p99_ms < Some(2000), "{now:?} after {passed} s");
            tokio::time::advance(Duration::from_secs(100_000)).await;
            assert_eq!(compare(&delays), DelayTimes::default());
            delays.add("session", "known", SECOND);
            assert_eq!(compare(&delays).messages, 1);
        }
    }

    /// The last hour is the written periods and what is not written yet; a week ago has the same six periods. Neighbouring periods
    /// are in neither.
    #[test]
    fn hours_are_six_periods() {
        let delays = Delays::default();
        let now = Timestamp::from_second(100 * 86_400 + 1234).expect("a time");
        let period = |count: i64| {
            let start = Timestamp::from_second(100 * 86_400 + 1200 + count * 600);
            start.expect("a time")
        };
        let [[_, end], _] = written_spans(now);
        assert_eq!(end, period(2));
        let week = |at: Timestamp| at - WEEK;
        let one = |seconds: u64| {
            let mut latencies = Latencies::default();
            latencies.add(Duration::from_secs(seconds));
            latencies
        };
        delays.set_written(vec![
            (week(period(-6)), one(900)),
            (week(period(-5)), one(20)),
            (week(period(0)), one(20)),
            (week(period(1)), one(900)),
            (period(-6), one(900)),
            (period(-5), one(5)),
            (period(0), one(5)),
        ]);
        delays.add("session", "known", 5 * SECOND);
        let compared = delays.compare(now, &delays.pending());
        assert_eq!(compared.last_hour.messages, 3);
        assert!(compared.last_hour.p99_ms < Some(6000), "{compared:?}");
        assert_eq!(compared.week_ago.messages, 2);
        assert!(compared.week_ago.p99_ms < Some(23_000), "{compared:?}");
        // Ten minutes later the oldest period has left the hour.
        let later = delays.compare(now + MEASURE_PERIOD, &delays.pending());
        assert_eq!((later.last_hour.messages, later.week_ago.messages), (2, 2));
    }

    /// Each lane and class of senders is a series; what is taken is not taken again.
    #[tokio::test(start_paused = true)]
    async fn series_stay_apart() {
        let delays = Delays::default();
        let lanes = ["session", "scan", "delivery", "session"];
        for (lane, senders) in lanes.iter().zip(["known", "known", "", "unknown"]) {
            delays.add(lane, senders, SECOND);
            delays.add(lane, senders, SECOND);
        }
        assert_eq!(delays.pending().len(), 4);
        let taken = delays.take();
        assert_eq!(taken.len(), 4);
        assert!(taken.iter().all(|(_, latencies)| latencies.count() == 2));
        assert_eq!(delays.take(), []);
        assert_eq!(compare(&delays).messages, 8, "the window keeps it");
    }
}
