//! The records that this process works on, known in memory: a lease in the store ends by a clock that may leap, work does not.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::message::MessageId;

/// Which they are. A store hands out none of them, whatever it says of their leases and whatever time it is.
#[derive(Debug, Clone, Default)]
pub struct AtWork(Arc<Mutex<HashSet<MessageId>>>);

impl AtWork {
    /// Work on a record begins, and goes on until what is returned is dropped; `None` if somebody works on it already.
    pub fn begin(&self, id: MessageId) -> Option<Working> {
        let began = self.ids().insert(id);
        began.then(|| Working {
            among: self.clone(),
            id,
        })
    }

    /// Whether somebody works on it.
    pub fn has(&self, id: MessageId) -> bool {
        self.ids().contains(&id)
    }

    fn ids(&self) -> MutexGuard<'_, HashSet<MessageId>> {
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
        self.among.ids().remove(&self.id);
    }
}
