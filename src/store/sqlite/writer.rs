//! The one thread that writes to the database: it performs the jobs ([`Work`]) of all callers.
//!
//! Terms: a *put* is a job that adds rows, with their contents ([`Work::Put`]). The *log* is SQLite's write-ahead log, in
//! which a commit is durable before a checkpoint moves it into the database file. *Body files* are contents too large for
//! the database. The *reserve* is the free space that new mail must leave (`store.disk_reserve`). The *ballast* is a file
//! that the store deletes to get room on a full disk.
//!
//! The cost of a commit is a disk flush, whatever the commit contains. So all waiting jobs are committed together (group
//! commit): many sessions share a flush, and a single session does not wait for others. Callers get their answers only after
//! the commit.
//!
//! A statement that fails for one message must not fail the other jobs. The batch is rolled back, and its jobs are done again
//! one by one, each in its own transaction, so that only the failing job gets the error.

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
use super::perform::{perform, take_back};
use super::schema::{DATABASE_FILE, broken};
use super::work::{Output, Work, weight};
use crate::store::StoreError;
use crate::store::expiry::dropped;

/// Maximum number of jobs in one transaction, so that no caller waits long for it.
const BATCH_JOBS: usize = 512;
/// Maximum content in one transaction, 8 MiB: it fits into the page cache of 16 MB, and no caller waits long for it.
const BATCH_OCTETS: usize = 8 << 20;
/// Interval between measurements of the free space, and between attempts to use a broken disk again.
const DISK_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Work, the channel for its answer, and its place in the bounded queue.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) reply: oneshot::Sender<Result<Output, StoreError>>,
    pub(super) _place: OwnedSemaphorePermit,
}

/// The state of the thread.
pub(super) struct Writer {
    pub(super) db: Connection,
    pub(super) jobs: Receiver<Job>,
    pub(super) bodies: Arc<Bodies>,
    pub(super) health: Arc<Health>,
    pub(super) faults: Faults,
    /// Number of commits so far.
    pub(super) commits: Arc<AtomicU64>,
    pub(super) ballast: Ballast,
    /// The database, its log and the folder of the body files, as the relay opened them; `None` for a command
    /// ([`super::Role::Tool`]). A relay runs so long that a person may move its files meanwhile. Dropped after `db`.
    pub(super) open_files: Option<OpenFiles>,
    /// Limit of the rescan lane in octets.
    pub(super) rescan_bytes: u64,
    /// Whether this process is the relay, which restores the ballast.
    pub(super) relay: bool,
    /// The relay's lock on the store, released after all queued jobs are written.
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

    /// Runs until [`Work::Stop`], or until the store is dropped: it has the sending end of the channel of jobs.
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

    /// Commits `first` and the jobs that wait behind it, within the limits of a transaction; returns false if one of them
    /// was a stop.
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

    /// Commits a batch and answers its jobs. If the transaction fails, does what can still be done: on a full disk, the jobs
    /// that need less room; after a failed statement, each job alone. Fails the whole batch if the disk failed.
    fn commit(&mut self, batch: Vec<Job>) {
        if batch.is_empty() {
            return;
        }
        if let Some(Err(error)) = self.open_files.as_ref().map(OpenFiles::log_is_whole) {
            self.health.set(Part::OpenFiles, Err(error));
        }
        match self.transact(&batch) {
            Ok(outputs) => {
                // Counted twice: the content takes room in the log now, and in the database after the next checkpoint.
                let octets: usize = batch.iter().map(|job| weight(&job.work)).sum();
                self.health.wrote(2 * octets);
                self.answer(batch, outputs);
            }
            Err(error) if matches!(error.error, StoreError::Full(_)) => {
                self.commit_on_full_disk(batch, &error)
            }
            Err(error) if batch.len() == 1 || !error.in_statement => self.fail(batch, &error),
            Err(_) => self.one_by_one(batch),
        }
    }

    /// Handles a full disk, one step at a time; each step tries the commit again, and the next step follows if the disk is
    /// still full:
    ///
    /// 1. New mail is refused: its sender still has it. The other jobs make room or record progress.
    /// 2. The ballast is deleted, and all remaining jobs use its room.
    /// 3. The remaining puts are refused (records that come from mail that the relay has). The other jobs need no more room.
    /// 4. All remaining jobs fail.
    fn commit_on_full_disk(&mut self, batch: Vec<Job>, failure: &Failure) {
        let any_gives_way = batch.iter().any(|job| job.work.gives_way());
        if !any_gives_way && self.make_room() {
            return self.commit(batch);
        }
        let is_refused = |job: &Job| match any_gives_way {
            true => job.work.gives_way(),
            false => matches!(job.work, Work::Put { .. }),
        };
        let (refused, others): (Vec<_>, Vec<_>) = batch.into_iter().partition(is_refused);
        if refused.is_empty() {
            return self.fail(others, failure);
        }
        self.fail(refused, failure);
        // The measurement makes callers refuse new mail before it gets here.
        self.health.measure();
        self.commit(others);
    }

    /// Deletes the ballast file; returns false if there was none. The log is not emptied here but at the next tick: emptying
    /// may need more room than the disk has, and the present commit needs little.
    fn make_room(&mut self) -> bool {
        let released = self.ballast.release();
        if released {
            tracing::error!(
                "the disk is full: the relay removed its ballast file to go on; free some disk space"
            );
        }
        released
    }

