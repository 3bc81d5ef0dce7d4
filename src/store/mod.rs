//! Durable state behind one small trait.
//!
//! What is durable: messages we have answered 250 for and not yet passed on, messages in quarantine, and the audit of
//! what reviewers did. What is not: messages that are scanned and delivered inside their session (nothing of them is
//! stored), and what is told about it all, which is kept beside: the [`history`] that `explain` reads and that may lose its
//! last second, the [`incidents`], and the [`snapshot`] of what the relay knows by itself.

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
    /// Folder of the database and the body files; made if missing, mode 0700.
    pub path: std::path::PathBuf,
    /// Bodies up to this many octets live in the database, larger ones in files beside it.
    pub inline_limit: u64,
    /// Free space of the file system below which nothing new is accepted (452).
    pub disk_reserve: u64,
    /// Content kept at most of messages that were delivered with less than full coverage ([`Lane::Rescan`]), octets.
    pub rescan_bytes: u64,
    /// How long `explain` remembers messages that are gone.
    pub history: Duration,
    /// How long the incident log goes back.
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
    /// To be scanned (again) and judged.
    Scan,
    /// Judged; to be passed to the next hop.
    Delivery,
    /// In quarantine, until a reviewer or time decides.
    Held,
    /// Delivered with less than full coverage; its content is kept to be scanned again by the engines that were missing.
    /// All of the lane together is bounded by [`Settings::rescan_bytes`]: what would expire first gives way, under lease or not.
    Rescan,
}

/// How long a message of [`Lane::Rescan`] is kept: an engine that is out for longer than this is known to people, and a
/// finding about mail that was read yesterday comes too late.
pub const RESCAN_FOR: Duration = Duration::from_secs(86_400);

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

/// Why a message is kept by the guard's doing and not for what was found in it. When the cause is gone, the message is
/// taken up again ([`Store::recover`]). As text `interceptor:ID` or `engine:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The interceptor with this id diverted it.
    Interceptor(String),
    /// This engine, by its name in the configuration, did not answer.
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

/// Causes that are looked at ([`Store::causes`]); engines and interceptors are fewer.
pub const CAUSES_MOST: usize = 4096;

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

/// A message that this relay has written itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Notification {
    /// A report of success, which nobody is owed.
    Report,
    /// A bounce: the end of a message that was answered 250. So much of it is sent.
    Bounce(Extent),
}

/// How much of a bounce is sent: less each time that its form is refused. All of it stays stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extent {
    /// As it was written.
    Whole,
    /// The header section of the message at most, in ASCII.
    Headers,
    /// Nothing of the message: what is said to people and to programs, in ASCII.
    Bare,
}

