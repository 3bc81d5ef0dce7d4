//! A log: entries in a file of their own. Recording an entry never waits, and other processes can read the file meanwhile.
//!
//! Each entry goes into a bounded channel; if the channel is full, the entry is dropped and counted. A thread writes the
//! entries a few times a second, in one transaction. The file is separate from the store's database, so that neither can
//! damage the other. If the file cannot be opened, it is set aside and a new one is created, because it contains no mail.
//!
//! Each type of [`Entry`] states its value: whether a commit waits for the disk, and how many entries may wait.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::StoreError;
use super::sqlite::is_corrupt;
use crate::deadline::leapt_since;
use crate::message::MessageId;

/// How long an entry may wait for other entries, so that they are written together: 250 ms. A reader sees each entry within a
/// second, and four transactions a second cost little.
const ENTRY_BATCH_WAIT: Duration = Duration::from_millis(250);
/// After a failed write, how long the thread waits for new entries before it tries again.
const WRITE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
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
    /// Whether the last write failed.
    fails: Arc<AtomicBool>,
    thread: Thread,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl<E: Entry> Log<E> {
    /// Opens the log file `path`, and creates it if it is missing. At most `rows` entries are kept, for `retention`. The
    /// folder must exist. Blocks for a few milliseconds.
    pub(super) fn open(path: &Path, retention: Duration, rows: u64) -> Result<Self, StoreError> {
        let db = open_or_begin_anew::<E>(path)?;
        let (items, queue) = sync_channel(E::WAITING_ENTRIES_MAX);
        let waiting = Arc::new(AtomicUsize::new(0));
        let dropped = Arc::new(AtomicU64::new(0));
        let fails = Arc::new(AtomicBool::new(false));
        let writer = LogWriter {
            db,
            items: queue,
            waiting: waiting.clone(),
            dropped: dropped.clone(),
            fails: fails.clone(),
            retention,
            rows: i64::try_from(rows).unwrap_or(i64::MAX),
        };
        let handle = std::thread::Builder::new()
            .name(E::LOG_NAME.to_owned())
            .spawn(move || writer.run())
            .map_err(|error| StoreError::Broken(format!("{} thread: {error}", E::LOG_NAME)))?;
        Ok(Self {
            path: path.to_owned(),
            items,
            waiting,
            dropped,
            fails,
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
            fails: Arc::default(),
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

    /// Whether the queue is so full, or the disk so bad, that what has less value should be left out.
    pub(super) fn is_crowded(&self) -> bool {
        let is_full = self.waiting.load(Ordering::Relaxed) > E::WAITING_ENTRIES_MAX / 2;
        is_full || self.fails.load(Ordering::Relaxed)
    }

    /// Number of entries lost since the start, because the queue was full or a write failed.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
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
        opened.map_err(|error| StoreError::Broken(format!("{}: {error}", path.display())))
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

fn open_or_begin_anew<E: Entry>(path: &Path) -> Result<Connection, StoreError> {
    let failed = |error| StoreError::Broken(format!("{}: {error}", path.display()));
    match open::<E>(path) {
        Err(error) if is_corrupt(&error) => {
            let aside = path.with_extension("db.damaged");
            tracing::error!(log = E::LOG_NAME, path = %path.display(), %error, aside = %aside.display(),
                "a log is damaged; the relay sets it aside and creates a new one");
            // If the rename fails, the second attempt to open fails too, with the reason.
            let _ = std::fs::rename(path, aside);
            for suffix in ["db-wal", "db-shm"] {
                let _ = std::fs::remove_file(path.with_extension(suffix));
            }
            open::<E>(path).map_err(failed)
        }
        outcome => outcome.map_err(failed),
    }
}

fn open<E: Entry>(path: &Path) -> rusqlite::Result<Connection> {
    // The relay creates the file because of the mode, which SQLite copies to its other files. If this fails, SQLite reports
    // the cause.
    let _ = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    let db = Connection::open(path)?;
    db.busy_timeout(DATABASE_BUSY_TIMEOUT)?;
    db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    // "normal" flushes only at checkpoints: that keeps the file intact, and costs nothing otherwise.
    let synchronous = if E::IS_DURABLE { "full" } else { "normal" };
    db.pragma_update(None, "synchronous", synchronous)?;
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS entry (seq INTEGER PRIMARY KEY, message TEXT NOT NULL, at INTEGER NOT NULL, \
         entry TEXT NOT NULL) STRICT;
         CREATE INDEX IF NOT EXISTS by_message ON entry (message);",
    )?;
    db.execute_batch(E::TABLES)?;
    Ok(db)
}

/// The thread that writes.
struct LogWriter<E> {
    db: Connection,
    items: Receiver<Item<E>>,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
    fails: Arc<AtomicBool>,
    retention: Duration,
    rows: i64,
}

impl<E: Entry> LogWriter<E> {
    fn run(mut self) {
        let mut entries: Vec<Box<E>> = Vec::new();
        loop {
            let first = if entries.is_empty() {
                self.items.recv().map_err(RecvTimeoutError::from)
            } else {
                self.items.recv_timeout(WRITE_RETRY_INTERVAL)
            };
            if matches!(first, Err(RecvTimeoutError::Disconnected)) {
                return;
            }
            if matches!(first, Ok(Item::Entry(_))) {
                // More entries come in the meantime. The thread is woken early only by the entry that fills half of the queue,
                // so recording an entry costs no wake-up.
                std::thread::park_timeout(ENTRY_BATCH_WAIT);
            }
            let (mut flushed, mut stop) = (Vec::new(), false);
            let mut taken = 0;
            for item in first
                .into_iter()
                .chain(self.items.try_iter().take(E::WAITING_ENTRIES_MAX))
            {
                match item {
                    Item::Entry(entry) => {
                        entries.push(entry);
                        taken += 1;
                    }
                    Item::Flush(done) => flushed.push(done),
                    Item::Stop => stop = true,
                }
            }
            self.waiting.fetch_sub(taken, Ordering::Relaxed);
            self.write(&mut entries);
            for done in flushed {
                let _ = done.send(());
            }
            if stop {
                return self.lose(&entries);
            }
        }
    }

    /// Writes the entries. Entries that remain in the list are to be written again.
    fn write(&mut self, entries: &mut Vec<Box<E>>) {
        let written = self.insert(entries);
        self.fails.store(written.is_err(), Ordering::Relaxed);
        match written {
            Ok(()) => entries.clear(),
            Err(error) => {
                let keep = if E::IS_DURABLE {
                    E::WAITING_ENTRIES_MAX
                } else {
                    0
                };
                tracing::warn!(log = E::LOG_NAME, %error, entries = entries.len(), "log entries could not be written");
                // Keep the first entries, because they show how the problem began.
                self.lose(&entries[keep.min(entries.len())..]);
                entries.truncate(keep);
            }
        }
    }

    fn lose(&self, entries: &[Box<E>]) {
        lost::<E>(&self.dropped, entries.len() as u64);
    }

    fn insert(&mut self, entries: &[Box<E>]) -> rusqlite::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let change = self.db.transaction()?;
        let mut insert =
            change.prepare_cached("INSERT INTO entry (message, at, entry) VALUES (?1, ?2, ?3)")?;
        let mut newest = Timestamp::MIN;
        for entry in entries {
            newest = newest.max(entry.at());
            if entry.insert_beside(&change)? {
                continue;
            }
            // An entry that cannot be written as JSON (an infinite score) must not cause the loss of the others.
            let Ok(json) = serde_json::to_string(entry) else {
                continue;
            };
            let message = entry.message().map_or(String::new(), |id| id.to_string());
            insert.execute(params![message, entry.at().as_second(), json])?;
        }
        drop(insert);
        prune::<E>(&change, newest, self.retention, self.rows)?;
        change.commit()
    }
}

/// Removes the oldest entries that are too old or too many; at most twice the queue at a time, because no more can come in
/// between two calls. The time is that of the entries, so a log without new entries loses none.
fn prune<E: Entry>(
    db: &Connection,
    now: Timestamp,
    retention: Duration,
    rows: i64,
) -> rusqlite::Result<()> {
    let from = now.checked_sub(retention).unwrap_or(Timestamp::MIN);
    // A clock that is set ahead must not empty the log.
    let cutoff = from
        .checked_sub(leapt_since(from))
        .unwrap_or(Timestamp::MIN)
        .as_second();
    let at_once = i64::try_from(2 * E::WAITING_ENTRIES_MAX).unwrap_or(i64::MAX);
    db.prepare_cached(
        "DELETE FROM entry WHERE seq < (SELECT min(seq) FROM entry) + ?1 \
         AND (at < ?2 OR seq <= (SELECT max(seq) FROM entry) - ?3)",
    )?
    .execute(params![at_once, cutoff, rows])?;
    E::prune_beside(db, cutoff)
}
