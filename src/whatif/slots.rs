//! Recorded scans through another number of slots: how long messages would have waited.
//!
//! The replay is a queue with `k` servers, first come first served. It knows arrivals and durations, and nothing of turns,
//! trust, ramps and retries of the real gate ([RESILIENCE.md](../../docs/RESILIENCE.md)).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Most scans of one engine that are kept: as many as the history has entries, 12 MB.
const SCANS_MAX: usize = 1_000_000;
/// Most slots that are tried: 4096. No engine has so many.
const SLOTS_TRIED_MAX: usize = 4096;
/// The 99th percentile of the waits up to which slots are enough: 1 s. A sender does not notice it.
const ENOUGH_WAIT_P99: Duration = Duration::from_secs(1);

/// Scans of one engine: when each message asked, and for how long it held its slot.
#[derive(Debug, Clone, Default)]
pub(super) struct Scans {
    /// Milliseconds since the epoch, and milliseconds.
    all: Vec<(u64, u32)>,
    /// Messages that got no scan then. Nobody knows how long their scans would have been: each counts as long as the one before.
    not_run: u64,
    /// Whether there were more than are kept.
    is_cut: bool,
}

/// The waits of the scans of one engine with one number of slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// The 99th percentile, in milliseconds.
    pub p99_ms: u64,
    /// The longest, in milliseconds.
    pub longest_ms: u64,
    /// Messages that would have found no slot within `wait`, and were not scanned.
    pub refused: u64,
}

/// The replay of one engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotsReplay {
    /// The engine.
    pub engine: String,
    /// Number of scans, with those of messages that got none then.
    pub scans: u64,
    /// Messages that got no scan then: no slot was free, or the breaker was open. Each counts as a scan as long as the one before.
    pub not_run: u64,
    /// Whether there were more scans than were replayed.
    pub is_cut: bool,
    /// The slots of the other configuration, all replicas together.
    pub slots: usize,
    /// The waits with these slots.
    pub waits: Waits,
    /// The fewest slots with which no message would have waited for longer than `wait`, and 99 % not for longer than 1 s; none
    /// if 4096 are too few.
    pub enough: Option<usize>,
}

impl Scans {
    /// Adds a scan that was asked for at `asked` and held its slot for `took`.
    pub(super) fn add(&mut self, asked: jiff::Timestamp, took: Duration) {
        if self.all.len() >= SCANS_MAX {
            self.is_cut = true;
            return;
        }
        let asked = u64::try_from(asked.as_millisecond()).unwrap_or_default();
        let took = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
        self.all.push((asked, took));
    }

    /// Adds the scan that a message would have had that asked at `asked`, and got none.
    pub(super) fn add_not_run(&mut self, asked: jiff::Timestamp) {
        let took = self.all.last().map_or(0, |(_, took)| *took);
        self.not_run += 1;
        self.add(asked, Duration::from_millis(u64::from(took)));
    }

    /// Replays the scans with `slots`, and finds how many slots would be enough.
    pub(super) fn replay(mut self, engine: &str, slots: usize, wait: Duration) -> SlotsReplay {
        // The history is in the order of the ends.
        self.all.sort_unstable();
        SlotsReplay {
            engine: engine.to_owned(),
            scans: self.all.len() as u64,
            not_run: self.not_run,
            is_cut: self.is_cut,
            slots,
            waits: self.waits(slots, wait),
            enough: self.enough(wait),
        }
    }

    /// The waits with `slots`. A message that would wait for longer than `wait` leaves the queue without a scan.
    fn waits(&self, slots: usize, wait: Duration) -> Waits {
        let (longest, mut refused) = (milliseconds(wait), 0);
        let mut waits = Vec::with_capacity(self.all.len());
        self.queue(slots, |waited| {
            let is_served = waited <= longest;
            waits.push(waited.min(longest));
            refused += u64::from(!is_served);
            Some(is_served)
        });
        waits.sort_unstable();
        Waits {
            p99_ms: percentile(&waits),
            longest_ms: waits.last().copied().unwrap_or_default(),
            refused,
        }
    }

