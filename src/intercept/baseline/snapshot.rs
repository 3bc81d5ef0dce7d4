//! The baseline as octets, for a file that outlives the process.
//!
//! The layout: eight octets of magic, the version (one octet), then numbers in LEB128 (seven bits an octet) unless stated
//! otherwise, then the SHA-256 of everything before it. The numbers are:
//!
//! - the time of writing, in milliseconds since 1970;
//! - the time since the counts were halved, and since the generations turned, in milliseconds. These are ages and not times, so
//!   that setting the clock between writing and reading cannot change them;
//! - the number of messages, and the noise (an IEEE 754 number of eight octets, the lowest first);
//! - the counters of the sketch, row by row: each as itself, a run of zeros as 0 and its length;
//! - the newer generation of senders, then the older one: the number of senders, then for each sender, in ascending order, its
//!   distance from the sender before and its messages.
//!
//! Keys of the sketch and of senders are computed by [`Fingerprint`](crate::message::Fingerprint) and
//! [`Key::hash`](super::Key). A change of what these compute must increment [`SNAPSHOT_VERSION`].

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{
    Baseline, GENERATION_DURATION, HALVING_INTERVAL, SENDERS_PER_GENERATION, SKETCH_ROWS,
    SKETCH_WIDTH,
};

/// The first octets of a snapshot.
const SNAPSHOT_MAGIC: [u8; 8] = *b"SPWYBASE";
/// Version of the layout, and of the meaning of the keys that are counted.
const SNAPSHOT_VERSION: u8 = 1;
/// Octets of the longest LEB128 number: 64 bits, seven in each octet.
const NUMBER_OCTETS_MAX: usize = 10;
/// Octets of the longest count (32 bits) in LEB128.
const COUNT_OCTETS_MAX: usize = 5;
/// Octets of the checksum: SHA-256.
const CHECKSUM_OCTETS: usize = 32;
/// Octets before the numbers: the magic and the version.
const HEAD_OCTETS: usize = SNAPSHOT_MAGIC.len() + 1;

/// Why a snapshot cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The octets are no snapshot.
    #[error("it is no snapshot of this kind")]
    Foreign,
    /// Another version of the program wrote the snapshot, and this program does not know that version.
    #[error("it is of version {0}, and this program knows version {SNAPSHOT_VERSION}")]
    OtherVersion(u8),
    /// The octets are not those that were written: the checksum, the length or a value is wrong.
    #[error("it is damaged")]
    Damaged,
}

impl Baseline {
    /// Maximum size of a snapshot, in octets. [`decode`](Self::decode) refuses anything longer.
    pub const SNAPSHOT_OCTETS_MAX: usize = HEAD_OCTETS
        + 4 * NUMBER_OCTETS_MAX
        + 8
        + SKETCH_ROWS * SKETCH_WIDTH * COUNT_OCTETS_MAX
        + 2 * (NUMBER_OCTETS_MAX + SENDERS_PER_GENERATION * (NUMBER_OCTETS_MAX + COUNT_OCTETS_MAX))
        + CHECKSUM_OCTETS;

    /// Writes a snapshot. `now` and `wall` are the same moment on the steady clock and on the wall clock. A full baseline
    /// takes some milliseconds of processor time.
    pub fn encode(&self, now: Instant, wall: Timestamp) -> Vec<u8> {
        let age = |term: Duration, ends: Instant| {
            let age = term.saturating_sub(ends.saturating_duration_since(now));
            u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
        };
        let mut octets = SNAPSHOT_MAGIC.to_vec();
        octets.push(SNAPSHOT_VERSION);
        let written = u64::try_from(wall.as_millisecond()).unwrap_or_default();
        number(&mut octets, written);
        number(&mut octets, age(HALVING_INTERVAL, self.halves));
        number(&mut octets, age(GENERATION_DURATION, self.turns));
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

    /// Reads a snapshot, so that the baseline goes on at `now`, which is `wall` on the wall clock. The ages in the snapshot
    /// grow by the time in which no relay ran, as far as the wall clock tells: by nothing if the clock was set back, and
    /// never beyond the end of a period that has begun. So whatever the clock says, senders of the newer generation stay
    /// known for one whole further generation, and no sender stays longer than the time that was left to it while the relay
    /// runs.
    ///
    /// Errors: [`Unusable`] if the octets are no snapshot, of another version, or damaged.
    pub fn decode(octets: &[u8], now: Instant, wall: Timestamp) -> Result<Self, Unusable> {
        if octets.len() < HEAD_OCTETS || octets[..SNAPSHOT_MAGIC.len()] != SNAPSHOT_MAGIC {
            return Err(Unusable::Foreign);
        }
        let version = octets[SNAPSHOT_MAGIC.len()];
        if version != SNAPSHOT_VERSION {
            return Err(Unusable::OtherVersion(version));
        }
        let (said, checksum) = octets
            .split_last_chunk::<CHECKSUM_OCTETS>()
            .ok_or(Unusable::Damaged)?;
        if octets.len() > Self::SNAPSHOT_OCTETS_MAX || Sha256::digest(said)[..] != checksum[..] {
            return Err(Unusable::Damaged);
        }
        let body = said.get(HEAD_OCTETS..).unwrap_or_default();
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
    let (halves, turns) = (ends(HALVING_INTERVAL)?, ends(GENERATION_DURATION)?);
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
        // A run of length 0 would make this loop endless.
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

/// The octets that are left to read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for at in 0..NUMBER_OCTETS_MAX {
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
        if count > SENDERS_PER_GENERATION {
            return None;
        }
        let mut senders = HashMap::with_capacity(count);
        let mut before = 0_u64;
        for at in 0..count {
            let distance = self.number()?;
            // A distance of 0 would name a sender twice.
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
