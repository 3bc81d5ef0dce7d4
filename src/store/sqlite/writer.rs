//! The one thread that writes.
//!
//! A commit costs a disk flush whatever it carries, so everything that waits is committed together (group commit): with
//! many sessions a flush is shared by all of them, with one session nothing waits longer than it must. The answers go
//! out only after the commit.
//!
//! One message's bad statement must not fail its neighbours: the batch is rolled back and its jobs are done again one by
//! one, each in a transaction of its own, so that only the culprit gets the error.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::ballast::Ballast;
use super::bodies::{Bodies, failed};
use super::faults::Faults;
use super::health::{Health, Part};
use super::open_files::OpenFiles;
use super::schema::{DATABASE, broken};
use super::work::{Output, Work, perform, take_back, weight};
use crate::store::{StoreError, dropped};

/// Jobs in one transaction.
const BATCH_JOBS: usize = 512;
/// Octets of content in one transaction, so that it fits the page cache and nobody waits long for it.
const BATCH_OCTETS: usize = 8 << 20;
/// How often free space is measured, and a broken disk is tried again.
const DISK_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Work with the way back to its caller, and its place in the bounded queue.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) reply: oneshot::Sender<Result<Output, StoreError>>,
    pub(super) _place: OwnedSemaphorePermit,
}

/// State of the thread.
pub(super) struct Writer {
    pub(super) db: Connection,
    pub(super) jobs: Receiver<Job>,
    pub(super) bodies: Arc<Bodies>,
    pub(super) health: Arc<Health>,
    pub(super) faults: Faults,
    pub(super) commits: Arc<AtomicU64>,
    pub(super) ballast: Ballast,
    /// Where the files are; a relay's alone, which is open for long enough that somebody may move them. Dropped after `db`.
    pub(super) files: Option<OpenFiles>,
    /// Room of the rescan lane.
    pub(super) rescan_bytes: u64,
    /// Whether this is the process that restores the ballast.
    pub(super) relay: bool,
    /// The relay's lock on the store: free again when everything queued is written.
    pub(super) _lock: Option<File>,
}

