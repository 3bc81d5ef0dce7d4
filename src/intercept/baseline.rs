//! The baseline: what the mail of this relay's users looks like when it is well. Bounded memory: a count-min sketch
//! (Cormode, Muthukrishnan, 2005) that is halved now and then, and two generations of known senders.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Key;
use crate::message::fingerprint::Aspect;
use crate::message::{Fingerprint, Standing};

/// Counters in a row of the sketch, and rows: a share is overestimated by more than 0.004 % once in e^4 times.
const WIDTH: usize = 1 << 16;
const ROWS: usize = 4;
/// All counts are halved so often, so that they speak of about the last day.
const HALVED: Duration = Duration::from_secs(12 * 3600);
/// Messages below which a share means nothing.
const ENOUGH: u64 = 100;
/// Messages that were scanned well, after which a sender is known.
const KNOWN: u32 = 2;
/// Senders in each of two generations, each of which lasts so long at most.
const SENDERS: usize = 100_000;
const GENERATION: Duration = Duration::from_secs(7 * 86_400);

/// The baseline.
#[derive(Debug)]
pub(super) struct Baseline {
    rows: Box<[[u32; WIDTH]; ROWS]>,
    messages: u64,
    halved: Instant,
    senders: [HashMap<u64, u32>; 2],
    turned: Instant,
}

impl Baseline {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            rows: vec![[0; WIDTH]; ROWS]
                .try_into()
                .unwrap_or_else(|_| Box::new([[0; WIDTH]; ROWS])),
            messages: 0,
            halved: now,
            senders: Default::default(),
            turned: now,
        }
    }

    /// A message was scanned well by everybody.
    pub(super) fn add(&mut self, now: Instant, fingerprint: &Fingerprint) {
        if now >= self.halved + HALVED {
            self.halved = now;
            self.messages /= 2;
            self.rows
                .as_flattened_mut()
                .iter_mut()
                .for_each(|n| *n /= 2);
        }
        self.messages += 1;
        for key in Key::all(fingerprint) {
            for (row, at) in places(key).enumerate() {
                let count = &mut self.rows[row][at];
                *count = count.saturating_add(1);
            }
        }
        if let Some(sender) = sender(fingerprint) {
            self.meet(now, sender);
        }
    }

    fn meet(&mut self, now: Instant, sender: u64) {
        if now >= self.turned + GENERATION || self.senders[0].len() >= SENDERS {
            self.turned = now;
            self.senders.swap(0, 1);
            self.senders[0].clear();
        }
        let so_far = self.met(sender);
        self.senders[0].insert(sender, so_far.saturating_add(1));
    }

    fn met(&self, sender: u64) -> u32 {
        let [new, old] = &self.senders;
        new.get(&sender).or(old.get(&sender)).copied().unwrap_or(0)
    }

    /// Whether mail of this sender through this client's network was scanned well before. The domain alone is free for
    /// anybody to write.
    pub(super) fn standing(&self, fingerprint: &Fingerprint) -> Standing {
        match sender(fingerprint) {
            Some(sender) if self.met(sender) >= KNOWN => Standing::Known,
            _ => Standing::Unknown,
        }
    }

    /// Whether there is enough of it to judge by.
    pub(super) fn is_meaningful(&self) -> bool {
        self.messages >= ENOUGH
    }

    /// The share of good mail that has the key; 0 while there is no good mail.
    pub(super) fn share(&self, key: Key) -> f64 {
        let counts = places(key).enumerate().map(|(row, at)| self.rows[row][at]);
        let least = counts.min().unwrap_or(0);
        f64::from(least) / (self.messages.max(1) as f64)
    }
}

/// The sender's domain and the client's network, as one number.
fn sender(fingerprint: &Fingerprint) -> Option<u64> {
    let value = |aspect| {
        let mut of = fingerprint.broad.iter().filter(|t| t.aspect == aspect);
        of.next().map(|t| t.value)
    };
    Some(value(Aspect::SenderDomain)? ^ value(Aspect::Client)?.rotate_left(32))
}

/// Where a key is counted, in each row.
fn places(key: Key) -> impl Iterator<Item = usize> {
    let hash = key.hash();
    // Rows from one hash (Kirsch, Mitzenmacher, 2006).
    (0..ROWS as u64).map(move |row| {
        let mixed = hash.wrapping_add(row.wrapping_mul((hash >> 32) | 1));
        (mixed % WIDTH as u64) as usize
    })
}
