//! The checks of a relay's store before it accepts mail: it checks the file, ends the leases of the last process, sets aside
//! damaged rows, and removes files that a crash left.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use super::bodies::{Bodies, failed};
use super::row::{decode, lane_number, lossy};
use super::schema::{DATABASE_FILE, at_open, malformed};
use super::search::Damage;
use crate::message::MessageId;
use crate::store::{Lane, Recovery, StoreError};

/// Size of the database from which the start checks only metadata, so that a start takes seconds: 1 GiB. Contents are compared
/// with their digest when they are read.
const BODY_CHECK_DATABASE_OCTETS_MAX: u64 = 1 << 30;

/// Runs all checks. `collect` is false while a tool writes body files, because they have no rows yet and would be removed.
pub(super) fn recover(
    db: &mut Connection,
    folder: &Path,
    bodies: &Bodies,
    collect: bool,
) -> Result<Recovery, StoreError> {
    let file = folder.join(DATABASE_FILE);
    let sqlite = |error: rusqlite::Error| at_open(&file, &error);
    check(db, &file)?;
    // What was being scanned as the process ended may be what an engine hung in, and nobody has seen how its scan ended.
    db.execute(
        "UPDATE message SET record = json_set(record, '$.hung', json('true')) \
         WHERE lease_until <> 0 AND damaged IS NULL AND lane IN (?1, ?2)",
        [lane_number(Lane::Scan), lane_number(Lane::Held)],
    )
    .map_err(sqlite)?;
    db.execute(
        "UPDATE message SET lease_until = 0 WHERE lease_until <> 0",
        [],
    )
    .map_err(sqlite)?;
    db.execute(RECOUNT_LANES, []).map_err(sqlite)?;
    db.execute(RECOUNT_RESCANS, []).map_err(sqlite)?;
    db.execute_batch(RECOUNT_HELD).map_err(sqlite)?;
    let damaged = examine(db, bodies).map_err(sqlite)?;
    set_aside(db, &damaged).map_err(sqlite)?;
    let orphans = if collect {
        collect_orphans(db, bodies)?
    } else {
        0
    };
    let count = |sql| {
        db.query_row(sql, [], |row| row.get::<_, i64>(0))
            .map(i64::unsigned_abs)
    };
    Ok(Recovery {
        waiting: count("SELECT count(*) FROM message WHERE lane < 2 AND damaged IS NULL")
            .map_err(sqlite)?,
        orphans,
        damaged: count("SELECT count(*) FROM message WHERE damaged IS NOT NULL").map_err(sqlite)?,
    })
}

/// Computes the sums of the lanes, from the index alone.
const RECOUNT_LANES: &str = "UPDATE lane_sum SET (messages, octets) = \
     (SELECT count(*), coalesce(sum(size), 0) FROM message INDEXED BY work \
         WHERE damaged IS NULL AND lane = lane_sum.lane)";

/// Computes the sum that the triggers keep: it is right from here on, whatever changed the file in the meantime.
const RECOUNT_RESCANS: &str = "UPDATE rescan SET octets = \
     (SELECT coalesce(sum(size), 0) FROM message INDEXED BY rescans WHERE lane = 3)";

/// Computes the sums of quarantine, from the index alone.
const RECOUNT_HELD: &str = "BEGIN IMMEDIATE;
    DELETE FROM held_by;
    INSERT INTO held_by SELECT '', sum(size + overhead), count(*) FROM message INDEXED BY holders WHERE lane = 2 \
        HAVING count(*) > 0;
    INSERT INTO held_by SELECT client, sum(size + overhead), count(*) FROM message INDEXED BY holders \
        WHERE lane = 2 AND client <> '' GROUP BY client;
    INSERT INTO held_by SELECT domain, sum(size + overhead), count(*) FROM message INDEXED BY holders \
        WHERE lane = 2 AND domain <> '' GROUP BY domain;
    COMMIT";

fn check(db: &Connection, file: &Path) -> Result<(), StoreError> {
    let octets = fs::metadata(file).map(|meta| meta.len()).unwrap_or(0);
    let tables: &[&str] = if octets < BODY_CHECK_DATABASE_OCTETS_MAX {
        &["message", "audit", "interceptor", "body"]
    } else {
        &["message", "audit", "interceptor"]
    };
    for table in tables {
        let found: String = db
            .query_row(&format!("PRAGMA quick_check('{table}')"), [], |row| {
                row.get(0)
            })
            .map_err(|error| at_open(file, &error))?;
        if found != "ok" {
            return Err(malformed(file, found.trim()));
        }
    }
    Ok(())
}

