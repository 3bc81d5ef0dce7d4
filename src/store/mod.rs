//! Durable state behind one small trait.
//!
//! Durable are: messages that were answered 250 and not yet passed on, messages in quarantine, and the audit of the acts of
//! reviewers. A message that is scanned and delivered inside its session is not stored. Information about messages is kept in
//! other files: the [`history`] that `explain` reads and that may lose its last second, the [`incidents`], and the
//! [`snapshot`] of the knowledge that the relay has gained.

mod at_work;
mod audit;
pub mod basis;
mod cause;
mod claim;
#[cfg(test)]
pub(crate) mod contract;
pub mod decisions;
mod expiry;
mod filter;
mod held;
pub mod history;
pub mod incidents;
mod interceptors;
mod lane;
mod late;
pub mod late_scans;
mod log;
pub mod measures;
mod record;
pub mod snapshot;
pub mod sqlite;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::at_work::{AtWork, Working};
pub use self::audit::{Audit, Object};
pub use self::cause::{CAUSES_MAX, Cause, NotACause};
pub use self::claim::{Outgoing, Queue, SweepPosition, Times};
pub use self::expiry::{REMOVALS_PER_BATCH, expire, expire_rescans, remove_all};
pub use self::filter::Filter;
pub use self::held::{Capacity, Held, Holder};
pub use self::interceptors::{INTERCEPTORS_MAX, Interceptors, StoredInterceptor};
pub use self::lane::{Lane, LaneStats, RESCAN_RETENTION};
pub use self::late::{Failing, LATE_AFTER, LATE_COUNTED_MAX, LateMail, LateTimes};
pub use self::log::LogTrouble;
pub use self::record::{Change, Extent, Notification, Record};
use crate::message::{Content, MessageId};

/// Settings of `[store]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Folder of the database and the body files; created if missing, mode 0700.
    pub path: std::path::PathBuf,
    /// Largest body in octets that is stored in the database; larger bodies are stored in files.
    pub inline_limit: u64,
    /// Free space of the file system in octets below which the relay accepts no new mail (452).
    pub disk_reserve: u64,
    /// Limit in octets for the content of messages that were delivered with less than full coverage ([`Lane::Rescan`]).
    pub rescan_bytes: u64,
    /// How long the history keeps events, for `explain`.
    pub history: Duration,
    /// How long the incident log keeps entries.
    pub incidents: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            path: "spillway-data".into(),
            inline_limit: 128 << 10,
            disk_reserve: 256 << 20,
            rescan_bytes: 1 << 30,
            history: Duration::from_secs(7 * 86_400),
            incidents: Duration::from_secs(90 * 86_400),
        }
    }
}

/// Why a call of the store failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk is full or has less free space than `store.disk_reserve`, or another limit of the store is reached.
    #[error("the store is full: {0}")]
    Full(String),
    /// The disk or the database failed.
    #[error("the store failed: {0}")]
    Broken(String),
    /// Pages of the database differ from those that were written. No later read or write can be trusted.
    #[error("the store is corrupt: {0}")]
    Corrupt(String),
    /// The record does not exist, or no longer exists.
    #[error("message {0} is not stored (any more); see `spillway explain {0}`")]
    NotFound(MessageId),
    /// The record or its content cannot be read. The store has set it aside; other records are not affected.
    #[error("stored message {0} is damaged: {1}")]
    Damaged(MessageId, String),
    /// The relay is stopping.
    #[error("the store is closed because the relay is stopping")]
    Closed,
}

/// The result of the checks at start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// Number of records in Scan and Delivery.
    pub waiting: u64,
    /// Number of removed body files without a record.
    pub orphans: u64,
    /// Number of records that were set aside because they cannot be read or their body is missing. The log lists them.
    pub damaged: u64,
}

