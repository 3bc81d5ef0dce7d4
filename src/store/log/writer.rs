//! The thread that writes a log, and the file that it has open.
//!
//! A file that cannot be written costs its entries and nothing else: the thread tells of it once, and tries again each second.
//! A file that is removed or replaced while the relay runs is opened anew.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use metrics::gauge;
use rusqlite::{Connection, ErrorCode, params};
use tokio::sync::oneshot;

use super::trouble::{LogTrouble, advice};
use super::{DATABASE_BUSY_TIMEOUT, Entry, Item, lost};
use crate::deadline::{leapt_since, wall_clock};
use crate::store::sqlite::is_corrupt;

/// How long an entry may wait for other entries, so that they are written together: 250 ms. A reader sees each entry within a
/// second, and four transactions a second cost little.
const ENTRY_BATCH_WAIT: Duration = Duration::from_millis(250);
/// After a failed write, how long the thread waits for new entries before it tries again.
const WRITE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The file of a log, as it was opened.
struct LogFile {
    db: Connection,
    device: u64,
    inode: u64,
}

impl LogFile {
    /// Whether the path still names this file. SQLite would go on to write into a file that is removed.
    fn is_at(&self, path: &Path) -> bool {
        let found = fs::metadata(path);
        found.is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode))
    }
}

/// The thread that writes.
pub(super) struct LogWriter<E> {
    path: PathBuf,
    file: Option<LogFile>,
    items: Receiver<Item<E>>,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
    trouble: Arc<Mutex<Option<LogTrouble>>>,
    retention: Duration,
    rows: i64,
}

/// What one round of the queue brought, beside entries.
#[derive(Default)]
struct Asked {
    flushed: Vec<oneshot::Sender<()>>,
    check: bool,
    stop: bool,
}

impl<E: Entry> LogWriter<E> {
    /// Opens the file. If that fails, the writer begins with the trouble.
    pub(super) fn new(
        path: &Path,
        items: Receiver<Item<E>>,
        (waiting, dropped): (Arc<AtomicUsize>, Arc<AtomicU64>),
        trouble: Arc<Mutex<Option<LogTrouble>>>,
        (retention, rows): (Duration, u64),
    ) -> Self {
        let mut writer = Self {
            path: path.to_owned(),
            file: None,
            items,
            waiting,
            dropped,
            trouble,
            retention,
            rows: i64::try_from(rows).unwrap_or(i64::MAX),
        };
        writer.check();
        writer
    }

