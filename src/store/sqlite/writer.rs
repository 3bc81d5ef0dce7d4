//! The one thread that writes.
//!
//! A commit costs a disk flush whatever it carries, so everything that waits is committed together (group commit): with
//! many sessions a flush is shared by all of them, with one session nothing waits longer than it must. The answers go
//! out only after the commit.
//!
//! One message's bad statement must not fail its neighbours: the batch is rolled back and its jobs are done again one by
//! one, each in a transaction of its own, so that only the culprit gets the error.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::bodies::{Bodies, Written};
use super::faults::Faults;
use super::health::{Health, Part};
use super::recovery::report;
use super::row::{Row, lane_number, lanes, lossy};
use super::schema::broken;
use crate::message::{Content, MessageId};
use crate::store::{Lane, StoreError};

/// Jobs in one transaction.
const BATCH_JOBS: usize = 512;
/// Octets of content in one transaction, so that it fits the page cache and nobody waits long for it.
const BATCH_OCTETS: usize = 8 << 20;
/// How often free space is measured, and a broken disk is tried again.
const TICK: Duration = Duration::from_secs(1);

/// Something to be written.
pub(super) enum Work {
    /// New rows with their content, inline unless `files` hold it; and a new row in the place of the one that they were
    /// split from.
    Put {
        rows: Vec<Row>,
        content: Content,
        files: Option<Written>,
        beside: Option<(MessageId, Box<Row>)>,
    },
    /// A new row in the place of the one with its id.
    Replace {
        id: MessageId,
        row: Box<Row>,
        lane: Option<Lane>,
        audit: Option<Entry>,
    },
    /// The row and its content go.
    Remove {
        id: MessageId,
        lane: Option<Lane>,
        audit: Option<Entry>,
    },
    /// Leases what is due.
    Claim {
        lane: Lane,
        now: Timestamp,
        until: Timestamp,
        limit: usize,
    },
    /// An audit entry alone.
    Audit(Entry),
    /// The row cannot be used.
    SetAside { id: MessageId, why: String },
    /// Finish what was queued before, then end.
    Stop,
}

/// An audit entry, encoded.
pub(super) struct Entry {
    pub(super) record: String,
    pub(super) json: String,
}

/// What a job gives back.
#[derive(Debug)]
pub(super) enum Output {
    /// Done.
    Done,
    /// Claimed rows: id and record, oldest due first.
    Claimed(Vec<(String, String)>),
    /// Removed a row whose content is a file.
    RemovedFile(MessageId),
    /// Not done, for a reason that lies in the record, not in the disk.
    Refused(StoreError),
}

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
    /// The relay's lock on the store: free again when everything queued is written.
    pub(super) _lock: Option<File>,
}

