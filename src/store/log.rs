//! A log: entries in a file of their own, noted without waiting and readable beside the process that writes it.
//!
//! An entry is moved into a bounded channel, and dropped and counted when that is full; a thread of its own turns entries
//! into rows a few times a second, in one transaction. The file is apart from the store's, so that neither can hurt the
//! other; one that cannot be opened is put aside and a new one is begun, for no mail is in it.
//!
//! How much an [`Entry`] is worth it says itself: whether a commit waits for the disk, and how many may wait.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::StoreError;
use super::sqlite::is_corrupt;
use crate::deadline::leapt_since;
use crate::message::MessageId;

/// How long entries may wait, so that they are written together.
const ENTRY_BATCH_WAIT: Duration = Duration::from_millis(250);
/// How long the thread waits for more before it tries again to write what it could not.
const WRITE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long to wait for another process that has the file.
const DATABASE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// What is kept in a log.
pub(super) trait Entry: Serialize + DeserializeOwned + Send + 'static {
    /// What it is called in log lines.
    const NAME: &str;
    /// Entries that may wait for the thread.
    const QUEUE: usize;
    /// Entries kept at most, whatever their age.
    const ROWS: u64;
    /// Whether a commit survives power loss, and what the disk did not take is tried again. Otherwise it costs nothing and
    /// is lost.
    const DURABLE: bool;

    /// When it happened: what retention counts from.
    fn at(&self) -> Timestamp;

    /// The message it is about, if it is about one.
    fn message(&self) -> Option<MessageId>;
}

/// What travels to the thread.
enum Item<E> {
    Entry(Box<E>),
    /// Answered when everything before it can be read.
    Flush(oneshot::Sender<()>),
    /// Write what came before, and end.
    Stop,
}

/// The writing end.
#[derive(Debug)]
pub(super) struct Log<E> {
    path: PathBuf,
    items: SyncSender<Item<E>>,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
    thread: Thread,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl<E: Entry> Log<E> {
    /// Opens the log in `path`, and makes it if it is missing; entries are kept for `retention`, and at most `rows` of
    /// them. The folder must exist. Blocking, for a few milliseconds.
    pub(super) fn open(path: &Path, retention: Duration, rows: u64) -> Result<Self, StoreError> {
        let db = open_or_begin_anew::<E>(path)?;
        let (items, queue) = sync_channel(E::QUEUE);
        let waiting = Arc::new(AtomicUsize::new(0));
        let dropped = Arc::new(AtomicU64::new(0));
        let scribe = Scribe {
            db,
            items: queue,
            waiting: waiting.clone(),
            dropped: dropped.clone(),
            retention,
            rows: i64::try_from(rows).unwrap_or(i64::MAX),
        };
        let handle = std::thread::Builder::new()
            .name(E::NAME.to_owned())
            .spawn(move || scribe.run())
            .map_err(|error| StoreError::Broken(format!("{} thread: {error}", E::NAME)))?;
        Ok(Self {
            path: path.to_owned(),
            items,
            waiting,
            dropped,
            thread: handle.thread().clone(),
            handle: Mutex::new(Some(handle)),
        })
    }

    /// A log whose entries go to a test instead of a file.
    #[cfg(test)]
    pub(super) fn detached() -> (Self, impl FnMut() -> Option<E> + Send) {
        let (items, queue) = sync_channel(E::QUEUE);
        let log = Self {
            path: PathBuf::new(),
            items,
            waiting: Arc::default(),
            dropped: Arc::default(),
            thread: std::thread::current(),
            handle: Mutex::default(),
        };
        let next = move || match queue.try_recv() {
            Ok(Item::Entry(entry)) => Some(*entry),
            _ => None,
        };
        (log, next)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes an entry; one that finds no room is dropped and counted. Never waits.
    pub(super) fn note(&self, entry: E) {
        if self.items.try_send(Item::Entry(Box::new(entry))).is_err() {
            lost::<E>(&self.dropped, 1);
        } else if self.waiting.fetch_add(1, Ordering::Relaxed) == E::QUEUE / 2 {
            self.thread.unpark();
        }
    }

    /// Entries lost since the start: the queue was full, or the disk did not take them.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything noted before can be read; with a full queue it does not, and what is not written yet is
    /// left out.
    ///
    /// Cancel safety: safe.
    pub(super) async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.items.try_send(Item::Flush(done)).is_ok() {
            self.thread.unpark();
            // No answer: the thread is gone, and everything it wrote can be read.
            let _ = written.await;
        }
    }

    /// Writes what waits, then ends; later entries are dropped.
    ///
    /// Cancel safety: it ends all the same.
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
            // Waits for room in the queue if it must; fails only when the thread is gone.
            let _ = items.send(Item::Stop);
            handle.thread().unpark();
            handle.join()
        };
        if !matches!(tokio::task::spawn_blocking(end).await, Ok(Ok(()))) {
            tracing::warn!(log = E::NAME, "the thread of a log did not end well");
        }
    }
}

