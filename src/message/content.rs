//! The content of a message and the memory it is charged to.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The header section and body exactly as received: CRLF lines, dot-stuffing undone, nothing added.
///
/// Clones share the bytes, their digest and the charge; the memory is given back to [`MemoryBudget`] when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Content {
    bytes: Bytes,
    digest: Arc<OnceLock<Digest>>,
    _charge: Option<Arc<Charge>>,
}

/// SHA-256 of all octets of a content: where it is equal, so is every octet. As text hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl Content {
    /// Content that nobody charges for: bounces we write, files given to `scan`.
    pub fn uncharged(bytes: impl Into<Bytes>) -> Self {
        Self {
            bytes: bytes.into(),
            digest: Arc::default(),
            _charge: None,
        }
    }

    /// Content whose memory is paid for by `charge`.
    pub fn charged(bytes: impl Into<Bytes>, charge: Charge) -> Self {
        Self {
            bytes: bytes.into(),
            digest: Arc::default(),
            _charge: Some(Arc::new(charge)),
        }
    }

    /// The octets.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The same without so many octets at its start; shares the bytes and the charge.
    #[must_use]
    pub fn without(&self, octets: usize) -> Self {
        Self {
            bytes: self.bytes.slice(octets.min(self.len())..),
            digest: Arc::default(),
            _charge: self._charge.clone(),
        }
    }

    /// Its digest; computed by whoever asks first, about 3 ms for a megabyte on a processor without instructions for it.
    pub fn digest(&self) -> Digest {
        *self
            .digest
            .get_or_init(|| Digest(Sha256::digest(&self.bytes).into()))
    }

    /// Octets.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is nothing at all, not even a header section.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The header section, up to and without the empty line.
    pub fn header_section(&self) -> &[u8] {
        super::header::section(&self.bytes)
    }
}

/// `limits.in_flight_bytes`: the memory that all messages in flight may hold together.
///
/// A message is charged [`MemoryBudget::FACTOR`] octets for each of its own, because scanning decodes its parts beside
/// it, and [`MemoryBudget::OVERHEAD`] for being one, so that a flood of tiny messages is bounded too. Large messages may
/// hold three quarters of the budget together and no more, so that however many of them are in flight, small mail always
/// finds room.
#[derive(Debug, Clone)]
pub struct MemoryBudget {
    all: Arc<Semaphore>,
    large: Arc<Semaphore>,
    total: usize,
}

/// Part of the [`MemoryBudget`], given back on drop.
#[derive(Default)]
pub struct Charge {
    permits: Vec<OwnedSemaphorePermit>,
    /// Of content.
    octets: usize,
    /// Of everything that is not content.
    beside: usize,
    keepsake: Option<Box<dyn Any + Send + Sync>>,
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Charge")
            .field("octets", &self.octets)
            .field("beside", &self.beside)
            .finish_non_exhaustive()
    }
}

impl MemoryBudget {
    /// Octets charged per octet of content: the content itself and its decoded parts.
    pub const FACTOR: usize = 2;
    /// Octets charged for a message in flight beside its content: the session's buffers, the tasks and timers of its
    /// scans, its part of a connection to the next hop, its entries in tables and in the history. Measured, see
    /// docs/BENCHMARKS.md, "Memory".
    pub const OVERHEAD: usize = 32 * 1024;
    /// Semaphore permits stand for this many octets.
    const UNIT: usize = 1024;
    /// From this many octets of content on, a message is large.
    const LARGE: usize = 256 * 1024;

    /// A budget of `octets`.
    pub fn new(octets: u64) -> Self {
        let units = usize::try_from(octets)
            .unwrap_or(usize::MAX)
            .div_ceil(Self::UNIT)
            .min(u32::MAX as usize);
        Self {
            all: Arc::new(Semaphore::new(units)),
            large: Arc::new(Semaphore::new(units / 4 * 3)),
            total: units,
        }
    }

    /// Raises `charge` so that it covers `octets` of content; false when the budget is used up. Never waits: the caller
    /// answers 452 and the client, which still has the message, tries again.
    #[must_use]
    pub fn try_extend(&self, charge: &mut Charge, octets: usize) -> bool {
        let wanted = octets.saturating_sub(charge.octets);
        if wanted == 0 {
            return true;
        }
        let Ok(units) = u32::try_from((wanted * Self::FACTOR).div_ceil(Self::UNIT)) else {
            return false;
        };
        let large = if octets > Self::LARGE {
            // What it was charged while it still looked small counts as well.
            let before = match charge.octets > Self::LARGE {
                true => 0,
                false => charge.units(),
            };
            match self.large.clone().try_acquire_many_owned(before + units) {
                Ok(permit) => Some(permit),
                Err(_) => return false,
            }
        } else {
            None
        };
        let Ok(all) = self.all.clone().try_acquire_many_owned(units) else {
            return false;
        };
        charge.permits.push(all);
        charge.permits.extend(large);
        charge.octets += units as usize * Self::UNIT / Self::FACTOR;
        true
    }

    /// Raises `charge` so that it covers `octets` beside the content (envelope, [`MemoryBudget::OVERHEAD`]); false when
    /// the budget is used up. Never waits.
    #[must_use]
    pub fn try_hold(&self, charge: &mut Charge, octets: usize) -> bool {
        let wanted = octets.saturating_sub(charge.beside);
        if wanted == 0 {
            return true;
        }
        let units = wanted.div_ceil(Self::UNIT);
        let permits =
            u32::try_from(units).map(|units| self.all.clone().try_acquire_many_owned(units));
        let Ok(Ok(permit)) = permits else {
            return false;
        };
        charge.permits.push(permit);
        charge.beside += units * Self::UNIT;
        true
    }

