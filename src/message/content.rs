//! The content of a message and the memory it is charged to.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The header section and body exactly as received: CRLF lines, dot-stuffing undone, nothing added.
///
/// Clones share the bytes, their digest and the charge. [`MemoryBudget`] gets the memory back when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Content {
    bytes: Bytes,
    digest: Arc<OnceLock<Digest>>,
    _charge: Option<Arc<Charge>>,
}

/// SHA-256 of all octets of a content: contents with equal digests have equal octets. As text: hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl Content {
    /// Content without a charge: bounces that the relay writes, and files for `scan`.
    pub fn uncharged(bytes: impl Into<Bytes>) -> Self {
        Self {
            bytes: bytes.into(),
            digest: Arc::default(),
            _charge: None,
        }
    }

    /// Content whose memory `charge` covers.
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

    /// The content without this number of octets at its start; shares the bytes and the charge.
    #[must_use]
    pub fn without(&self, octets: usize) -> Self {
        Self {
            bytes: self.bytes.slice(octets.min(self.len())..),
            digest: Arc::default(),
            _charge: self._charge.clone(),
        }
    }

    /// The digest, computed at the first call: about 3 ms for 1 MB on a processor without instructions for it.
    pub fn digest(&self) -> Digest {
        *self
            .digest
            .get_or_init(|| Digest(Sha256::digest(&self.bytes).into()))
    }

    /// Number of octets.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the content has no octets at all, not even a header section.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The header section, without the empty line after it.
    pub fn header_section(&self) -> &[u8] {
        super::header::section(&self.bytes)
    }
}

/// `limits.in_flight_bytes`: the memory that all messages in flight may use together.
///
/// A message is charged [`MemoryBudget::OCTETS_PER_CONTENT_OCTET`] octets for each octet of content, because scanning decodes
/// its parts in addition. It is also charged [`MemoryBudget::MESSAGE_OVERHEAD_OCTETS`], so that a flood of tiny messages is
/// bounded too. Large messages together may use at most three quarters of the budget, so that small mail always finds room,
/// whatever the number of large messages in flight.
#[derive(Debug, Clone)]
pub struct MemoryBudget {
    all: Arc<Semaphore>,
    large: Arc<Semaphore>,
    total: usize,
}

/// A part of the [`MemoryBudget`], returned when it is dropped.
#[derive(Default)]
pub struct Charge {
    permits: Vec<OwnedSemaphorePermit>,
    /// Octets of content covered.
    octets: usize,
    /// Octets covered in addition to the content.
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
    /// Octets charged per octet of content: one for the content itself and one for its decoded parts.
    pub const OCTETS_PER_CONTENT_OCTET: usize = 2;
    /// Octets charged for a message in flight in addition to its content: the session's buffers, the tasks and timers of its
    /// scans, its part of a connection to the next hop, its entries in tables and in the history. Measured: see
    /// docs/BENCHMARKS.md, "Memory".
    pub const MESSAGE_OVERHEAD_OCTETS: usize = 32 * 1024;
    /// Octets per semaphore permit.
    const OCTETS_PER_PERMIT: usize = 1024;
    /// A message with more content than 256 KiB is large.
    const SMALL_CONTENT_OCTETS_MAX: usize = 256 * 1024;

    /// A budget of `octets`.
    pub fn new(octets: u64) -> Self {
        let units = usize::try_from(octets)
            .unwrap_or(usize::MAX)
            .div_ceil(Self::OCTETS_PER_PERMIT)
            .min(u32::MAX as usize);
        Self {
            all: Arc::new(Semaphore::new(units)),
            large: Arc::new(Semaphore::new(units / 4 * 3)),
            total: units,
        }
    }

