//! Detects a stalled replica: a replica that accepts scans and ends none.
//!
//! The test is conditional survival. For each running scan, the detector computes the probability that a scan of this engine
//! lasts at least as long as this scan has lasted, given that this scan had already lasted until the replica last ended a
//! scan. If the engine works, the scans are independent, so the product of the probabilities is the probability of the
//! observed silence. Where scans take milliseconds and ten of them run, the product is small within a tenth of a second. A
//! fixed timeout would be worse: too early for an engine whose scans take seconds now and then, and too late for all other
//! engines. An old zombie contributes nothing: a scan that has lasted so much longer than usual will probably last another
//! tenth of a second as well.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::trust::Level;
use super::{Gate, LARGE_LATENCY_FACTOR, Scan};

/// The newest latencies, from which the tail of the distribution is estimated.
const LATENCY_SAMPLES_MAX: usize = 1024;
/// New latencies after which the tail is estimated again.
const LATENCY_SAMPLES_PER_SORT: u32 = 64;
/// With fewer latencies than this, the probability of the tail is estimated as if there were 64. A new relay has seen hardly
/// any scan, but its `slow` threshold was chosen so that hardly any scan exceeds the threshold.
const ASSUMED_SAMPLES_MIN: usize = 64;
/// A silence below this probability is a stall. At ten tests a second, a working replica then causes less than one false
/// alarm in an hour (simulated with 1 to 32 slots, where 1 % and 2 % of scans take 3 s).
const STALL_CHANCE_MAX: f64 = 1e-6;
/// A gap of at least 250 ms between two ticks, which are 100 ms apart, means that the relay itself stood still, or that the
/// gate was idle. Silence before the end of the gap then does not count against the engine.
const TICK_GAP_MIN: Duration = Duration::from_millis(250);
/// Upper bound of the number of parties ([`GuardSettings::stall_senders`](super::GuardSettings)), including the probe, if a probe has lasted unusually long: a probe takes no longer than other mail,
/// so its content is not the cause.
const STUCK_PARTIES_WITH_PROBE_MAX: usize = 2;
/// Natural logarithm of a probability: a scan has lasted unusually long if the probability of its silence is below e^-0.5 =
/// 0.61. Other scans, for example old zombies, do not add to the number of parties.
const UNUSUAL_LN_CHANCE_MAX: f64 = -0.5;

/// The latencies of the scans of an engine.
#[derive(Debug)]
pub(super) struct Latencies {
    last: VecDeque<Duration>,
    /// The latencies in ascending order, as of the last sort.
    sorted: Vec<Duration>,
    /// Latencies since the last sort.
    new: u32,
}

impl Latencies {
    /// Starts with `slow` as the only latency: a scan usually ends before that.
    pub(super) fn new(slow: Duration) -> Self {
        Self {
            last: VecDeque::from([slow]),
            sorted: vec![slow],
            new: 0,
        }
    }

    pub(super) fn add(&mut self, took: Duration) {
        if self.last.len() >= LATENCY_SAMPLES_MAX {
            self.last.pop_front();
        }
        self.last.push_back(took);
        self.new += 1;
        if self.new >= LATENCY_SAMPLES_PER_SORT {
            self.new = 0;
            self.sorted = self.last.iter().copied().collect();
            self.sorted.sort_unstable();
        }
    }

    /// The estimated share of scans that last at least as long as `than`. Up to the longest latency seen, the share is at
    /// least half a sample, of [`ASSUMED_SAMPLES_MIN`] or more. Beyond the longest latency, the share falls from there with
    /// the cube of `than`.
    fn longer(&self, than: Duration) -> f64 {
        let (count, Some(most)) = (self.sorted.len(), self.sorted.last()) else {
            return 1.0;
        };
        let least = 0.5 / count.max(ASSUMED_SAMPLES_MIN) as f64;
        if than > *most {
            let beyond = most.div_duration_f64(than);
            return least * beyond.powi(3);
        }
        let shorter = self.sorted.partition_point(|took| *took < than);
        least.max((count - shorter) as f64 / count as f64)
    }
}

impl Gate {
    /// Notes the time of a tick. After a gap between ticks ([`TICK_GAP_MIN`]), silence counts only from this tick on.
    pub(super) fn watch(&mut self, now: Instant) {
        if now >= self.watched + TICK_GAP_MIN {
            self.watched_since = now;
        }
        self.watched = now;
    }

