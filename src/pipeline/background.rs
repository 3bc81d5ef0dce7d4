//! Slots for work that continues at once after its 250, without a claim by the lanes: a limit in total, and a limit for the
//! deliveries to one next hop.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Pipeline;
use crate::deadline::Deadline;

/// Maximum number of messages in background work.
const BACKGROUND_SLOTS: usize = 256;

/// The slots.
#[derive(Debug, Clone, Default)]
pub(super) struct Background(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    slots: usize,
    /// Number of slots whose message is delivered too, by next hop.
    delivering: HashMap<Arc<str>, usize>,
}

/// One slot, until it is dropped.
#[derive(Debug)]
#[must_use = "dropped at once, it is free again"]
pub(super) struct Slot {
    of: Background,
    hop: Option<Arc<str>>,
}

impl Background {
    /// Takes a slot for a message to that next hop; `None` if all slots are taken.
    ///
    /// A next hop gets slots for delivery only while it has fewer of them than are free (a dynamic threshold: Choudhury, Hahne,
    /// IEEE/ACM Transactions on Networking 1998). So k hung next hops get one part in k + 1 each, and one such part is left to
    /// all others. A message beyond that is only scanned in its slot, and delivered from the queue of its next hop.
    pub(super) fn begin(&self, hop: Option<Arc<str>>) -> Option<Slot> {
        let mut taken = self.taken();
        if taken.slots >= BACKGROUND_SLOTS {
            return None;
        }
        let free = BACKGROUND_SLOTS - taken.slots;
        taken.slots += 1;
        let hop = hop.filter(|hop| {
            let of_hop = taken.delivering.entry(hop.clone()).or_default();
            let has_room = *of_hop < free;
            *of_hop += usize::from(has_room);
            has_room
        });
        let of = self.clone();
        Some(Slot { of, hop })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Whether the message may be delivered in it.
    pub(super) fn delivers(&self) -> bool {
        self.hop.is_some()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        taken.slots -= 1;
        if let Some(hop) = self.hop.take()
            && let Entry::Occupied(mut count) = taken.delivering.entry(hop)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

impl Pipeline {
    /// Waits until `deadline` for work that continues after its 250; returns whether all of it ended. Unfinished work is stored
    /// and continues after the next start.
    ///
    /// Cancel safety: safe.
    pub async fn drained(&self, deadline: Deadline) -> bool {
        self.tasks.close();
        deadline.run(self.tasks.wait()).await.is_ok()
    }

    /// Tells the lanes that records may be due, and that next hops may work again.
    pub fn wake(&self) {
        self.generation.load().delivery.nudge();
        self.wake.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Next hops that hang leave slots to all others, however much mail there is for them, and their mail is still scanned.
    #[test]
    fn next_hops_that_hang_leave_slots_to_others() {
        for hanging in [1, 2, 15] {
            let background = Background::default();
            let mut slots = Vec::new();
            for round in 0..10 * BACKGROUND_SLOTS {
                let hop: Arc<str> = format!("hop {}", round % hanging).into();
                let slot = background.begin(Some(hop)).expect("a slot");
                // A slot that is only for a scan ends soon.
                slots.extend(Some(slot).filter(Slot::delivers));
            }
            let left = BACKGROUND_SLOTS - slots.len();
            assert!(
                left >= BACKGROUND_SLOTS / (hanging + 1),
                "{left} beside {hanging}"
            );
            let other = background.begin(Some("other".into()));
            assert!(other.is_some_and(|slot| slot.delivers()));
            slots.clear();
            let all: Vec<_> = (0..BACKGROUND_SLOTS)
                .map_while(|_| background.begin(None))
                .collect();
            assert_eq!(all.len(), BACKGROUND_SLOTS);
            assert!(background.begin(None).is_none());
        }
    }
}
