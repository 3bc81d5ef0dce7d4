//! The drift: what an engine does compared with what it used to do (RESILIENCE M8, the passive half). A pure state
//! machine; time is an argument. It accuses nobody: it tells people, and asks for a probe.
//!
//! What probes cannot see: an engine that knows the test file and has lost everything else, signatures that nobody updates
//! any more, and an update that takes honest mail for malware.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::incident::Kind;

/// Scans are compared in windows of this length with those before.
const WINDOW: Duration = Duration::from_secs(600);
/// Scans in a window, and before it, below which nothing is concluded.
const ENOUGH: u64 = 200;
/// So many findings are expected at least before their absence means something: by chance none of 7 is missed once in a
/// thousand windows (Poisson, e^-7).
const EXPECTED: f64 = 7.0;
/// An engine that became so much faster may not be looking any more.
const FASTER: f64 = 10.0;
/// Latencies remembered.
const LATENCIES: usize = 1024;
/// Replicas may have different signatures for so long: updates take their time.
const SKEW: Duration = Duration::from_secs(3600);
/// The same is not told again for so long.
const AGAIN: Duration = Duration::from_secs(86_400);

/// Something that people should look at.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Remark {
    /// What sort of thing.
    pub(super) kind: Kind,
    /// In one line, after the engine's name.
    pub(super) text: String,
    /// The replica, where one alone is meant.
    pub(super) replica: Option<usize>,
}

/// Signatures of one replica, as last told.
#[derive(Debug, Clone, Default)]
struct Signatures {
    version: Option<String>,
    told_old: Option<Instant>,
}

