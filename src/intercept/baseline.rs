//! The baseline: what good mail of this relay's users looks like. Memory is bounded: a count-min sketch (Cormode,
//! Muthukrishnan, 2005) whose counts are halved at intervals, and two generations of known senders.

mod snapshot;

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Key;
use crate::message::fingerprint::Aspect;
use crate::message::{Fingerprint, SenderReputation, Trait};

pub use snapshot::Unusable;

/// Counters in a row of the sketch, and rows: 4 × 65,536 counters of 4 octets take 1 MiB.
const SKETCH_WIDTH: usize = 1 << 16;
const SKETCH_ROWS: usize = 4;
/// Keys that no message has. The sketch's counts for these 64 keys show its noise.
const PHANTOM_KEYS: u64 = 64;
/// Messages after which the noise is estimated again.
const MESSAGES_PER_NOISE_ESTIMATE: u64 = 128;
/// Interval between halvings of all counts: 12 h, so that the counts describe about the last day.
const HALVING_INTERVAL: Duration = Duration::from_secs(12 * 3600);
/// Messages from which on a share is meaningful: with fewer, a single message is more than 1 %.
const BASELINE_MESSAGES_MIN: u64 = 100;
/// Messages of a sender that must be scanned well before the sender is known.
const KNOWN_SENDER_MESSAGES: u32 = 2;
/// Senders in each of two generations at most.
const SENDERS_PER_GENERATION: usize = 100_000;
/// Duration of a generation at most. A sender without mail is forgotten after 7 to 14 days, or sooner if generations fill up.
const GENERATION_DURATION: Duration = Duration::from_secs(7 * 86_400);

/// The baseline. It takes about 8 MB when it is full.
#[derive(Debug, Clone)]
pub struct Baseline {
    rows: Box<[[u32; SKETCH_WIDTH]; SKETCH_ROWS]>,
    messages: u64,
    /// The sketch's mean count for keys that it was never given. Every message has dozens of keys that no other message has
    /// (its content), and these fill all counters evenly. After a day the noise is as high as the count of a key that 0.05 %
    /// of all messages have, which would hide the difference between new and usual mail. Subtracting the noise: Deng,
    /// Rafiei, Count-Mean-Min, 2007.
    noise: f64,
    /// When the counts are halved next.
    halves: Instant,
    /// Messages of each sender: the newer generation, and the older one.
    senders: [HashMap<u64, u32>; 2],
    /// When the newer generation becomes the older one.
    turns: Instant,
    version: u64,
}

impl Baseline {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            rows: vec![[0; SKETCH_WIDTH]; SKETCH_ROWS]
                .try_into()
                .unwrap_or_else(|_| Box::new([[0; SKETCH_WIDTH]; SKETCH_ROWS])),
            messages: 0,
            noise: 0.0,
            halves: now + HALVING_INTERVAL,
            senders: Default::default(),
            turns: now + GENERATION_DURATION,
            version: 0,
        }
    }

    /// Adds a message that all engines scanned well.
    pub(super) fn add(&mut self, now: Instant, fingerprint: &Fingerprint) {
        self.version += 1;
        if now >= self.halves {
            self.halves = now + HALVING_INTERVAL;
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
        if self.messages.is_multiple_of(MESSAGES_PER_NOISE_ESTIMATE) {
            let heard = (0..PHANTOM_KEYS).map(|phantom| f64::from(self.count(unheard_of(phantom))));
            self.noise = heard.sum::<f64>() / PHANTOM_KEYS as f64;
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
        if now >= self.turns || self.senders[0].len() >= SENDERS_PER_GENERATION {
            self.turns = now + GENERATION_DURATION;
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

    /// Whether enough messages of this sender through this client's network were scanned well. The domain alone proves
    /// nothing, because anybody can write any domain.
    pub(super) fn reputation(&self, fingerprint: &Fingerprint) -> SenderReputation {
        match sender(fingerprint) {
            Some(sender) if self.met(sender) >= KNOWN_SENDER_MESSAGES => SenderReputation::Known,
            _ => SenderReputation::Unknown,
        }
    }

    /// Grows with every message. In a baseline that was read from a snapshot it starts at 0.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Senders remembered, known or not: at most 200,000. A sender in both generations counts twice.
    pub fn senders(&self) -> usize {
        self.senders.iter().map(HashMap::len).sum()
    }

    /// Messages that the counts describe. Each halving of the counts (every 12 h) halves this number too.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Whether the baseline has enough messages to judge by.
    pub(super) fn is_meaningful(&self) -> bool {
        self.messages >= BASELINE_MESSAGES_MIN
    }

    /// The share of good messages that have the key; 0 while there are no good messages.
    pub(super) fn share(&self, key: Key) -> f64 {
        let counted = f64::from(self.count(key.hash())) - self.noise;
        counted.max(0.0) / (self.messages.max(1) as f64)
    }
}

/// The sender's domain and the client's network, as one number. `None` if the message lacks one of them.
fn sender(fingerprint: &Fingerprint) -> Option<u64> {
    let value = |aspect| {
        let mut of = fingerprint.broad.iter().filter(|t| t.aspect == aspect);
        of.next().map(|t| t.value)
    };
    Some(value(Aspect::SenderDomain)? ^ value(Aspect::Client)?.rotate_left(32))
}

/// The index of a key's counter in each row.
fn places(hash: u64) -> impl Iterator<Item = usize> {
    // All rows derive from one hash (Kirsch, Mitzenmacher, 2006).
    (0..SKETCH_ROWS as u64).map(move |row| {
        let mixed = hash.wrapping_add(row.wrapping_mul((hash >> 32) | 1));
        (mixed % SKETCH_WIDTH as u64) as usize
    })
}

/// A key that no message has.
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
    use crate::intercept::episode::NARROW_SHARE_MAX;
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

    /// After any amount of mail, a message like none before is new, and usual mail is usual. Every message leaves its own
    /// content in the sketch, and all that content together must not look like a usual key.
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
        let new = shares
            .filter(|share| *share <= NARROW_SHARE_MAX / 10.0)
            .count();
        assert!(new >= 16, "{new} of 18 keys are new");
        let rare = Trait {
            aspect: Aspect::Skeleton,
            value: 1,
        };
        let share = baseline.share(Key(rare, None));
        assert!((0.0018..0.0022).contains(&share), "{share}");
    }

    /// Any number of senders takes bounded memory, and the senders of the latest messages are known.
    #[tokio::test(start_paused = true)]
    async fn senders_are_bounded() {
        let now = Instant::now();
        let mut baseline = Baseline::new(now);
        let senders = 3 * SENDERS_PER_GENERATION as u64;
        for sender in 0..senders {
            (0..KNOWN_SENDER_MESSAGES).for_each(|_| baseline.meet(now, sender));
        }
        assert!(baseline.senders() <= 2 * SENDERS_PER_GENERATION);
        assert!(baseline.met(senders - 1) >= KNOWN_SENDER_MESSAGES);
        assert_eq!(baseline.met(0), 0);
    }
}
