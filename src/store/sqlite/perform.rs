//! The jobs of the writer, as statements.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::claims::{claim, claim_given_up, claim_to, recover};
use super::health::Disk;
use super::interceptors;
use super::recovery::report;
use super::row::{lane_number, lanes, lossy};
use super::search;
use super::work::{Entry, NewRow, Output, Room, Work};
use crate::message::MessageId;
use crate::store::{Held, Holder, Lane, Outgoing, StoreError};

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
