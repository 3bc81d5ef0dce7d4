//! The baseline as octets, for a file that outlives the process.
//!
//! Eight octets that name it, the version (one octet), then numbers of seven bits an octet (LEB128) unless it is said
//! otherwise, then the SHA-256 of everything before it:
//!
//! - when it was written, in milliseconds since 1970;
//! - how long ago the counts were halved and the generations turned, in milliseconds: ages, not times, so that a clock that
//!   was set between writing and reading cannot make them anything else;
//! - messages, and the noise (an IEEE 754 number of eight octets, the lowest first);
//! - the counters of the sketch, row by row: each as itself, a run of zeros as 0 and their number;
//! - the newer generation of senders, then the older one: their number, then for each, in order, its distance from the one
//!   before and its messages.
//!
//! Keys of the sketch and of senders follow from [`Fingerprint`](crate::message::Fingerprint) and
//! [`Key::hash`](super::Key): whoever changes what these say counts [`VERSION`] up.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{Baseline, GENERATION, HALVED, ROWS, SENDERS, WIDTH};

const MAGIC: [u8; 8] = *b"SPWYBASE";
/// Of the layout and of what it counts.
const VERSION: u8 = 1;
/// Octets of the longest number, and of a counter.
const LONGEST: usize = 10;
const COUNTER: usize = 5;
/// Octets of the checksum.
const CHECKSUM: usize = 32;
/// Octets before the numbers.
const HEAD: usize = MAGIC.len() + 1;

/// A snapshot that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It is something else.
    #[error("it is no snapshot of this kind")]
    Foreign,
    /// A version of the program wrote it that this one does not know.
    #[error("it is of version {0}, and this program knows version {VERSION}")]
    OtherVersion(u8),
    /// It is not what was written.
    #[error("it is damaged")]
    Damaged,
}

impl Baseline {
    /// Octets of a snapshot at most: what is longer is none.
    pub const LARGEST: usize = HEAD
        + 4 * LONGEST
        + 8
        + ROWS * WIDTH * COUNTER
        + 2 * (LONGEST + SENDERS * (LONGEST + COUNTER))
        + CHECKSUM;

    /// A snapshot of it, made at `now`, which is `wall` for people. Takes some milliseconds of processor time when full.
    pub fn encode(&self, now: Instant, wall: Timestamp) -> Vec<u8> {
        let age = |term: Duration, ends: Instant| {
            let age = term.saturating_sub(ends.saturating_duration_since(now));
            u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
        };
        let mut octets = MAGIC.to_vec();
        octets.push(VERSION);
        let written = u64::try_from(wall.as_millisecond()).unwrap_or_default();
        number(&mut octets, written);
        number(&mut octets, age(HALVED, self.halves));
        number(&mut octets, age(GENERATION, self.turns));
        number(&mut octets, self.messages);
        octets.extend(self.noise.to_le_bytes());
        let mut zeros = 0;
        for count in self.rows.as_flattened() {
            if *count == 0 {
                zeros += 1;
                continue;
            }
            end_run(&mut octets, &mut zeros);
            number(&mut octets, u64::from(*count));
        }
        end_run(&mut octets, &mut zeros);
        for generation in &self.senders {
            let mut senders: Vec<(u64, u32)> = generation.iter().map(|(s, n)| (*s, *n)).collect();
            senders.sort_unstable();
            number(&mut octets, senders.len() as u64);
            let mut before = 0;
            for (sender, count) in senders {
                number(&mut octets, sender - before);
                number(&mut octets, u64::from(count));
                before = sender;
            }
        }
        let checksum = Sha256::digest(&octets);
        octets.extend_from_slice(&checksum);
        octets
    }

    /// The baseline of a snapshot, that goes on at `now`, which is `wall` for people. Its ages have grown by the time in
    /// which nothing ran, as far as the clocks tell: by none if the clock was set back, and by no more than ends what has
    /// begun. So whatever the clock says, the senders of the newer generation stay known for as long again, and none is
    /// kept beyond the time that is left to it while the relay runs.
    pub fn decode(octets: &[u8], now: Instant, wall: Timestamp) -> Result<Self, Unusable> {
        if octets.len() < HEAD || octets[..MAGIC.len()] != MAGIC {
            return Err(Unusable::Foreign);
        }
        let version = octets[MAGIC.len()];
        if version != VERSION {
            return Err(Unusable::OtherVersion(version));
        }
        let (said, checksum) = octets
            .split_last_chunk::<CHECKSUM>()
            .ok_or(Unusable::Damaged)?;
        if octets.len() > Self::LARGEST || Sha256::digest(said)[..] != checksum[..] {
            return Err(Unusable::Damaged);
        }
        let body = said.get(HEAD..).unwrap_or_default();
        read(body, now, wall).ok_or(Unusable::Damaged)
    }
}

fn read(body: &[u8], now: Instant, wall: Timestamp) -> Option<Baseline> {
    let mut rest = Rest(body);
    let written = rest.number()?;
    let clock = u64::try_from(wall.as_millisecond()).unwrap_or_default();
    let away = clock.saturating_sub(written);
    let mut ends = |term: Duration| {
        let age = rest.number()?.saturating_add(away);
        Some(now + term.saturating_sub(Duration::from_millis(age)))
    };
    let (halves, turns) = (ends(HALVED)?, ends(GENERATION)?);
    let mut baseline = Baseline {
        halves,
        turns,
        messages: rest.number().filter(|n| i64::try_from(*n).is_ok())?,
        noise: rest.noise()?,
        ..Baseline::new(now)
    };
    let mut counters = baseline.rows.as_flattened_mut();
    while !counters.is_empty() {
        let count = rest.number()?;
        let (these, others) = match count {
            0 => counters.split_at_mut_checked(usize::try_from(rest.number()?).ok()?)?,
            _ => counters.split_at_mut_checked(1)?,
        };
        // A run of none would never end.
        if these.is_empty() {
            return None;
        }
        these.fill(u32::try_from(count).ok()?);
        counters = others;
    }
    for generation in &mut baseline.senders {
        *generation = rest.senders()?;
    }
    rest.0.is_empty().then_some(baseline)
}

fn end_run(octets: &mut Vec<u8>, zeros: &mut u64) {
    if *zeros > 0 {
        octets.push(0);
        number(octets, *zeros);
        *zeros = 0;
    }
}

fn number(octets: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        octets.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    octets.push(number as u8);
}

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for at in 0..LONGEST {
            let (octet, rest) = self.0.split_first()?;
            self.0 = rest;
            let bits = u64::from(octet & 0x7f);
            let shifted = bits << (7 * at);
            // The tenth octet has room for one bit.
            if shifted >> (7 * at) != bits {
                return None;
            }
            number |= shifted;
            if octet & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn noise(&mut self) -> Option<f64> {
        let (octets, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        let noise = f64::from_le_bytes(*octets);
        (0.0..=f64::from(u32::MAX))
            .contains(&noise)
            .then_some(noise)
    }

    fn senders(&mut self) -> Option<HashMap<u64, u32>> {
        let count = usize::try_from(self.number()?).ok()?;
        if count > SENDERS {
            return None;
        }
        let mut senders = HashMap::with_capacity(count);
        let mut before = 0_u64;
        for at in 0..count {
            let distance = self.number()?;
            // None is named twice.
            if at > 0 && distance == 0 {
                return None;
            }
            before = before.checked_add(distance)?;
            senders.insert(before, u32::try_from(self.number()?).ok()?);
        }
        Some(senders)
    }
}

#[cfg(test)]
mod tests;