impl Writer {
    /// Starts the writer's thread.
    pub(super) fn start(self) -> Result<JoinHandle<()>, StoreError> {
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || self.run())
            .map_err(|error| StoreError::Broken(format!("writer thread: {error}")))
    }

    /// The thread's life: until [`Work::Stop`], or until nobody can send any more.
    fn run(mut self) {
        let mut next_tick = Instant::now() + DISK_CHECK_INTERVAL;
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            let alive = match self.jobs.recv_timeout(wait) {
                Ok(first) => self.batch(first),
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => false,
            };
            if !alive {
                return;
            }
            if Instant::now() >= next_tick {
                self.tick();
                next_tick = Instant::now() + DISK_CHECK_INTERVAL;
            }
        }
    }

    /// Takes what waits behind `first` and commits it; false when a stop was among it.
    fn batch(&mut self, first: Job) -> bool {
        let mut batch = Vec::new();
        let mut octets = 0;
        let mut next = Some(first);
        while let Some(job) = next {
            if matches!(job.work, Work::Stop) {
                self.commit(batch);
                let _ = job.reply.send(Ok(Output::Done));
                return false;
            }
            octets += weight(&job.work);
            batch.push(job);
            next = if batch.len() < BATCH_JOBS && octets < BATCH_OCTETS {
                self.jobs.try_recv().ok()
            } else {
                None
            };
        }
        self.commit(batch);
        true
    }

    fn commit(&mut self, batch: Vec<Job>) {
        if batch.is_empty() {
            return;
        }
        if let Some(Err(error)) = self.files.as_ref().map(OpenFiles::log_is_whole) {
            self.health.set(Part::OpenFiles, Err(error));
        }
        match self.transact(&batch) {
            Ok(outputs) => {
                // In the log now, in the database at the next checkpoint.
                let octets: usize = batch.iter().map(|job| weight(&job.work)).sum();
                self.health.wrote(2 * octets);
                self.answer(batch, outputs);
            }
            Err(error) if matches!(error.error, StoreError::Full(_)) => {
                self.without_puts(batch, &error)
            }
            Err(error) if batch.len() == 1 || !error.in_statement => self.fail(batch, &error),
            Err(_) => self.one_by_one(batch),
        }
    }

    /// On a full disk: new mail gives way to what makes room or records progress, which may use the ballast; and then what
    /// grows gives way to what does not.
    fn without_puts(&mut self, batch: Vec<Job>, failure: &Failure) {
        let any_gives_way = batch.iter().any(|job| job.work.gives_way());
        if !any_gives_way && self.make_room() {
            return self.commit(batch);
        }
        let leaves = |job: &Job| match any_gives_way {
            true => job.work.gives_way(),
            false => matches!(job.work, Work::Put { .. }),
        };
        let (puts, rest): (Vec<_>, Vec<_>) = batch.into_iter().partition(leaves);
        if puts.is_empty() {
            return self.fail(rest, failure);
        }
        self.fail(puts, failure);
        // From now on new mail is refused before it comes here.
        self.health.measure();
        self.commit(rest);
    }

    /// Throws the ballast overboard; false if there was none any more. The log is not emptied here but at the next tick:
    /// that may take more room than there is, and the commit at hand needs little.
    fn make_room(&mut self) -> bool {
        let released = self.ballast.release();
        if released {
            tracing::error!(
                "the disk is full: the room kept for this is used to go on with the mail that is here"
            );
        }
        released
    }

    /// Moves the log into the database and cuts it, so that the next commits need no new room. May do less while others
    /// read; what it could not do is done later.
    fn empty_log(&self) {
        let pragma =
            self.db
                .pragma_update_and_check(None, "wal_checkpoint", "truncate", |_| Ok(()));
        if let Err(error) = pragma {
            tracing::debug!(%error, "log not emptied");
        }
    }

    /// After a statement failed: each job for itself. A disk that fails commits is not asked again for every job.
    fn one_by_one(&mut self, batch: Vec<Job>) {
        let mut jobs = batch.into_iter();
        while let Some(job) = jobs.next() {
            let batch = vec![job];
            match self.transact(&batch) {
                Ok(outputs) => self.answer(batch, outputs),
                Err(error) if error.in_statement => self.fail(batch, &error),
                Err(error) => {
                    self.fail(batch, &error);
                    return self.fail(jobs.collect(), &error);
                }
            }
        }
    }

    /// One transaction: all of the jobs or none.
    fn transact(&mut self, batch: &[Job]) -> Result<Vec<Output>, Failure> {
        let disk = self.health.disk();
        self.db
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(|error| Failure::of_disk(broken(&error)))?;
        let done = batch
            .iter()
            .map(|job| perform(&self.db, &job.work, self.rescan_bytes, disk))
            .collect::<rusqlite::Result<Vec<_>>>()
            .map_err(Failure::of_statement)
            .and_then(|outputs| self.flush().map(|()| outputs));
        if done.is_err() && !self.db.is_autocommit() {
            // If even this fails, the next BEGIN fails and says so.
            let _ = self.db.execute_batch("ROLLBACK");
        }
        done
    }

    fn flush(&self) -> Result<(), Failure> {
        self.faults
            .step("commit")
            .map_err(|error| Failure::of_disk(failed(Path::new(DATABASE), &error)))?;
        self.db
            .execute_batch("COMMIT")
            .map_err(|error| Failure::of_disk(broken(&error)))?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the new mail of a batch that is committed will be found by the next start.
    fn find(&mut self, batch: &[Job]) -> Result<(), StoreError> {
        let mut new = batch.iter().filter(|job| job.work.is_new()).peekable();
        let (Some(files), Some(_)) = (&mut self.files, new.peek()) else {
            return Ok(());
        };
        let found = self.health.check_part(Part::Pages);
        let found = found.and_then(|()| files.hold()).and_then(|()| {
            new.try_for_each(|job| match &job.work {
                Work::Put {
                    files: Some(files), ..
                } => files.find(),
                _ => Ok(()),
            })
        });
        if found.is_err() {
            self.health.set(Part::OpenFiles, found.clone());
            // Its sender sends it again: it must not go out from here as well.
            if let Err(error) = self.take_back(batch) {
                tracing::error!(%error, "mail whose sender was told to try again is kept all the same");
            }
        }
        found
    }

    fn take_back(&mut self, batch: &[Job]) -> rusqlite::Result<()> {
        let change = self.db.transaction()?;
        for job in batch {
            take_back(&change, &job.work)?;
        }
        change.commit()
    }

    /// Tells everybody what became of a batch that is committed. New mail that would not be found again stays with its
    /// sender; what is here already goes on, for as long as this process has it.
    fn answer(&mut self, batch: Vec<Job>, outputs: Vec<Output>) {
        self.health.set(Part::Database, Ok(()));
        let found = self.find(&batch);
        let mut gone = Vec::new();
        for (job, output) in batch.into_iter().zip(outputs) {
            match &output {
                Output::RemovedFile(id) => gone.push(*id),
                Output::MadeRoom { messages, files } => {
                    dropped("room", *messages);
                    gone.extend(files);
                }
                _ => {}
            }
            let answer = match &found {
                Err(error) if job.work.is_new() => Err(error.clone()),
                _ => Ok(output),
            };
            if let Work::Put {
                files: Some(files), ..
            } = job.work
                && !matches!(answer, Err(_) | Ok(Output::Refused(_)))
            {
                files.keep();
            }
            let _ = job.reply.send(answer);
        }
        for id in gone {
            self.bodies.remove(id);
        }
    }

    fn fail(&mut self, batch: Vec<Job>, failure: &Failure) {
        if failure.of_the_disk {
            self.health.set(Part::Database, Err(failure.error.clone()));
        }
        for job in batch {
            // Dropping the job's files removes them: before the answer, so that a caller who tries again meets none.
            drop(job.work);
            let _ = job.reply.send(Err(failure.error.clone()));
        }
    }

    /// Free space, and whether what was broken works again.
    fn tick(&mut self) {
        self.health.can_reuse(self.reusable());
        self.health.measure();
        self.look();
        if self.health.check_part(Part::Reserve).is_err() {
            self.empty_log();
        } else if self.relay {
            self.ballast.restore();
        }
        if self.health.check_part(Part::Files).is_err() {
            self.health.set(Part::Files, self.bodies.probe());
        }
        if self.health.check_part(Part::Database).is_err() {
            let probe = self
                .db
                .execute_batch("BEGIN IMMEDIATE; UPDATE probe SET writes = writes + 1")
                .map_err(|error| Failure::of_disk(broken(&error)))
                .and_then(|()| self.flush());
            if !self.db.is_autocommit() {
                let _ = self.db.execute_batch("ROLLBACK");
            }
            self.health
                .set(Part::Database, probe.map_err(|failure| failure.error));
        }
    }
}

