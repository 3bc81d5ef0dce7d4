//! The history that `explain ID` reads: every event of every message, including messages that are no longer stored.
//!
//! History is not mail: it may lose its last second, and it must cost a message almost nothing. It is a [log](super::log) that
//! does not wait for the disk.

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::basis::Basis;
use super::log::{self, Log, LogTrouble, Wanted};
use crate::message::{Mailbox, MessageId, ReversePath};
use crate::verdict::{Decision, Report};

/// Name of the history file inside `store.path`.
pub const FILE_NAME: &str = "history.db";
/// The event of a scan after the delivery: an engine without which the message went has answered.
pub const RESCANNED_EVENT: &str = "rescanned";

/// One event in the life of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Time of the event.
    pub at: Timestamp,
    /// The id by which the sender knows the message. In an entry with `part_of`, the id of the part.
    pub message: MessageId,
    /// Set if `message` is a part of another message, for some of its recipients: the events are stored under that message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<MessageId>,
    /// The event, in one kebab-case word: `delivered`, `delayed`, `refused`, `given-up`, `bounced`, `queued`, `deferred`,
    /// `held`, `rejected`, `discarded`, `parted`, `dropped`, [`RESCANNED_EVENT`]; for messages that the relay wrote itself also `shortened`.
    pub event: Cow<'static, str>,
    /// The argument of MAIL.
    pub sender: ReversePath,
    /// The recipients that the event is about.
    pub recipients: Vec<Mailbox>,
    /// Address of the client.
    pub client: IpAddr,
    /// Name of the listener.
    pub listener: Arc<str>,
    /// Size of the content in octets.
    pub size: u64,
    /// The decision, if the event has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// The reports that the decision is based on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<Report>,
    /// The subject, in the first entry of a pass that inspected the message. Untrusted, at most 300 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// The names of its attachments, in the same entry: see [`Described`](crate::message::Described).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<String>,
    /// What policy knew, in the first entry of a pass that judged the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basis: Option<Basis>,
    /// Details for people: the next hop and its reply, or the reason of a deferral.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl log::Entry for HistoryEntry {
    const LOG_NAME: &str = "history";
    const WAITING_ENTRIES_MAX: usize = 8192;
    /// A million entries take about 1 GB.
    const ROWS_MAX: u64 = 1_000_000;
    const IS_DURABLE: bool = false;

    fn at(&self) -> Timestamp {
        self.at
    }

    fn message(&self) -> Option<MessageId> {
        Some(self.message)
    }
}

/// The writing end. [`History::close`] writes the entries that wait; without it the last moment is lost.
#[derive(Debug)]
pub struct History(Log<HistoryEntry>);

impl History {
    /// Opens the history file `path`, and creates it if it is missing. Entries are kept for `retention`. Blocks for a few
    /// milliseconds, and up to 5 seconds if another process has locked the file.
    ///
    /// A damaged file is renamed to `….damaged`, and a new one is created: the file contains no mail. A file that cannot be opened
    /// is no error: see [`History::trouble`].
    ///
    /// # Errors
    /// The system has no thread for the history.
    pub fn open(path: &Path, retention: Duration) -> Result<Arc<Self>, StoreError> {
        let log = Log::open(path, retention, <HistoryEntry as log::Entry>::ROWS_MAX)?;
        Ok(Arc::new(Self(log)))
    }

    /// A history that a test reads.
    #[cfg(test)]
    pub(crate) fn detached() -> (Arc<Self>, impl FnMut() -> Option<HistoryEntry> + Send) {
        let (log, next) = Log::detached();
        (Arc::new(Self(log)), next)
    }

    /// Records an event. Never waits: if the queue is full, the entry is dropped and counted.
    pub fn record(&self, entry: HistoryEntry) {
        self.0.note(entry);
    }

    /// Waits until all events recorded before can be read by any process. If the queue is full, this does not wait.
    ///
    /// Cancel safety: safe.
    pub async fn flush(&self) {
        self.0.flush().await;
    }

