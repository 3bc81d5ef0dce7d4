//! What the writer can be asked to do, and the statements that do it.

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
    Capacity, Cause, Held, Holder, Lane, Outgoing, Place, StoreError, StoredInterceptor,
};

/// Something to be written.
pub(super) enum Work {
    /// New rows with their content, inline unless `files` hold it; and a new row in the place of the one that they were
    /// split from.
    Put {
        rows: Vec<Row>,
        content: Content,
        files: Option<Written>,
        beside: Option<(MessageId, Box<Row>)>,
        /// Only if what is held then takes no more than this.
        quarantine: Option<Capacity>,
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
    /// Leases what is to be delivered.
    ClaimOutgoing {
        what: Outgoing,
        now: Timestamp,
        until: Timestamp,
        limit: usize,
    },
    /// Leases what waits for a cause, due or not.
    Recover {
        lane: Lane,
        cause: Cause,
        after: Option<Place>,
        now: Timestamp,
        until: Timestamp,
        limit: usize,
    },
    /// Waits no longer, unless it is leased.
    Hasten { id: MessageId, now: Timestamp },
    /// An interceptor, new or changed.
    KeepInterceptor {
        interceptor: StoredInterceptor,
        audit: Option<Entry>,
    },
    /// An interceptor goes.
    DropInterceptor { id: String, audit: Option<Entry> },
    /// An audit entry alone.
    Audit(Entry),
    /// The row cannot be used.
    SetAside { id: MessageId, why: String },
    /// Finish what was queued before, then end.
    Stop,
}

/// An audit entry, encoded.
pub(super) struct Entry {
    pub(super) object: String,
    pub(super) json: String,
}

/// What a job gives back.
#[derive(Debug)]
pub(super) enum Output {
    /// Done.
    Done,
    /// Done, and others in the rescan lane gave way: so many, of which these have files.
    MadeRoom {
        messages: usize,
        files: Vec<MessageId>,
    },
    /// Claimed rows: id and record, in the order in which they are handed out.
    Claimed(Vec<(String, String)>),
    /// Removed a row whose content is a file.
    RemovedFile(MessageId),
    /// Done; this is the version of it now.
    Version(u64),
    /// Nothing to do: somebody was there before.
    Unchanged,
    /// Not done, for a reason that lies in the record, not in the disk.
    Refused(StoreError),
}

impl Work {
    /// Whether it brings mail that is not here yet.
    pub(super) fn is_new(&self) -> bool {
        matches!(self, Self::Put { beside: None, .. })
    }
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

/// Does the work inside the transaction that is open; the rescan lane has room for `rescan_bytes`, and quarantine for what
/// the `disk` has.
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
    let grows = match work {
        Work::Put { rows, beside, .. } => {
            let beside = beside.iter().map(|(_, row)| &**row);
            rows.iter().chain(beside).any(Row::is_rescan)
        }
        Work::Replace { row, .. } => row.is_rescan(),
        _ => false,
    };
    match output {
        Output::Done if grows => make_room(db, rescan_bytes),
        output => Ok(output),
    }
}

/// Why new mail finds no room in quarantine; none if it does, or does not ask.
fn full(db: &Connection, work: &Work, disk: Disk) -> rusqlite::Result<Option<String>> {
    let Work::Put {
        rows,
        content,
        quarantine: Some(quarantine),
        ..
    } = work
    else {
        return Ok(None);
    };
    let rows = || rows.iter().filter(|row| row.is_held());
    let Some(first) = rows().next() else {
        return Ok(None);
    };
    let each = |row: &Row| row.overhead() + content.len() as u64;
    let more = rows().map(each).sum();
    let octets = search::held_by(db, "")?;
    let held = Held {
        octets,
        limit: disk.limit(*quarantine, octets),
        largest: None,
    };
    for name in first.parties() {
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
        Work::Put {
            rows,
            content,
            files,
            beside,
            ..
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
        } => lease(
            db,
            CLAIM,
            params![
                lane_number(*lane),
                now.as_microsecond(),
                until.as_microsecond(),
                i64::try_from(*limit).unwrap_or(i64::MAX)
            ],
        ),
        Work::ClaimOutgoing {
            what,
            now,
            until,
            limit,
        } => {
            let (statement, next_hop) = match what {
                Outgoing::To(next_hop) => (CLAIM_TO, &**next_hop),
                Outgoing::GivenUp => (CLAIM_GIVEN_UP, ""),
            };
            let (now, until) = (now.as_microsecond(), until.as_microsecond());
            let limit = i64::try_from(*limit).unwrap_or(i64::MAX);
            lease(db, statement, params![next_hop, now, until, limit])
        }
        Work::Recover {
            lane,
            cause,
            after,
            now,
            until,
            limit,
        } => recover(db, (*lane, cause), *after, (*now, *until), *limit),
        Work::Hasten { id, now } => hasten(db, *id, *now),
        Work::KeepInterceptor { interceptor, audit } => {
            audited(db, interceptors::keep(db, interceptor)?, audit.as_ref())
        }
        Work::DropInterceptor { id, audit } => {
            audited(db, interceptors::remove(db, id)?, audit.as_ref())
        }
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

/// Removes what was put for mail that stays with its sender.
pub(super) fn take_back(db: &Connection, work: &Work) -> rusqlite::Result<()> {
    if let (Work::Put { rows, .. }, true) = (work, work.is_new()) {
        for id in rows.iter().filter_map(|row| row.id.parse().ok()) {
            remove(db, id, None, None)?;
        }
    }
    Ok(())
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
    Ok(match drop_body(db, seq, file)? {
        true => Output::Done,
        false => Output::RemovedFile(id),
    })
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
     RETURNING 0, due_at, id, record";

const CLAIM_TO: &str = "UPDATE message SET lease_until = ?3 WHERE seq IN (SELECT seq FROM message INDEXED BY outgoing \
     WHERE damaged IS NULL AND lane = 1 AND next_hop = ?1 AND due_at <= ?2 AND lease_until <= ?2 ORDER BY due_at LIMIT ?4) \
     RETURNING 0, due_at, id, record";

const CLAIM_GIVEN_UP: &str = "UPDATE message SET lease_until = ?3 WHERE seq IN (SELECT seq FROM message \
     INDEXED BY given_up WHERE damaged IS NULL AND lane = 1 AND expires_at <= ?2 AND lease_until <= ?2 AND ?1 = '' \
     ORDER BY expires_at LIMIT ?4) RETURNING 0, expires_at, id, record";

const RECOVER: &str = "UPDATE message SET lease_until = ?3 WHERE seq IN (SELECT seq FROM message INDEXED BY recovery \
     WHERE damaged IS NULL AND cause <> '' AND lane = ?1 AND cause = ?5 AND lease_until <= ?2 AND known = ?6 \
     AND received_at >= ?7 AND (received_at > ?7 OR id > ?8) ORDER BY received_at, id LIMIT ?4) \
     RETURNING 0, received_at, id, record";

/// Known senders and the others are ranges of their own in the index, so that what is before the place costs nothing.
fn recover(
    db: &Connection,
    (lane, cause): (Lane, &Cause),
    after: Option<Place>,
    (now, until): (Timestamp, Timestamp),
    limit: usize,
) -> rusqlite::Result<Output> {
    let mut claimed = Vec::new();
    for known in [true, false] {
        let (received, id) = match after {
            Some(place) if place.known == known => {
                (place.received_at.as_microsecond(), place.id.to_string())
            }
            Some(place) if known && !place.known => continue,
            Some(_) | None => (i64::MIN, String::new()),
        };
        let left = i64::try_from(limit.saturating_sub(claimed.len())).unwrap_or(i64::MAX);
        if left == 0 {
            break;
        }
        let parameters = params![
            lane_number(lane),
            now.as_microsecond(),
            until.as_microsecond(),
            left,
            cause_key(Some(cause)),
            known,
            received,
            id,
        ];
        if let Output::Claimed(rows) = lease(db, RECOVER, parameters)? {
            claimed.extend(rows);
        }
    }
    Ok(Output::Claimed(claimed))
}

/// Runs a statement that leases rows, and puts what it returns in order: RETURNING promises none.
fn lease(db: &Connection, statement: &str, parameters: impl Params) -> rusqlite::Result<Output> {
    let mut leased = db
        .prepare_cached(statement)?
        .query_map(parameters, |row| {
            let order = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok((order, lossy(row, 3)?))
        })?
        .collect::<rusqlite::Result<Vec<((i64, i64, String), String)>>>()?;
    leased.sort();
    let rows = leased.into_iter();
    Ok(Output::Claimed(
        rows.map(|((_, _, id), record)| (id, record)).collect(),
    ))
}

/// Makes the rescan lane fit into `limit` octets: what would expire first goes.
fn make_room(db: &Connection, limit: u64) -> rusqlite::Result<Output> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let (mut messages, mut files) = (0, Vec::new());
    loop {
        let octets: i64 = db
            .prepare_cached("SELECT octets FROM rescan")?
            .query_row([], |row| row.get(0))?;
        let first = match octets > limit {
            true => db
                .prepare_cached(FIRST_RESCAN)?
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

const FIRST_RESCAN: &str = "DELETE FROM message WHERE seq = (SELECT seq FROM message INDEXED BY rescans \
     WHERE lane = 3 ORDER BY expires_at LIMIT 1) RETURNING seq, file, id";

/// Removes the content of a row that is gone, unless it is a file; false if it is.
fn drop_body(db: &Connection, seq: i64, file: bool) -> rusqlite::Result<bool> {
    if !file {
        db.prepare_cached("DELETE FROM body WHERE seq = ?1")?
            .execute([seq])?;
    }
    Ok(!file)
}

/// What was done is audited, what was not is not.
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
