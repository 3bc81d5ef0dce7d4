//! What the writer can be asked to do, and the statements that do it.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::bodies::Written;
use super::recovery::report;
use super::row::{Row, lane_number, lanes, lossy};
use crate::message::{Content, MessageId};
use crate::store::{Lane, StoreError};

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
    /// Waits no longer, unless it is leased.
    Hasten { id: MessageId, now: Timestamp },
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

/// Octets that the work adds to its transaction.
pub(super) fn weight(work: &Work) -> usize {
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

/// Does the work inside the transaction that is open.
pub(super) fn perform(db: &Connection, work: &Work) -> rusqlite::Result<Output> {
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
        Work::Hasten { id, now } => hasten(db, *id, *now),
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

const HASTEN: &str = "UPDATE message SET due_at = ?2, record = json_set(record, '$.due_at', ?3) \
     WHERE id = ?1 AND damaged IS NULL AND lane IN (?4, ?5) AND lease_until <= ?2";

fn hasten(db: &Connection, id: MessageId, now: Timestamp) -> rusqlite::Result<Output> {
    let (scan, delivery) = (lane_number(Lane::Scan), lane_number(Lane::Delivery));
    let (due, text) = (now.as_microsecond(), now.to_string());
    let hastened =
        db.prepare_cached(HASTEN)?
            .execute(params![id.to_string(), due, text, scan, delivery])?;
    Ok(match hastened {
        0 => Output::Refused(StoreError::NotFound(id)),
        _ => Output::Done,
    })
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
