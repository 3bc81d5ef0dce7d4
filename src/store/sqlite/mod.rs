//! The embedded store: SQLite in WAL mode. Every commit is flushed, and one thread writes.
//!
//! | file | what it does |
//! |---|---|
//! | `schema` | tables, connections, meaning of SQLite's errors |
//! | `row` | a record as a row and back |
//! | `writer` | the writing thread: group commit |
//! | `work` | the jobs of the writer, as statements |
//! | `folder` | the folder, its permissions, its locks |
//! | `bodies` | contents too large for the database |
//! | `interceptors` | the interceptors |
//! | `search` | all reads |
//! | `recovery` | checks at start, before mail is accepted |
//! | `health` | whether new mail can be accepted |
//! | `open_files` | whether the open files are those that the next start will find |
//! | `ballast` | room for the last writes on a full disk |
//! | `faults` | makes the Nth disk operation fail, for tests |
//!
//! Callers encode their records themselves and wait in a bounded queue. Reads have connections of their own. Other processes
//! (commands) may open the same store at any time, but only one relay at a time.

mod ballast;
mod bodies;
mod faults;
mod folder;
mod health;
mod interceptors;
mod open_files;
mod readers;
mod recovery;
mod row;
mod schema;
mod search;
#[cfg(test)]
mod tests;
mod work;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{Semaphore, oneshot};

use self::ballast::Ballast;
pub(super) use self::bodies::sync_folder;
use self::bodies::{Bodies, Written, failed};
pub use self::faults::Faults;
use self::folder::{BODIES_LOCK, lock_shared, open_private, prepare_folder, require_store};
use self::health::{Health, Part};
use self::open_files::OpenFiles;
use self::readers::Readers;
use self::row::Row;
pub(super) use self::schema::is_corrupt;
use self::search::{Damage, Sorted};
use self::work::{Entry, NewRow, Output, Room, Terms, Work};
use self::writer::{Job, Writer};
use super::{
    AtWork, Audit, Capacity, Cause, Change, Filter, Held, Interceptors, Lane, LaneStats, Object,
    Outgoing, Place, Queue, Record, Recovery, Settings, Store, StoreError, StoreFuture,
    StoredInterceptor, Times,
};
use crate::message::{Content, MessageId};

/// Maximum number of jobs that wait for the writer: two full transactions. Further callers wait until the queue has a place.
const JOBS_WAITING_MAX: usize = 1024;
/// Maximum number of body files written at the same time: enough to share the disk's flushes, and few enough to leave threads
/// of the blocking pool to others.
const FILE_WRITES_MAX: usize = 32;
/// Number of connections that read: a slow search leaves others for the reads of every second.
const READER_CONNECTIONS: usize = 3;

/// The process that opens the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The relay: only one has the store. Creates the store if it is missing, and runs recovery.
    Relay,
    /// A command, with or without a running relay: uses an existing store, and leaves leases and orphans alone.
    Tool,
}