/// One stored message, for the recipients that share its fate. Recipients that are done are no longer in its envelope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The key. Equals `message` unless the message was split between groups of recipients.
    pub id: MessageId,
    /// The message as its sender knows it: the id in our 250.
    pub message: MessageId,
    /// What it waits for.
    pub lane: Lane,
    /// The next hop of its recipients ([`Lane::Delivery`]) as it was routed last, by name; empty where that is not known.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub next_hop: Arc<str>,
    /// With the recipients that are not done.
    pub envelope: Envelope,
    /// Our `Received` field, made at reception.
    pub trace: Arc<str>,
    /// Octets of content.
    pub size: u64,
    /// SHA-256 of the content, hexadecimal.
    pub sha256: String,
    /// For search: Subject, decoded as far as it was cheap, at most 300 characters.
    pub subject: String,
    /// End of data.
    pub received_at: Timestamp,
    /// Not worked on before this instant (Scan, Delivery); entry into quarantine (Held).
    pub due_at: Timestamp,
    /// Given up (Delivery, Scan) or expired (Held) after this instant.
    pub expires_at: Timestamp,
    /// Passes made in this lane.
    pub attempts: u32,
    /// Engine time used so far, of `budget.total`.
    #[serde(with = "crate::verdict::millis")]
    pub spent: Duration,
    /// The decision that put it into Delivery or Held.
    pub decision: Option<Decision>,
    /// The reports the decision was made from.
    pub reports: Vec<Report>,
    /// Why it is still here, in one line: the next hop's last reply, the engine that is missing.
    pub status: String,
    /// Set when a reviewer released it: policy is not asked again.
    pub released: bool,
    /// Why the guard keeps it, if the guard does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// Scans of it that ran into their timeout while the engine took other mail: it is given one more, and then held.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeouts: u32,
    /// The sender's reputation when it came in, where that was asked: mail of known senders is recovered first. Records of earlier
    /// versions call this `standing`.
    #[serde(default, alias = "standing", skip_serializing_if = "Option::is_none")]
    pub reputation: Option<SenderReputation>,
    /// What it is, if this relay has written it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification: Option<Notification>,
    /// Those whose mail it is, where a reviewer has released it to others: it is theirs again if it comes back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instead_of: Vec<Recipient>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Which held records a search returns; every set field must match.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Only these lanes; all when empty.
    pub lanes: Vec<Lane>,
    /// Rule that held it, or part of its reason line, without regard to case.
    pub reason: Option<String>,
    /// An engine that found something, or did not answer.
    pub engine: Option<String>,
    /// Part of a finding's name, without regard to case.
    pub finding: Option<String>,
    /// Part of the reverse-path, without regard to case.
    pub sender: Option<String>,
    /// Part of a recipient, without regard to case.
    pub recipient: Option<String>,
    /// Part of the subject, without regard to case.
    pub subject: Option<String>,
    /// Kept for this cause.
    pub cause: Option<Cause>,
    /// Received before this instant.
    pub before: Option<Timestamp>,
    /// Received at or after this instant.
    pub after: Option<Timestamp>,
    /// Octets.
    pub size: Option<Range<u64>>,
    /// Given up or expired before or at this instant ([`Record::expires_at`]). These come the longest expired first.
    pub expired: Option<Timestamp>,
    /// At most so many, the newest first.
    pub limit: usize,
    /// Skip so many.
    pub offset: usize,
}

/// What an act was done to. As text a message's id, or `interceptor:ID`.
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
    /// When.
    pub at: Timestamp,
    /// Who: the login name (and the name behind sudo), or `spillway` for the relay's own acts (expiry).
    pub actor: String,
    /// What: `release`, `delete`, `export`, `expire`; `add`, `remove` for interceptors.
    pub act: String,
    /// What it was done to.
    #[serde(flatten)]
    pub object: Object,
    /// Particulars: recipients it was released to, the file exported to.
    pub detail: String,
}

/// An interceptor as the store keeps it. What is in it is not the store's affair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredInterceptor {
    /// Its id.
    pub id: String,
    /// Which change of all interceptors made it what it is; 0 for one that is not kept yet.
    pub version: u64,
    /// The interceptor as JSON.
    pub body: String,
}

/// All interceptors at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interceptors {
    /// Grows with every change of any of them.
    pub version: u64,
    /// In the order of their ids.
    pub all: Vec<StoredInterceptor>,
}

/// Interceptors kept at most: each is compared with every message.
pub const MOST_INTERCEPTORS: usize = 1000;

/// What to do to one record; applied atomically with the audit entry, durable when the call returns.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Replace everything but the content.
    Replace(Box<Record>),
    /// The same by somebody who works on it, under lease until then: nobody else gets it meanwhile ([`Store::claim`]).
    Take(Box<Record>, Timestamp),
    /// Remove the record and its content.
    Remove,
}

/// Where a record is in the order in which [`Store::recover`] hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Of a known sender.
    pub known: bool,
    /// [`Record::received_at`].
    pub received_at: Timestamp,
    /// [`Record::id`].
    pub id: MessageId,
}

impl Place {
    /// The place of a record.
    pub fn of(record: &Record) -> Self {
        Self {
            known: record.reputation == Some(SenderReputation::Known),
            received_at: record.received_at,
            id: record.id,
        }
    }
}