impl Writer {
    /// The thread's life: until [`Work::Stop`], or until nobody can send any more.
    pub(super) fn run(mut self) {
        let mut next_tick = Instant::now() + TICK;
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
                next_tick = Instant::now() + TICK;
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
        match self.transact(&batch) {
            Ok(outputs) => self.answer(batch, outputs),
            Err(error) if batch.len() == 1 || !error.in_statement => self.fail(batch, &error),
            Err(_) => self.one_by_one(batch),
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
        self.db
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(|error| Failure::of_disk(broken(&error)))?;
        let done = batch
            .iter()
            .map(|job| perform(&self.db, &job.work))
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
            .map_err(|error| Failure::of_disk(StoreError::Broken(error.to_string())))?;
        self.db
            .execute_batch("COMMIT")
            .map_err(|error| Failure::of_disk(broken(&error)))?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn answer(&mut self, batch: Vec<Job>, outputs: Vec<Output>) {
        self.health.set(Part::Database, Ok(()));
        let mut gone = Vec::new();
        for (job, output) in batch.into_iter().zip(outputs) {
            match (job.work, &output) {
                (
                    Work::Put {
                        files: Some(files), ..
                    },
                    Output::Done,
                ) => files.keep(),
                (_, Output::RemovedFile(id)) => gone.push(*id),
                _ => {}
            }
            let _ = job.reply.send(Ok(output));
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
        self.health.measure();
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

fn weight(work: &Work) -> usize {
    match work {
        Work::Put {
            rows,
            content,
            files: None,
            ..
        } => rows.len() * content.len(),
        _ => 0,
    }
}

fn perform(db: &Connection, work: &Work) -> rusqlite::Result<Output> {
    match work {
        Work::Put {
            rows,
            content,
            files,
            beside,
        } => {
            if let Some((id, row)) = beside
                && !row.update(db, None)?
            {
                return Ok(Output::Refused(why_not(db, *id)?));
            }
            for row in rows {
                put(db, row, content, files.is_some())?;
            }
            Ok(Output::Done)
        }
        Work::Replace {
            id,
            row,
            lane,
            audit,
        } => {
            if row.update(db, *lane)? {
                append(db, audit.as_ref())?;
                return Ok(Output::Done);
            }
            Ok(Output::Refused(why_not(db, *id)?))
        }
        Work::Remove { id, lane, audit } => remove(db, *id, *lane, audit.as_ref()),
        Work::Claim {
            lane,
            now,
            until,
            limit,
        } => claim(db, *lane, *now, *until, *limit),
        Work::Audit(entry) => append(db, Some(entry)).map(|()| Output::Done),
        Work::SetAside { id, why } => {
            let marked = db
                .prepare_cached(
                    "UPDATE message SET damaged = ?2 WHERE id = ?1 AND damaged IS NULL",
                )?
                .execute(params![id.to_string(), why])?;
            if marked > 0 {
                report(&id.to_string(), why);
            }
            Ok(Output::Done)
        }
        Work::Stop => Ok(Output::Done),
    }
}

fn put(db: &Connection, row: &Row, content: &Content, file: bool) -> rusqlite::Result<()> {
    let size = i64::try_from(content.len()).unwrap_or(i64::MAX);
    let seq = row.insert(db, size, file)?;
    if !file {
        db.prepare_cached("INSERT INTO body (seq, content) VALUES (?1, ?2)")?
            .execute(params![seq, &content.bytes()[..]])?;
    }
    Ok(())
}

fn remove(
    db: &Connection,
    id: MessageId,
    lane: Option<Lane>,
    audit: Option<&Entry>,
) -> rusqlite::Result<Output> {
    let (first, last) = lanes(lane);
    let found: Option<(i64, bool)> = db
        .prepare_cached(
            "DELETE FROM message WHERE id = ?1 AND lane BETWEEN ?2 AND ?3 RETURNING seq, file",
        )?
        .query_row(params![id.to_string(), first, last], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let Some((seq, file)) = found else {
        return Ok(Output::Refused(StoreError::NotFound(id)));
    };
    append(db, audit)?;
    if file {
        return Ok(Output::RemovedFile(id));
    }
    db.prepare_cached("DELETE FROM body WHERE seq = ?1")?
        .execute([seq])?;
    Ok(Output::Done)
}

const CLAIM: &str = "UPDATE message SET lease_until = ?3 WHERE seq IN (SELECT seq FROM message INDEXED BY work \
     WHERE damaged IS NULL AND lane = ?1 AND due_at <= ?2 AND lease_until <= ?2 ORDER BY due_at LIMIT ?4) \
     RETURNING due_at, id, record";

fn claim(
    db: &Connection,
    lane: Lane,
    now: Timestamp,
    until: Timestamp,
    limit: usize,
) -> rusqlite::Result<Output> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut due = db
        .prepare_cached(CLAIM)?
        .query_map(
            params![
                lane_number(lane),
                now.as_microsecond(),
                until.as_microsecond(),
                limit
            ],
            |row| Ok((row.get::<_, i64>(0)?, row.get(1)?, lossy(row, 2)?)),
        )?
        .collect::<rusqlite::Result<Vec<(i64, String, String)>>>()?;
    // RETURNING promises no order.
    due.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    Ok(Output::Claimed(
        due.into_iter()
            .map(|(_, id, record)| (id, record))
            .collect(),
    ))
}

fn append(db: &Connection, entry: Option<&Entry>) -> rusqlite::Result<()> {
    if let Some(entry) = entry {
        db.prepare_cached("INSERT INTO audit (record, entry) VALUES (?1, ?2)")?
            .execute(params![entry.record, entry.json])?;
    }
    Ok(())
}

/// Why no row was updated: it is damaged, or not there (in that lane).
fn why_not(db: &Connection, id: MessageId) -> rusqlite::Result<StoreError> {
    let damage: Option<Option<String>> = db
        .prepare_cached("SELECT damaged FROM message WHERE id = ?1")?
        .query_row([id.to_string()], |row| row.get(0))
        .optional()?;
    Ok(match damage.flatten() {
        Some(why) => StoreError::Damaged(id, why),
        None => StoreError::NotFound(id),
    })
}
