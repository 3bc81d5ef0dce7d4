//! Loading: a stored record becomes a message in memory again.

use std::sync::Arc;

use super::{Pipeline, events, lanes};
use crate::deadline::Deadline;
use crate::message::{Content, Message};
use crate::store::{Record, StoreError};

/// Why a message was not loaded.
#[derive(Debug)]
pub(super) enum LoadError {
    /// No memory became free within [`lanes::MEMORY_WAIT_MAX`].
    NoMemory,
    /// The store did not return the content; the error is logged.
    Store(StoreError),
}

impl Pipeline {
    /// Reads the message of a record. The content is read only after its memory is reserved.
    ///
    /// Cancel safety: safe.
    pub(super) async fn load(&self, record: &Record) -> Result<Message, LoadError> {
        let size = usize::try_from(record.size).unwrap_or(usize::MAX);
        let room = Deadline::after(lanes::MEMORY_WAIT_MAX).run(self.memory.acquire(size));
        let charge = room.await.map_err(|_| LoadError::NoMemory)?;
        let content = self.store.content(record.id).await.map_err(|error| {
            events::lane_failed("content", &error);
            LoadError::Store(error)
        })?;
        Ok(Message {
            id: record.message,
            received_at: record.received_at,
            envelope: Arc::new(record.envelope.clone()),
            trace: record.trace.clone(),
            content: Content::charged(content, charge),
            times: None,
        })
    }
}