/// When records are handed out, and for how long. The clock they were stamped by may have been set back since; that makes
/// nothing wait longer than it ever may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// It is now: what is due by then is due, a lease that ends by then has ended.
    pub now: Timestamp,
    /// The end of the longest wait that could begin now: what is to wait beyond it is due as well.
    pub latest: Timestamp,
    /// The lease on what is handed out ends; a lease that ends later is none, for it was given by another clock.
    pub until: Timestamp,
}

impl Times {
    /// From now on: leases last for `lease`, and no wait is longer than `longest`.
    pub fn from(now: Timestamp, lease: Duration, longest: Duration) -> Self {
        let after = |span| now.checked_add(span).unwrap_or(Timestamp::MAX);
        Self {
            now,
            latest: after(longest),
            until: after(lease),
        }
    }

    /// Whether what was to be due then is due now.
    pub fn is_due(&self, at: Timestamp) -> bool {
        at <= self.now || at > self.latest
    }

    /// Whether a lease until then is one.
    pub fn is_leased(&self, until: Timestamp) -> bool {
        until > self.now && until <= self.until
    }
}

/// What is to be delivered, or to be given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// What is due for this next hop ([`Record::next_hop`]), oldest due first.
    To(Arc<str>),
    /// What was tried for long enough ([`Record::expires_at`] by then), due or not, the longest expired first.
    GivenUp(Timestamp),
}

/// The mail of [`Lane::Delivery`] for one next hop, as far as it is not leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// [`Record::next_hop`].
    pub next_hop: Arc<str>,
    /// When the first of it is due.
    pub first: Timestamp,
    /// When the last of it is due.
    pub last: Timestamp,
}

/// Counts for `stats`, `/metrics` and admission.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStats {
    /// Records.
    pub messages: u64,
    /// Octets of content.
    pub octets: u64,
    /// The oldest end of data.
    pub oldest: Option<Timestamp>,
}

/// Why the store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Less free space than `store.disk_reserve`, or the disk is full.
    #[error("the store has no room: {0}")]
    Full(String),
    /// The disk or the database failed.
    #[error("the store does not work: {0}")]
    Broken(String),
    /// Pages of the database are not what was written: nothing that is read or written from now on can be trusted.
    #[error("the store is corrupt: {0}")]
    Corrupt(String),
    /// The record is not there (any more).
    #[error("no stored message {0}")]
    NotFound(MessageId),
    /// The record or its content cannot be read; it was set aside, the rest goes on.
    #[error("stored message {0} is damaged: {1}")]
    Damaged(MessageId, String),
    /// The relay is stopping.
    #[error("the store is closed")]
    Closed,
}

/// What a start-up found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// Records waiting in Scan and Delivery.
    pub waiting: u64,
    /// Body files without a record, removed.
    pub orphans: u64,
    /// Records that could not be read, or whose body is missing; set aside, listed in the log.
    pub damaged: u64,
}

