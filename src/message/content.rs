//! The content of a message and the memory it is charged to.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The header section and body exactly as received: CRLF lines, dot-stuffing undone, nothing added.
///
/// Clones share the bytes and the charge; the memory is given back to [`MemoryBudget`] when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Content {
    bytes: Bytes,
    _charge: Option<Arc<Charge>>,
}

impl Content {
    /// Content that nobody charges for: bounces we write, files given to `scan`.
    pub fn uncharged(bytes: impl Into<Bytes>) -> Self {
        Self {
            bytes: bytes.into(),
            _charge: None,
        }
    }

    /// Content whose memory is paid for by `charge`.
    pub fn charged(bytes: impl Into<Bytes>, charge: Charge) -> Self {
        Self {
            bytes: bytes.into(),
            _charge: Some(Arc::new(charge)),
        }
    }

    /// The octets.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
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
/// it. Large messages may hold three quarters of the budget together and no more, so that however many of them are in
/// flight, small mail always finds room.
#[derive(Debug, Clone)]
pub struct MemoryBudget {
    all: Arc<Semaphore>,
    large: Arc<Semaphore>,
    total: usize,
}

/// Part of the [`MemoryBudget`], given back on drop.
#[derive(Debug, Default)]
pub struct Charge {
    permits: Vec<OwnedSemaphorePermit>,
    octets: usize,
}

impl MemoryBudget {
    /// Octets charged per octet of content: the content itself and its decoded parts.
    pub const FACTOR: usize = 2;
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

    /// A charge for `octets` of content, waiting for room: for background work, which has no client to send away.
    ///
    /// Cancel safety: safe; a dropped wait holds nothing.
    pub async fn acquire(&self, octets: usize) -> Charge {
        let wanted = octets.saturating_mul(Self::FACTOR).div_ceil(Self::UNIT);
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
        Charge { permits, octets }
    }

    /// Octets not charged to anybody now.
    pub fn available(&self) -> u64 {
        (self.all.available_permits() * Self::UNIT) as u64
    }
}

impl Charge {
    /// Octets of content covered.
    pub fn octets(&self) -> usize {
        self.octets
    }

    /// The same in permits of [`MemoryBudget::all`].
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
