//! Drift: compares an engine's answers with its own baseline (M8, the passive half; RESILIENCE section 2, "Probes"). A pure
//! state machine; time is an argument. A remark changes nothing at the gate and blames no engine: it becomes an incident.
//!
//! Drift shows what probes cannot: an engine that still knows the test file and has lost all other signatures, signatures
//! without updates, and an update that finds malware in valid mail.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::incident::Kind;

/// Length of the windows in which scans are compared with the baseline; a window with too few scans is extended.
const DRIFT_WINDOW: Duration = Duration::from_secs(600);
/// Scans that a window needs before it is compared with the baseline or becomes part of it: fewer scans prove nothing.
const WINDOW_SCANS_MIN: u64 = 200;
/// Expected findings in a window from which the absence of all findings is a remark: by chance, a window without findings where
/// 7 are expected occurs once in a thousand windows (Poisson, e^-7).
const EXPECTED_FINDINGS_MIN: f64 = 7.0;
/// Ratio of the usual median duration to the current one from which a speed-up is a remark: an engine that answers ten times as
/// fast may no longer scan.
const SPEEDUP_FACTOR_MIN: f64 = 10.0;
/// Latest scan durations that the median and the 99th percentile are taken from. Ten of them are above the 99th percentile.
const LATENCIES_MAX: usize = 1024;
/// Time for which replicas may differ in their signatures without a remark, because replicas do not update at the same moment.
const VERSION_SKEW_MAX: Duration = Duration::from_secs(3600);
/// Interval between two equal remarks about signatures: once a day is enough for people.
const REMARK_INTERVAL: Duration = Duration::from_secs(86_400);

/// An observation that people should look at.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Remark {
    /// Kind of the incident.
    pub(super) kind: Kind,
    /// Summary in one line, to be shown after the engine's name.
    pub(super) text: String,
    /// The replica, if the remark is about a single one.
    pub(super) replica: Option<usize>,
}

/// Signatures of one replica, as last reported.
#[derive(Debug, Clone, Default)]
struct Signatures {
    version: Option<String>,
    remarked_old: Option<Instant>,
}

/// The drift detector of one engine.
#[derive(Debug)]
pub(super) struct DriftDetector {
    began: Instant,
    scans: u64,
    found: u64,
    /// The baseline: exponentially weighted means over earlier windows.
    usual: Option<Usual>,
    latencies: VecDeque<Duration>,
    replicas: Vec<Signatures>,
    differ_since: Option<Instant>,
    remarked_differ: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Usual {
    share: f64,
    median: f64,
}

impl DriftDetector {
    pub(super) fn new(now: Instant, replicas: usize) -> Self {
        Self {
            began: now,
            scans: 0,
            found: 0,
            usual: None,
            latencies: VecDeque::new(),
            replicas: vec![Signatures::default(); replicas],
            differ_since: None,
            remarked_differ: None,
        }
    }

    /// A scan of mail was answered; `found` tells whether the engine objected.
    pub(super) fn answered(&mut self, took: Duration, found: bool) {
        self.scans += 1;
        self.found += u64::from(found);
        if self.latencies.len() >= LATENCIES_MAX {
            self.latencies.pop_front();
        }
        self.latencies.push_back(took);
    }

    /// A replica has reported its signature version. Returns whether the version has changed since an earlier report.
    pub(super) fn signed(&mut self, replica: usize, version: &str) -> bool {
        let Some(signatures) = self.replicas.get_mut(replica) else {
            return false;
        };
        if signatures.version.as_deref() == Some(version) {
            return false;
        }
        signatures.remarked_old = None;
        signatures.version.replace(version.to_owned()).is_some()
    }

    /// The signature version that a replica has reported last.
    pub(super) fn version(&self, replica: usize) -> Option<&str> {
        self.replicas.get(replica)?.version.as_deref()
    }

    /// Median and 99th percentile of the last [`LATENCIES_MAX`] scan durations; none before the first scan.
    pub(super) fn latencies(&self) -> Option<(Duration, Duration)> {
        let mut sorted: Vec<Duration> = self.latencies.iter().copied().collect();
        sorted.sort_unstable();
        let at = |share: usize| sorted.get(sorted.len() * share / 100).copied();
        Some((at(50)?, at(99)?))
    }

