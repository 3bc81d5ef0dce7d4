//! Durable state behind one small trait.
//!
//! Durable are: messages that were answered 250 and not yet passed on, messages in quarantine, and the audit of the acts of
//! reviewers. A message that is scanned and delivered inside its session is not stored. Information about messages is kept in
//! other files: the [`history`] that `explain` reads and that may lose its last second, the [`incidents`], and the
//! [`snapshot`] of the knowledge that the relay has gained.

mod at_work;
#[cfg(test)]
pub(crate) mod contract;
mod held;
pub mod history;
pub mod incidents;
mod log;
pub mod snapshot;
pub mod sqlite;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::at_work::{AtWork, Working};
use crate::message::{Content, Envelope, MessageId, Recipient, SenderReputation};
use crate::verdict::{Decision, Report};

pub use held::{Capacity, Held, Holder};

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

/// What a stored message waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lane {
    /// For a scan and a decision.
    Scan,
    /// For delivery to the next hop; the decision is made.
    Delivery,
    /// In quarantine, for a reviewer or its expiry.
    Held,
    /// Delivered with less than full coverage. The content is kept so that the missing engines can scan it later.
    /// [`Settings::rescan_bytes`] bounds the whole lane: if room is needed, the record that would expire first is removed,
    /// even under lease.
    Rescan,
}

/// How long a message of [`Lane::Rescan`] is kept, one day. If an engine is out for longer, people know of the outage, and a
/// finding about mail that was read yesterday comes too late.
pub const RESCAN_RETENTION: Duration = Duration::from_secs(86_400);

impl Lane {
    /// All lanes, in the order of [`Store::stats`].
    pub const ALL: [Self; 4] = [Self::Scan, Self::Delivery, Self::Held, Self::Rescan];

    /// The word in output and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Delivery => "delivery",
            Self::Held => "held",
            Self::Rescan => "rescan",
        }
    }
}

/// Why the guard keeps a message, where no finding is the reason. When the cause is gone, the relay scans the message again
/// ([`Store::recover`]). As text: `interceptor:ID` or `engine:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The interceptor with this id diverted the message.
    Interceptor(String),
    /// The engine with this name did not answer.
    Engine(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interceptor(id) => write!(f, "interceptor:{id}"),
            Self::Engine(name) => write!(f, "engine:{name}"),
        }
    }
}

/// Maximum number of causes that [`Store::causes`] returns. Engines and interceptors together are fewer.
pub const CAUSES_MAX: usize = 4096;

/// The text is not a cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a cause; write engine:NAME or interceptor:ID")]
pub struct NotACause(String);

impl FromStr for Cause {
    type Err = NotACause;

    fn from_str(text: &str) -> Result<Self, NotACause> {
        match text.split_once(':') {
            Some(("interceptor", id)) if !id.is_empty() => Ok(Self::Interceptor(id.to_owned())),
            Some(("engine", name)) if !name.is_empty() => Ok(Self::Engine(name.to_owned())),
            _ => Err(NotACause(text.chars().take(80).collect())),
        }
    }
}

/// The kind of a message that this relay wrote itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Notification {
    /// A report of success. The relay may drop it without harm to any sender.
    Report,
    /// A bounce: the end of a message that was answered 250. [`Extent`] says how much of the bounce is sent.
    Bounce(Extent),
}

/// How much of a bounce is sent. Each time that a next hop refuses the form, the relay sends less. The whole bounce stays
/// stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extent {
    /// The whole bounce.
    Whole,
    /// At most the header section of the returned message, in ASCII.
    Headers,
    /// Nothing of the returned message, only the parts for people and for programs, in ASCII.
    Bare,
}

