//! The jobs of the writer, and the statements that do them.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Params, params};

use super::bodies::Written;
use super::health::Disk;
use super::interceptors;
use super::recovery::report;
use super::row::{Row, cause_key, lane_number, lanes, lossy};
use super::search;
use crate::message::{Content, MessageId};
use crate::store::{
    AtWork, Capacity, Cause, Held, Holder, Lane, Outgoing, Place, StoreError, StoredInterceptor,
    Times,
};

/// A job of the writer.
pub(super) enum Work {
    /// Adds rows with their contents; the contents of `files` are not in the database. `beside` is the change of the row that
    /// the new rows come from.
    Put {
        rows: Vec<NewRow>,
        files: Option<Written>,
        beside: Option<Box<Work>>,
        room: Room,
    },
    /// Replaces the row with this id.
    Replace {
        id: MessageId,
        row: Box<Row>,
        lane: Option<Lane>,
        audit: Option<Entry>,
    },
    /// Removes the row and its content.
    Remove {
        id: MessageId,
        lane: Option<Lane>,
        audit: Option<Entry>,
    },
    /// Leases rows that are due.
    Claim { lane: Lane, terms: Terms },
    /// Leases rows to deliver or to give up.
    ClaimOutgoing { what: Outgoing, terms: Terms },
    /// Leases rows that wait for a cause, due or not.
    Recover {
        lane: Lane,
        cause: Cause,
        after: Option<Place>,
        terms: Terms,
    },
    /// Makes a row due, unless it is leased.
    MakeDue { id: MessageId, now: Timestamp },
    /// Adds or replaces an interceptor.
    KeepInterceptor {
        interceptor: StoredInterceptor,
        audit: Option<Entry>,
    },
    /// Removes an interceptor.
    DropInterceptor { id: String, audit: Option<Entry> },
    /// Adds an audit entry alone.
    Audit(Entry),
    /// Marks a row that cannot be used.
    SetAside { id: MessageId, why: String },
    /// Ends the thread after the jobs queued before.
    Stop,
}

/// A row to add.
pub(super) struct NewRow {
    pub(super) row: Row,
    pub(super) content: Content,
    /// Whether the content is a file.
    pub(super) file: bool,
}

/// The room on the disk that a put may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// The room above the reserve: the sender still has the mail.
    New,
    /// The room above the reserve, and in quarantine no more than this limit.
    Held(Capacity),
    /// All room: the records come from mail that the relay already has.
    Reserve,
}

/// How rows are leased.
pub(super) struct Terms {
    pub(super) times: Times,
    /// Maximum number of rows.
    pub(super) limit: usize,
    /// Records that are not returned, because this process works on them.
    pub(super) at_work: AtWork,
}

/// An encoded audit entry.
pub(super) struct Entry {
    pub(super) object: String,
    pub(super) json: String,
}

/// The result of a job.
#[derive(Debug)]
pub(super) enum Output {
    /// Done.
    Done,
    /// Done. To make room, this number of messages was removed from the rescan lane, and these of them have files.
    MadeRoom {
        messages: usize,
        files: Vec<MessageId>,
    },
    /// Claimed rows: id and record, in their order.
    Claimed(Vec<(String, String)>),
    /// Removed a row whose content is a file with this id.
    RemovedFile(MessageId),
    /// Done; the new version.
    Version(u64),
    /// Not done: another process changed the interceptor first.
    Unchanged,
    /// Not done, because of the record and not because of the disk.
    Refused(StoreError),
}

impl Work {
    /// Whether the work adds mail that is nowhere else in the store. The next start must find it, or it must stay with its
    /// sender.
    pub(super) fn is_new(&self) -> bool {
        matches!(self, Self::Put { beside: None, .. })
    }

    /// Whether the work must leave the reserve of a full disk to other work.
    pub(super) fn gives_way(&self) -> bool {
        matches!(self, Self::Put { room, .. } if *room != Room::Reserve)
    }
}

/// Number of content octets that the work adds to its transaction.
pub(super) fn weight(work: &Work) -> usize {
    match work {
        Work::Put { rows, .. } => {
            let inline = rows.iter().filter(|new| !new.file);
            inline.map(|new| new.content.len()).sum()
        }
        _ => 0,
    }
}

