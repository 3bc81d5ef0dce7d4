//! Strikes: expensive failures, counted for each engine and each trait. A failure of a scan is expensive if the scan ran into
//! its timeout, or if the engine went away on this message alone: both cost the engine more than one scan. Memory is bounded.
//! When it is full, the oldest strikes are forgotten, so that a sender who causes many failures cannot keep new strikes from
//! being counted.

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
struct TraitStrikes {
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
    by_trait: HashMap<(Arc<str>, Trait), TraitStrikes>,
    serial: u64,
}

impl Strikes {
    /// Counts a strike against the trait `key` by the message `by`.
    pub(super) fn count(&mut self, now: Instant, engine: &Arc<str>, key: Trait, by: MessageId) {
        if self.by_trait.len() >= TRAITS_WITH_STRIKES_MAX {
            self.forget(now);
        }
        self.serial += 1;
        let serial = self.serial;
        let (last, first) = (now, 1);
        let one = TraitStrikes {
            count: first,
            last,
            serial,
            by,
        };
        let entry = self.by_trait.entry((engine.clone(), key)).or_insert(one);
        let is_old = now >= entry.last + STRIKE_AGE;
        let count = match entry.by == by {
            _ if is_old => first,
            true => entry.count,
            false => entry.count.saturating_add(1),
        };
        *entry = TraitStrikes { count, ..one };
    }

    /// Number of messages with a strike against the trait `key`; 0 if the last strike is older than [`STRIKE_AGE`]. Retries
    /// count once unless another message had a strike in between.
    pub(super) fn of(&self, now: Instant, engine: &Arc<str>, key: Trait) -> u32 {
        let entry = self.by_trait.get(&(engine.clone(), key));
        entry.map_or(0, |s| {
            if now < s.last + STRIKE_AGE {
                s.count
            } else {
                0
            }
        })
    }

    /// Makes room: drops strikes older than [`STRIKE_AGE`]. If there are none, drops the oldest quarter.
    fn forget(&mut self, now: Instant) {
        self.by_trait.retain(|_, s| now < s.last + STRIKE_AGE);
        if self.by_trait.len() < TRAITS_WITH_STRIKES_MAX {
            return;
        }
        let mut serials: Vec<u64> = self.by_trait.values().map(|s| s.serial).collect();
        let (_, oldest, _) = serials.select_nth_unstable(TRAITS_WITH_STRIKES_MAX / 4);
        let oldest = *oldest;
        self.by_trait.retain(|_, s| s.serial > oldest);
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
        let traits = 3 * TRAITS_WITH_STRIKES_MAX as u64;
        for value in 0..traits {
            strikes.count(now, &engine, key(value), MessageId::new());
        }
        assert!(
            strikes.by_trait.len() <= TRAITS_WITH_STRIKES_MAX,
            "{}",
            strikes.by_trait.len()
        );
        assert_eq!(strikes.of(now, &engine, key(traits - 1)), 1);
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