    /// More slots never make a message wait longer, so the smallest number that is enough is found by halving.
    fn enough(&self, wait: Duration) -> Option<usize> {
        let (mut low, mut high) = (1, SLOTS_TRIED_MAX);
        if !self.are_enough(high, wait) {
            return None;
        }
        while low < high {
            let middle = (low + high) / 2;
            match self.are_enough(middle, wait) {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        Some(low)
    }

    fn are_enough(&self, slots: usize, wait: Duration) -> bool {
        let (longest, mut waits) = (milliseconds(wait), Vec::with_capacity(self.all.len()));
        let served = self.queue(slots, |waited| {
            waits.push(waited);
            (waited <= longest).then_some(true)
        });
        waits.sort_unstable();
        served && percentile(&waits) <= milliseconds(ENOUGH_WAIT_P99)
    }

    /// Sends the scans through the queue. `turn` gets the wait of each in the order of arrival, and says whether it is served;
    /// none ends the replay. Returns whether it came to the end.
    fn queue(&self, slots: usize, mut turn: impl FnMut(u64) -> Option<bool>) -> bool {
        // When each slot that was used becomes free.
        let mut free: BinaryHeap<Reverse<u64>> = BinaryHeap::new();
        for (asked, took) in &self.all {
            let earliest = match free.len() < slots {
                true => *asked,
                false => free.peek().map_or(*asked, |free| free.0.max(*asked)),
            };
            match turn(earliest - asked) {
                None => return false,
                Some(false) => continue,
                Some(true) => {}
            }
            if free.len() >= slots {
                free.pop();
            }
            free.push(Reverse(earliest + u64::from(*took)));
        }
        true
    }
}

/// The 99th percentile of sorted numbers.
fn percentile(sorted: &[u64]) -> u64 {
    let rank = (sorted.len() * 99).div_ceil(100);
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    /// The waits of a queue that is played through millisecond by millisecond.
    fn brute_force(scans: &[(u64, u32)], slots: usize, wait: u64) -> Vec<Option<u64>> {
        let mut waits = vec![None; scans.len()];
        let (mut queue, mut running, mut now) = (Vec::new(), Vec::<u64>::new(), 0_u64);
        let mut next = 0;
        while next < scans.len() || !queue.is_empty() {
            running.retain(|end| *end > now);
            while next < scans.len() && scans[next].0 == now {
                queue.push(next);
                next += 1;
            }
            while running.len() < slots && !queue.is_empty() {
                let one: usize = queue.remove(0);
                waits[one] = Some(now - scans[one].0);
                // A scan of no time does not hold its slot.
                running.push(now + u64::from(scans[one].1));
                running.retain(|end| *end > now);
            }
            queue.retain(|one| now - scans[*one].0 < wait);
            now += 1;
        }
        waits
    }

    /// The replay gives the waits of a queue that is played through step by step, messages that leave it included; and the
    /// number of slots that is enough is the smallest that is.
    #[test]
    fn waits_are_those_of_a_queue() {
        for seed in 0..60 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (count, span) = (rng.random_range(1..120), rng.random_range(1..3000));
            let mut scans = Scans::default();
            for _ in 0..count {
                let at = Timestamp::from_millisecond(rng.random_range(0..span)).expect("a time");
                scans.add(at, Duration::from_millis(rng.random_range(0..400)));
            }
            scans.all.sort_unstable();
            let wait = rng.random_range(1..2000);
            let limit = Duration::from_millis(wait);
            for slots in [1, 2, 3, 7] {
                let seen = scans.waits(slots, limit);
                let expected = brute_force(&scans.all, slots, wait);
                let refused = expected.iter().filter(|wait| wait.is_none()).count();
                let mut waits: Vec<u64> = expected.iter().map(|w| w.unwrap_or(wait)).collect();
                waits.sort_unstable();
                let expected = Waits {
                    p99_ms: percentile(&waits),
                    longest_ms: waits.last().copied().unwrap_or_default(),
                    refused: refused as u64,
                };
                assert_eq!(seen, expected, "seed {seed}, {slots} slots, wait {wait}");
            }
            let is_enough = |slots: usize| {
                let waits = brute_force(&scans.all, slots, u64::MAX);
                let mut waits: Vec<u64> = waits.into_iter().flatten().collect();
                waits.sort_unstable();
                waits.last().is_none_or(|longest| *longest <= wait) && percentile(&waits) <= 1000
            };
            let enough = (1..200).find(|slots| is_enough(*slots));
            assert_eq!(scans.enough(limit), enough, "seed {seed}");
        }
    }

    /// A percentile is never below the share that it names: 99 % of one wait is this wait.
    #[test]
    fn a_percentile_is_not_too_small() {
        for (count, wanted) in [(1, 1), (99, 99), (100, 99), (101, 100), (200, 198)] {
            let sorted: Vec<u64> = (1..=count).collect();
            assert_eq!(percentile(&sorted), wanted, "of {count}");
        }
    }

    /// A message that found no slot would have had a scan: as long as the scan before.
    #[test]
    fn who_found_no_slot_is_scanned_in_a_replay() {
        let at = |milliseconds| Timestamp::from_millisecond(milliseconds).expect("a time");
        let mut scans = Scans::default();
        scans.add(at(0), Duration::from_millis(400));
        scans.add_not_run(at(100));
        scans.add(at(200), Duration::from_millis(1));
        let replay = scans.replay("clamd", 1, Duration::from_secs(10));
        assert_eq!((replay.scans, replay.not_run), (3, 1));
        assert_eq!(replay.waits.longest_ms, 600, "for both");
    }

    /// Without scans nobody waits, and one slot is enough.
    #[test]
    fn nobody_waits_for_nothing() {
        let replay = Scans::default().replay("clamd", 4, Duration::from_secs(1));
        assert_eq!(
            (replay.scans, replay.waits.refused, replay.enough),
            (0, 0, Some(1))
        );
    }
}
