//! Strikes: expensive failures, counted for each engine and each trait. Memory is bounded. When it is full, the oldest
//! strikes are forgotten, so that a sender who causes many failures cannot keep new strikes from being counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::message::{MessageId, Trait};

/// Pairs of engine and trait with strikes that are remembered at most. An entry takes about 100 octets, so all of them take
/// about 1 MB.
pub(super) const TRAITS_WITH_STRIKES_MAX: usize = 10_000;
/// How long a strike counts: two failures of the same content within an hour are a pattern, two within a day are not.
pub(super) const STRIKE_AGE: Duration = Duration::from_secs(3600);

/// The strikes of one engine against one trait.
#[derive(Debug, Clone, Copy)]
struct Struck {
    count: u32,
    last: Instant,
    /// Position of the last of these strikes in the order of all strikes.
    serial: u64,
    /// The message of the last strike. Retries of one message are one message, so they add no strike.
    by: MessageId,
}

/// The strikes of all engines.
#[derive(Debug, Default)]
pub(super) struct Strikes {
    timed_out_before: HashMap<(Arc<str>, Trait), Struck>,
    serial: u64,
}

impl Strikes {
    /// Counts a strike against the trait `key` by the message `by`.
    pub(super) fn count(&mut self, now: Instant, engine: &Arc<str>, key: Trait, by: MessageId) {
        if self.timed_out_before.len() >= TRAITS_WITH_STRIKES_MAX {
            self.forget(now);
        }
        self.serial += 1;
        let serial = self.serial;
        let (last, first) = (now, 1);
        let one = Struck {
            count: first,
            last,
            serial,
            by,
        };
        let timed_out_before = self
            .timed_out_before
            .entry((engine.clone(), key))
            .or_insert(one);
        let is_old = now >= timed_out_before.last + STRIKE_AGE;
        let count = match timed_out_before.by == by {
            _ if is_old => first,
            true => timed_out_before.count,
            false => timed_out_before.count.saturating_add(1),
        };
        *timed_out_before = Struck { count, ..one };
    }

    /// Number of messages with a strike against the trait `key`; 0 if the last strike is older than [`STRIKE_AGE`]. Retries
    /// count once unless another message had a strike in between.
    pub(super) fn of(&self, now: Instant, engine: &Arc<str>, key: Trait) -> u32 {
        let timed_out_before = self.timed_out_before.get(&(engine.clone(), key));
        timed_out_before.map_or(0, |s| {
            if now < s.last + STRIKE_AGE {
                s.count
            } else {
                0
            }
        })
    }

    /// Makes room: drops strikes older than [`STRIKE_AGE`]. If there are none, drops the oldest quarter.
    fn forget(&mut self, now: Instant) {
        self.timed_out_before
            .retain(|_, s| now < s.last + STRIKE_AGE);
        if self.timed_out_before.len() < TRAITS_WITH_STRIKES_MAX {
            return;
        }
        let mut serials: Vec<u64> = self.timed_out_before.values().map(|s| s.serial).collect();
        let (_, oldest, _) = serials.select_nth_unstable(TRAITS_WITH_STRIKES_MAX / 4);
        let oldest = *oldest;
        self.timed_out_before.retain(|_, s| s.serial > oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::fingerprint::Aspect;

    /// Any number of failures takes bounded memory, and the newest strikes are remembered.
    #[tokio::test(start_paused = true)]
    async fn strikes_are_bounded() {
        let (mut strikes, now) = (Strikes::default(), Instant::now());
        let engine: Arc<str> = "clamd".into();
        let key = |value| Trait {
            aspect: Aspect::Attachment,
            value,
        };
        let timed_out_before = 3 * TRAITS_WITH_STRIKES_MAX as u64;
        for value in 0..timed_out_before {
            strikes.count(now, &engine, key(value), MessageId::new());
        }
        assert!(
            strikes.timed_out_before.len() <= TRAITS_WITH_STRIKES_MAX,
            "{}",
            strikes.timed_out_before.len()
        );
        assert_eq!(strikes.of(now, &engine, key(timed_out_before - 1)), 1);
    }

    /// A strike counts for one hour, also if no other strike follows.
    #[tokio::test(start_paused = true)]
    async fn a_strike_counts_for_an_hour() {
        let (mut strikes, now) = (Strikes::default(), Instant::now());
        let engine: Arc<str> = "clamd".into();
        let key = Trait {
            aspect: Aspect::Attachment,
            value: 1,
        };
        strikes.count(now, &engine, key, MessageId::new());
        let last = now + STRIKE_AGE - Duration::from_secs(1);
        assert_eq!(strikes.of(last, &engine, key), 1);
        assert_eq!(strikes.of(now + STRIKE_AGE, &engine, key), 0);
    }
}