/// The SQLite store. If it is dropped, the writer finishes the queued jobs in the background; [`SqliteStore::close`] waits for
/// that.
#[derive(Debug)]
pub struct SqliteStore {
    inline_limit: u64,
    rescan_bytes: u64,
    role: Role,
    folder: PathBuf,
    jobs: SyncSender<Job>,
    places: Arc<Semaphore>,
    files: Arc<Semaphore>,
    bodies: Arc<Bodies>,
    health: Arc<Health>,
    readers: Readers,
    commits: Arc<AtomicU64>,
    at_work: AtWork,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl SqliteStore {
    /// Opens the store in `settings.path`. For [`Role::Relay`] it also runs recovery, which takes as long as reading the
    /// metadata of everything stored. The blocking work runs on the blocking pool.
    ///
    /// An error names the file and says what to do: another relay has the store, the file is malformed or from a newer
    /// version, or (for a tool) the store does not exist.
    pub async fn open(
        settings: &Settings,
        role: Role,
    ) -> Result<(Arc<Self>, Recovery), StoreError> {
        Self::open_with(settings, role, Faults::default()).await
    }

    /// Like [`SqliteStore::open`], with an injected fault: for tests.
    pub async fn open_with(
        settings: &Settings,
        role: Role,
        faults: Faults,
    ) -> Result<(Arc<Self>, Recovery), StoreError> {
        let settings = settings.clone();
        tokio::task::spawn_blocking(move || Self::open_blocking(&settings, role, faults))
            .await
            .map_err(|error| StoreError::Broken(error.to_string()))?
    }

    fn open_blocking(
        settings: &Settings,
        role: Role,
        faults: Faults,
    ) -> Result<(Arc<Self>, Recovery), StoreError> {
        let folder = settings.path.clone();
        let lock = match role {
            Role::Relay => Some(prepare_folder(&folder)?),
            Role::Tool => {
                require_store(&folder)?;
                None
            }
        };
        let ballast = Ballast::new(&folder, settings.disk_reserve);
        if role == Role::Relay {
            ballast.release_below(ballast::FREE_OCTETS_AT_START_MIN);
        }
        let mut db = schema::open_writer(&folder, ballast.log_pages())?;
        let bodies = Bodies::open(&folder, faults.clone())
            .map(Arc::new)
            .map_err(|error| failed(&folder, &error))?;
        let (recovery, open) = match role {
            Role::Relay => {
                // A tool holds this lock from the write of a body file until its row is committed. Recovery releases it at its
                // end.
                let guard = open_private(&folder.join(BODIES_LOCK))?;
                let alone = guard.try_lock().is_ok();
                let recovery = recovery::recover(&mut db, &folder, &bodies, alone)?;
                let open = OpenFiles::find(&folder).map_err(|error| failed(&folder, &error))?;
                (recovery, Some(open))
            }
            Role::Tool => (Recovery::default(), None),
        };
        let opened = open.as_ref().map(OpenFiles::opened);
        let health = Arc::new(Health::new(folder.clone(), settings.disk_reserve));
        if role == Role::Relay && health.check().is_ok() {
            ballast.restore();
        }
        let commits = Arc::new(AtomicU64::new(0));
        let (jobs, queue) = sync_channel(JOBS_WAITING_MAX);
        let writer = Writer {
            db,
            jobs: queue,
            bodies: bodies.clone(),
            health: health.clone(),
            faults,
            commits: commits.clone(),
            ballast,
            files: open,
            rescan_bytes: settings.rescan_bytes,
            relay: role == Role::Relay,
            _lock: lock,
        };
        let thread = writer.start()?;
        let store = Self {
            inline_limit: settings.inline_limit,
            rescan_bytes: settings.rescan_bytes,
            role,
            readers: Readers::new(folder.clone(), health.clone(), opened, READER_CONNECTIONS)?,
            folder,
            jobs,
            places: Arc::new(Semaphore::new(JOBS_WAITING_MAX)),
            files: Arc::new(Semaphore::new(FILE_WRITES_MAX)),
            bodies,
            health,
            commits,
            at_work: AtWork::default(),
            thread: Mutex::new(Some(thread)),
        };
        Ok((Arc::new(store), recovery))
    }

    /// Writes the queued jobs, then closes: every later call gets [`StoreError::Closed`]. When this returns, the store can be
    /// opened again.
    ///
    /// Cancel safety: the store closes nevertheless.
    pub async fn close(&self) {
        let place = self.places.clone().acquire_owned().await;
        self.places.close();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let (Ok(place), Some(thread)) = (place, thread) else {
            return;
        };
        let (reply, _) = oneshot::channel();
        let stop = Job {
            work: Work::Stop,
            reply,
            _place: place,
        };
        // If the thread has ended already, it needs no stop.
        let _ = self.jobs.try_send(stop);
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        self.readers.close();
    }

    /// Number of transactions committed by this handle: with many writers, far fewer than messages.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    async fn submit(&self, work: Work) -> Result<Output, StoreError> {
        let place = self
            .places
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let job = Job {
            work,
            reply,
            _place: place,
        };
        // The queue has a place for every permit, so this fails only if the thread has ended.
        self.jobs.try_send(job).map_err(|_| StoreError::Closed)?;
        match answer.await {
            Ok(Ok(Output::Refused(error))) => Err(error),
            Ok(outcome) => outcome,
            Err(_) => Err(StoreError::Closed),
        }
    }

