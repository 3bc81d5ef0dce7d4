//! What was measured of one engine: its scans, waits and missing answers, by period; and which of it is usual.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::proposal::PROPOSAL_ANSWERS_MIN;
use super::{
    Latencies, MEASURE_PERIOD, MISSED_BROKEN, MISSED_FAILED, MISSED_LOST, Measured, Series,
    SizeClass,
};

/// The class of messages that got no scan because the breaker was open, as in a report.
const MISSED_BREAKER_OPEN: &str = "breaker-open";
/// Share of missing answers from which a period counts as an outage: 5 %. An engine that works misses far fewer.
const OUTAGE_SHARE_MIN: f64 = 0.05;
/// If less than this share of the answers is outside outages, the outages are what is usual: half.
const USUAL_SHARE_MIN: f64 = 0.5;

/// What counts as recent: an hour, in which even a small relay has some hundred scans.
const RECENT_SPAN: Duration = Duration::from_secs(3600);
/// An engine has become slower if the median of its scans is twice what it was. A day has its hours, but not that much.
const SLOWER_FACTOR_MIN: f64 = 2.0;

/// What was measured of one engine in one period, or in several.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeriodTimes {
    /// The durations of answered scans.
    pub scans: BTreeMap<SizeClass, Latencies>,
    /// The waits of fresh messages for a slot.
    pub waits: Latencies,
    /// Missing answers by reason, as [`Measured::Missed`] names them.
    pub missed: BTreeMap<String, Latencies>,
}

impl PeriodTimes {
    /// The answered scans of all sizes.
    pub fn answers(&self) -> Latencies {
        self.scans_of(|_| true)
    }

    /// The answered scans of the sizes that `wanted` accepts.
    pub fn scans_of(&self, wanted: impl Fn(SizeClass) -> bool) -> Latencies {
        let mut all = Latencies::default();
        for (_, latencies) in self.scans.iter().filter(|(size, _)| wanted(**size)) {
            all.merge(latencies);
        }
        all
    }

    /// The number of answers that were missing for this reason.
    pub fn missing(&self, reason: &str) -> u64 {
        self.missed.get(reason).map_or(0, Latencies::count)
    }

    /// The mean number of scans that ran at once, by Little's law: the sum of their durations, divided by the time.
    fn at_once(&self, time: Duration) -> f64 {
        let unanswered = [MISSED_FAILED, MISSED_BROKEN, MISSED_LOST];
        let unanswered = unanswered.iter().filter_map(|word| self.missed.get(*word));
        let sum = unanswered.fold(self.answers().sum(), |sum, latencies| {
            sum.saturating_add(latencies.sum())
        });
        sum.as_secs_f64() / time.as_secs_f64()
    }

    fn is_outage(&self) -> bool {
        let reasons = [
            MISSED_FAILED,
            MISSED_BROKEN,
            MISSED_LOST,
            MISSED_BREAKER_OPEN,
        ];
        let missed: u64 = reasons.iter().map(|reason| self.missing(reason)).sum();
        let all = missed + self.answers().count();
        missed as f64 > all as f64 * OUTAGE_SHARE_MIN
    }

    fn merge(&mut self, other: &Self) {
        for (size, latencies) in &other.scans {
            self.scans.entry(*size).or_default().merge(latencies);
        }
        self.waits.merge(&other.waits);
        for (reason, latencies) in &other.missed {
            let sum = self.missed.entry(reason.clone()).or_default();
            sum.merge(latencies);
        }
    }
}

/// What was measured of one engine, by the start of the period.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineTimes(BTreeMap<Timestamp, PeriodTimes>);

impl EngineTimes {
    /// Adds the durations of one series in one period. Series of other subjects than engines, and size classes of later versions,
    /// add nothing.
    pub fn add(&mut self, period: Timestamp, series: &Series, latencies: &Latencies) {
        let times = self.0.entry(period).or_default();
        match (series.measured, SizeClass::from_word(&series.class)) {
            (Measured::Scan, Some(size)) => times.scans.entry(size).or_default().merge(latencies),
            (Measured::Wait, _) => times.waits.merge(latencies),
            (Measured::Missed, _) => {
                let sum = times.missed.entry(series.class.to_string()).or_default();
                sum.merge(latencies);
            }
            (Measured::Scan, None) | (Measured::Delay, _) => {}
        }
    }

    /// Everything, in one sum.
    pub fn all(&self) -> PeriodTimes {
        let mut all = PeriodTimes::default();
        self.0.values().for_each(|times| all.merge(times));
        all
    }