fn lost<E: Entry>(dropped: &AtomicU64, count: u64) {
    dropped.fetch_add(count, Ordering::Relaxed);
    metrics::counter!("spillway_log_lost_total", "log" => E::NAME).increment(count);
}

/// Which entries are looked at, and in which order.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    /// Those about one message, the oldest first.
    Of(MessageId),
    /// All since then, the newest first.
    Since(Timestamp),
}

/// At most `limit` entries that `keep` accepts, read from a log that another process may be writing. None if there is no
/// log.
///
/// Cancel safety: safe.
pub(super) async fn read<E: Entry>(
    path: &Path,
    wanted: Wanted,
    limit: usize,
    keep: impl FnMut(&E) -> bool + Send + 'static,
) -> Result<Vec<E>, StoreError> {
    let path = path.to_owned();
    let query = move || {
        if !path.exists() {
            return Ok(Vec::new());
        }
        entries(&path, wanted, limit, keep)
            .map_err(|error| StoreError::Broken(format!("{}: {error}", path.display())))
    };
    tokio::task::spawn_blocking(query)
        .await
        .map_err(|error| StoreError::Broken(error.to_string()))?
}

fn entries<E: Entry>(
    path: &Path,
    wanted: Wanted,
    limit: usize,
    mut keep: impl FnMut(&E) -> bool,
) -> rusqlite::Result<Vec<E>> {
    let db = Connection::open(path)?;
    db.busy_timeout(DATABASE_BUSY_TIMEOUT)?;
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
            Err(error) => tracing::warn!(log = E::NAME, %error, "an entry cannot be read"),
        }
    }
    Ok(entries)
}

fn open_or_begin_anew<E: Entry>(path: &Path) -> Result<Connection, StoreError> {
    let failed = |error| StoreError::Broken(format!("{}: {error}", path.display()));
    match open::<E>(path) {
        Err(error) if is_corrupt(&error) => {
            let aside = path.with_extension("db.damaged");
            tracing::error!(log = E::NAME, path = %path.display(), %error, aside = %aside.display(),
                "a log is damaged; a new one is begun");
            // What cannot be moved away makes the second attempt fail, with the reason.
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
    // Made by us for its mode, which SQLite gives to its other files; if that fails, SQLite's own error says why.
    let _ = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    let db = Connection::open(path)?;
    db.busy_timeout(DATABASE_BUSY_TIMEOUT)?;
    db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    // Flushed at checkpoints only: enough to keep the file whole, and free of charge otherwise.
    let synchronous = if E::DURABLE { "full" } else { "normal" };
    db.pragma_update(None, "synchronous", synchronous)?;
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS entry (seq INTEGER PRIMARY KEY, message TEXT NOT NULL, at INTEGER NOT NULL, \
         entry TEXT NOT NULL) STRICT;
         CREATE INDEX IF NOT EXISTS by_message ON entry (message);",
    )?;
    Ok(db)
}

/// The thread.
struct Scribe<E> {
    db: Connection,
    items: Receiver<Item<E>>,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
    retention: Duration,
    rows: i64,
}

impl<E: Entry> Scribe<E> {
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
                // Company comes meanwhile, and nobody pays for waking us but the one that fills half of the queue.
                std::thread::park_timeout(ENTRY_BATCH_WAIT);
            }
            let (mut flushed, mut stop) = (Vec::new(), false);
            let mut taken = 0;
            for item in first
                .into_iter()
                .chain(self.items.try_iter().take(E::QUEUE))
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

    /// Writes what it can; what is left is to be tried again.
    fn write(&mut self, entries: &mut Vec<Box<E>>) {
        match self.insert(entries) {
            Ok(()) => entries.clear(),
            Err(error) => {
                let keep = if E::DURABLE { E::QUEUE } else { 0 };
                tracing::warn!(log = E::NAME, %error, entries = entries.len(), "entries not written");
                // The first ones tell how it began.
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
            // An entry that is not JSON (an infinite score) is no reason to lose the others.
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

/// Removes the oldest entries, as far as they are too old or too many; at most as many at a time as can come in between
/// two times. Time is that of the entries: a log that nothing is added to loses nothing.
fn prune<E: Entry>(
    db: &Connection,
    now: Timestamp,
    retention: Duration,
    rows: i64,
) -> rusqlite::Result<()> {
    let from = now.checked_sub(retention).unwrap_or(Timestamp::MIN);
    // A clock that is set ahead must not empty the log at once.
    let cutoff = from
        .checked_sub(leapt_since(from))
        .unwrap_or(Timestamp::MIN)
        .as_second();
    let at_once = i64::try_from(2 * E::QUEUE).unwrap_or(i64::MAX);
    db.prepare_cached(
        "DELETE FROM entry WHERE seq < (SELECT min(seq) FROM entry) + ?1 \
         AND (at < ?2 OR seq <= (SELECT max(seq) FROM entry) - ?3)",
    )?
    .execute(params![at_once, cutoff, rows])?;
    Ok(())
}