    /// Why nothing is recorded; `None` while the history records.
    pub fn trouble(&self) -> Option<LogTrouble> {
        self.0.trouble()
    }

    /// Finds out whether the file can be written now, and makes a new one if it is gone.
    ///
    /// Cancel safety: safe.
    pub async fn check(&self) -> Option<LogTrouble> {
        self.0.check().await
    }

    /// Path of the history file, which also has the [measures](super::measures).
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Number of entries lost since the start, because the queue was full or a write failed.
    pub fn dropped(&self) -> u64 {
        self.0.dropped()
    }

    /// The events of a message in the order in which they were recorded, including all events recorded before this call.
    ///
    /// Cancel safety: safe.
    pub async fn entries(&self, message: MessageId) -> Result<Vec<HistoryEntry>, StoreError> {
        self.0.flush().await;
        read(self.0.path(), message).await
    }

    /// Writes the entries that wait, then ends. Later entries are dropped.
    ///
    /// Cancel safety: the close goes on.
    pub async fn close(&self) {
        self.0.close().await;
    }
}

/// The events of a message, read from a history that another process may be writing; entries get there within a second. Empty
/// if there is no history file.
///
/// Cancel safety: safe.
pub async fn read(path: &Path, message: MessageId) -> Result<Vec<HistoryEntry>, StoreError> {
    log::read(path, Wanted::Of(message), usize::MAX, |_| true).await
}

/// The messages of the history whose id begins with `prefix`, in the order of their ids, at most `limit`.
///
/// Cancel safety: safe.
pub async fn messages(
    path: &Path,
    prefix: String,
    limit: usize,
) -> Result<Vec<MessageId>, StoreError> {
    log::messages(path, prefix, limit).await
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::store::Lane;
    use crate::store::contract::{at, record};

    fn entry(message: MessageId, event: &'static str, seconds: i64) -> HistoryEntry {
        let record = record(Lane::Held);
        HistoryEntry {
            at: at(seconds),
            message,
            part_of: None,
            event: event.into(),
            sender: record.envelope.reverse_path,
            recipients: vec![record.envelope.recipients[0].mailbox.clone()],
            client: record.envelope.origin.client,
            listener: record.envelope.origin.listener,
            size: 4096,
            decision: record.decision,
            reports: record.reports,
            subject: String::new(),
            attachments: Vec::new(),
            basis: None,
            detail: "held by policy.malware".to_owned(),
        }
    }

    fn events(entries: &[HistoryEntry]) -> Vec<&str> {
        entries.iter().map(|entry| &*entry.event).collect()
    }

    /// Events are read back complete and in order: by this process at once, and by other processes after a stop.
    #[tokio::test]
    async fn the_life_of_a_message_is_read_back() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(FILE_NAME);
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

    /// Age and number bound the history.
    #[tokio::test]
    async fn old_and_surplus_entries_are_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(FILE_NAME);
        let log = Log::open(&path, Duration::from_secs(100), 3).expect("open");
        let history = History(log);
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

    /// Recording an entry never waits, even if the disk blocks: if the queue is full, the entry is dropped and counted.
    #[tokio::test]
    async fn a_full_queue_drops_and_counts() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(FILE_NAME);
        let history = History::open(&path, Duration::from_secs(100)).expect("open");
        let blocker = Connection::open(&path).expect("second connection");
        blocker.execute_batch("BEGIN IMMEDIATE").expect("lock");
        let id = MessageId::new();
        // One queue of entries may already be with the thread, and another fills the queue; the third finds the queue full.
        for n in 0..3 * <HistoryEntry as log::Entry>::WAITING_ENTRIES_MAX as i64 {
            history.record(entry(id, "received", n));
        }
        assert!(history.dropped() > 0);
    }

    /// A damaged history is set aside. The relay starts nevertheless, because the history contains no mail.
    #[tokio::test]
    async fn a_damaged_history_is_replaced_by_a_new_one() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(FILE_NAME);
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