    /// Raises `charge` so that it covers `octets` of content; returns false if the budget is used up. Never waits: the caller
    /// answers 452, and the client, which still has the message, tries again.
    #[must_use]
    pub fn try_extend(&self, charge: &mut Charge, octets: usize) -> bool {
        let wanted = octets.saturating_sub(charge.octets);
        if wanted == 0 {
            return true;
        }
        let Ok(units) = u32::try_from(
            (wanted * Self::OCTETS_PER_CONTENT_OCTET).div_ceil(Self::OCTETS_PER_PERMIT),
        ) else {
            return false;
        };
        let large = if octets > Self::SMALL_CONTENT_OCTETS_MAX {
            // The charge from the time when the message still counted as small counts as large too.
            let before = match charge.octets > Self::SMALL_CONTENT_OCTETS_MAX {
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
        charge.octets += units as usize * Self::OCTETS_PER_PERMIT / Self::OCTETS_PER_CONTENT_OCTET;
        true
    }

    /// Raises `charge` so that it covers `octets` in addition to the content (envelope,
    /// [`MemoryBudget::MESSAGE_OVERHEAD_OCTETS`]); returns false if the budget is used up. Never waits.
    #[must_use]
    pub fn try_hold(&self, charge: &mut Charge, octets: usize) -> bool {
        let wanted = octets.saturating_sub(charge.beside);
        if wanted == 0 {
            return true;
        }
        let units = wanted.div_ceil(Self::OCTETS_PER_PERMIT);
        let permits =
            u32::try_from(units).map(|units| self.all.clone().try_acquire_many_owned(units));
        let Ok(Ok(permit)) = permits else {
            return false;
        };
        charge.permits.push(permit);
        charge.beside += units * Self::OCTETS_PER_PERMIT;
        true
    }

    /// A charge for `octets` of content and [`MemoryBudget::MESSAGE_OVERHEAD_OCTETS`]. Waits for room: for background work,
    /// where no client could try again.
    ///
    /// Cancel safety: safe; a dropped wait holds nothing.
    pub async fn acquire(&self, octets: usize) -> Charge {
        let wanted = octets
            .saturating_mul(Self::OCTETS_PER_CONTENT_OCTET)
            .saturating_add(Self::MESSAGE_OVERHEAD_OCTETS)
            .div_ceil(Self::OCTETS_PER_PERMIT);
        let mut permits = Vec::new();
        // A message larger than the whole budget (the limit was lowered after it was accepted) waits until it can have the
        // whole budget.
        for (semaphore, size, applies) in [
            (
                &self.large,
                self.total / 4 * 3,
                octets > Self::SMALL_CONTENT_OCTETS_MAX,
            ),
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
            beside: Self::MESSAGE_OVERHEAD_OCTETS,
            keepsake: None,
        }
    }

    /// Octets that are not charged.
    pub fn available(&self) -> u64 {
        (self.all.available_permits() * Self::OCTETS_PER_PERMIT) as u64
    }

    /// The whole budget in octets.
    pub fn total(&self) -> u64 {
        (self.total * Self::OCTETS_PER_PERMIT) as u64
    }
}

impl Charge {
    /// Octets of content covered.
    pub fn octets(&self) -> usize {
        self.octets
    }

    /// Octets covered in addition to the content.
    pub fn beside(&self) -> usize {
        self.beside
    }

    /// Octets of the budget in this charge, including those for decoded parts.
    pub fn held(&self) -> usize {
        self.octets * MemoryBudget::OCTETS_PER_CONTENT_OCTET + self.beside
    }

    /// Keeps `keepsake` until the charge is dropped, so that its owner keeps it as long as the message is in memory.
    pub fn keep(&mut self, keepsake: impl Any + Send + Sync) {
        self.keepsake = Some(Box::new(keepsake));
    }

    /// The charge for the content, in permits of [`MemoryBudget::all`].
    fn units(&self) -> u32 {
        let units =
            self.octets * MemoryBudget::OCTETS_PER_CONTENT_OCTET / MemoryBudget::OCTETS_PER_PERMIT;
        u32::try_from(units).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the number of large messages in flight, a small one finds room.
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

    /// The same holds for messages that arrive piece by piece, as all do, and for stored messages.
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

    /// The overhead of a message is charged too. Otherwise a flood of tiny messages would be unbounded.
    #[test]
    fn tiny_messages_are_bounded_by_their_overhead() {
        let budget = MemoryBudget::new(1 << 20);
        let tiny = || {
            let mut charge = Charge::default();
            let held = budget.try_hold(&mut charge, MemoryBudget::MESSAGE_OVERHEAD_OCTETS)
                && budget.try_extend(&mut charge, 1);
            held.then_some(charge)
        };
        let held: Vec<Charge> = std::iter::from_fn(tiny).collect();
        assert_eq!(
            held.len(),
            (1 << 20) / (MemoryBudget::MESSAGE_OVERHEAD_OCTETS + 1024)
        );
        let sum: usize = held.iter().map(Charge::held).sum();
        assert_eq!(budget.total() - budget.available(), sum as u64);
        drop(held);
        assert_eq!(budget.available(), budget.total());
    }

    /// The digest is the SHA-256 (FIPS 180-4) of all octets and of no others, even if the digest of a larger content was
    /// computed before.
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

    /// The whole charge is returned with the last clone of the content.
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
