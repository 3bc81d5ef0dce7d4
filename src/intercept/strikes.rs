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
    /// One more, by that message. How many different messages there were by now.
    pub(super) fn count(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        key: Trait,
        by: MessageId,
    ) -> u32 {
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
        count
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
