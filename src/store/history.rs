//! What `explain ID` reads: every event of every message, including those that are gone.
//!
//! History is not mail: it may lose its last second, and it must cost a message next to nothing. So an entry is moved
//! into a bounded channel, and dropped and counted when that is full; a thread of its own turns entries into rows a few
//! times a second, in one transaction that waits for no disk. Its file is apart from the store's, so that neither can
//! hurt the other; a history that cannot be opened is put aside and begun anew.

use std::borrow::Cow;
use std::fs::OpenOptions;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::StoreError;
use super::sqlite::is_corrupt;
use crate::message::{Mailbox, MessageId, ReversePath};
use crate::verdict::{Decision, Report};

/// The file of the history inside `store.path`.
pub const FILE: &str = "history.db";
/// Entries that may wait for the thread.
const QUEUE: usize = 8192;
/// How long entries may wait, so that they are written together.
const PAUSE: Duration = Duration::from_millis(250);
/// Entries kept at most, whatever their age: about a gigabyte.
const ROWS: u64 = 1_000_000;
/// Entries removed in one transaction; more than can come in between two.
const PRUNE: i64 = 2 * QUEUE as i64;
/// How long to wait for another process (`explain` reads; nobody else writes).
const BUSY: Duration = Duration::from_secs(5);

/// One event in the life of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When.
    pub at: Timestamp,
    /// The message as its sender knows it.
    pub message: MessageId,
    /// What happened, in one kebab-case word: `received`, `scanned`, `decided`, `delivered`, `deferred`, `held`,
    /// `rejected`, `released`, `bounced`, `expired`.
    pub event: Cow<'static, str>,
    /// The argument of MAIL.
    pub sender: ReversePath,
    /// The recipients it happened for.
    pub recipients: Vec<Mailbox>,
    /// The client's address.
    pub client: IpAddr,
    /// The name of the listener.
    pub listener: Arc<str>,
    /// Octets of content.
    pub size: u64,
    /// The decision, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// The reports the decision was made from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<Report>,
    /// Particulars for people: the next hop and its reply, the reason of a deferral.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// What travels to the thread.
enum Item {
    Entry(Box<HistoryEntry>),
    /// Answered when everything before it can be read.
    Flush(oneshot::Sender<()>),
    /// Write what came before, and end.
    Stop,
}

/// The writing end. [`History::close`] writes what waits; without it the last moment is lost.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    items: SyncSender<Item>,
    waiting: Arc<AtomicUsize>,
    dropped: AtomicU64,
    thread: Thread,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl History {
    /// Opens the history in `path`, a file, and makes it if it is missing; entries are kept for `retention`. The folder
    /// must exist. Blocking, for a few milliseconds.
    ///
    /// A file that cannot be used is renamed to `….damaged` and a new one is begun: no mail is in it.
    pub fn open(path: &Path, retention: Duration) -> Result<Arc<Self>, StoreError> {
        Self::open_limited(path, retention, ROWS)
    }

    fn open_limited(path: &Path, retention: Duration, rows: u64) -> Result<Arc<Self>, StoreError> {
        let db = open_or_begin_anew(path)?;
        let (items, queue) = sync_channel(QUEUE);
        let waiting = Arc::new(AtomicUsize::new(0));
        let scribe = Scribe {
            db,
            items: queue,
            waiting: waiting.clone(),
            retention,
            rows: i64::try_from(rows).unwrap_or(i64::MAX),
        };
        let handle = std::thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || scribe.run())
            .map_err(|error| StoreError::Broken(format!("history thread: {error}")))?;
        Ok(Arc::new(Self {
            path: path.to_owned(),
            items,
            waiting,
            dropped: AtomicU64::new(0),
            thread: handle.thread().clone(),
            handle: Mutex::new(Some(handle)),
        }))
    }

    /// Notes an event. Never waits: an entry that finds the queue full is dropped and counted.
    pub fn record(&self, entry: HistoryEntry) {
        if self.items.try_send(Item::Entry(Box::new(entry))).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        } else if self.waiting.fetch_add(1, Ordering::Relaxed) == QUEUE / 2 {
            self.thread.unpark();
        }
    }

    /// Entries dropped since the start because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The events of a message in the order in which they were noted, everything noted before this call included.
    ///
    /// Cancel safety: safe.
    pub async fn entries(&self, message: MessageId) -> Result<Vec<HistoryEntry>, StoreError> {
        let (done, written) = oneshot::channel();
        // With a full queue, what is not written yet is left out.
        if self.items.try_send(Item::Flush(done)).is_ok() {
            self.thread.unpark();
            // No answer: the thread is gone, and everything it wrote can be read.
            let _ = written.await;
        }
        read(&self.path, message).await
    }

    /// Writes what waits, then ends; later entries are dropped.
    ///
    /// Cancel safety: it ends all the same.
    pub async fn close(&self) {
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
            tracing::warn!("the history thread did not end well");
        }
    }
}