    /// Advances the time and returns new remarks. `today` is the wall clock, `made` returns the time at which the signatures of
    /// a version were made, and `oldest` is their maximum age (none: unlimited).
    pub(super) fn tick(
        &mut self,
        now: Instant,
        today: Timestamp,
        oldest: Option<Duration>,
        made: impl Fn(&str) -> Option<Timestamp>,
    ) -> Vec<Remark> {
        let mut remarks = Vec::new();
        if let Some(oldest) = oldest {
            self.look_for_old(now, today, oldest, made, &mut remarks);
        }
        self.look_for_skew(now, &mut remarks);
        if now >= self.began + DRIFT_WINDOW {
            self.close_window(now, &mut remarks);
        }
        remarks
    }

    fn look_for_old(
        &mut self,
        now: Instant,
        today: Timestamp,
        oldest: Duration,
        made: impl Fn(&str) -> Option<Timestamp>,
        remarks: &mut Vec<Remark>,
    ) {
        for (replica, signatures) in self.replicas.iter_mut().enumerate() {
            let Some(version) = &signatures.version else {
                continue;
            };
            let age = made(version).and_then(|made| Duration::try_from(today - made).ok());
            let remarked = signatures
                .remarked_old
                .is_some_and(|at| now < at + REMARK_INTERVAL);
            if let Some(age) = age.filter(|age| *age > oldest && !remarked) {
                signatures.remarked_old = Some(now);
                remarks.push(Remark {
                    kind: Kind::SignaturesStale,
                    text: format!(
                        "its signatures are {} hours old ({version})",
                        age.as_secs() / 3600
                    ),
                    replica: Some(replica),
                });
            }
        }
    }

    fn look_for_skew(&mut self, now: Instant, remarks: &mut Vec<Remark>) {
        let mut versions: Vec<&str> = self
            .replicas
            .iter()
            .filter_map(|s| s.version.as_deref())
            .collect();
        versions.sort_unstable();
        versions.dedup();
        if versions.len() < 2 {
            self.differ_since = None;
            return;
        }
        let since = *self.differ_since.get_or_insert(now);
        let remarked = self
            .remarked_differ
            .is_some_and(|at| now < at + REMARK_INTERVAL);
        if now >= since + VERSION_SKEW_MAX && !remarked {
            remarks.push(Remark {
                kind: Kind::ReplicasDiffer,
                text: format!(
                    "its replicas have different signatures: {}",
                    versions.join(", ")
                ),
                replica: None,
            });
            self.remarked_differ = Some(now);
        }
    }

