//! Interceptors: a few rows that the relay and commands change, and a version number that shows a change.

use rusqlite::{Connection, OptionalExtension, params};

use super::row::lossy;
use super::work::Output;
use crate::store::{INTERCEPTORS_MAX, Interceptors, StoreError, StoredInterceptor};

/// All interceptors, or `None` if nothing has changed since version `known`.
pub(super) fn read(db: &Connection, known: Option<u64>) -> rusqlite::Result<Option<Interceptors>> {
    // One transaction, so that the list belongs to the version.
    let view = db.unchecked_transaction()?;
    let version = view
        .prepare_cached("SELECT version FROM interceptors")?
        .query_row([], |row| row.get(0).map(i64::unsigned_abs))?;
    if known == Some(version) {
        return Ok(None);
    }
    let all = view
        .prepare_cached("SELECT id, version, body FROM interceptor ORDER BY id")?
        .query_map([], |row| {
            Ok(StoredInterceptor {
                id: lossy(row, 0)?,
                version: row.get(1).map(i64::unsigned_abs)?,
                body: lossy(row, 2)?,
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Some(Interceptors { version, all }))
}

/// Adds an interceptor of version 0, or replaces the stored one if it still has this version.
pub(super) fn keep(db: &Connection, wanted: &StoredInterceptor) -> rusqlite::Result<Output> {
    let there: Option<u64> = db
        .prepare_cached("SELECT version FROM interceptor WHERE id = ?1")?
        .query_row([&wanted.id], |row| row.get(0).map(i64::unsigned_abs))
        .optional()?;
    if there.unwrap_or(0) != wanted.version {
        return Ok(Output::Unchanged);
    }
    let count = db
        .prepare_cached("SELECT count(*) FROM interceptor")?
        .query_row([], |row| row.get(0).map(i64::unsigned_abs))?;
    if there.is_none() && count >= INTERCEPTORS_MAX as u64 {
        let why = format!("the store has {count} interceptors, which is the maximum; remove some");
        return Ok(Output::Refused(StoreError::Full(why)));
    }
    let version = next_version(db)?;
    db.prepare_cached(
        "INSERT INTO interceptor (id, version, body) VALUES (?1, ?2, ?3) \
         ON CONFLICT (id) DO UPDATE SET version = excluded.version, body = excluded.body",
    )?
    .execute(params![wanted.id, version, wanted.body])?;
    Ok(Output::Version(version.unsigned_abs()))
}

/// Removes the interceptor if it exists.
pub(super) fn remove(db: &Connection, id: &str) -> rusqlite::Result<Output> {
    let removed = db
        .prepare_cached("DELETE FROM interceptor WHERE id = ?1")?
        .execute([id])?;
    if removed == 0 {
        return Ok(Output::Unchanged);
    }
    next_version(db)?;
    Ok(Output::Done)
}

fn next_version(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("UPDATE interceptors SET version = version + 1 RETURNING version")?
        .query_row([], |row| row.get(0))
}
