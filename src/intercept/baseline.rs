//! The baseline: what the mail of this relay's users looks like when it is well. Bounded memory: a count-min sketch
//! (Cormode, Muthukrishnan, 2005) that is halved now and then, and two generations of known senders.

mod snapshot;

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Key;
use crate::message::fingerprint::Aspect;
use crate::message::{Fingerprint, Standing, Trait};

pub use snapshot::Unusable;

/// Counters in a row of the sketch, and rows.
const WIDTH: usize = 1 << 16;
const ROWS: usize = 4;
/// Keys that no mail has, which are asked after to learn what the sketch says of such; and after how many messages again.
const PHANTOMS: u64 = 64;
const LISTENED: u64 = 128;
/// All counts are halved so often, so that they speak of about the last day.
const HALVED: Duration = Duration::from_secs(12 * 3600);
/// Messages below which a share means nothing.
const ENOUGH: u64 = 100;
/// Messages that were scanned well, after which a sender is known.
const KNOWN: u32 = 2;
/// Senders in each of two generations, each of which lasts so long at most.
const SENDERS: usize = 100_000;
const GENERATION: Duration = Duration::from_secs(7 * 86_400);

/// The baseline. Full it takes some 8 MB.
#[derive(Debug, Clone)]
pub struct Baseline {
    rows: Box<[[u32; WIDTH]; ROWS]>,
    messages: u64,
    /// What the sketch counts for a key that it was never told of. Every message has dozens of keys that no other has
    /// (its content), and they fill all counters evenly: after a day that is as much as a key of 0.05 % of all mail, which
    /// would be the difference between new mail and usual mail. Taking it off: Deng, Rafiei, Count-Mean-Min, 2007.
    noise: f64,
    /// When the counts are halved next.
    halves: Instant,
    /// The newer generation, and the older one.
    senders: [HashMap<u64, u32>; 2],
    /// When the newer generation becomes the older one.
    turns: Instant,
    version: u64,
}

impl Baseline {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            rows: vec![[0; WIDTH]; ROWS]
                .try_into()
                .unwrap_or_else(|_| Box::new([[0; WIDTH]; ROWS])),
            messages: 0,
            noise: 0.0,
            halves: now + HALVED,
            senders: Default::default(),
            turns: now + GENERATION,
            version: 0,
        }
    }

    /// A message was scanned well by everybody.
    pub(super) fn add(&mut self, now: Instant, fingerprint: &Fingerprint) {
        self.version += 1;
        if now >= self.halves {
            self.halves = now + HALVED;
            self.messages /= 2;
            self.rows
                .as_flattened_mut()
                .iter_mut()
                .for_each(|n| *n /= 2);
        }
        self.messages += 1;
        for key in Key::all(fingerprint) {
            for (row, at) in places(key.hash()).enumerate() {
                let count = &mut self.rows[row][at];
                *count = count.saturating_add(1);
            }
        }
        if self.messages.is_multiple_of(LISTENED) {
            let heard = (0..PHANTOMS).map(|phantom| f64::from(self.count(unheard_of(phantom))));
            self.noise = heard.sum::<f64>() / PHANTOMS as f64;
        }
        if let Some(sender) = sender(fingerprint) {
            self.meet(now, sender);
        }
    }

    fn count(&self, hash: u64) -> u32 {
        let counts = places(hash).enumerate().map(|(row, at)| self.rows[row][at]);
        counts.min().unwrap_or(0)
    }

    fn meet(&mut self, now: Instant, sender: u64) {
        if now >= self.turns || self.senders[0].len() >= SENDERS {
            self.turns = now + GENERATION;
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

    /// Grows with every message; of one that was read from a snapshot it begins anew.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Senders that were met, known or not: at most 200,000.
    pub fn senders(&self) -> usize {
        self.senders.iter().map(HashMap::len).sum()
    }

    /// Messages that it speaks of; half of them after each 12 hours.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Whether there is enough of it to judge by.
    pub(super) fn is_meaningful(&self) -> bool {
        self.messages >= ENOUGH
    }

    /// The share of good mail that has the key; 0 while there is no good mail.
    pub(super) fn share(&self, key: Key) -> f64 {
        let counted = f64::from(self.count(key.hash())) - self.noise;
        counted.max(0.0) / (self.messages.max(1) as f64)
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

/// Where a key of that hash is counted, in each row.
fn places(hash: u64) -> impl Iterator<Item = usize> {
    // Rows from one hash (Kirsch, Mitzenmacher, 2006).
    (0..ROWS as u64).map(move |row| {
        let mixed = hash.wrapping_add(row.wrapping_mul((hash >> 32) | 1));
        (mixed % WIDTH as u64) as usize
    })
}

/// A key that no mail has.
fn unheard_of(phantom: u64) -> u64 {
    let value = phantom.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let aspect = Aspect::Near;
    Key(Trait { aspect, value }, None).hash()
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::intercept::episode::NARROW;
    use crate::message::Identity;

    pub(super) fn message(rng: &mut StdRng, skeleton: u64) -> Fingerprint {
        let mut one = |aspect| Trait {
            aspect,
            value: rng.next_u64(),
        };
        let exact = Box::new([one(Aspect::Attachment)]);
        let mut broad: Vec<Trait> = std::iter::repeat_with(|| one(Aspect::Near))
            .take(16)
            .collect();
        broad.push(Trait {
            aspect: Aspect::Skeleton,
            value: skeleton,
        });
        Fingerprint {
            identity: Identity([0; 32]),
            exact,
            broad: broad.into(),
            attachments: Box::new([]),
        }
    }

    /// However much mail there was, mail like nothing before is new and usual mail is usual: every message leaves its own
    /// content in the sketch, and all that together must not look like anything.
    #[tokio::test(start_paused = true)]
    async fn what_no_mail_has_is_new_after_any_amount_of_mail() {
        let now = Instant::now();
        let mut baseline = Baseline::new(now);
        let mut rng = StdRng::seed_from_u64(1);
        for n in 0..30_000 {
            let skeleton = if n % 500 == 0 { 1 } else { 2 };
            baseline.add(now, &message(&mut rng, skeleton));
        }
        let fresh = message(&mut rng, 3);
        let shares = Key::all(&fresh).map(|key| baseline.share(key));
        let new = shares.filter(|share| *share <= NARROW / 10.0).count();
        assert!(new >= 16, "{new} of 18 keys are new");
        let rare = Trait {
            aspect: Aspect::Skeleton,
            value: 1,
        };
        let share = baseline.share(Key(rare, None));
        assert!((0.0018..0.0022).contains(&share), "{share}");
    }

    /// However many senders there are, they take bounded memory, and those that were met last are known.
    #[tokio::test(start_paused = true)]
    async fn senders_are_bounded() {
        let now = Instant::now();
        let mut baseline = Baseline::new(now);
        let senders = 3 * SENDERS as u64;
        for sender in 0..senders {
            (0..KNOWN).for_each(|_| baseline.meet(now, sender));
        }
        assert!(baseline.senders() <= 2 * SENDERS);
        assert!(baseline.met(senders - 1) >= KNOWN);
        assert_eq!(baseline.met(0), 0);
    }
}