/// The events of a message, read from a history that another process may be writing (entries reach it within a second).
/// None if there is no history.
///
/// Cancel safety: safe.
pub async fn read(path: &Path, message: MessageId) -> Result<Vec<HistoryEntry>, StoreError> {
    let path = path.to_owned();
    let query = move || {
        if !path.exists() {
            return Ok(Vec::new());
        }
        entries(&path, message)
            .map_err(|error| StoreError::Broken(format!("{}: {error}", path.display())))
    };
    tokio::task::spawn_blocking(query)
        .await
        .map_err(|error| StoreError::Broken(error.to_string()))?
}

fn entries(path: &Path, message: MessageId) -> rusqlite::Result<Vec<HistoryEntry>> {
    let db = Connection::open(path)?;
    db.busy_timeout(BUSY)?;
    let mut statement = db.prepare("SELECT entry FROM entry WHERE message = ?1 ORDER BY seq")?;
    let rows = statement.query_map([message.to_string()], |row| row.get::<_, String>(0))?;
    let mut entries = Vec::new();
    for row in rows {
        match serde_json::from_str(&row?) {
            Ok(entry) => entries.push(entry),
            Err(error) => tracing::warn!(%message, %error, "a history entry cannot be read"),
        }
    }
    Ok(entries)
}

fn open_or_begin_anew(path: &Path) -> Result<Connection, StoreError> {
    let failed = |error| StoreError::Broken(format!("{}: {error}", path.display()));
    match open(path) {
        Err(error) if is_corrupt(&error) => {
            let aside = path.with_extension("db.damaged");
            tracing::error!(path = %path.display(), %error, aside = %aside.display(),
                "the history is damaged; a new one is begun");
            // What cannot be moved away makes the second attempt fail, with the reason.
            let _ = std::fs::rename(path, aside);
            for suffix in ["db-wal", "db-shm"] {
                let _ = std::fs::remove_file(path.with_extension(suffix));
            }
            open(path).map_err(failed)
        }
        outcome => outcome.map_err(failed),
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    // Made by us for its mode, which SQLite gives to its other files; if that fails, SQLite's own error says why.
    let _ = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    let db = Connection::open(path)?;
    db.busy_timeout(BUSY)?;
    db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    // Flushed at checkpoints only: enough to keep the file whole, and free of charge otherwise.
    db.pragma_update(None, "synchronous", "normal")?;
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS entry (seq INTEGER PRIMARY KEY, message TEXT NOT NULL, at INTEGER NOT NULL, \
         entry TEXT NOT NULL) STRICT;
         CREATE INDEX IF NOT EXISTS by_message ON entry (message);",
    )?;
    Ok(db)
}

/// The thread.
struct Scribe {
    db: Connection,
    items: Receiver<Item>,
    waiting: Arc<AtomicUsize>,
    retention: Duration,
    rows: i64,
}

impl Scribe {
    fn run(mut self) {
        while let Ok(first) = self.items.recv() {
            if matches!(first, Item::Entry(_)) {
                // Company comes meanwhile, and nobody pays for waking us but the one that fills half of the queue.
                std::thread::park_timeout(PAUSE);
            }
            let (mut flushed, mut stop) = (Vec::new(), false);
            let mut entries = Vec::new();
            for item in std::iter::once(first).chain(self.items.try_iter().take(QUEUE)) {
                match item {
                    Item::Entry(entry) => entries.push(entry),
                    Item::Flush(done) => flushed.push(done),
                    Item::Stop => stop = true,
                }
            }
            self.waiting.fetch_sub(entries.len(), Ordering::Relaxed);
            if let Err(error) = self.write(&entries) {
                tracing::warn!(%error, entries = entries.len(), "history entries lost");
            }
            for done in flushed {
                let _ = done.send(());
            }
            if stop {
                return;
            }
        }
    }

    fn write(&mut self, entries: &[Box<HistoryEntry>]) -> rusqlite::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let change = self.db.transaction()?;
        let mut insert =
            change.prepare_cached("INSERT INTO entry (message, at, entry) VALUES (?1, ?2, ?3)")?;
        let mut newest = Timestamp::MIN;
        for entry in entries {
            newest = newest.max(entry.at);
            // An entry that is not JSON (an infinite score) is no reason to lose the others.
            let Ok(json) = serde_json::to_string(entry) else {
                continue;
            };
            insert.execute(params![
                entry.message.to_string(),
                entry.at.as_second(),
                json
            ])?;
        }
        drop(insert);
        prune(&change, newest, self.retention, self.rows)?;
        change.commit()
    }
}