    /// The periods without outages, and the number of outages left out. An outage is a period in which more than one of 20
    /// answers was missing because the engine failed. If outages are most of the mail, they are left in.
    pub fn usual(&self) -> (Self, usize) {
        let usual = self.0.iter().filter(|(_, times)| !times.is_outage());
        let usual = Self(usual.map(|(at, times)| (*at, times.clone())).collect());
        let answers = |times: &Self| times.all().answers().count() as f64;
        if answers(&usual) < answers(self) * USUAL_SHARE_MIN {
            return (self.clone(), 0);
        }
        let outages = self.0.len() - usual.0.len();
        (usual, outages)
    }

    /// The sum of the periods from `from` on.
    pub fn since(&self, from: Timestamp) -> PeriodTimes {
        let mut all = PeriodTimes::default();
        self.0.range(from..).for_each(|(_, times)| all.merge(times));
        all
    }

    /// The start of the outage that lasts until the newest period; none if that is no outage.
    pub(super) fn outage_at_the_end(&self) -> Option<Timestamp> {
        let newest = self.0.iter().rev();
        let outage = newest.take_while(|(_, times)| times.is_outage());
        outage.last().map(|(from, _)| *from)
    }

    /// The largest number of answers a second in a period without outage that was measured in full: the periods before and
    /// after it were measured, too.
    pub(super) fn full_rate(&self) -> Option<f64> {
        let is_measured = |at: &Timestamp, periods: i32| {
            let other = MEASURE_PERIOD * periods.unsigned_abs();
            let other = match periods < 0 {
                true => at.checked_sub(other),
                false => at.checked_add(other),
            };
            other.is_ok_and(|other| self.0.contains_key(&other))
        };
        let full = self
            .0
            .iter()
            .filter(|(at, times)| !times.is_outage() && is_measured(at, -1) && is_measured(at, 1));
        let rates = full.map(|(_, times)| times.answers().count() as f64);
        let most = rates.max_by(f64::total_cmp)?;
        Some(most / MEASURE_PERIOD.as_secs_f64())
    }

    /// The periods of the last hour, and how many times as long a scan takes there as before; none if it takes less than twice
    /// as long, or if one of the two has too few scans to say.
    pub(super) fn slower(&self, now: Timestamp) -> Option<(Self, f64)> {
        let hour_ago = now.checked_sub(RECENT_SPAN).ok()?;
        let is_recent = |(at, _): &(&Timestamp, &PeriodTimes)| **at > hour_ago;
        let (recent, before): (Vec<_>, Vec<_>) = self.0.iter().partition(is_recent);
        let times = |periods: Vec<(&Timestamp, &PeriodTimes)>| {
            let periods = periods.into_iter();
            Self(periods.map(|(at, times)| (*at, times.clone())).collect())
        };
        let (recent, before) = (times(recent), times(before));
        let half = |times: &Self| {
            let answers = times.all().answers();
            let enough = answers.count() >= PROPOSAL_ANSWERS_MIN;
            answers.within(0.5).filter(|_| enough)
        };
        let factor = half(&recent)?.div_duration_f64(half(&before)?);
        (factor >= SLOWER_FACTOR_MIN).then_some((recent, factor))
    }