    /// Opens the breaker of a replica if the replica has stalled.
    pub(super) fn stall(&mut self, now: Instant, at: usize) {
        if let Some(on) = self.stalled_on(now, at) {
            let change = self.replicas[at].breaker.stalled(now);
            let opened = change.is_some();
            self.changed(now, at, change);
            self.hangs_on_known |= opened && on == Level::Proven;
        }
    }

    /// Whether the replica has stalled, and on which mail: `Proven` if proven mail or a probe hangs, `Unknown` if only other
    /// mail hangs.
    fn stalled_on(&self, now: Instant, at: usize) -> Option<Level> {
        let replica = &self.replicas[at];
        let allowed = replica.allowed();
        let here = || self.scans.values().filter(|scan| scan.replica == at);
        // A running probe that is not slow yet soon gives better evidence.
        if allowed == 0 || here().any(|scan| scan.is_probe && !scan.is_slow) {
            return None;
        }
        let silent_since = replica.last_end.max(self.watched_since);
        let silent_for = now.saturating_duration_since(silent_since);
        let (mut chance, mut oldest) = (0.0, Duration::ZERO);
        let (mut parties, mut known_parties) = (Vec::new(), Vec::new());
        let (mut is_proven, mut are_all) = (false, true);
        let mut enough = self.settings.stall_senders.min(allowed);
        // A message that timed out before, and one that an interceptor explains, say nothing about the engine.
        let says_something =
            |scan: &&Scan| scan.is_probe || !scan.is_explained && !scan.request.timed_out_before;
        for scan in here().filter(says_something) {
            let age = now.saturating_duration_since(scan.started);
            let silence = age.min(silent_for);
            let survives = self.survives(scan, age) - self.survives(scan, age - silence);
            chance += survives;
            oldest = oldest.max(silence);
            if survives < UNUSUAL_LN_CHANCE_MAX {
                parties.push(scan.request.fairness_key.party);
                is_proven |= scan.level == Level::Proven;
                if scan.level < Level::Unknown {
                    known_parties.push(scan.request.fairness_key.party);
                }
                if scan.is_probe {
                    enough = STUCK_PARTIES_WITH_PROBE_MAX.min(self.settings.stall_senders);
                }
            } else {
                are_all &= scan.is_slow;
            }
        }
        for parties in [&mut parties, &mut known_parties] {
            parties.sort_unstable();
            parties.dedup();
        }
        // A stall needs a hanging scan of proven mail, a hanging probe, or hanging scans of three known senders (`stall_senders`): these have not all
        // sent a new attachment that hangs by chance. On a full replica, other mail suffices if mail waits and each scan is slow or
        // has lasted unusually long.
        let is_proven = is_proven || known_parties.len() >= self.settings.stall_senders;
        let is_shut = are_all && self.free_of(at) == 0 && !self.waiting.is_empty();
        let on = match (is_proven, is_shut) {
            (true, _) => Some(Level::Proven),
            (false, true) => Some(Level::Unknown),
            (false, false) => None,
        };
        on.filter(|_| {
            parties.len() >= enough
                && chance < STALL_CHANCE_MAX.ln()
                && oldest >= self.times.slow.mul_f64(self.settings.stall_factor)
        })
    }

    /// Natural logarithm of the probability that a scan of this engine lasts at least as long as `age`. Large content may take
    /// [`LARGE_LATENCY_FACTOR`] times as long, so its age is divided by that.
    fn survives(&self, scan: &Scan, age: Duration) -> f64 {
        let age = match scan.request.large {
            true => age / LARGE_LATENCY_FACTOR,
            false => age,
        };
        self.latencies.longer(age).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// The tail is estimated from the latencies of the engine. Latencies beyond the longest one are rare, and rarer the
    /// longer they are.
    #[test]
    fn the_tail_is_the_engines_own() {
        let mut latencies = Latencies::new(milliseconds(500));
        assert!(latencies.longer(milliseconds(100)) >= 1.0);
        assert!(latencies.longer(milliseconds(1000)) < 0.001);
        for n in 0..2 * LATENCY_SAMPLES_MAX as u64 {
            latencies.add(milliseconds(if n % 100 == 0 { 3000 } else { 50 }));
        }
        let slow = latencies.longer(milliseconds(1000));
        assert!((0.009..0.011).contains(&slow), "{slow}");
        let (seen, twice) = (
            latencies.longer(milliseconds(3000)),
            latencies.longer(milliseconds(6000)),
        );
        assert!(twice < seen / 8.0 && twice > 0.0, "{seen} {twice}");
    }
}