/// One stored message, for recipients that share its fate. A recipient that is done is removed from the envelope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The key. Equals `message` unless the message was split between groups of recipients.
    pub id: MessageId,
    /// The id of the message in the relay's 250, by which its sender knows it.
    pub message: MessageId,
    /// What the record waits for.
    pub lane: Lane,
    /// Name of the next hop of the recipients ([`Lane::Delivery`]) at the last routing; empty if unknown.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub next_hop: Arc<str>,
    /// The envelope, with the recipients that are not done.
    pub envelope: Envelope,
    /// The relay's `Received` field, made at reception.
    pub trace: Arc<str>,
    /// Size of the content in octets.
    pub size: u64,
    /// SHA-256 of the content, hexadecimal.
    pub sha256: String,
    /// Subject, for search: decoded where that is cheap, at most 300 characters.
    pub subject: String,
    /// End of data.
    pub received_at: Timestamp,
    /// Earliest time of the next pass (Scan, Delivery); time of entry into quarantine (Held).
    pub due_at: Timestamp,
    /// Time at which the relay gives up (Delivery, Scan) or the record expires (Held).
    pub expires_at: Timestamp,
    /// Number of passes in this lane.
    pub attempts: u32,
    /// Engine time used so far, out of `budget.total`.
    #[serde(with = "crate::verdict::millis")]
    pub spent: Duration,
    /// The decision that moved the record to Delivery or Held.
    pub decision: Option<Decision>,
    /// The reports that the decision is based on.
    pub reports: Vec<Report>,
    /// Why the record is still stored, in one line: the last reply of the next hop, or the missing engine.
    pub status: String,
    /// Whether a reviewer released the record, so that policy decides no more.
    pub released: bool,
    /// Why the guard keeps the record, if the guard does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// Number of scans that timed out while the engine took other mail. After the first, the message is scanned once more, and
    /// then held.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeouts: u32,
    /// The sender's reputation at reception, where known: recovery takes mail of known senders first. Records of earlier
    /// versions call this `standing`.
    #[serde(default, alias = "standing", skip_serializing_if = "Option::is_none")]
    pub reputation: Option<SenderReputation>,
    /// The kind of notification, if this relay wrote the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification: Option<Notification>,
    /// The original recipients, if a reviewer released the record to others. They are the recipients again if the record
    /// returns to quarantine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instead_of: Vec<Recipient>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Which records a search returns; every condition that is set must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Only records in these lanes; all lanes if empty.
    pub lanes: Vec<Lane>,
    /// Name of the rule that decided, or part of its reason, ignoring case.
    pub reason: Option<String>,
    /// Name of an engine that found something or did not answer.
    pub engine: Option<String>,
    /// Part of the name of a finding, ignoring case.
    pub finding: Option<String>,
    /// Part of the reverse-path, ignoring case.
    pub sender: Option<String>,
    /// Part of a recipient, ignoring case.
    pub recipient: Option<String>,
    /// Part of the subject, ignoring case.
    pub subject: Option<String>,
    /// The cause for which the record is kept.
    pub cause: Option<Cause>,
    /// Received before this instant.
    pub before: Option<Timestamp>,
    /// Received at or after this instant.
    pub after: Option<Timestamp>,
    /// Size in octets.
    pub size: Option<Range<u64>>,
    /// Records with [`Record::expires_at`] before or at this instant. The search then returns the longest expired first.
    pub expired: Option<Timestamp>,
    /// Maximum number of records, the newest first.
    pub limit: usize,
    /// Number of records to skip.
    pub offset: usize,
}

/// The object of an act. As text: the id of a message, or `interceptor:ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    /// A record.
    #[serde(rename = "record")]
    Message(MessageId),
    /// An interceptor.
    #[serde(rename = "interceptor")]
    Interceptor(String),
}

impl From<MessageId> for Object {
    fn from(id: MessageId) -> Self {
        Self::Message(id)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(id) => write!(f, "{id}"),
            Self::Interceptor(id) => write!(f, "interceptor:{id}"),
        }
    }
}

/// One act of a person, or of the relay in a person's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Time of the act.
    pub at: Timestamp,
    /// Login name of the person (and the name behind sudo), or `spillway` for the relay's own acts (expiry).
    pub actor: String,
    /// The act: `release`, `delete`, `export`, `expire`; `add`, `remove` for interceptors.
    pub act: String,
    /// The object of the act.
    #[serde(flatten)]
    pub object: Object,
    /// Details: recipients of a release, the file of an export.
    pub detail: String,
}

/// An interceptor as the store keeps it. The store does not interpret the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredInterceptor {
    /// Id of the interceptor.
    pub id: String,
    /// Value of [`Interceptors::version`] at the last change of this interceptor; 0 if the store does not have it yet.
    pub version: u64,
    /// The interceptor as JSON.
    pub body: String,
}

/// All interceptors at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interceptors {
    /// Grows with every change of an interceptor.
    pub version: u64,
    /// All interceptors, in the order of their ids.
    pub all: Vec<StoredInterceptor>,
}

/// Maximum number of interceptors, because each is compared with every message.
pub const INTERCEPTORS_MAX: usize = 1000;

/// A change of one record. The store applies it atomically with the audit entry; it is durable when the call returns.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Replace everything except the content.
    Replace(Box<Record>),
    /// Replace everything except the content, and lease the record to its worker until this instant, so that no other worker
    /// gets it ([`Store::claim`]).
    Take(Box<Record>, Timestamp),
    /// Remove the record and its content.
    Remove,
}

/// The position of a record in the order in which [`Store::recover`] returns records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Whether the sender is known.
    pub known: bool,
    /// [`Record::received_at`].
    pub received_at: Timestamp,
    /// [`Record::id`].
    pub id: MessageId,
}

impl Place {
    /// The position of a record.
    pub fn of(record: &Record) -> Self {
        Self {
            known: record.reputation == Some(SenderReputation::Known),
            received_at: record.received_at,
            id: record.id,
        }
    }
}

/// Which times are due, and how long leases last. The clock may have been set back since a time was stored; no record waits
/// longer because of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// The present: a record that is due by then is due, and a lease that ends by then has ended.
    pub now: Timestamp,
    /// The end of the longest wait that could begin now. A later due time comes from a clock that was set back, so it is due.
    pub latest: Timestamp,
    /// The end of a lease that begins now. A lease that ends later comes from a clock that was set back, so it has ended.
    pub until: Timestamp,
}