    pub(super) fn run(mut self) {
        let mut entries: Vec<Box<E>> = Vec::new();
        loop {
            let first = if entries.is_empty() && !self.is_failing() {
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
            let asked = self.take(first.ok(), &mut entries);
            if asked.check {
                // The open file may work and another open fail: after a change of its owner, or with another content.
                self.file = None;
            }
            match entries.is_empty() {
                false => self.write(&mut entries),
                true if asked.check || self.is_failing() => self.check(),
                true => {}
            }
            for done in asked.flushed {
                let _ = done.send(());
            }
            if asked.stop {
                return self.lose(&entries);
            }
        }
    }

    /// Takes what is in the queue.
    fn take(&self, first: Option<Item<E>>, entries: &mut Vec<Box<E>>) -> Asked {
        let mut asked = Asked::default();
        let mut taken = 0;
        let more = self.items.try_iter().take(E::WAITING_ENTRIES_MAX);
        for item in first.into_iter().chain(more) {
            match item {
                Item::Entry(entry) => {
                    entries.push(entry);
                    taken += 1;
                }
                Item::Flush(done) => asked.flushed.push(done),
                Item::Check(done) => {
                    asked.check = true;
                    asked.flushed.push(done);
                }
                Item::Stop => asked.stop = true,
            }
        }
        self.waiting.fetch_sub(taken, Ordering::Relaxed);
        asked
    }

    /// Writes the entries. Entries that remain in the list are to be written again.
    fn write(&mut self, entries: &mut Vec<Box<E>>) {
        let (retention, rows) = (self.retention, self.rows);
        let written = self
            .open()
            .and_then(|db| insert(db, entries, (retention, rows)));
        if written.is_ok() {
            entries.clear();
        }
        self.note(written);
        let keep = if E::IS_DURABLE {
            E::WAITING_ENTRIES_MAX
        } else {
            0
        };
        // Keep the first entries, because they show how the problem began.
        self.lose(entries.get(keep..).unwrap_or_default());
        entries.truncate(keep);
    }

    /// Finds out whether the file can be written, and writes nothing that a reader sees.
    fn check(&mut self) {
        let checked = self.open().and_then(|db| can_write(db));
        self.note(checked);
    }

    /// The file: the open one if it still has its name, else it is opened, or made anew if there is none.
    fn open(&mut self) -> rusqlite::Result<&mut Connection> {
        if self
            .file
            .as_ref()
            .is_some_and(|file| !file.is_at(&self.path))
        {
            tracing::warn!(log = E::LOG_NAME, path = %self.path.display(),
                "the file of a log was removed or replaced; what it had is gone, and the relay goes on with a new one");
            self.file = None;
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => open_or_begin_anew::<E>(&self.path)?,
        };
        Ok(&mut self.file.insert(file).db)
    }

    /// Notes the outcome of a write. The beginning and the end of trouble are told once each.
    fn note(&mut self, outcome: rusqlite::Result<()>) {
        let file = self.path.display();
        let gauge = gauge!("spillway_log_failing", "log" => E::LOG_NAME);
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let Err(error) = outcome else {
            if trouble.take().is_some() {
                gauge.set(0.0);
                tracing::info!(log = E::LOG_NAME, path = %file, "a log records again");
            }
            return;
        };
        let advice = advice(&self.path, &error);
        if trouble.is_none() {
            gauge.set(1.0);
            tracing::warn!(log = E::LOG_NAME, path = %file, %error, advice,
                "a log records nothing; mail goes on, and the relay tries again each second");
        }
        *trouble = Some(LogTrouble {
            log: E::LOG_NAME.to_owned(),
            file: self.path.clone(),
            since: trouble
                .as_ref()
                .map_or_else(wall_clock, |known| known.since),
            error: error.to_string(),
            advice,
        });
        drop(trouble);
        if is_about_the_file(&error) {
            self.file = None;
        }
        if is_corrupt(&error) {
            set_aside::<E>(&self.path, &error);
        }
    }

    fn is_failing(&self) -> bool {
        let trouble = self.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn lose(&self, entries: &[Box<E>]) {
        if !entries.is_empty() {
            lost::<E>(&self.dropped, entries.len() as u64);
        }
    }
}

/// Whether another open may help, and not only another try.
fn is_about_the_file(error: &rusqlite::Error) -> bool {
    is_corrupt(error)
        || matches!(
            error.sqlite_error_code(),
            Some(
                ErrorCode::CannotOpen
                    | ErrorCode::PermissionDenied
                    | ErrorCode::ReadOnly
                    | ErrorCode::SystemIoFailure
            )
        )
}

/// Opens the file. A damaged one is set aside, and a new one is made.
fn open_or_begin_anew<E: Entry>(path: &Path) -> rusqlite::Result<LogFile> {
    match open::<E>(path) {
        Err(error) if is_corrupt(&error) => {
            set_aside::<E>(path, &error);
            open::<E>(path)
        }
        outcome => outcome,
    }
}

fn set_aside<E: Entry>(path: &Path, error: &rusqlite::Error) {
    let aside = path.with_extension("db.damaged");
    // If the rename fails, the next attempt to open fails too, with the reason.
    if fs::rename(path, &aside).is_ok() {
        tracing::error!(log = E::LOG_NAME, path = %path.display(), %error, aside = %aside.display(),
            "a log is damaged; the relay sets it aside and creates a new one");
        for suffix in ["db-wal", "db-shm"] {
            let _ = fs::remove_file(path.with_extension(suffix));
        }
    }
}

fn open<E: Entry>(path: &Path) -> rusqlite::Result<LogFile> {
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
    can_write(&db)?;
    let (device, inode) = fs::metadata(path).map_or((0, 0), |found| (found.dev(), found.ino()));
    Ok(LogFile { db, device, inode })
}

/// Writes the version of the file, which is always 0: SQLite opens a file that it may only read without an error.
fn can_write(db: &Connection) -> rusqlite::Result<()> {
    db.prepare_cached("SELECT seq FROM entry LIMIT 0")?;
    db.pragma_update(None, "user_version", 0)
}

fn insert<E: Entry>(
    db: &mut Connection,
    entries: &[Box<E>],
    (retention, rows): (Duration, i64),
) -> rusqlite::Result<()> {
    let change = db.transaction()?;
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
    prune::<E>(&change, newest, retention, rows)?;
    change.commit()
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