    /// Compares the window that ends with the baseline, and adds it to the baseline if there is no remark.
    fn close_window(&mut self, now: Instant, remarks: &mut Vec<Remark>) {
        let (scans, found) = (self.scans, self.found);
        self.began = now;
        if scans < WINDOW_SCANS_MIN {
            // Too few scans to compare: the next window includes them.
            return;
        }
        (self.scans, self.found) = (0, 0);
        let share = found as f64 / scans as f64;
        let median = self.latencies().map_or(0.0, |(half, _)| half.as_secs_f64());
        let drift = |text: String| Remark {
            kind: Kind::Drift,
            text,
            replica: None,
        };
        let Some(usual) = self.usual else {
            self.usual = Some(Usual { share, median });
            return;
        };
        let expected = usual.share * scans as f64;
        if found == 0 && expected >= EXPECTED_FINDINGS_MIN {
            remarks.push(drift(format!(
                "it found nothing in {scans} messages, where {expected:.0} findings are usual"
            )));
        }
        // Five standard deviations (Poisson). The 20 keep a few findings of an engine that finds almost nothing from a remark.
        if found as f64 > expected + 5.0 * expected.sqrt() + 20.0 {
            remarks.push(drift(format!(
                "it found something in {found} of {scans} messages, where {expected:.0} are usual"
            )));
        }
        if median * SPEEDUP_FACTOR_MIN < usual.median {
            remarks.push(drift(format!(
                "half of its answers take {:.1} ms at most, where {:.1} ms are usual",
                median * 1e3,
                usual.median * 1e3
            )));
        }
        if remarks.is_empty() {
            // Anomalous windows do not update the baseline.
            self.usual = Some(Usual {
                share: 0.9 * usual.share + 0.1 * share,
                median: 0.9 * usual.median + 0.1 * median,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(
        drift: &mut DriftDetector,
        now: &mut Instant,
        scans: u64,
        found: u64,
        took: u64,
    ) -> Vec<Remark> {
        for n in 0..scans {
            drift.answered(Duration::from_millis(took), n < found);
        }
        *now += DRIFT_WINDOW;
        drift.tick(*now, Timestamp::UNIX_EPOCH, None, |_| None)
    }

    /// An engine that has lost its signatures still answers. The absence of findings is a remark.
    #[tokio::test(start_paused = true)]
    async fn finding_nothing_any_more_is_told() {
        let mut now = Instant::now();
        let mut drift = DriftDetector::new(now, 1);
        for _ in 0..3 {
            assert_eq!(window(&mut drift, &mut now, 1000, 10, 20), []);
        }
        let remarked = window(&mut drift, &mut now, 1000, 0, 20);
        assert!(
            remarked[0].text.contains("found nothing in 1000"),
            "{remarked:?}"
        );
        let few = window(&mut drift, &mut now, 300, 0, 20);
        assert_eq!(few, [], "3 were expected: that is nothing yet");
    }

    /// An update that finds malware in valid mail is a remark, in each window: anomalous windows do not update the baseline.
    #[tokio::test(start_paused = true)]
    async fn finding_too_much_is_told_each_time() {
        let mut now = Instant::now();
        let mut drift = DriftDetector::new(now, 1);
        window(&mut drift, &mut now, 1000, 10, 20);
        // After 40 windows of weight 0.1 a mean would have forgotten the earlier baseline.
        for _ in 0..40 {
            let remarked = window(&mut drift, &mut now, 1000, 400, 20);
            assert!(remarked[0].text.contains("400 of 1000"), "{remarked:?}");
        }
    }

    /// On little mail, windows are joined until they hold enough scans to compare. Otherwise a small relay would never get a
    /// remark.
    #[tokio::test(start_paused = true)]
    async fn little_mail_is_compared_later() {
        let mut now = Instant::now();
        let mut drift = DriftDetector::new(now, 1);
        window(&mut drift, &mut now, 1000, 100, 20);
        let part = WINDOW_SCANS_MIN / 2;
        assert_eq!(window(&mut drift, &mut now, part, 0, 20), []);
        let remarked = window(&mut drift, &mut now, part, 0, 20);
        assert!(
            remarked[0].text.contains("found nothing in 200"),
            "{remarked:?}"
        );
    }

    /// An engine that answers ten times as fast as usual may no longer scan.
    #[tokio::test(start_paused = true)]
    async fn answering_too_fast_is_told() {
        let mut now = Instant::now();
        let mut drift = DriftDetector::new(now, 1);
        window(&mut drift, &mut now, 2000, 0, 20);
        assert_eq!(window(&mut drift, &mut now, 2000, 0, 5), []);
        let remarked = window(&mut drift, &mut now, 2000, 0, 1);
        assert!(remarked[0].text.contains("are usual"), "{remarked:?}");
    }

    /// Old signatures are a remark once a day, and again at once if an update brings old signatures.
    #[tokio::test(start_paused = true)]
    async fn old_signatures_are_told() {
        let now = Instant::now();
        let mut drift = DriftDetector::new(now, 1);
        let today: Timestamp = "2026-01-10T00:00:00Z".parse().expect("a time");
        let made = |version: &str| version.parse().ok();
        let oldest = Some(Duration::from_secs(2 * 86_400));
        drift.signed(0, "2026-01-09T00:00:00Z");
        assert_eq!(drift.tick(now, today, oldest, made), []);
        drift.signed(0, "2026-01-01T00:00:00Z");
        let remarked = drift.tick(now, today, oldest, made);
        assert!(remarked[0].text.contains("216 hours"), "{remarked:?}");
        assert_eq!(drift.tick(now, today, oldest, made), []);
        assert_eq!(
            drift.tick(now + REMARK_INTERVAL, today, oldest, made).len(),
            1
        );
    }

    /// Replicas with different signatures are a remark once a day, but not while one has only updated a little earlier.
    #[tokio::test(start_paused = true)]
    async fn replicas_that_stay_different_are_told() {
        let now = Instant::now();
        let mut drift = DriftDetector::new(now, 2);
        let look =
            |drift: &mut DriftDetector, now| drift.tick(now, Timestamp::UNIX_EPOCH, None, |_| None);
        drift.signed(0, "1");
        drift.signed(1, "2");
        assert_eq!(look(&mut drift, now), []);
        drift.signed(0, "2");
        assert_eq!(look(&mut drift, now + VERSION_SKEW_MAX / 2), []);
        drift.signed(0, "3");
        assert_eq!(look(&mut drift, now + VERSION_SKEW_MAX), []);
        let remarked = look(&mut drift, now + 2 * VERSION_SKEW_MAX);
        assert!(remarked[0].text.contains("2, 3"), "{remarked:?}");
        let since = now + 2 * VERSION_SKEW_MAX;
        assert_eq!(look(&mut drift, since + DRIFT_WINDOW), [], "told once");
        assert_eq!(look(&mut drift, since + REMARK_INTERVAL).len(), 1);
    }
}