/// Finds rows whose record cannot be parsed or whose content is missing. Rows that were set aside before are found again, so
/// that every start reports all damage to the administrator.
fn examine(db: &Connection, bodies: &Bodies) -> rusqlite::Result<Vec<Damage>> {
    let mut statement = db.prepare(
        "SELECT m.id, m.record, m.file, m.size, m.damaged, b.seq IS NOT NULL, length(b.content) \
         FROM message m LEFT JOIN body b ON b.seq = m.seq AND m.file = 0",
    )?;
    let mut rows = statement.query([])?;
    let mut damaged = Vec::new();
    while let Some(row) = rows.next()? {
        let id = lossy(row, 0)?;
        let size: i64 = row.get(3)?;
        let known: Option<String> = row.get(4)?;
        let problem = known.or(match decode(&id, &lossy(row, 1)?) {
            Err(why) => Some(why),
            Ok(record) if row.get(2)? => missing_file(bodies, record.id, size),
            Ok(_) if !row.get::<_, bool>(5)? => Some("its content is missing".to_owned()),
            Ok(_) => wrong_size(row.get(6)?, size),
        });
        if let Some(why) = problem {
            damaged.push(Damage { id, why });
        }
    }
    Ok(damaged)
}

fn missing_file(bodies: &Bodies, id: MessageId, size: i64) -> Option<String> {
    let path = bodies.path(id);
    match fs::metadata(&path) {
        Ok(meta) => wrong_size(i64::try_from(meta.len()).unwrap_or(i64::MAX), size),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Some(format!("its content {} is missing", path.display()))
        }
        Err(error) => Some(format!("its content {}: {error}", path.display())),
    }
}

fn wrong_size(found: i64, expected: i64) -> Option<String> {
    (found != expected).then(|| format!("its content has {found} octets instead of {expected}"))
}

/// Marks rows as damaged, and logs each.
fn set_aside(db: &mut Connection, damaged: &[Damage]) -> rusqlite::Result<()> {
    let change = db.transaction()?;
    for Damage { id, why } in damaged {
        report(id, why);
        change
            .prepare_cached("UPDATE message SET damaged = ?2 WHERE id = ?1")?
            .execute(params![id, why])?;
    }
    change.commit()
}

/// Logs that a row is set aside.
pub(super) fn report(id: &str, why: &str) {
    tracing::error!(
        id,
        problem = why,
        "stored message set aside: it is damaged and stays stored; other mail is not affected"
    );
}

/// Removes files without a row: drafts, contents whose put was not acknowledged, and contents whose row was removed.
fn collect_orphans(db: &Connection, bodies: &Bodies) -> Result<u64, StoreError> {
    let mut orphans = 0;
    for folder in bodies.folders() {
        let entries = fs::read_dir(&folder).map_err(|error| failed(&folder, &error))?;
        for entry in entries {
            let path = entry.map_err(|error| failed(&folder, &error))?.path();
            match owner(db, &path) {
                Ok(Owner::None) => {
                    fs::remove_file(&path).map_err(|error| failed(&path, &error))?;
                    orphans += 1;
                }
                Ok(Owner::Row) => {}
                Ok(Owner::Foreign) => {
                    tracing::warn!(path = %path.display(), "not a file of the store; the relay does not remove it");
                }
                Err(error) => return Err(at_open(&path, &error)),
            }
        }
    }
    Ok(orphans)
}

enum Owner {
    Row,
    None,
    Foreign,
}

fn owner(db: &Connection, path: &Path) -> rusqlite::Result<Owner> {
    let id = path
        .file_stem()
        .and_then(OsStr::to_str)
        .and_then(|name| name.parse::<MessageId>().ok());
    match (id, path.extension().and_then(OsStr::to_str)) {
        (Some(_), Some("tmp")) => Ok(Owner::None),
        (Some(id), None) => db
            .prepare_cached("SELECT 1 FROM message WHERE id = ?1 AND file = 1")?
            .query_row([id.to_string()], |_| Ok(Owner::Row))
            .optional()
            .map(|found| found.unwrap_or(Owner::None)),
        _ => Ok(Owner::Foreign),
    }
}
