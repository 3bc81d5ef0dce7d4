//! Strikes: expensive failures, counted for each engine and each sense in which mail is the same. Bounded: beyond that the
//! oldest are forgotten, so that nobody can switch them off by striking often.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::message::{MessageId, Trait};

/// Senses with strikes that are remembered, and for how long.
pub(super) const STRUCK: usize = 10_000;
pub(super) const STRIKE_AGE: Duration = Duration::from_secs(3600);

/// Expensive failures of mail that is the same in one sense.
#[derive(Debug, Clone, Copy)]
struct Struck {
    count: u32,
    last: Instant,
    /// Which of all strikes was the last.
    serial: u64,
    /// A message that is tried again is one message.
    by: MessageId,
}

/// All strikes.
#[derive(Debug, Default)]
pub(super) struct Strikes {
    struck: HashMap<(Arc<str>, Trait), Struck>,
    serial: u64,
}

impl Strikes {
    /// One more, by that message.
    pub(super) fn count(&mut self, now: Instant, engine: &Arc<str>, key: Trait, by: MessageId) {
        if self.struck.len() >= STRUCK {
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
        let struck = self.struck.entry((engine.clone(), key)).or_insert(one);
        let is_old = now >= struck.last + STRIKE_AGE;
        let count = match struck.by == by {
            _ if is_old => first,
            true => struck.count,
            false => struck.count.saturating_add(1),
        };
        *struck = Struck { count, ..one };
    }

    /// How many different messages there were.
    pub(super) fn of(&self, now: Instant, engine: &Arc<str>, key: Trait) -> u32 {
        let struck = self.struck.get(&(engine.clone(), key));
        struck.map_or(0, |s| {
            if now < s.last + STRIKE_AGE {
                s.count
            } else {
                0
            }
        })
    }

    /// Makes room: what is too old goes, and if that is nothing the oldest quarter.
    fn forget(&mut self, now: Instant) {
        self.struck.retain(|_, s| now < s.last + STRIKE_AGE);
        if self.struck.len() < STRUCK {
            return;
        }
        let mut serials: Vec<u64> = self.struck.values().map(|s| s.serial).collect();
        let (_, oldest, _) = serials.select_nth_unstable(STRUCK / 4);
        let oldest = *oldest;
        self.struck.retain(|_, s| s.serial > oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::fingerprint::Aspect;

    /// However much fails, strikes take bounded memory, and the newest are remembered.
    #[tokio::test(start_paused = true)]
    async fn strikes_are_bounded() {
        let (mut strikes, now) = (Strikes::default(), Instant::now());
        let engine: Arc<str> = "clamd".into();
        let key = |value| Trait {
            aspect: Aspect::Attachment,
            value,
        };
        let struck = 3 * STRUCK as u64;
        for value in 0..struck {
            strikes.count(now, &engine, key(value), MessageId::new());
        }
        assert!(strikes.struck.len() <= STRUCK, "{}", strikes.struck.len());
        assert_eq!(strikes.of(now, &engine, key(struck - 1)), 1);
    }

    /// A strike counts for an hour, also where no other follows it.
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