    /// The period in which most scans ran at once, and their mean number; none without periods. `now` is the present: the last
    /// period may have lasted less than [`MEASURE_PERIOD`], and so may the one in which the relay `began`.
    pub fn busiest(&self, now: Timestamp, began: Option<Timestamp>) -> Option<(Timestamp, f64)> {
        /// A period that has just begun would show chance.
        const PERIOD_LENGTH_MIN: Duration = Duration::from_secs(60);
        let at_once = |(at, times): (&Timestamp, &PeriodTimes)| {
            let lasted = Duration::try_from(now.duration_since(*at)).unwrap_or(MEASURE_PERIOD);
            let before = began.and_then(|began| Duration::try_from(began.duration_since(*at)).ok());
            let before = before.filter(|before| *before < MEASURE_PERIOD);
            let lasted = lasted
                .min(MEASURE_PERIOD)
                .saturating_sub(before.unwrap_or_default());
            let lasted = lasted.max(PERIOD_LENGTH_MIN);
            (*at, times.at_once(lasted))
        };
        let all = self.0.iter().map(at_once);
        all.max_by(|(_, one), (_, other)| one.total_cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(period: i64) -> Timestamp {
        Timestamp::from_second(period * 600).expect("a time")
    }

    fn latencies(count: u64, milliseconds: u64) -> Latencies {
        let mut latencies = Latencies::default();
        (0..count).for_each(|_| latencies.add(Duration::from_millis(milliseconds)));
        latencies
    }

    fn series(measured: Measured, class: &'static str) -> Series {
        Series {
            measured,
            name: "clamd".into(),
            class: class.into(),
        }
    }

    /// An outage is left out if it is the exception: one that is most of the mail is what the engine is like.
    #[test]
    fn outages_are_left_out_unless_they_are_usual() {
        let scan = series(Measured::Scan, "below-64k");
        let missed = |word| series(Measured::Missed, word);
        for (word, count, outages) in [
            (MISSED_BREAKER_OPEN, 6, 1),
            (MISSED_BREAKER_OPEN, 5, 0),
            (MISSED_LOST, 6, 1),
            (MISSED_BROKEN, 6, 1),
            (MISSED_FAILED, 6, 1),
            ("busy", 1000, 0),
            ("parked", 1000, 0),
        ] {
            let mut times = EngineTimes::default();
            times.add(at(0), &scan, &latencies(101, 10));
            times.add(at(1), &scan, &latencies(99, 10));
            times.add(at(1), &missed(word), &latencies(count, 0));
            let (usual, left_out) = times.usual();
            assert_eq!(left_out, outages, "{count} {word}");
            let answers = usual.all().answers().count();
            assert_eq!(answers, 200 - 99 * outages as u64, "{count} {word}");
            times.add(at(0), &missed(MISSED_LOST), &latencies(50, 0));
            assert_eq!(
                times.usual(),
                (times.clone(), 0),
                "most of the mail, {word}"
            );
        }
        let mut half = EngineTimes::default();
        half.add(at(0), &scan, &latencies(100, 10));
        half.add(at(1), &scan, &latencies(100, 10));
        half.add(at(1), &missed(MISSED_LOST), &latencies(6, 0));
        assert_eq!(half.usual().1, 1, "half of the mail is usual");
    }

    /// Little's law: 600 scans of a second in 600 s are one at a time; a scan that was lost took its slot as well, a message that
    /// got no slot took none. The last period is as long as it has lasted.
    #[test]
    fn the_busiest_period_is_found() {
        let mut times = EngineTimes::default();
        assert_eq!(times.busiest(at(9), None), None);
        times.add(
            at(1),
            &series(Measured::Scan, "below-1m"),
            &latencies(600, 1000),
        );
        times.add(
            at(1),
            &series(Measured::Missed, MISSED_LOST),
            &latencies(600, 1000),
        );
        times.add(
            at(1),
            &series(Measured::Missed, "busy"),
            &latencies(600, 1000),
        );
        times.add(
            at(2),
            &series(Measured::Scan, "below-1m"),
            &latencies(300, 1000),
        );
        let about = |now, began, period: i64, wanted: f64| {
            let (from, at_once) = times.busiest(now, began).expect("periods");
            assert_eq!(from, at(period));
            assert!((0.94..1.06).contains(&(at_once / wanted)), "{at_once}");
        };
        about(at(9), None, 1, 2.0);
        let soon = at(2) + Duration::from_secs(100);
        about(soon, None, 2, 3.0);
        // The first scans of a period that has just begun make no load: it counts as a minute.
        about(at(2) + Duration::from_secs(10), None, 2, 5.0);
    }

    /// A relay that began in the middle of a period is not idle in the time before: the scans are those of the time that it ran.
    #[test]
    fn the_period_in_which_the_relay_began_is_shorter() {
        let mut times = EngineTimes::default();
        let scan = series(Measured::Scan, "below-1m");
        times.add(at(1), &scan, &latencies(600, 1000));
        times.add(at(2), &scan, &latencies(700, 1000));
        let busiest = |began| times.busiest(at(9), began).expect("periods");
        assert_eq!(busiest(None).0, at(2));
        for (began, from, wanted) in [
            (at(1) + Duration::from_secs(300), at(1), 2.0),
            (at(1) + Duration::from_secs(599), at(1), 10.0),
            (at(1), at(2), 700.0 / 600.0),
            (at(0) + Duration::from_secs(300), at(2), 700.0 / 600.0),
            (at(2) + Duration::from_secs(450), at(2), 700.0 / 150.0),
        ] {
            let (found, at_once) = busiest(Some(began));
            assert_eq!(found, from, "{began}");
            assert!(
                (0.94..1.06).contains(&(at_once / wanted)),
                "{began}: {at_once}"
            );
        }
    }
}