/// What one engine does.
#[derive(Debug)]
pub(super) struct DriftDetector {
    began: Instant,
    scans: u64,
    found: u64,
    /// Exponentially weighted shares and medians of the windows before.
    usual: Option<Usual>,
    latencies: VecDeque<Duration>,
    replicas: Vec<Signatures>,
    differ_since: Option<Instant>,
    told_differ: Option<Instant>,
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
            told_differ: None,
        }
    }

    /// A scan of mail was answered.
    pub(super) fn answered(&mut self, took: Duration, found: bool) {
        self.scans += 1;
        self.found += u64::from(found);
        if self.latencies.len() >= LATENCIES {
            self.latencies.pop_front();
        }
        self.latencies.push_back(took);
    }

    /// A replica told the version of its signatures. Returns whether it had told another one before.
    pub(super) fn signed(&mut self, replica: usize, version: &str) -> bool {
        let Some(signatures) = self.replicas.get_mut(replica) else {
            return false;
        };
        if signatures.version.as_deref() == Some(version) {
            return false;
        }
        signatures.told_old = None;
        signatures.version.replace(version.to_owned()).is_some()
    }

    /// The version that a replica told last.
    pub(super) fn version(&self, replica: usize) -> Option<&str> {
        self.replicas.get(replica)?.version.as_deref()
    }

    /// The time that half of the last scans took at most, and 99 of 100.
    pub(super) fn latencies(&self) -> Option<(Duration, Duration)> {
        let mut sorted: Vec<Duration> = self.latencies.iter().copied().collect();
        sorted.sort_unstable();
        let at = |share: usize| sorted.get(sorted.len() * share / 100).copied();
        Some((at(50)?, at(99)?))
    }

    /// Lets time pass. `made` tells when signatures of a version were made; `oldest` is how old they may be.
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
        if now >= self.began + WINDOW {
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
            let told = signatures.told_old.is_some_and(|at| now < at + AGAIN);
            if let Some(age) = age.filter(|age| *age > oldest && !told) {
                signatures.told_old = Some(now);
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
        let told = self.told_differ.is_some_and(|at| now < at + AGAIN);
        if now >= since + SKEW && !told {
            remarks.push(Remark {
                kind: Kind::ReplicasDiffer,
                text: format!(
                    "its replicas have different signatures: {}",
                    versions.join(", ")
                ),
                replica: None,
            });
            self.told_differ = Some(now);
        }
    }

    /// Compares the window that ends with those before it, and makes it one of them.
    fn close_window(&mut self, now: Instant, remarks: &mut Vec<Remark>) {
        let (scans, found) = (self.scans, self.found);
        self.began = now;
        if scans < ENOUGH {
            // Too few to compare: they are counted on.
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
        if found == 0 && expected >= EXPECTED {
            remarks.push(drift(format!(
                "it found nothing in {scans} messages, where {expected:.0} findings are usual"
            )));
        }
        // Five standard deviations, and a few for engines that hardly ever find anything.
        if found as f64 > expected + 5.0 * expected.sqrt() + 20.0 {
            remarks.push(drift(format!(
                "it found something in {found} of {scans} messages, where {expected:.0} are usual"
            )));
        }
        if median * FASTER < usual.median {
            remarks.push(drift(format!(
                "half of its answers take {:.1} ms at most, where {:.1} ms are usual",
                median * 1e3,
                usual.median * 1e3
            )));
        }
        if remarks.is_empty() {
            // What is odd does not become what is usual.
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
        *now += WINDOW;
        drift.tick(*now, Timestamp::UNIX_EPOCH, None, |_| None)
    }

    /// An engine that has lost its signatures still answers; that it finds nothing any more is told.
    #[tokio::test(start_paused = true)]
    async fn finding_nothing_any_more_is_told() {
        let mut now = Instant::now();
        let mut drift = DriftDetector::new(now, 1);
        for _ in 0..3 {
            assert_eq!(window(&mut drift, &mut now, 1000, 10, 20), []);
        }
        let told = window(&mut drift, &mut now, 1000, 0, 20);
        assert!(told[0].text.contains("found nothing in 1000"), "{told:?}");
        let few = window(&mut drift, &mut now, 300, 0, 20);
        assert_eq!(few, [], "3 were expected: that is nothing yet");
    }

    /// An update that takes honest mail for malware is told; what is odd does not become usual.
    #[tokio::test(start_paused = true)]
    async fn finding_too_much_is_told_each_time() {
        let mut now = Instant::now();
        let mut drift = DriftDetector::new(now, 1);
        window(&mut drift, &mut now, 1000, 10, 20);
        // More windows than it takes a mean of them to forget what was before.
        for _ in 0..40 {
            let told = window(&mut drift, &mut now, 1000, 400, 20);
            assert!(told[0].text.contains("400 of 1000"), "{told:?}");
        }
    }

    /// Where there is little mail, windows are put together until there is enough of it to compare: else nothing would ever be
    /// concluded there.
    #[tokio::test(start_paused = true)]
    async fn little_mail_is_compared_later() {
        let mut now = Instant::now();
        let mut drift = DriftDetector::new(now, 1);
        window(&mut drift, &mut now, 1000, 100, 20);
        let part = ENOUGH / 2;
        assert_eq!(window(&mut drift, &mut now, part, 0, 20), []);
        let told = window(&mut drift, &mut now, part, 0, 20);
        assert!(told[0].text.contains("found nothing in 200"), "{told:?}");
    }

    /// An engine that answers ten times as fast as it used to may not be looking.
    #[tokio::test(start_paused = true)]
    async fn answering_too_fast_is_told() {
        let mut now = Instant::now();
        let mut drift = DriftDetector::new(now, 1);
        window(&mut drift, &mut now, 2000, 0, 20);
        assert_eq!(window(&mut drift, &mut now, 2000, 0, 5), []);
        let told = window(&mut drift, &mut now, 2000, 0, 1);
        assert!(told[0].text.contains("are usual"), "{told:?}");
    }

    /// Old signatures are told once a day, and again when an update did not help.
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
        let told = drift.tick(now, today, oldest, made);
        assert!(told[0].text.contains("216 hours"), "{told:?}");
        assert_eq!(drift.tick(now, today, oldest, made), []);
        assert_eq!(drift.tick(now + AGAIN, today, oldest, made).len(), 1);
    }

    /// Replicas that do not update together are told once a day, but not while one is just faster than the other.
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
        assert_eq!(look(&mut drift, now + SKEW / 2), []);
        drift.signed(0, "3");
        assert_eq!(look(&mut drift, now + SKEW), []);
        let told = look(&mut drift, now + 2 * SKEW);
        assert!(told[0].text.contains("2, 3"), "{told:?}");
        let since = now + 2 * SKEW;
        assert_eq!(look(&mut drift, since + WINDOW), [], "told once");
        assert_eq!(look(&mut drift, since + AGAIN).len(), 1);
    }
}