impl Times {
    /// Times from `now` on: leases last for `lease`, and no wait is longer than `longest`.
    pub fn from(now: Timestamp, lease: Duration, longest: Duration) -> Self {
        let after = |span| now.checked_add(span).unwrap_or(Timestamp::MAX);
        Self {
            now,
            latest: after(longest),
            until: after(lease),
        }
    }

    /// Whether a record with this due time is due.
    pub fn is_due(&self, at: Timestamp) -> bool {
        at <= self.now || at > self.latest
    }

    /// Whether a lease with this end is in force.
    pub fn is_leased(&self, until: Timestamp) -> bool {
        until > self.now && until <= self.until
    }
}

/// Which records of [`Lane::Delivery`] to claim: those to deliver, or those to give up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// Records that are due for this next hop ([`Record::next_hop`]), the oldest due first.
    To(Arc<str>),
    /// Records whose [`Record::expires_at`] is not after this instant, due or not, the longest expired first.
    GivenUp(Timestamp),
}

/// The mail of [`Lane::Delivery`] for one next hop that is not leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// [`Record::next_hop`].
    pub next_hop: Arc<str>,
    /// The earliest due time.
    pub first: Timestamp,
    /// The latest due time.
    pub last: Timestamp,
}

/// Counts for `stats`, `/metrics` and admission.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStats {
    /// Number of records.
    pub messages: u64,
    /// Octets of content.
    pub octets: u64,
    /// The earliest end of data.
    pub oldest: Option<Timestamp>,
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
        after: Option<Place>,
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

    /// The counts of each lane, in the order of [`Lane::ALL`].
    fn stats(&self) -> StoreFuture<'_, [LaneStats; Lane::ALL.len()]>;

    /// The number of messages in [`Lane::Scan`], due or not. The relay calls this every second, so the call is cheap.
    fn unjudged(&self) -> StoreFuture<'_, u64>;

    /// Octets that [`Lane::Rescan`] has left below half of its limit. If a caller promises a place while this is not 0, the
    /// record will not be removed for lack of room: the other half covers promises that are made at the same time. Cheap.
    fn rescan_room(&self) -> StoreFuture<'_, u64>;

    /// Whether the store accepts new mail: the disk has its reserve, and the last write succeeded. Cheap, without disk access.
    fn accepts(&self) -> Result<(), StoreError>;
}

/// Removes all records in `lane` whose [`Record::expires_at`] is not after `now`; returns their number. Works in batches, so
/// that mail whose sender waits for a 250 is written between them.
///
/// Cancel safety: like [`remove_all`].
pub async fn expire(
    store: &dyn Store,
    lane: Lane,
    now: Timestamp,
    audit: impl Fn(&Record) -> Option<Audit>,
    tell: impl Fn(&Record),
) -> Result<usize, StoreError> {
    let mut expired = 0;
    loop {
        let due = Filter {
            lanes: vec![lane],
            expired: Some(now),
            limit: REMOVALS_PER_BATCH,
            ..Filter::default()
        };
        let due = store.search(due).await?;
        match remove_all(store, lane, &due, &audit, &tell).await? {
            0 => return Ok(expired),
            removed => expired += removed,
        }
    }
}

/// Removes those of these records that are still in `lane`, each with the audit entry that `audit` returns. Calls `tell` for
/// each removed record; returns their number.
///
/// Cancel safety: removals that were done stay done; the next call finds the other records.
pub async fn remove_all(
    store: &dyn Store,
    lane: Lane,
    records: &[Record],
    audit: impl Fn(&Record) -> Option<Audit>,
    tell: impl Fn(&Record),
) -> Result<usize, StoreError> {
    let removals = records
        .iter()
        .map(|record| store.change_in(lane, record.id, Change::Remove, audit(record)));
    let (mut removed, mut failed) = (0, None);
    for (record, outcome) in records.iter().zip(join_all(removals).await) {
        match outcome {
            Ok(()) => {
                removed += 1;
                tell(record);
            }
            // A reviewer or the last scan removed the record first.
            Err(StoreError::NotFound(_)) => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(removed), Err)
}

/// Number of removals in one batch: enough to share a flush, and few enough that they do not make a commit noticeably longer.
pub const REMOVALS_PER_BATCH: usize = 64;

/// Removes records of [`Lane::Rescan`] that are older than [`RESCAN_RETENTION`]; returns their number.
///
/// Cancel safety: like [`expire`].
pub async fn expire_rescans(store: &dyn Store, now: Timestamp) -> Result<usize, StoreError> {
    let expired = expire(store, Lane::Rescan, now, |_| None, |_| ()).await?;
    dropped("age", expired);
    Ok(expired)
}

/// Counts delivered messages that will not be scanned again, by reason.
fn dropped(why: &'static str, messages: usize) {
    metrics::counter!("spillway_rescans_dropped_total", "why" => why).increment(messages as u64);
    if messages > 0 {
        tracing::warn!(messages, why, "delivered mail is not scanned again");
    }
}
