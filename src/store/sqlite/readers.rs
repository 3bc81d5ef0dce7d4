//! A few connections that read, used on the blocking pool.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::health::Health;
use super::schema::{broken, open_reader};
use crate::store::StoreError;

/// The idle connections, and the permits to use one.
#[derive(Debug)]
pub(super) struct Readers {
    folder: PathBuf,
    health: Arc<Health>,
    idle: Arc<Mutex<Vec<Connection>>>,
    /// A file that must not be closed before the last connection.
    opened: Option<Arc<File>>,
    places: Arc<Semaphore>,
}

impl Readers {
    /// At most `count` connections. A tool opens them when they are needed. A relay opens them at once, so that they use the
    /// files that the relay has open, even if these are moved later.
    pub(super) fn new(
        folder: PathBuf,
        health: Arc<Health>,
        opened: Option<Arc<File>>,
        count: usize,
    ) -> Result<Self, StoreError> {
        let at_once = if opened.is_some() { count } else { 0 };
        let idle = (0..at_once).map(|_| open_reader(&folder));
        let idle = idle.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            folder,
            health,
            opened,
            idle: Arc::new(Mutex::new(idle)),
            places: Arc::new(Semaphore::new(count)),
        })
    }

    /// Runs `read` with a connection. If all connections are in use, callers wait.
    ///
    /// Cancel safety: safe; a read that has begun goes on without effect.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let place = self
            .places
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Closed)?;
        let (folder, pool, health) = (self.folder.clone(), self.idle.clone(), self.health.clone());
        let opened = self.opened.clone();
        let work = move || {
            let _opened = opened;
            let _place = place;
            let idle = pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = idle.map_or_else(|| open_reader(&folder), Ok);
            health.heard(&connection);
            let connection = connection?;
            let outcome = read(&connection);
            health.heard(&outcome);
            pool.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(connection);
            outcome
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| StoreError::Broken(error.to_string()))?
    }

    /// Like [`Readers::run`], for a read whose only errors are those of SQLite.
    pub(super) async fn query<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(move |db| read(db).map_err(|error| broken(&error)))
            .await
    }

    /// Closes the idle connections. Later calls get [`StoreError::Closed`].
    pub(super) fn close(&self) {
        self.places.close();
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}
