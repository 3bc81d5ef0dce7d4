//! Work after 250 that goes on at once, without being taken up from the store: how much of it there may be, and how much of that
//! may wait for one next hop.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Messages at once.
const SLOTS: usize = 256;

/// The slots.
#[derive(Debug, Clone, Default)]
pub(super) struct Background(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    slots: usize,
    /// Those of them in which a message is delivered too, by next hop.
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
    /// Takes a slot for a message to that next hop; none if all are taken.
    ///
    /// A next hop may have no more of them than are free (a dynamic threshold: Choudhury, Hahne, IEEE/ACM Transactions on
    /// Networking 1998). So of k that hang each has one part in k + 1, and as much is left to all others; what is beyond that is
    /// scanned here, and delivered from the queue of its next hop.
    pub(super) fn begin(&self, hop: Option<Arc<str>>) -> Option<Slot> {
        let mut taken = self.taken();
        if taken.slots >= SLOTS {
            return None;
        }
        let free = SLOTS - taken.slots;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Next hops that hang leave slots to all others, however much mail there is for them, and mail for them is scanned all the
    /// same.
    #[test]
    fn next_hops_that_hang_leave_slots_to_others() {
        for hanging in [1, 2, 15] {
            let background = Background::default();
            let mut slots = Vec::new();
            for round in 0..10 * SLOTS {
                let hop: Arc<str> = format!("hop {}", round % hanging).into();
                let slot = background.begin(Some(hop)).expect("a slot");
                // What is only scanned ends soon.
                slots.extend(Some(slot).filter(Slot::delivers));
            }
            let left = SLOTS - slots.len();
            assert!(left >= SLOTS / (hanging + 1), "{left} beside {hanging}");
            let other = background.begin(Some("other".into()));
            assert!(other.is_some_and(|slot| slot.delivers()));
            slots.clear();
            let all: Vec<_> = (0..SLOTS).map_while(|_| background.begin(None)).collect();
            assert_eq!(all.len(), SLOTS);
            assert!(background.begin(None).is_none());
        }
    }
}
