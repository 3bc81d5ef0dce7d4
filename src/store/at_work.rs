//! The records that this process works on, kept in memory: a lease in the store ends by a clock that may leap, but work does
//! not.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::message::MessageId;

/// The set of records in work. A store returns none of them to a worker, whatever their leases and the clock say.
#[derive(Debug, Clone, Default)]
pub struct AtWork(Arc<Mutex<HashMap<MessageId, usize>>>);

impl AtWork {
    /// Registers work on a record until the returned value is dropped. `None` if another worker has registered the record.
    pub fn begin(&self, id: MessageId) -> Option<Working> {
        let mut ids = self.ids();
        let began = !ids.contains_key(&id);
        began.then(|| {
            ids.insert(id, 1);
            self.working(id)
        })
    }

    /// Registers a second worker for a record that may be in work. The record stays in work until all workers have ended.
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

    /// Whether the record is in work.
    pub fn has(&self, id: MessageId) -> bool {
        self.ids().contains_key(&id)
    }

    /// All records in work, in no particular order. Their number is bounded by the slots of the workers.
    pub fn all(&self) -> Vec<MessageId> {
        self.ids().keys().copied().collect()
    }

    fn ids(&self) -> MutexGuard<'_, HashMap<MessageId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Registers work on a record until it is dropped. The result of the work must be durable before that.
#[derive(Debug)]
#[must_use = "if dropped at once, the record is no longer registered as in work"]
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
