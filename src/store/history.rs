//! What `explain ID` reads: every event of every message, including those that are gone.
//!
//! History is not mail: it may lose its last second, and it must cost a message next to nothing. It is a
//! [log](super::log) that waits for no disk.

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::log::{self, Log, Wanted};
use crate::message::{Mailbox, MessageId, ReversePath};
use crate::verdict::{Decision, Report};

/// The file of the history inside `store.path`.
pub const FILE: &str = "history.db";

/// One event in the life of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When.
    pub at: Timestamp,
    /// The message as its sender knows it; a part of it in an entry that leads from there to the message.
    pub message: MessageId,
    /// The message that this is a part of, for some of its recipients: its events are those of the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<MessageId>,
    /// What happened, in one kebab-case word: `delivered`, `delayed`, `refused`, `given-up`, `bounced`, `queued`,
    /// `deferred`, `held`, `rejected`, `discarded`, `parted`, `dropped`; of what we write ourselves also `shortened`.
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

impl log::Entry for HistoryEntry {
    const NAME: &str = "history";
    const QUEUE: usize = 8192;
    /// About a gigabyte.
    const ROWS: u64 = 1_000_000;
    const DURABLE: bool = false;

    fn at(&self) -> Timestamp {
        self.at
    }

    fn message(&self) -> Option<MessageId> {
        Some(self.message)
    }
}

/// The writing end. [`History::close`] writes what waits; without it the last moment is lost.
#[derive(Debug)]
pub struct History(Log<HistoryEntry>);

impl History {
    /// Opens the history in `path`, a file, and makes it if it is missing; entries are kept for `retention`. The folder
    /// must exist. Blocking, for a few milliseconds.
    ///
    /// A file that cannot be used is renamed to `….damaged` and a new one is begun: no mail is in it.
    pub fn open(path: &Path, retention: Duration) -> Result<Arc<Self>, StoreError> {
        let log = Log::open(path, retention, <HistoryEntry as log::Entry>::ROWS)?;
        Ok(Arc::new(Self(log)))
    }

    /// A history that a test reads.
    #[cfg(test)]
    pub(crate) fn detached() -> (Arc<Self>, impl FnMut() -> Option<HistoryEntry> + Send) {
        let (log, next) = Log::detached();
        (Arc::new(Self(log)), next)
    }

    /// Notes an event. Never waits: an entry that finds the queue full is dropped and counted.
    pub fn record(&self, entry: HistoryEntry) {
        self.0.note(entry);
    }

    /// Entries lost since the start: the queue was full, or the disk did not take them.
    pub fn dropped(&self) -> u64 {
        self.0.dropped()
    }

    /// The events of a message in the order in which they were noted, everything noted before this call included.
    ///
    /// Cancel safety: safe.
    pub async fn entries(&self, message: MessageId) -> Result<Vec<HistoryEntry>, StoreError> {
        self.0.flush().await;
        read(self.0.path(), message).await
    }

    /// Writes what waits, then ends; later entries are dropped.
    ///
    /// Cancel safety: it ends all the same.
    pub async fn close(&self) {
        self.0.close().await;
    }
}

/// The events of a message, read from a history that another process may be writing (entries reach it within a second).
/// None if there is no history.
///
/// Cancel safety: safe.
pub async fn read(path: &Path, message: MessageId) -> Result<Vec<HistoryEntry>, StoreError> {
    log::read(path, Wanted::Of(message), usize::MAX, |_| true).await
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
        for n in 0..3 * <HistoryEntry as log::Entry>::QUEUE as i64 {
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