    /// Moves the log into the database and truncates it, so that the next commits need no new room. Does less while other
    /// connections read; a later call does the rest.
    fn empty_log(&self) {
        let pragma =
            self.db
                .pragma_update_and_check(None, "wal_checkpoint", "truncate", |_| Ok(()));
        if let Err(error) = pragma {
            tracing::debug!(%error, "database log not emptied");
        }
    }

    /// Does each job in its own transaction, after a statement failed. If the disk fails a commit, the other jobs are not
    /// tried.
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

    /// One transaction with all of the jobs or none.
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
            // If ROLLBACK fails too, the next BEGIN fails and reports the error.
            let _ = self.db.execute_batch("ROLLBACK");
        }
        done
    }

    /// Ends the open transaction with a commit, which flushes the log to the disk.
    fn flush(&self) -> Result<(), Failure> {
        self.faults
            .step("commit")
            .map_err(|error| Failure::of_disk(failed(Path::new(DATABASE_FILE), &error)))?;
        self.db
            .execute_batch("COMMIT")
            .map_err(|error| Failure::of_disk(broken(&error)))?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Checks that the files of the store are still in place, so that the next start will find the new mail of a committed
    /// batch: a person may have moved or replaced them while the relay has them open. If the check fails, the new mail is
    /// removed again, and the error is for its senders. Without new mail or without open files, there is nothing to check.
    fn check_new_mail_is_in_place(&mut self, batch: &[Job]) -> Result<(), StoreError> {
        let mut new = batch.iter().filter(|job| job.work.is_new()).peekable();
        let (Some(open_files), Some(_)) = (&mut self.open_files, new.peek()) else {
            return Ok(());
        };
        let found = self.health.check_part(Part::Pages);
        let found = found.and_then(|()| open_files.check_last_commit());
        let found = found.and_then(|()| {
            new.try_for_each(|job| match &job.work {
                Work::Put {
                    files: Some(files), ..
                } => files.check_in_place(),
                _ => Ok(()),
            })
        });
        if found.is_err() {
            self.health.set(Part::OpenFiles, found.clone());
            // The sender sends the mail again, so the relay must not send it too.
            if let Err(error) = self.take_back(batch) {
                tracing::error!(
                    %error,
                    "mail whose sender was told to try again could not be removed, and may be delivered twice"
                );
            }
        }
        found
    }

    /// Removes the new mail of a committed batch in one transaction.
    fn take_back(&mut self, batch: &[Job]) -> rusqlite::Result<()> {
        let change = self.db.transaction()?;
        for job in batch {
            take_back(&change, &job.work)?;
        }
        change.commit()
    }

    /// Answers the jobs of a batch that is committed. New mail that the next start would not find stays with its sender. Mail
    /// that the relay had already goes on as long as this process runs.
    fn answer(&mut self, batch: Vec<Job>, outputs: Vec<Output>) {
        self.health.set(Part::Database, Ok(()));
        let found = self.check_new_mail_is_in_place(&batch);
        let mut gone = Vec::new();
        for (job, output) in batch.into_iter().zip(outputs) {
            match &output {
                Output::RemovedFile(id) => gone.push(*id),
                Output::MadeRoom { messages, files } => {
                    // The rescan lane was full: this delivered mail is not scanned again, for the reason "room".
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

    /// Answers the jobs of a batch that is not committed, with the error.
    fn fail(&mut self, batch: Vec<Job>, failure: &Failure) {
        if failure.concerns_disk {
            self.health.set(Part::Database, Err(failure.error.clone()));
        }
        for job in batch {
            // Dropping the job removes its files. This comes before the answer, so that a caller who tries again finds none.
            drop(job.work);
            let _ = job.reply.send(Err(failure.error.clone()));
        }
    }

    /// Does the work of every second: measures the free space, checks the open files, and tests whether a broken part works
    /// again. While the free space is below the reserve, it empties the log; otherwise it restores the ballast.
    fn tick(&mut self) {
        self.health.set_reusable(self.reusable());
        self.health.measure();
        self.check_open_files();
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

/// The measurements of the tick.
impl Writer {
    /// Free octets inside the database, which new content can use: its free pages.
    fn reusable(&self) -> u64 {
        let number = |pragma| {
            let read = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
            let number = self.db.pragma_query_value(None, pragma, read);
            number.map_or(0, i64::unsigned_abs)
        };
        number("freelist_count").saturating_mul(number("page_size"))
    }

    /// Checks that the open files still have their names. If they were moved away and are back, the trouble ends.
    fn check_open_files(&mut self) {
        if let Some(open_files) = &mut self.open_files {
            self.health.set(Part::OpenFiles, open_files.check_all());
        }
    }
}

/// Why a transaction was not committed.
struct Failure {
    error: StoreError,
    /// Whether the statement of a job failed, and not the beginning or the end of the transaction.
    in_statement: bool,
    /// Whether the error concerns the disk, and so also the next message.
    concerns_disk: bool,
}

impl Failure {
    /// BEGIN or COMMIT failed.
    fn of_disk(error: StoreError) -> Self {
        Self {
            error,
            in_statement: false,
            concerns_disk: true,
        }
    }

    /// The statement of a job failed. Constraints and sizes concern one message only; other errors concern the disk.
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
            concerns_disk: !about_the_message,
        }
    }
}

/// The error of a put whose id exists.
pub(super) fn taken() -> StoreError {
    StoreError::Broken("a message with this id is stored already".to_owned())
}
