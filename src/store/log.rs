//! A log: entries in a file of their own. Recording an entry never waits, and other processes can read the file meanwhile.
//!
//! Each entry goes into a bounded channel; if the channel is full, the entry is dropped and counted. A thread writes the
//! entries a few times a second, in one transaction ([`writer`]). The file is separate from the store's database, so that
//! neither can damage the other. It contains no mail: a damaged one is set aside and a new one is created, and if it cannot be
//! written, the relay starts and works without it, and says so ([`LogTrouble`]).
//!
//! Each type of [`Entry`] states its value: whether a commit waits for the disk, and how many entries may wait.

#[cfg(test)]
mod tests;
mod trouble;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::StoreError;
use crate::message::MessageId;

pub use trouble::LogTrouble;
use writer::LogWriter;

/// How long to wait for another process that has locked the file: 5 s, far longer than any read or write.
const DATABASE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A type of entry.
pub(super) trait Entry: Serialize + DeserializeOwned + Send + 'static {
    /// Name of the log in log lines and metrics.
    const LOG_NAME: &str;
    /// Maximum number of entries that wait for the thread.
    const WAITING_ENTRIES_MAX: usize;
    /// Maximum number of entries in the file, whatever their age.
    const ROWS_MAX: u64;
    /// Whether a commit survives power loss, and a failed write is tried again. If false, a commit does not wait for the disk,
    /// and the entries of a failed write are lost.
    const IS_DURABLE: bool;
    /// SQL that creates further tables in the file, if the log has some.
    const TABLES: &str = "";

    /// Time of the event. Retention counts from this time.
    fn at(&self) -> Timestamp;

    /// The message that the entry is about, if any.
    fn message(&self) -> Option<MessageId>;

    /// Writes the entry to one of the [`TABLES`](Self::TABLES), if it belongs there. `false`: it is an entry of the log itself.
    fn insert_beside(&self, _db: &Connection) -> rusqlite::Result<bool> {
        Ok(false)
    }

    /// Removes from the [`TABLES`](Self::TABLES) what is older than `cutoff` (seconds since 1970), and what is too much.
    fn prune_beside(_db: &Connection, _cutoff: i64) -> rusqlite::Result<()> {
        Ok(())
    }
}

/// An item in the channel to the thread.
enum Item<E> {
    Entry(Box<E>),
    /// The thread answers when everything before this item can be read.
    Flush(oneshot::Sender<()>),
    /// The thread answers when it knows whether the file can be written.
    Check(oneshot::Sender<()>),
    /// The thread writes the items before this one, and ends.
    Stop,
}

/// The writing end.
#[derive(Debug)]
pub(super) struct Log<E> {
    path: PathBuf,
    items: SyncSender<Item<E>>,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
    trouble: Arc<Mutex<Option<LogTrouble>>>,
    thread: Thread,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl<E: Entry> Log<E> {
    /// Opens the log file `path`, and creates it if it is missing. At most `rows` entries are kept, for `retention`. A file that
    /// cannot be opened is no error: [`Log::trouble`] then says so, and the log goes on trying. Blocks for a few milliseconds, and
    /// up to 5 seconds if another process has locked the file.
    ///
    /// # Errors
    /// The system has no thread for the log.
    pub(super) fn open(path: &Path, retention: Duration, rows: u64) -> Result<Self, StoreError> {
        let (items, queue) = sync_channel(E::WAITING_ENTRIES_MAX);
        let counts = (Arc::<AtomicUsize>::default(), Arc::<AtomicU64>::default());
        let (waiting, dropped) = counts.clone();
        let trouble = Arc::<Mutex<Option<LogTrouble>>>::default();
        let bounds = (retention, rows);
        let writer = LogWriter::new(path, queue, counts, trouble.clone(), bounds);
        let handle = std::thread::Builder::new()
            .name(E::LOG_NAME.to_owned())
            .spawn(move || writer.run())
            .map_err(|error| StoreError::Broken(format!("{} thread: {error}", E::LOG_NAME)))?;
        Ok(Self {
            path: path.to_owned(),
            items,
            waiting,
            dropped,
            trouble,
            thread: handle.thread().clone(),
            handle: Mutex::new(Some(handle)),
        })
    }

    /// A log whose entries go to a test and not to a file.
    #[cfg(test)]
    pub(super) fn detached() -> (Self, impl FnMut() -> Option<E> + Send) {
        let (items, queue) = sync_channel(E::WAITING_ENTRIES_MAX);
        let log = Self {
            path: PathBuf::new(),
            items,
            waiting: Arc::default(),
            dropped: Arc::default(),
            trouble: Arc::default(),
            thread: std::thread::current(),
            handle: Mutex::default(),
        };
        let next = move || match queue.try_recv() {
            Ok(Item::Entry(entry)) => Some(*entry),
            _ => None,
        };
        (log, next)
    }

    /// Path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Records an entry. Never waits: if the queue is full, the entry is dropped and counted.
    pub(super) fn note(&self, entry: E) {
        if self.items.try_send(Item::Entry(Box::new(entry))).is_err() {
            lost::<E>(&self.dropped, 1);
        } else if self.waiting.fetch_add(1, Ordering::Relaxed) == E::WAITING_ENTRIES_MAX / 2 {
            self.thread.unpark();
        }
    }

    /// Whether the queue is so full, or the file in such trouble, that what has less value should be left out.
    pub(super) fn is_crowded(&self) -> bool {
        let is_full = self.waiting.load(Ordering::Relaxed) > E::WAITING_ENTRIES_MAX / 2;
        is_full || self.trouble().is_some()
    }

    /// Number of entries lost since the start, because the queue was full or a write failed.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Why the log records nothing; `None` while it does.
    pub(super) fn trouble(&self) -> Option<LogTrouble> {
        let trouble = self.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Finds out whether the file can be written now, and waits for the result. If the queue is full, the result is that of the
    /// last write.
    ///
    /// Cancel safety: safe.
    pub(super) async fn check(&self) -> Option<LogTrouble> {
        let (done, checked) = oneshot::channel();
        if self.items.try_send(Item::Check(done)).is_ok() {
            self.thread.unpark();
            let _ = checked.await;
        }
        self.trouble()
    }

    /// Waits until all entries recorded before can be read. If the queue is full, this does not wait, and entries that are not
    /// written yet cannot be read.
    ///
    /// Cancel safety: safe.
    pub(super) async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.items.try_send(Item::Flush(done)).is_ok() {
            self.thread.unpark();
            // Without an answer, the thread has ended, and everything it wrote can be read.
            let _ = written.await;
        }
    }

    /// Writes the entries that wait, then ends. Later entries are dropped.
    ///
    /// Cancel safety: the close goes on.
    pub(super) async fn close(&self) {
        let handle = self
            .handle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(handle) = handle else { return };
        let items = self.items.clone();
        let end = move || {
            handle.thread().unpark();
            // Waits for room in the queue; fails only if the thread has ended.
            let _ = items.send(Item::Stop);
            handle.thread().unpark();
            handle.join()
        };
        if !matches!(tokio::task::spawn_blocking(end).await, Ok(Ok(()))) {
            tracing::warn!(
                log = E::LOG_NAME,
                "the thread of a log ended with an error; its last entries may be lost"
            );
        }
    }
}

fn lost<E: Entry>(dropped: &AtomicU64, count: u64) {
    dropped.fetch_add(count, Ordering::Relaxed);
    metrics::counter!("spillway_log_lost_total", "log" => E::LOG_NAME).increment(count);
}

/// Which entries to read, and in which order.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    /// Entries about one message, the oldest first.
    Of(MessageId),
    /// Entries since this time, the newest first.
    Since(Timestamp),
}