/// What the tick looks at.
impl Writer {
    /// Octets of the database that nothing is in.
    fn reusable(&self) -> u64 {
        let number = |pragma| {
            let read = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
            let number = self.db.pragma_query_value(None, pragma, read);
            number.map_or(0, i64::unsigned_abs)
        };
        number("freelist_count").saturating_mul(number("page_size"))
    }

    /// Whether the files are where they were; also whether they are again.
    fn look(&mut self) {
        if let Some(files) = &mut self.files {
            self.health.set(Part::OpenFiles, files.are_all_there());
        }
    }
}

/// Why a transaction was not committed.
struct Failure {
    error: StoreError,
    /// In the statement of some job, rather than in the beginning or end of the transaction.
    in_statement: bool,
    /// It says something about the disk, and so about the next message too.
    of_the_disk: bool,
}

impl Failure {
    fn of_disk(error: StoreError) -> Self {
        Self {
            error,
            in_statement: false,
            of_the_disk: true,
        }
    }

    fn of_statement(error: rusqlite::Error) -> Self {
        let about_the_message = matches!(
            error.sqlite_error_code(),
            None | Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig)
        );
        Self {
            error: match error.sqlite_error_code() {
                Some(ErrorCode::ConstraintViolation) => taken(),
                _ => broken(&error),
            },
            in_statement: true,
            of_the_disk: !about_the_message,
        }
    }
}

/// The answer to a put whose id exists.
pub(super) fn taken() -> StoreError {
    StoreError::Broken("a message with this id is stored already".to_owned())
}