    /// A charge for `octets` of content and [`MemoryBudget::OVERHEAD`], waiting for room: for background work, which has
    /// no client to send away.
    ///
    /// Cancel safety: safe; a dropped wait holds nothing.
    pub async fn acquire(&self, octets: usize) -> Charge {
        let wanted = octets
            .saturating_mul(Self::FACTOR)
            .saturating_add(Self::OVERHEAD)
            .div_ceil(Self::UNIT);
        let mut permits = Vec::new();
        // A message larger than the whole budget (the limit was lowered since it was accepted) gets its turn alone.
        for (semaphore, size, applies) in [
            (&self.large, self.total / 4 * 3, octets > Self::LARGE),
            (&self.all, self.total, true),
        ] {
            let units = u32::try_from(wanted.min(size)).unwrap_or(u32::MAX);
            if applies && let Ok(permit) = semaphore.clone().acquire_many_owned(units).await {
                permits.push(permit);
            }
        }
        Charge {
            permits,
            octets,
            beside: Self::OVERHEAD,
            keepsake: None,
        }
    }

    /// Octets not charged to anybody now.
    pub fn available(&self) -> u64 {
        (self.all.available_permits() * Self::UNIT) as u64
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        (self.total * Self::UNIT) as u64
    }
}

impl Charge {
    /// Octets of content covered.
    pub fn octets(&self) -> usize {
        self.octets
    }

    /// Octets covered beside the content.
    pub fn beside(&self) -> usize {
        self.beside
    }

    /// Octets of the budget that it holds, those for decoded parts included.
    pub fn held(&self) -> usize {
        self.octets * MemoryBudget::FACTOR + self.beside
    }

    /// Drops `keepsake` together with the charge: what its owner keeps for as long as the message is in memory.
    pub fn keep(&mut self, keepsake: impl Any + Send + Sync) {
        self.keepsake = Some(Box::new(keepsake));
    }

    /// The content in permits of [`MemoryBudget::all`].
    fn units(&self) -> u32 {
        let units = self.octets * MemoryBudget::FACTOR / MemoryBudget::UNIT;
        u32::try_from(units).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many large messages are in flight, a small one finds room.
    #[test]
    fn large_messages_leave_room_for_small_ones() {
        let budget = MemoryBudget::new(64 << 20);
        let mut held = Vec::new();
        loop {
            let mut charge = Charge::default();
            if !budget.try_extend(&mut charge, 1 << 20) {
                break;
            }
            held.push(charge);
        }
        assert_eq!(
            held.len(),
            24,
            "three quarters of 64 MiB, two octets for one"
        );
        let mut small = Charge::default();
        assert!(budget.try_extend(&mut small, 64 << 10));
    }

    /// The same for messages that come in piece by piece, as all do, and for those that the lanes take up.
    #[tokio::test(start_paused = true)]
    async fn a_message_that_grows_large_counts_as_large_from_its_first_octet() {
        let budget = MemoryBudget::new(64 << 20);
        let mut held = Vec::new();
        'filled: loop {
            let mut charge = Charge::default();
            for octets in (1..=300).map(|kib| kib << 10) {
                if !budget.try_extend(&mut charge, octets) {
                    break 'filled;
                }
            }
            held.push(charge);
        }
        assert_eq!(held.len(), 48 * 1024 / 600);
        let stored = crate::deadline::Deadline::after(std::time::Duration::from_secs(1));
        let more = stored.run(budget.acquire(1 << 20)).await;
        assert!(more.is_err(), "it waits for room among the large ones");
        let mut small = Charge::default();
        assert!(budget.try_extend(&mut small, 64 << 10));
    }

    /// A message costs memory however small it is: that is charged too, or a flood of tiny ones would be without bound.
    #[test]
    fn tiny_messages_are_bounded_by_what_each_costs_beside_its_content() {
        let budget = MemoryBudget::new(1 << 20);
        let tiny = || {
            let mut charge = Charge::default();
            let held = budget.try_hold(&mut charge, MemoryBudget::OVERHEAD)
                && budget.try_extend(&mut charge, 1);
            held.then_some(charge)
        };
        let held: Vec<Charge> = std::iter::from_fn(tiny).collect();
        assert_eq!(held.len(), (1 << 20) / (MemoryBudget::OVERHEAD + 1024));
        let sum: usize = held.iter().map(Charge::held).sum();
        assert_eq!(budget.total() - budget.available(), sum as u64);
        drop(held);
        assert_eq!(budget.available(), budget.total());
    }

    /// A digest is that of SHA-256 (FIPS 180-4), of all octets and of these alone, whoever has asked for it before.
    #[test]
    fn a_digest_is_about_every_octet() {
        let content = Content::uncharged("abc");
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(content.digest().to_string(), known);
        assert_eq!(content.clone().digest(), content.digest());
        let rest = content.without(1);
        assert_eq!(rest.digest(), Content::uncharged("bc").digest());
        assert_ne!(rest.digest(), content.digest());
    }

    /// What was charged is given back, all of it, with the last clone of the content.
    #[test]
    fn memory_is_given_back_with_the_last_clone() {
        let budget = MemoryBudget::new(1 << 20);
        let before = budget.available();
        let mut charge = Charge::default();
        assert!(budget.try_extend(&mut charge, 1000));
        assert!(budget.try_extend(&mut charge, 100_000));
        let content = Content::charged(vec![0; 100_000], charge);
        let copy = content.clone();
        drop(content);
        assert!(budget.available() < before);
        drop(copy);
        assert_eq!(budget.available(), before);
    }
}
