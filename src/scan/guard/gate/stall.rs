//! Whether a replica has stalled: it takes scans and ends none.
//!
//! Judged by conditional survival. Of each scan under way it is asked how likely a scan of this engine lasts as long as this
//! one has, given that it had lasted until the replica last ended anything. If the engine works, these scans are independent,
//! and the product is the chance to see what is seen. It is small within a tenth of a second where scans take milliseconds and
//! ten of them run, while a fixed time calls an engine stalled whose scans take seconds now and then, and is late for all
//! others. An old zombie says nothing: that it is still there a tenth of a second later is what one expects of it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::trust::Level;
use super::{Gate, LARGE_FACTOR, Scan};

/// Latencies that the tail is estimated from, and after how many new ones it is again.
const LATENCIES: usize = 1024;
const LATENCIES_RENEWED: u32 = 64;
/// What has never been seen is as rare as if so many scans had been seen, also while hardly any has: when a scan is called slow
/// was chosen so that hardly any is.
const ASSUMED: usize = 64;
/// A replica that works shows this so rarely that a false alarm is less than one in an hour at ten looks a second (simulated at
/// 1 to 32 slots, with 1 % and 2 % of scans that take 3 s).
const CHANCE: f64 = 1e-6;
/// Nothing is concluded from a silence shorter than this part of the time from which a scan is slow: a machine, or an engine that
/// loads signatures, may well stand still for a tenth of a second.
const SILENCE_PARTS: u32 = 2;
/// The relay itself stood still if it did not look for so long: then it is not the engine that was silent.
const LOOKED_AWAY: Duration = Duration::from_millis(250);
/// Parties whose scans must have lasted unusually long: one or two may have sent what takes long.
const PARTIES: usize = 3;
/// The same if a probe is one of them: it takes no longer than other mail does.
const PARTIES_WITH_PROBE: usize = 2;
/// A scan has lasted unusually long if its chance to is below e to this power.
const UNUSUAL: f64 = -0.5;

/// How long scans of an engine take.
#[derive(Debug)]
pub(super) struct Latencies {
    last: VecDeque<Duration>,
    /// The same in order, renewed now and then.
    sorted: Vec<Duration>,
    new: u32,
}

impl Latencies {
    /// Nothing is known but when a scan is called slow: a scan usually ends before.
    pub(super) fn new(slow: Duration) -> Self {
        Self {
            last: VecDeque::from([slow]),
            sorted: vec![slow],
            new: 0,
        }
    }

    pub(super) fn add(&mut self, took: Duration) {
        if self.last.len() >= LATENCIES {
            self.last.pop_front();
        }
        self.last.push_back(took);
        self.new += 1;
        if self.new >= LATENCIES_RENEWED {
            self.new = 0;
            self.sorted = self.last.iter().copied().collect();
            self.sorted.sort_unstable();
        }
    }

    /// The share of scans that last longer: at least half of one, and beyond the longest ever seen less with the cube.
    fn longer(&self, than: Duration) -> f64 {
        let (count, Some(most)) = (self.sorted.len(), self.sorted.last()) else {
            return 1.0;
        };
        let least = 0.5 / count.max(ASSUMED) as f64;
        if than > *most {
            let beyond = most.div_duration_f64(than);
            return least * beyond.powi(3);
        }
        let shorter = self.sorted.partition_point(|took| *took < than);
        least.max((count - shorter) as f64 / count as f64)
    }
}

impl Gate {
    /// Notes that it is looked at the engine now.
    pub(super) fn watch(&mut self, now: Instant) {
        if now >= self.watched + LOOKED_AWAY {
            self.watched_since = now;
        }
        self.watched = now;
    }

    /// Opens the breaker of a replica that has stalled.
    pub(super) fn stall(&mut self, now: Instant, at: usize) {
        if let Some(on) = self.stalled_on(now, at) {
            let change = self.replicas[at].breaker.stalled(now);
            let opened = change.is_some();
            self.changed(now, at, change);
            self.hangs_on_known |= opened && on == Level::Proven;
        }
    }

    /// If it has stalled, the best-known mail that shows it.
    fn stalled_on(&self, now: Instant, at: usize) -> Option<Level> {
        let replica = &self.replicas[at];
        let allowed = replica.allowed();
        let here = || self.scans.values().filter(|scan| scan.replica == at);
        // A probe that is not slow tells more, and soon.
        if allowed == 0 || here().any(|scan| scan.is_probe && !scan.is_slow) {
            return None;
        }
        let silent_since = replica.last_end.max(self.watched_since);
        let silent_for = now.saturating_duration_since(silent_since);
        let (mut chance, mut oldest) = (0.0, Duration::ZERO);
        let (mut parties, mut is_proven, mut are_all) = (Vec::new(), false, true);
        let mut enough = PARTIES.min(allowed);
        // A message that hung before says nothing about the engine.
        let says_something =
            |scan: &&Scan| scan.is_probe || !scan.is_explained && !scan.entrant.struck;
        for scan in here().filter(says_something) {
            let age = now.saturating_duration_since(scan.started);
            let silence = age.min(silent_for);
            let survives = self.survives(scan, age) - self.survives(scan, age - silence);
            chance += survives;
            oldest = oldest.max(silence);
            if survives < UNUSUAL {
                parties.push(scan.entrant.turn.party);
                is_proven |= scan.level == Level::Proven;
                if scan.is_probe {
                    enough = PARTIES_WITH_PROBE;
                }
            } else {
                are_all &= scan.is_slow;
            }
        }
        parties.sort_unstable();
        parties.dedup();
        // Mail that something speaks for is stuck, or nothing moves any more, whatever it is.
        let is_shut = are_all && self.free_of(at) == 0 && !self.waiting.is_empty();
        let on = match (is_proven, is_shut) {
            (true, _) => Some(Level::Proven),
            (false, true) => Some(Level::Unknown),
            (false, false) => None,
        };
        on.filter(|_| {
            parties.len() >= enough
                && chance < CHANCE.ln()
                && oldest >= self.times.slow / SILENCE_PARTS
        })
    }

    /// The logarithm of the chance that a scan of this engine lasts so long.
    fn survives(&self, scan: &Scan, age: Duration) -> f64 {
        let age = match scan.entrant.large {
            true => age / LARGE_FACTOR,
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

    /// The tail is the engine's own, and what nobody has seen yet is rare, and rarer the longer.
    #[test]
    fn the_tail_is_the_engines_own() {
        let mut latencies = Latencies::new(milliseconds(500));
        assert!(latencies.longer(milliseconds(100)) >= 1.0);
        assert!(latencies.longer(milliseconds(1000)) < 0.001);
        for n in 0..2 * LATENCIES as u64 {
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