/// A boxed future, so that the trait can be an object.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Durable state. Implementations: SQLite ([`sqlite`]); later PostgreSQL with an object store.
///
/// Cancel safety of every method: dropping the future does not undo the work; it may or may not have been done.
pub trait Store: Send + Sync + 'static {
    /// Makes a message durable: all records or none, each with its own copy of the content. When it returns `Ok` the
    /// message survives power loss. Records whose id exists already are an error.
    fn put(&self, records: Vec<Record>, content: Content) -> StoreFuture<'_, ()>;

    /// As [`Store::put`] for mail whose sender still has it, and keeps it if this is [`StoreError::Full`]: what is held may
    /// take so much in all ([`Held::refuses`]). Mail that is here already never asks.
    fn put_new(
        &self,
        records: Vec<Record>,
        content: Content,
        quarantine: Capacity,
    ) -> StoreFuture<'_, ()>;

    /// As [`Store::put`] for what is left of mail that has been delivered or returned in part, and for what we write about
    /// it: its sender must not be told to send all of it again, so `store.disk_reserve` is for it.
    fn put_rest(&self, records: Vec<Record>, content: Content) -> StoreFuture<'_, ()>;

    /// Applies a change durably. [`StoreError::NotFound`] if the record is gone.
    fn change(&self, id: MessageId, change: Change, audit: Option<Audit>) -> StoreFuture<'_, ()>;

    /// As [`Store::change`], only if the record is still in `lane` at that moment, and otherwise [`StoreError::NotFound`]. Of several
    /// that move a record out of a lane (two reviewers, a reviewer and expiry), exactly one succeeds.
    fn change_in(
        &self,
        lane: Lane,
        id: MessageId,
        change: Change,
        audit: Option<Audit>,
    ) -> StoreFuture<'_, ()>;

    /// As [`Store::change_in`], and puts others beside the record, each with a content of its own, all or nothing: the
    /// recipients of one message part ways, and some of them are bounced. What comes in like this is no new mail but what
    /// becomes of mail that is here: as for [`Store::put_rest`], `store.disk_reserve` is for it, and it goes on where
    /// [`Store::accepts`] refuses new mail.
    fn settle(
        &self,
        lane: Lane,
        id: MessageId,
        change: Change,
        beside: Vec<(Record, Content)>,
    ) -> StoreFuture<'_, ()>;

    /// Hands out work: records of `lane` that are due, oldest due first, at most `limit`, and leases them so that no other
    /// worker gets them. A lease ends with the next [`Store::change`] (but see [`Change::Take`]), or by time; what this
    /// process still works on ([`Store::at_work`]) it does not get once more even then.
    fn claim(&self, lane: Lane, times: Times, limit: usize) -> StoreFuture<'_, Vec<Record>>;

    /// As [`Store::claim`] for [`Lane::Delivery`], with a queue for each next hop: one that takes nothing now must not keep
    /// the mail of others waiting, however much waits for it.
    fn claim_outgoing(
        &self,
        what: Outgoing,
        times: Times,
        limit: usize,
    ) -> StoreFuture<'_, Vec<Record>>;

    /// The queues of the next hops that mail of [`Lane::Delivery`] waits for, due or not, in the order of their names. Cheap,
    /// however much waits: it is asked every second.
    fn queues(&self, times: Times) -> StoreFuture<'_, Vec<Queue>>;

    /// The causes that mail waits for, at most [`CAUSES_MOST`]. Cheap, however much waits for each.
    fn causes(&self) -> StoreFuture<'_, Vec<Cause>>;

    /// Hands out what waits for a cause that is gone: records of `lane` with this cause, those of known senders first
    /// ([`Record::reputation`]), within each the oldest received first, at most `limit`, whether they are due or not; only
    /// those after a place, if one is given, so that what stays where it is keeps nothing behind it waiting. Leases them as
    /// [`Store::claim`] does, so that a recovery can be resumed after a crash and two never work on one record. A reviewer is
    /// not kept off: who recovers a held record changes it with [`Store::change_in`].
    fn recover(
        &self,
        lane: Lane,
        cause: Cause,
        after: Option<Place>,
        times: Times,
        limit: usize,
    ) -> StoreFuture<'_, Vec<Record>>;

    /// What this process works on. Who is handed a record says so there, and who works on one that it puts there itself
    /// does so before it puts it.
    fn at_work(&self) -> &AtWork;

    /// Makes a record in Scan or Delivery due at `now`; false if it is leased or waits no more. A record that is being
    /// worked on is left alone: changing it would end the lease, and two workers would have it.
    fn make_due(&self, id: MessageId, now: Timestamp) -> StoreFuture<'_, bool>;

    /// Puts a message that is being worked on right now under lease with [`Store::put`]: the same, but leased until
    /// `until`.
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

    /// Search, newest first.
    fn search(&self, filter: Filter) -> StoreFuture<'_, Vec<Record>>;

    /// Appends to the audit alone (an act that changes no record, such as an export).
    fn audit(&self, entry: Audit) -> StoreFuture<'_, ()>;

    /// The audit, newest first; of one record or interceptor if given.
    fn audited(&self, of: Option<Object>, limit: usize) -> StoreFuture<'_, Vec<Audit>>;

    /// All interceptors, or `None` if nothing has changed since version `known` ([`Interceptors::version`]): cheap enough
    /// to be asked every second, which is how a relay notices what the command line changed.
    fn interceptors(&self, known: Option<u64>) -> StoreFuture<'_, Option<Interceptors>>;

    /// Makes an interceptor durable, with its audit entry: adds one whose version is 0, or replaces the one that still has
    /// its version. Returns the new version; `None`, and nothing is done, if somebody was there before: added, changed or
    /// removed it meanwhile. Beyond [`MOST_INTERCEPTORS`] it is [`StoreError::Full`].
    fn keep_interceptor(
        &self,
        interceptor: StoredInterceptor,
        audit: Option<Audit>,
    ) -> StoreFuture<'_, Option<u64>>;

    /// Removes an interceptor durably, with its audit entry; false if it is not there (any more).
    fn drop_interceptor(&self, id: String, audit: Option<Audit>) -> StoreFuture<'_, bool>;

    /// What is held against what may be: cheap enough to be asked every second, however much it is.
    fn held(&self, quarantine: Capacity) -> StoreFuture<'_, Held>;

    /// Counts by lane, in the order of [`Lane::ALL`].
    fn stats(&self) -> StoreFuture<'_, [LaneStats; Lane::ALL.len()]>;

    /// Messages of [`Lane::Scan`], due or not: cheap enough to be asked every second.
    fn unjudged(&self) -> StoreFuture<'_, u64>;

    /// Octets that [`Lane::Rescan`] has left below half of its room. Nothing that is promised a place while there are some has to
    /// give way for it: the other half is for what is promised at the same time. Cheap.
    fn rescan_room(&self) -> StoreFuture<'_, u64>;

    /// Whether new mail can be accepted: the disk has its reserve and the last write succeeded. Cheap, no disk access.
    fn accepts(&self) -> Result<(), StoreError>;
}