/// Does the work inside the open transaction. The rescan lane is limited to `rescan_bytes`, and quarantine to the room that
/// `disk` shows.
pub(super) fn perform(
    db: &Connection,
    work: &Work,
    rescan_bytes: u64,
    disk: Disk,
) -> rusqlite::Result<Output> {
    if let Some(why) = full(db, work, disk)? {
        return Ok(Output::Refused(StoreError::Full(why)));
    }
    let output = apply(db, work)?;
    match output {
        Output::Done if adds_rescan(work) => make_room(db, rescan_bytes),
        output => Ok(output),
    }
}

fn adds_rescan(work: &Work) -> bool {
    match work {
        Work::Put { rows, beside, .. } => {
            rows.iter().any(|new| new.row.is_rescan()) || beside.as_deref().is_some_and(adds_rescan)
        }
        Work::Replace { row, .. } => row.is_rescan(),
        _ => false,
    }
}

/// Why new mail does not fit into quarantine; `None` if it fits, or has no limit.
fn full(db: &Connection, work: &Work, disk: Disk) -> rusqlite::Result<Option<String>> {
    let Work::Put {
        rows,
        room: Room::Held(quarantine),
        ..
    } = work
    else {
        return Ok(None);
    };
    let rows = || rows.iter().filter(|new| new.row.is_held());
    let Some(first) = rows().next() else {
        return Ok(None);
    };
    let each = |new: &NewRow| new.row.overhead() + new.content.len() as u64;
    let more = rows().map(each).sum();
    let octets = search::held_by(db, "")?;
    let held = Held {
        octets,
        limit: disk.limit(*quarantine, octets),
        largest: None,
    };
    for name in first.row.parties() {
        let own = Holder {
            name: name.to_owned(),
            octets: search::held_by(db, name)?,
        };
        if let Some(why) = held.refuses(more, &own) {
            return Ok(Some(why));
        }
    }
    Ok(None)
}