    /// Writes new mail.
    async fn put_until(
        &self,
        records: Vec<Record>,
        content: Content,
        lease: Option<Timestamp>,
        room: Room,
    ) -> Result<(), StoreError> {
        if room != Room::Reserve {
            self.health.check_part(Part::Reserve)?;
        }
        for part in [Part::OpenFiles, Part::Pages] {
            self.health.check_part(part)?;
        }
        let each = |record| (record, content.clone());
        let new = records.into_iter().map(each).collect();
        self.write(new, lease, None, room).await
    }

    /// Records that come from mail that the relay already has may use the reserve.
    async fn settle_in(
        &self,
        lane: Lane,
        id: MessageId,
        change: Change,
        beside: Vec<(Record, Content)>,
    ) -> Result<(), StoreError> {
        let work = change_of(Some(lane), id, change, None)?;
        match beside.is_empty() {
            true => self.submit(work).await.map(|_| ()),
            false => {
                let work = Some(Box::new(work));
                self.write(beside, None, work, Room::Reserve).await
            }
        }
    }

    async fn write(
        &self,
        new: Vec<(Record, Content)>,
        lease: Option<Timestamp>,
        beside: Option<Box<Work>>,
        room: Room,
    ) -> Result<(), StoreError> {
        let (mut rows, mut large) = (Vec::with_capacity(new.len()), Vec::new());
        for (record, content) in new {
            let file = content.len() as u64 > self.inline_limit;
            if file {
                large.push((record.id, content.clone()));
            }
            let row = Row::encode(record, lease)?;
            rows.push(NewRow { row, content, file });
        }
        let files = match large.is_empty() {
            true => None,
            false => Some(self.write_files(large).await?),
        };
        let work = Work::Put {
            rows,
            files,
            beside,
            room,
        };
        self.submit(work).await.map(|_| ())
    }

    async fn write_files(
        &self,
        contents: Vec<(MessageId, Content)>,
    ) -> Result<Written, StoreError> {
        let place = self
            .files
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Closed)?;
        let bodies = self.bodies.clone();
        let health = self.health.clone();
        let guard = match self.role {
            Role::Tool => Some(self.folder.join(BODIES_LOCK)),
            Role::Relay => None,
        };
        let write = move || {
            let _place = place;
            let guard = guard.map(|path| lock_shared(&path)).transpose()?;
            let octets = contents.iter().map(|(_, content)| content.len()).sum();
            match Written::write(bodies, contents, guard) {
                Ok(written) => {
                    health.wrote(octets);
                    health.set(Part::Files, Ok(()));
                    Ok(written)
                }
                Err((_, error)) if error.kind() == io::ErrorKind::AlreadyExists => {
                    Err(writer::taken())
                }
                Err((path, error)) => {
                    let error = failed(&path, &error);
                    health.set(Part::Files, Err(error.clone()));
                    Err(error)
                }
            }
        };
        tokio::task::spawn_blocking(write)
            .await
            .map_err(|error| StoreError::Broken(error.to_string()))?
    }

    async fn change_lane(
        &self,
        lane: Option<Lane>,
        id: MessageId,
        change: Change,
        audit: Option<Audit>,
    ) -> Result<(), StoreError> {
        let audit = audit.as_ref().map(entry).transpose()?;
        let work = change_of(lane, id, change, audit)?;
        self.submit(work).await.map(|_| ())
    }

    fn terms(&self, times: Times, limit: usize) -> Terms {
        Terms {
            times,
            limit,
            at_work: self.at_work.clone(),
        }
    }

    /// Submits work that claims records.
    async fn lease(&self, work: Work) -> Result<Vec<Record>, StoreError> {
        match self.submit(work).await? {
            Output::Claimed(rows) => Ok(self.keep_good(search::sort(rows)).await),
            _ => Ok(Vec::new()),
        }
    }

    /// Sets aside the records that a read found to be damaged; returns the others.
    async fn keep_good(&self, (records, damaged): Sorted) -> Vec<Record> {
        for Damage { id, why } in damaged {
            match id.parse() {
                Ok(id) => self.set_aside(id, why).await,
                Err(_) => recovery::report(&id, &why),
            }
        }
        records
    }

    async fn set_aside(&self, id: MessageId, why: String) {
        if let Err(error) = self.submit(Work::SetAside { id, why }).await {
            tracing::error!(%id, %error, "the store could not mark a message as damaged");
        }
    }

    /// Returns the outcome. If the outcome is damage, sets the record aside.
    async fn watch<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Damaged(id, why)) = &outcome {
            self.set_aside(*id, why.clone()).await;
        }
        outcome
    }
}