/// Removes everything in `lane` whose time has passed by `now` ([`Record::expires_at`]); returns how much. A few at a
/// time, so that the mail of those who wait for a 250 is written between them.
///
/// Cancel safety: as [`remove_all`].
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
            limit: REMOVED_AT_ONCE,
            ..Filter::default()
        };
        let due = store.search(due).await?;
        match remove_all(store, lane, &due, &audit, &tell).await? {
            0 => return Ok(expired),
            removed => expired += removed,
        }
    }
}

/// Removes these records, as far as they are still in `lane`, each with the entry that `audit` writes for it, and `tell`s
/// of each that is gone; returns how many.
///
/// Cancel safety: what was removed stays removed, the rest is found the next time.
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
            // Somebody was faster: a reviewer, or its last scan.
            Err(StoreError::NotFound(_)) => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(removed), Err)
}

/// Removals that are asked for at once: enough to share a flush, few enough that a commit with them is no longer than one
/// without.
pub const REMOVED_AT_ONCE: usize = 64;

/// Removes what was to be scanned again and is kept too long ([`RESCAN_FOR`]); returns how many.
///
/// Cancel safety: as [`expire`].
pub async fn expire_rescans(store: &dyn Store, now: Timestamp) -> Result<usize, StoreError> {
    let expired = expire(store, Lane::Rescan, now, |_| None, |_| ()).await?;
    dropped("age", expired);
    Ok(expired)
}

/// Counts messages that will not be scanned again, and why.
fn dropped(why: &'static str, messages: usize) {
    metrics::counter!("spillway_rescans_dropped_total", "why" => why).increment(messages as u64);
    if messages > 0 {
        tracing::warn!(messages, why, "delivered mail is not scanned again");
    }
}