fn apply(db: &Connection, work: &Work) -> rusqlite::Result<Output> {
    match work {
        Work::Put { rows, beside, .. } => {
            let changed = match beside {
                Some(change) => apply(db, change)?,
                None => Output::Done,
            };
            if !matches!(changed, Output::Refused(_)) {
                rows.iter().try_for_each(|new| put(db, new))?;
            }
            Ok(changed)
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
        Work::Claim { lane, terms } => claim(db, *lane, terms),
        Work::ClaimOutgoing { what, terms } => match what {
            Outgoing::To(next_hop) => claim_to(db, next_hop, terms),
            Outgoing::GivenUp(by) => claim_given_up(db, *by, terms),
        },
        Work::Recover {
            lane,
            cause,
            after,
            terms,
        } => recover(db, (*lane, cause), *after, terms),
        Work::MakeDue { id, now } => make_due(db, *id, *now),
        Work::KeepInterceptor { interceptor, audit } => {
            audited(db, interceptors::keep(db, interceptor)?, audit.as_ref())
        }
        Work::DropInterceptor { id, audit } => {
            audited(db, interceptors::remove(db, id)?, audit.as_ref())
        }
        Work::Audit(entry) => append(db, Some(entry)).map(|()| Output::Done),
        Work::SetAside { id, why } => set_aside(db, *id, why),
        Work::Stop => Ok(Output::Done),
    }
}

/// Claims deliveries to give up: those that expire by this time.
fn claim_given_up(db: &Connection, by: Timestamp, terms: &Terms) -> rusqlite::Result<Output> {
    let (now, until) = terms.free();
    let mut leased = Leased::new(terms);
    leased.select(
        db,
        SELECT_GIVEN_UP,
        params![now, until, by.as_microsecond()],
    )?;
    leased.lease(db)
}

/// Marks a record that cannot be read, so that no lane returns it again.
fn set_aside(db: &Connection, id: MessageId, why: &str) -> rusqlite::Result<Output> {
    let marked = db
        .prepare_cached("UPDATE message SET damaged = ?2 WHERE id = ?1 AND damaged IS NULL")?
        .execute(params![id.to_string(), why])?;
    if marked > 0 {
        report(&id.to_string(), why);
    }
    Ok(Output::Done)
}

/// Removes the rows of new mail that stays with its sender.
pub(super) fn take_back(db: &Connection, work: &Work) -> rusqlite::Result<()> {
    if let (Work::Put { rows, .. }, true) = (work, work.is_new()) {
        for id in rows.iter().filter_map(|new| new.row.id.parse().ok()) {
            remove(db, id, None, None)?;
        }
    }
    Ok(())
}

fn put(db: &Connection, new: &NewRow) -> rusqlite::Result<()> {
    let size = i64::try_from(new.content.len()).unwrap_or(i64::MAX);
    let seq = new.row.insert(db, size, new.file)?;
    if !new.file {
        db.prepare_cached("INSERT INTO body (seq, content) VALUES (?1, ?2)")?
            .execute(params![seq, &new.content.bytes()[..]])?;
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
    Ok(match drop_body(db, seq, file)? {
        true => Output::Done,
        false => Output::RemovedFile(id),
    })
}

const MAKE_DUE: &str = "UPDATE message SET due_at = ?2, record = json_set(record, '$.due_at', ?3) \
     WHERE id = ?1 AND damaged IS NULL AND lane IN (?4, ?5) AND lease_until <= ?2";

fn make_due(db: &Connection, id: MessageId, now: Timestamp) -> rusqlite::Result<Output> {
    let (scan, delivery) = (lane_number(Lane::Scan), lane_number(Lane::Delivery));
    let (due, text) = (now.as_microsecond(), now.to_string());
    let changed_rows =
        db.prepare_cached(MAKE_DUE)?
            .execute(params![id.to_string(), due, text, scan, delivery])?;
    Ok(match changed_rows {
        0 => Output::Refused(StoreError::NotFound(id)),
        _ => Output::Done,
    })
}

/// Rows in a range of due times. One range has the rows that are due; the other has rows with a due time beyond the longest
/// wait, which come from a clock that was set back.
const SELECT_DUE: &str = "SELECT seq, id, record FROM message INDEXED BY work \
     WHERE damaged IS NULL AND lane = ?3 \
     AND due_at BETWEEN ?4 AND ?5 AND (lease_until <= ?1 OR lease_until > ?2) ORDER BY due_at";

const SELECT_DUE_FOR_NEXT_HOP: &str = "SELECT seq, id, record FROM message INDEXED BY outgoing \
     WHERE damaged IS NULL AND lane = 1 \
     AND next_hop = ?3 AND due_at BETWEEN ?4 AND ?5 AND (lease_until <= ?1 OR lease_until > ?2) ORDER BY due_at";

const SELECT_GIVEN_UP: &str = "SELECT seq, id, record FROM message INDEXED BY given_up \
     WHERE damaged IS NULL AND lane = 1 \
     AND expires_at <= ?3 AND (lease_until <= ?1 OR lease_until > ?2) ORDER BY expires_at";

const SELECT_FOR_RECOVERY: &str = "SELECT seq, id, record FROM message INDEXED BY recovery \
     WHERE damaged IS NULL AND cause <> '' \
     AND lane = ?3 AND cause = ?4 AND (lease_until <= ?1 OR lease_until > ?2) AND known = ?5 \
     AND received_at >= ?6 AND (received_at > ?6 OR id > ?7) ORDER BY received_at, id";

fn claim(db: &Connection, lane: Lane, terms: &Terms) -> rusqlite::Result<Output> {
    let ((now, until), lane) = (terms.free(), lane_number(lane));
    let mut leased = Leased::new(terms);
    for (first, last) in terms.due() {
        leased.select(db, SELECT_DUE, params![now, until, lane, first, last])?;
    }
    leased.lease(db)
}

fn claim_to(db: &Connection, next_hop: &str, terms: &Terms) -> rusqlite::Result<Output> {
    let (now, until) = terms.free();
    let mut leased = Leased::new(terms);
    for (first, last) in terms.due() {
        leased.select(
            db,
            SELECT_DUE_FOR_NEXT_HOP,
            params![now, until, next_hop, first, last],
        )?;
    }
    leased.lease(db)
}

/// Known senders and other senders are separate ranges of the index, so that the rows before the place cost nothing.
fn recover(
    db: &Connection,
    (lane, cause): (Lane, &Cause),
    after: Option<Place>,
    terms: &Terms,
) -> rusqlite::Result<Output> {
    let ((now, until), lane, cause) = (terms.free(), lane_number(lane), cause_key(Some(cause)));
    let mut leased = Leased::new(terms);
    for known in [true, false] {
        let (received, id) = match after {
            Some(place) if place.known == known => {
                (place.received_at.as_microsecond(), place.id.to_string())
            }
            Some(place) if known && !place.known => continue,
            Some(_) | None => (i64::MIN, String::new()),
        };
        leased.select(
            db,
            SELECT_FOR_RECOVERY,
            params![now, until, lane, cause, known, received, id],
        )?;
    }
    leased.lease(db)
}

impl Terms {
    /// The limits of leases in force: a lease that ends by the first or after the second is not in force.
    fn free(&self) -> (i64, i64) {
        let Times { now, until, .. } = self.times;
        (now.as_microsecond(), until.as_microsecond())
    }

    /// The ranges of due times that are due.
    fn due(&self) -> [(i64, i64); 2] {
        let Times { now, latest, .. } = self.times;
        let beyond = latest.max(now).as_microsecond().saturating_add(1);
        [(i64::MIN, now.as_microsecond()), (beyond, i64::MAX)]
    }
}

/// Rows to lease.
struct Leased<'a> {
    terms: &'a Terms,
    seqs: Vec<i64>,
    rows: Vec<(String, String)>,
}

impl<'a> Leased<'a> {
    fn new(terms: &'a Terms) -> Self {
        Self {
            terms,
            seqs: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Takes the first rows of a statement that no worker of this process has.
    fn select(
        &mut self,
        db: &Connection,
        statement: &str,
        parameters: impl Params,
    ) -> rusqlite::Result<()> {
        if self.rows.len() >= self.terms.limit {
            return Ok(());
        }
        let mut statement = db.prepare_cached(statement)?;
        let mut rows = statement.query(parameters)?;
        while self.rows.len() < self.terms.limit
            && let Some(row) = rows.next()?
        {
            let id = lossy(row, 1)?;
            let is_at_work = id.parse().is_ok_and(|id| self.terms.at_work.has(id));
            if !is_at_work {
                self.seqs.push(row.get(0)?);
                self.rows.push((id, lossy(row, 2)?));
            }
        }
        Ok(())
    }

    fn lease(self, db: &Connection) -> rusqlite::Result<Output> {
        let until = self.terms.times.until.as_microsecond();
        let mut statement =
            db.prepare_cached("UPDATE message SET lease_until = ?2 WHERE seq = ?1")?;
        for seq in self.seqs {
            statement.execute(params![seq, until])?;
        }
        Ok(Output::Claimed(self.rows))
    }
}

/// Reduces the rescan lane to `limit` octets by removing the rows that would expire first.
fn make_room(db: &Connection, limit: u64) -> rusqlite::Result<Output> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let (mut messages, mut files) = (0, Vec::new());
    loop {
        let octets: i64 = db
            .prepare_cached("SELECT octets FROM rescan")?
            .query_row([], |row| row.get(0))?;
        let first = match octets > limit {
            true => db
                .prepare_cached(DELETE_FIRST_RESCAN)?
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?, lossy(row, 2)?)))
                .optional()?,
            false => None,
        };
        let Some((seq, file, id)) = first else { break };
        messages += 1;
        if !drop_body(db, seq, file)?
            && let Ok(id) = id.parse()
        {
            files.push(id);
        }
    }
    Ok(match messages {
        0 => Output::Done,
        _ => Output::MadeRoom { messages, files },
    })
}

const DELETE_FIRST_RESCAN: &str = "DELETE FROM message WHERE seq = (SELECT seq FROM message INDEXED BY rescans \
     WHERE lane = 3 ORDER BY expires_at LIMIT 1) RETURNING seq, file, id";

/// Removes the content of a row that was removed. Returns false if the content is a file, which the caller must remove.
fn drop_body(db: &Connection, seq: i64, file: bool) -> rusqlite::Result<bool> {
    if !file {
        db.prepare_cached("DELETE FROM body WHERE seq = ?1")?
            .execute([seq])?;
    }
    Ok(!file)
}

/// Adds an audit entry only if something was done.
fn audited(db: &Connection, output: Output, audit: Option<&Entry>) -> rusqlite::Result<Output> {
    if matches!(output, Output::Done | Output::Version(_)) {
        append(db, audit)?;
    }
    Ok(output)
}

fn append(db: &Connection, entry: Option<&Entry>) -> rusqlite::Result<()> {
    if let Some(entry) = entry {
        db.prepare_cached("INSERT INTO audit (record, entry) VALUES (?1, ?2)")?
            .execute(params![entry.object, entry.json])?;
    }
    Ok(())
}

/// Why no row was updated: the row is damaged, or does not exist (in that lane).
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