impl Store for SqliteStore {
    fn put(&self, records: Vec<Record>, content: Content) -> StoreFuture<'_, ()> {
        Box::pin(self.put_until(records, content, None, Room::New))
    }

    fn put_new(
        &self,
        records: Vec<Record>,
        content: Content,
        quarantine: Capacity,
    ) -> StoreFuture<'_, ()> {
        Box::pin(self.put_until(records, content, None, Room::Held(quarantine)))
    }

    fn put_rest(&self, records: Vec<Record>, content: Content) -> StoreFuture<'_, ()> {
        Box::pin(self.put_until(records, content, None, Room::Reserve))
    }

    fn put_leased(
        &self,
        records: Vec<Record>,
        content: Content,
        until: Timestamp,
    ) -> StoreFuture<'_, ()> {
        Box::pin(self.put_until(records, content, Some(until), Room::New))
    }

    fn settle(
        &self,
        lane: Lane,
        id: MessageId,
        change: Change,
        beside: Vec<(Record, Content)>,
    ) -> StoreFuture<'_, ()> {
        Box::pin(self.settle_in(lane, id, change, beside))
    }

    fn change(&self, id: MessageId, change: Change, audit: Option<Audit>) -> StoreFuture<'_, ()> {
        Box::pin(self.change_lane(None, id, change, audit))
    }

    fn change_in(
        &self,
        lane: Lane,
        id: MessageId,
        change: Change,
        audit: Option<Audit>,
    ) -> StoreFuture<'_, ()> {
        Box::pin(self.change_lane(Some(lane), id, change, audit))
    }

    fn claim(&self, lane: Lane, times: Times, limit: usize) -> StoreFuture<'_, Vec<Record>> {
        let terms = self.terms(times, limit);
        Box::pin(self.lease(Work::Claim { lane, terms }))
    }

    fn claim_outgoing(
        &self,
        what: Outgoing,
        times: Times,
        limit: usize,
    ) -> StoreFuture<'_, Vec<Record>> {
        let terms = self.terms(times, limit);
        Box::pin(self.lease(Work::ClaimOutgoing { what, terms }))
    }

    fn queues(&self, times: Times) -> StoreFuture<'_, Vec<Queue>> {
        Box::pin(self.readers.query(move |db| search::queues(db, times)))
    }

    fn causes(&self) -> StoreFuture<'_, Vec<Cause>> {
        Box::pin(self.readers.query(search::causes))
    }

    fn recover(
        &self,
        lane: Lane,
        cause: Cause,
        after: Option<Place>,
        times: Times,
        limit: usize,
    ) -> StoreFuture<'_, Vec<Record>> {
        Box::pin(self.lease(Work::Recover {
            lane,
            cause,
            after,
            terms: self.terms(times, limit),
        }))
    }

    fn at_work(&self) -> &AtWork {
        &self.at_work
    }

    fn make_due(&self, id: MessageId, now: Timestamp) -> StoreFuture<'_, bool> {
        Box::pin(async move {
            match self.submit(Work::MakeDue { id, now }).await {
                Ok(_) => Ok(true),
                Err(StoreError::NotFound(_)) => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    fn get(&self, id: MessageId) -> StoreFuture<'_, Option<Record>> {
        Box::pin(async move {
            let found = self.readers.run(move |db| search::get(db, id)).await;
            self.watch(found).await
        })
    }

    fn content(&self, id: MessageId) -> StoreFuture<'_, Bytes> {
        Box::pin(async move {
            let bodies = self.bodies.clone();
            let read = move |db: &_| search::content(db, &bodies, id);
            let found = self.readers.run(read).await;
            self.watch(found).await
        })
    }

    fn search(&self, filter: Filter) -> StoreFuture<'_, Vec<Record>> {
        Box::pin(async move {
            let found = self.readers.query(move |db| search::search(db, &filter));
            Ok(self.keep_good(found.await?).await)
        })
    }

    fn audit(&self, audit: Audit) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let entry = entry(&audit)?;
            self.submit(Work::Audit(entry)).await.map(|_| ())
        })
    }

    fn audited(&self, of: Option<Object>, limit: usize) -> StoreFuture<'_, Vec<Audit>> {
        let read = move |db: &_| search::audited(db, of.as_ref(), limit);
        Box::pin(self.readers.query(read))
    }

    fn interceptors(&self, known: Option<u64>) -> StoreFuture<'_, Option<Interceptors>> {
        Box::pin(self.readers.query(move |db| interceptors::read(db, known)))
    }

    fn keep_interceptor(
        &self,
        interceptor: StoredInterceptor,
        audit: Option<Audit>,
    ) -> StoreFuture<'_, Option<u64>> {
        Box::pin(async move {
            let audit = audit.as_ref().map(entry).transpose()?;
            let work = Work::KeepInterceptor { interceptor, audit };
            match self.submit(work).await? {
                Output::Version(version) => Ok(Some(version)),
                _ => Ok(None),
            }
        })
    }

    fn drop_interceptor(&self, id: String, audit: Option<Audit>) -> StoreFuture<'_, bool> {
        Box::pin(async move {
            let audit = audit.as_ref().map(entry).transpose()?;
            let work = Work::DropInterceptor { id, audit };
            Ok(matches!(self.submit(work).await?, Output::Done))
        })
    }

    fn held(&self, quarantine: Capacity) -> StoreFuture<'_, Held> {
        let disk = self.health.disk();
        let read = move |db: &_| search::held(db, quarantine, disk);
        Box::pin(self.readers.query(read))
    }

    fn stats(&self) -> StoreFuture<'_, [LaneStats; Lane::ALL.len()]> {
        Box::pin(self.readers.query(search::stats))
    }

    fn unjudged(&self) -> StoreFuture<'_, u64> {
        Box::pin(self.readers.query(search::unjudged))
    }

    fn rescan_room(&self) -> StoreFuture<'_, u64> {
        let most = self.rescan_bytes / 2;
        let left = move |db: &_| Ok(most.saturating_sub(search::rescan_octets(db)?));
        Box::pin(self.readers.query(left))
    }

    fn accepts(&self) -> Result<(), StoreError> {
        self.health.check()
    }
}

/// A change of one record, encoded.
fn change_of(
    lane: Option<Lane>,
    id: MessageId,
    change: Change,
    audit: Option<Entry>,
) -> Result<Work, StoreError> {
    let (record, lease) = match change {
        Change::Remove => return Ok(Work::Remove { id, lane, audit }),
        Change::Replace(record) => (record, None),
        Change::Take(record, until) => (record, Some(until)),
    };
    if record.id != id {
        let why = format!("the record of {} cannot replace it", record.id);
        return Err(StoreError::Damaged(id, why));
    }
    Ok(Work::Replace {
        id,
        row: Box::new(Row::encode(*record, lease)?),
        lane,
        audit,
    })
}

fn entry(audit: &Audit) -> Result<Entry, StoreError> {
    let json = serde_json::to_string(audit)
        .map_err(|error| StoreError::Broken(format!("audit entry: {error}")))?;
    Ok(Entry {
        object: audit.object.to_string(),
        json,
    })
}