/// A boxed future, which makes [`Store`] usable as a trait object.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Durable state. Implementations: SQLite ([`sqlite`]); later PostgreSQL with an object store.
///
/// Cancel safety of every method: dropping the future does not undo the work; the work may or may not have been done.
pub trait Store: Send + Sync + 'static {
    /// Makes a message durable: all records or none, each with its own copy of the content. After `Ok`, the message survives
    /// power loss. A record whose id already exists is an error.
    fn put(&self, records: Vec<Record>, content: Content) -> StoreFuture<'_, ()>;

    /// Like [`Store::put`], for mail whose sender still has it and keeps it on [`StoreError::Full`]. `quarantine` limits the
    /// mail in quarantine ([`Held::refuses`]). Mail that the relay already has is not limited.
    fn put_new(
        &self,
        records: Vec<Record>,
        content: Content,
        quarantine: Capacity,
    ) -> StoreFuture<'_, ()>;

    /// Like [`Store::put`], for the remaining recipients of mail that was delivered or returned in part, and for notifications
    /// about it. The sender must not be asked to send all of it again, so this call may use `store.disk_reserve`.
    fn put_rest(&self, records: Vec<Record>, content: Content) -> StoreFuture<'_, ()>;

    /// Applies a change durably. [`StoreError::NotFound`] if the record does not exist.
    fn change(&self, id: MessageId, change: Change, audit: Option<Audit>) -> StoreFuture<'_, ()>;

    /// Like [`Store::change`], but only if the record is still in `lane`; otherwise [`StoreError::NotFound`]. If several
    /// callers move a record out of a lane (two reviewers, or a reviewer and expiry), exactly one succeeds.
    fn change_in(
        &self,
        lane: Lane,
        id: MessageId,
        change: Change,
        audit: Option<Audit>,
    ) -> StoreFuture<'_, ()>;

    /// Like [`Store::change_in`], and also adds other records, each with its own content, all or nothing: the recipients of
    /// one message part ways, and some of them get a bounce. These records come from mail that the relay already has. So, like
    /// [`Store::put_rest`], this call may use `store.disk_reserve`, and works while [`Store::accepts`] refuses new mail.
    fn settle(
        &self,
        lane: Lane,
        id: MessageId,
        change: Change,
        beside: Vec<(Record, Content)>,
    ) -> StoreFuture<'_, ()>;

    /// Claims work: at most `limit` records of `lane` that are due, the oldest due first, under a lease, so that no other
    /// worker gets them. A lease ends with the next [`Store::change`] (but see [`Change::Take`]) or at its end time. Records
    /// that this process still works on ([`Store::at_work`]) are not returned, even after the lease.
    fn claim(&self, lane: Lane, times: Times, limit: usize) -> StoreFuture<'_, Vec<Record>>;

    /// Like [`Store::claim`] for [`Lane::Delivery`], with one queue for each next hop: a next hop that takes no mail must not
    /// delay the mail of others, however long its queue is.
    fn claim_outgoing(
        &self,
        what: Outgoing,
        times: Times,
        limit: usize,
    ) -> StoreFuture<'_, Vec<Record>>;

    /// The queues of all next hops for which mail in [`Lane::Delivery`] waits, due or not, ordered by name. The relay calls
    /// this every second, so the cost must not depend on the number of records.
    fn queues(&self, times: Times) -> StoreFuture<'_, Vec<Queue>>;

    /// The causes that mail waits for, at most [`CAUSES_MAX`]. The cost does not depend on the number of records for each
    /// cause.
    fn causes(&self) -> StoreFuture<'_, Vec<Cause>>;

    /// Claims records that wait for a cause that is gone: at most `limit` records of `lane` with this cause, due or not, first
    /// those of known senders ([`Record::reputation`]), and within each group the oldest received first. With `after`, only
    /// records behind that place, so that a record that stays does not delay the records behind it. The lease is that of
    /// [`Store::claim`], so that recovery can resume after a crash and two workers never have one record. The lease does not
    /// stop a reviewer, so recovery must change a held record with [`Store::change_in`].
    fn recover(
        &self,
        lane: Lane,
        cause: Cause,
        after: Option<SweepPosition>,
        times: Times,
        limit: usize,
    ) -> StoreFuture<'_, Vec<Record>>;

    /// The records that this process works on. A worker that gets a record registers the record there. A worker that adds a
    /// record and works on it registers the record before it adds it.
    fn at_work(&self) -> &AtWork;

    /// Makes a record in Scan or Delivery due at `now`; returns false if the record is leased or in another lane. A record in
    /// work is not changed: the change would end the lease, and two workers would have the record.
    fn make_due(&self, id: MessageId, now: Timestamp) -> StoreFuture<'_, bool>;

    /// Like [`Store::put`], for a message that is in work: the records are leased until `until`.
    fn put_leased(
        &self,
        records: Vec<Record>,
        content: Content,
        until: Timestamp,
    ) -> StoreFuture<'_, ()>;

    /// One record.
    fn get(&self, id: MessageId) -> StoreFuture<'_, Option<Record>>;

    /// The content of a record.
    fn content(&self, id: MessageId) -> StoreFuture<'_, bytes::Bytes>;

    /// The records that match, the newest first (but see [`Filter::expired`]).
    fn search(&self, filter: Filter) -> StoreFuture<'_, Vec<Record>>;

    /// The number of records that match, without [`Filter::limit`] and [`Filter::offset`].
    fn count(&self, filter: Filter) -> StoreFuture<'_, u64>;

    /// Adds an entry to the audit, for an act that changes no record, such as an export.
    fn audit(&self, entry: Audit) -> StoreFuture<'_, ()>;

    /// The audit, the newest entry first; with `of`, only the entries of that record or interceptor.
    fn audited(&self, of: Option<Object>, limit: usize) -> StoreFuture<'_, Vec<Audit>>;

    /// All interceptors, or `None` if nothing has changed since version `known` ([`Interceptors::version`]). The relay calls
    /// this every second to notice changes by the command line, so the call must be cheap.
    fn interceptors(&self, known: Option<u64>) -> StoreFuture<'_, Option<Interceptors>>;

    /// Makes an interceptor durable, with its audit entry. Version 0 adds an interceptor; another version replaces the stored
    /// one only if that still has this version. Returns the new version, or `None` without effect if another process added,
    /// changed or removed the interceptor in the meantime. [`StoreError::Full`] beyond [`INTERCEPTORS_MAX`].
    fn keep_interceptor(
        &self,
        interceptor: StoredInterceptor,
        audit: Option<Audit>,
    ) -> StoreFuture<'_, Option<u64>>;

    /// Removes an interceptor durably, with its audit entry; returns false if it does not exist.
    fn drop_interceptor(&self, id: String, audit: Option<Audit>) -> StoreFuture<'_, bool>;

    /// The use of quarantine and its limit. The relay calls this every second, so the cost does not depend on the number of
    /// records.
    fn held(&self, quarantine: Capacity) -> StoreFuture<'_, Held>;

    /// Mail in Scan and Delivery, and mail that is held for an engine, that arrived before [`LateTimes::before`]: counted by what
    /// it waits for. The cost does not depend on the number of records beyond [`LATE_COUNTED_MAX`] of each kind.
    fn late(&self, times: LateTimes) -> StoreFuture<'_, Vec<LateMail>>;

    /// The counts of each lane, in the order of [`Lane::ALL`].
    fn stats(&self) -> StoreFuture<'_, [LaneStats; Lane::ALL.len()]>;

    /// For each next hop for which mail in [`Lane::Delivery`] waits, due or not, the earliest end of data of that mail. The cost
    /// does not depend on the number of records.
    fn oldest_outgoing(&self) -> StoreFuture<'_, Vec<(Arc<str>, Timestamp)>>;

    /// The number of messages in [`Lane::Scan`], due or not. The relay calls this every second, so the call is cheap.
    fn unjudged(&self) -> StoreFuture<'_, u64>;

    /// Octets that [`Lane::Rescan`] has left below half of its limit. If a caller promises a place while this is not 0, the
    /// record will not be removed for lack of room: the other half covers promises that are made at the same time. Cheap.
    fn rescan_room(&self) -> StoreFuture<'_, u64>;

    /// Whether the store accepts new mail: the disk has its reserve, and the last write succeeded. Cheap, without disk access.
    fn accepts(&self) -> Result<(), StoreError>;
}
