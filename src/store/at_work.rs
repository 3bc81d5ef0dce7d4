//! The records that this process works on, known in memory: a lease in the store ends by a clock that may leap, work does not.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::message::MessageId;

/// Which they are. A store hands out none of them, whatever it says of their leases and whatever time it is.
#[derive(Debug, Clone, Default)]
pub struct AtWork(Arc<Mutex<HashMap<MessageId, usize>>>);

impl AtWork {
    /// Work on a record begins, and goes on until what is returned is dropped; `None` if somebody works on it already.
    pub fn begin(&self, id: MessageId) -> Option<Working> {
        let mut ids = self.ids();
        let began = !ids.contains_key(&id);
        began.then(|| {
            ids.insert(id, 1);
            self.working(id)
        })
    }

    /// As [`AtWork::begin`] for who goes on with what another has begun, and ends it after that one.
    pub fn go_on(&self, id: MessageId) -> Working {
        *self.ids().entry(id).or_default() += 1;
        self.working(id)
    }

    fn working(&self, id: MessageId) -> Working {
        Working {
            among: self.clone(),
            id,
        }
    }

    /// Whether somebody works on it.
    pub fn has(&self, id: MessageId) -> bool {
        self.ids().contains_key(&id)
    }

    fn ids(&self) -> MutexGuard<'_, HashMap<MessageId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody works on a record as long as this is there. What became of it must be durable before it is dropped.
#[derive(Debug)]
#[must_use = "dropped at once, it says that nobody works on the record"]
pub struct Working {
    among: AtWork,
    id: MessageId,
}

impl Drop for Working {
    fn drop(&mut self) {
        let mut ids = self.among.ids();
        if let Entry::Occupied(mut count) = ids.entry(self.id) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}