/// At most `limit` entries that `keep` accepts, read from a log that another process may be writing. Empty if there is no log.
///
/// Cancel safety: safe.
pub(super) async fn read<E: Entry>(
    path: &Path,
    wanted: Wanted,
    limit: usize,
    keep: impl FnMut(&E) -> bool + Send + 'static,
) -> Result<Vec<E>, StoreError> {
    query(path, move |db| entries(db, wanted, limit, keep)).await
}

/// The messages that the log has entries of and whose id begins with `prefix`, in the order of their ids, at most `limit`.
///
/// Cancel safety: safe.
pub(super) async fn messages(
    path: &Path,
    prefix: String,
    limit: usize,
) -> Result<Vec<MessageId>, StoreError> {
    query(path, move |db| {
        let sql =
            "SELECT DISTINCT message FROM entry WHERE message >= ?1 AND message < ?2 ORDER BY message LIMIT ?3";
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // No character of an id comes after `~`.
        let end = format!("{prefix}~");
        let mut statement = db.prepare(sql)?;
        let ids = statement.query_map((prefix, end, limit), |row| row.get::<_, String>(0))?;
        let ids = ids.collect::<rusqlite::Result<Vec<String>>>()?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    })
    .await
}

/// Opens the file of a log for a further writer. A file that is gone is not made again: it would have neither the log's table nor
/// its mode.
pub(super) fn open_existing(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    db.busy_timeout(DATABASE_BUSY_TIMEOUT)?;
    db.pragma_update(None, "synchronous", "normal")?;
    Ok(db)
}

/// Runs a query on a log that another process may be writing. The default value if there is no log.
pub(super) async fn query<T: Default + Send + 'static>(
    path: &Path,
    run: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let path = path.to_owned();
    let query = move || {
        if !path.exists() {
            return Ok(T::default());
        }
        let opened = Connection::open(&path).and_then(|db| {
            db.busy_timeout(DATABASE_BUSY_TIMEOUT)?;
            run(&db)
        });
        opened.map_err(|error| unreadable(&path, &error))
    };
    tokio::task::spawn_blocking(query)
        .await
        .map_err(|error| StoreError::Broken(error.to_string()))?
}

fn entries<E: Entry>(
    db: &Connection,
    wanted: Wanted,
    limit: usize,
    mut keep: impl FnMut(&E) -> bool,
) -> rusqlite::Result<Vec<E>> {
    let (condition, value) = match wanted {
        Wanted::Of(message) => ("message = ?1 ORDER BY seq", message.to_string().into()),
        Wanted::Since(at) => ("at >= ?1 ORDER BY seq DESC", at.as_second().into()),
    };
    let value: rusqlite::types::Value = value;
    let mut statement = db.prepare(&format!("SELECT entry FROM entry WHERE {condition}"))?;
    let mut rows = statement.query([value])?;
    let mut entries = Vec::new();
    while entries.len() < limit
        && let Some(row) = rows.next()?
    {
        match serde_json::from_str(&row.get::<_, String>(0)?) {
            Ok(entry) if keep(&entry) => entries.push(entry),
            Ok(_) => {}
            Err(error) => tracing::warn!(log = E::LOG_NAME, %error, "a log entry cannot be read"),
        }
    }
    Ok(entries)
}

/// The error of a log that a command cannot read, with what a person can do.
fn unreadable(path: &Path, error: &rusqlite::Error) -> StoreError {
    let advice = trouble::advice(path, error);
    StoreError::Broken(format!("{}: {error}; {advice}", path.display()))
}