/// Removes the oldest entries, at most [`PRUNE`] at a time, as far as they are too old or too many. Time is that of the
/// entries: a history that nothing is added to loses nothing.
fn prune(db: &Connection, now: Timestamp, retention: Duration, rows: i64) -> rusqlite::Result<()> {
    let keep = i64::try_from(retention.as_secs()).unwrap_or(i64::MAX);
    let cutoff = now.as_second().saturating_sub(keep);
    db.prepare_cached(
        "DELETE FROM entry WHERE seq < (SELECT min(seq) FROM entry) + ?1 \
         AND (at < ?2 OR seq <= (SELECT max(seq) FROM entry) - ?3)",
    )?
    .execute(params![PRUNE, cutoff, rows])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Lane;
    use crate::store::contract::{at, record};

    fn entry(message: MessageId, event: &'static str, seconds: i64) -> HistoryEntry {
        let record = record(Lane::Held);
        HistoryEntry {
            at: at(seconds),
            message,
            event: event.into(),
            sender: record.envelope.reverse_path,
            recipients: vec![record.envelope.recipients[0].mailbox.clone()],
            client: record.envelope.origin.client,
            listener: record.envelope.origin.listener,
            size: 4096,
            decision: record.decision,
            reports: record.reports,
            detail: "held by policy.malware".to_owned(),
        }
    }

    fn events(entries: &[HistoryEntry]) -> Vec<&str> {
        entries.iter().map(|entry| &*entry.event).collect()
    }

    /// What was noted is read back whole and in order, by this process at once, and by others after a stop.
    #[tokio::test]
    async fn the_life_of_a_message_is_read_back() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(FILE);
        let history = History::open(&path, Duration::from_secs(100)).expect("open");
        let (ours, other) = (MessageId::new(), MessageId::new());
        let life = [entry(ours, "received", 1), entry(ours, "held", 2)];
        history.record(life[0].clone());
        history.record(entry(other, "received", 2));
        history.record(life[1].clone());
        assert_eq!(history.entries(ours).await.expect("entries"), life);
        history.record(entry(ours, "released", 3));
        history.close().await;
        let found = read(&path, ours).await.expect("read");
        assert_eq!(events(&found), ["received", "held", "released"]);
        assert_eq!(history.dropped(), 0);
        history.record(entry(ours, "delivered", 4));
        assert_eq!(history.dropped(), 1, "closed");
        let nowhere = read(&folder.path().join("none.db"), ours).await;
        assert_eq!(nowhere.expect("no history is an empty one"), []);
    }

    /// The history is bounded by age and by number.
    #[tokio::test]
    async fn old_and_surplus_entries_go() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(FILE);
        let history = History::open_limited(&path, Duration::from_secs(100), 3).expect("open");
        let id = MessageId::new();
        history.record(entry(id, "a", 0));
        history.record(entry(id, "b", 60));
        assert_eq!(
            events(&history.entries(id).await.expect("entries")),
            ["a", "b"]
        );
        history.record(entry(id, "c", 101));
        assert_eq!(
            events(&history.entries(id).await.expect("entries")),
            ["b", "c"],
            "by age"
        );
        history.record(entry(id, "d", 102));
        history.record(entry(id, "e", 103));
        assert_eq!(
            events(&history.entries(id).await.expect("entries")),
            ["c", "d", "e"],
            "by number"
        );
    }

    /// An entry costs its caller no wait, whatever the disk does: what finds no room is dropped and counted.
    #[tokio::test]
    async fn a_full_queue_drops_and_counts() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(FILE);
        let history = History::open(&path, Duration::from_secs(100)).expect("open");
        let blocker = Connection::open(&path).expect("second connection");
        blocker.execute_batch("BEGIN IMMEDIATE").expect("lock");
        let id = MessageId::new();
        // One round may be in the thread's hands already, another fills the queue; the third cannot find room.
        for n in 0..3 * QUEUE as i64 {
            history.record(entry(id, "received", n));
        }
        assert!(history.dropped() > 0);
    }

    /// A damaged history is put aside; the relay starts all the same, for no mail is in it.
    #[tokio::test]
    async fn a_damaged_history_is_begun_anew() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(FILE);
        std::fs::write(
            &path,
            "this is not a database, and it is long enough to tell ".repeat(99),
        )
        .expect("write");
        let history = History::open(&path, Duration::from_secs(100)).expect("open");
        let id = MessageId::new();
        history.record(entry(id, "received", 1));
        assert_eq!(history.entries(id).await.expect("entries").len(), 1);
        assert!(folder.path().join("history.db.damaged").exists());
    }
}
