//! The embedded store: SQLite in WAL mode. Every commit is flushed, and one thread writes.
//!
//! | file | what it does |
//! |---|---|
//! | `schema` | tables, connections, meaning of SQLite's errors |
//! | `row` | a record as a row and back |
//! | `writer` | the writing thread: group commit |
//! | `calls` | the calls of the store: jobs of the writer, and reads |
//! | `put` | the way of records and contents to the writer |
//! | `work` | the jobs of the writer, and what they return |
//! | `perform` | the jobs, as statements |
//! | `claims` | the statements that lease rows |
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
mod calls;
mod claims;
mod counts;
mod faults;
mod folder;
mod health;
mod interceptors;
mod late;
mod open_files;
mod perform;
mod put;
mod readers;
mod recovery;
mod row;
mod schema;
mod search;
#[cfg(test)]
mod tests;
mod work;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{Semaphore, oneshot};

use self::ballast::Ballast;
pub(super) use self::bodies::sync_folder;
use self::bodies::{Bodies, failed};
pub use self::faults::Faults;
use self::folder::{BODIES_LOCK, open_private, prepare_folder, require_store};
use self::health::Health;
use self::open_files::OpenFiles;
use self::readers::Readers;
pub(super) use self::schema::is_corrupt;
use self::work::{Output, Work};
use self::writer::{Job, Writer};
use super::{AtWork, Recovery, Settings, StoreError};

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
            open_files: open,
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
}
