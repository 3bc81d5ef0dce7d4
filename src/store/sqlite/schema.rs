//! The tables, how a connection is opened, and the meaning of SQLite's errors.
//!
//! A message is one row of `message`: its [`Record`](crate::store::Record) as compact JSON, and columns for search. Text
//! columns are copies in lower case, for search without regard to case. Content up to `store.inline_limit` is in `body` under
//! the same row number. It is separate from the metadata, so that a change of the record does not write the content again.
//! Times are microseconds since 1970.
//!
//! A few partial indexes serve all queries; each costs nothing for messages that it does not contain. `work` finds due rows,
//! and counts the scan lane without reading a row. `oldest` finds the oldest row of each next hop. `held` covers every search of the quarantine. `recovery` finds the rows that
//! wait for a cause. `outgoing` is one queue for each next hop, and `given_up` finds deliveries that are past their time.
//! `rescans` finds the rows of the rescan lane that are removed first, `oldest_rescan` the oldest. `holders` finds the mail in quarantine of each party.
//! Triggers keep three sums: `lane_sum` for each lane but the scan lane, `rescan`, and `held_by` for each client network, each sender domain and
//! all mail (with an empty name). So the limits hold in every process, and a status needs no counting.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, ffi};

use super::search;
use crate::store::StoreError;

/// Name of the database file inside `store.path`.
pub(super) const DATABASE_FILE: &str = "spillway.db";
/// `PRAGMA application_id` of the databases of this program: "SPWY".
const APPLICATION_ID: i32 = 0x5350_5759;
/// How long a process waits for the writes of another before it gives up: 10 s are far more than any commit takes.
const DATABASE_BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Step N changes a database from `user_version` N to N + 1. New steps are only added at the end.
const MIGRATIONS: [&str; 7] = [
    "
CREATE TABLE message (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    lane INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    lease_until INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    size INTEGER NOT NULL,
    file INTEGER NOT NULL,
    damaged TEXT,
    sender TEXT NOT NULL,
    recipients TEXT NOT NULL,
    subject TEXT NOT NULL,
    rule TEXT NOT NULL,
    reason TEXT NOT NULL,
    engines TEXT NOT NULL,
    findings TEXT NOT NULL,
    record TEXT NOT NULL
) STRICT;
CREATE INDEX work ON message (lane, due_at, lease_until, size, received_at) WHERE damaged IS NULL;
CREATE INDEX held ON message (received_at, expires_at, size, sender, recipients, subject, rule, reason, engines, findings)
    WHERE lane = 2 AND damaged IS NULL;
CREATE INDEX expiry ON message (expires_at) WHERE lane = 2 AND damaged IS NULL;
CREATE TABLE body (seq INTEGER PRIMARY KEY, content BLOB NOT NULL) STRICT;
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    record TEXT NOT NULL,
    entry TEXT NOT NULL
) STRICT;
CREATE INDEX audited ON audit (record);
CREATE TABLE probe (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), writes INTEGER NOT NULL) STRICT;
INSERT INTO probe VALUES (1, 0);
",
    "
ALTER TABLE message ADD COLUMN cause TEXT NOT NULL DEFAULT '';
ALTER TABLE message ADD COLUMN known INTEGER NOT NULL DEFAULT 0;
CREATE INDEX recovery ON message (lane, cause, known DESC, received_at) WHERE cause <> '' AND damaged IS NULL;
CREATE INDEX rescans ON message (expires_at, size) WHERE lane = 3;
CREATE TABLE rescan (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), octets INTEGER NOT NULL) STRICT;
INSERT INTO rescan VALUES (1, 0);
CREATE TRIGGER rescan_begins AFTER INSERT ON message WHEN NEW.lane = 3 BEGIN
    UPDATE rescan SET octets = octets + NEW.size;
END;
CREATE TRIGGER rescan_ends AFTER DELETE ON message WHEN OLD.lane = 3 BEGIN
    UPDATE rescan SET octets = octets - OLD.size;
END;
CREATE TRIGGER rescan_changes AFTER UPDATE OF lane ON message WHEN (OLD.lane = 3) <> (NEW.lane = 3) BEGIN
    UPDATE rescan SET octets = octets + iif(NEW.lane = 3, NEW.size, -NEW.size);
END;
",
    "
CREATE TABLE interceptor (id TEXT PRIMARY KEY, version INTEGER NOT NULL, body TEXT NOT NULL) STRICT;
CREATE TABLE interceptors (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), version INTEGER NOT NULL) STRICT;
INSERT INTO interceptors VALUES (1, 0);
",
    "
ALTER TABLE message ADD COLUMN next_hop TEXT NOT NULL DEFAULT '';
CREATE INDEX outgoing ON message (next_hop, due_at, lease_until) WHERE lane = 1 AND damaged IS NULL;
CREATE INDEX given_up ON message (expires_at, lease_until) WHERE lane = 1 AND damaged IS NULL;
",
    // From this version on, records contain edits to make at delivery. An older version would deliver without them, so it must
    // not open the database.
    "",
    // Mail that was in quarantine before belongs to no party, and counts only its content. The sums are computed at the next
    // start.
    "
ALTER TABLE message ADD COLUMN client TEXT NOT NULL DEFAULT '';
ALTER TABLE message ADD COLUMN domain TEXT NOT NULL DEFAULT '';
ALTER TABLE message ADD COLUMN overhead INTEGER NOT NULL DEFAULT 0;
CREATE INDEX holders ON message (client, domain, size, overhead) WHERE lane = 2;
CREATE TABLE held_by (party TEXT PRIMARY KEY, octets INTEGER NOT NULL, messages INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX largest_holder ON held_by (octets);
CREATE TRIGGER held_begins AFTER INSERT ON message WHEN NEW.lane = 2 BEGIN
    INSERT INTO held_by SELECT party, NEW.size + NEW.overhead, 1
        FROM (SELECT '' AS party UNION SELECT NEW.client UNION SELECT NEW.domain) WHERE true
        ON CONFLICT DO UPDATE SET octets = octets + excluded.octets, messages = messages + 1;
END;
CREATE TRIGGER held_ends AFTER DELETE ON message WHEN OLD.lane = 2 BEGIN
    UPDATE held_by SET octets = octets - OLD.size - OLD.overhead, messages = messages - 1
        WHERE party IN ('', OLD.client, OLD.domain);
    DELETE FROM held_by WHERE party IN ('', OLD.client, OLD.domain) AND messages <= 0;
END;
CREATE TRIGGER held_changes AFTER UPDATE OF lane, client, domain, overhead ON message WHEN OLD.lane = 2 OR NEW.lane = 2 BEGIN
    UPDATE held_by SET octets = octets - OLD.size - OLD.overhead, messages = messages - 1
        WHERE OLD.lane = 2 AND party IN ('', OLD.client, OLD.domain);
    INSERT INTO held_by SELECT party, NEW.size + NEW.overhead, 1
        FROM (SELECT '' AS party UNION SELECT NEW.client UNION SELECT NEW.domain) WHERE NEW.lane = 2
        ON CONFLICT DO UPDATE SET octets = octets + excluded.octets, messages = messages + 1;
    DELETE FROM held_by WHERE party IN ('', OLD.client, OLD.domain) AND messages <= 0;
END;
",
    // The sums are computed at the next start. There is none for the scan lane: all mail of queue mode passes through that lane,
    // and `limits.backlog` bounds it, so a count costs less than the sums would.
    "
CREATE INDEX oldest ON message (next_hop, received_at) WHERE lane = 1 AND damaged IS NULL;
CREATE INDEX oldest_rescan ON message (received_at) WHERE lane = 3 AND damaged IS NULL;
CREATE TABLE lane_sum (lane INTEGER PRIMARY KEY, messages INTEGER NOT NULL, octets INTEGER NOT NULL) STRICT;
INSERT INTO lane_sum VALUES (1, 0, 0), (2, 0, 0), (3, 0, 0);
CREATE TRIGGER lane_begins AFTER INSERT ON message WHEN NEW.lane > 0 AND NEW.damaged IS NULL BEGIN
    UPDATE lane_sum SET messages = messages + 1, octets = octets + NEW.size WHERE lane = NEW.lane;
END;
CREATE TRIGGER lane_ends AFTER DELETE ON message WHEN OLD.lane > 0 AND OLD.damaged IS NULL BEGIN
    UPDATE lane_sum SET messages = messages - 1, octets = octets - OLD.size WHERE lane = OLD.lane;
END;
CREATE TRIGGER lane_changes AFTER UPDATE OF lane, damaged ON message
WHEN OLD.lane <> NEW.lane OR (OLD.damaged IS NULL) <> (NEW.damaged IS NULL) BEGIN
    UPDATE lane_sum SET messages = messages - 1, octets = octets - OLD.size
        WHERE lane = OLD.lane AND OLD.damaged IS NULL;
    UPDATE lane_sum SET messages = messages + 1, octets = octets + NEW.size
        WHERE lane = NEW.lane AND NEW.damaged IS NULL;
END;
",
];

/// Opens a connection for the writer: durable at every commit.
pub(super) fn open_writer(folder: &Path, log_pages: i32) -> Result<Connection, StoreError> {
    let file = folder.join(DATABASE_FILE);
    let mut connection = connect(&file).map_err(|error| at_open(&file, &error))?;
    prepare_writer(&mut connection, &file, log_pages)?;
    Ok(connection)
}

/// Opens a connection that only reads.
pub(super) fn open_reader(folder: &Path) -> Result<Connection, StoreError> {
    let open = || {
        let connection = connect(&folder.join(DATABASE_FILE))?;
        connection.pragma_update(None, "query_only", true)?;
        search::add_functions(&connection)?;
        // The first read opens the log and its index.
        connection.query_row("SELECT writes FROM probe", [], |_| Ok(()))?;
        Ok(connection)
    };
    open().map_err(|error| broken(&error))
}

fn connect(file: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(file)?;
    connection.busy_timeout(DATABASE_BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    // A group commit must not write its savepoint to a temporary file, because that disk has no reserve.
    connection.pragma_update(None, "temp_store", "memory")?;
    Ok(connection)
}

fn prepare_writer(
    connection: &mut Connection,
    file: &Path,
    log_pages: i32,
) -> Result<(), StoreError> {
    let sqlite = |error: rusqlite::Error| at_open(file, &error);
    // A checkpoint costs two fsyncs, so larger logs save time: mail that is soon removed needs few checkpoints.
    for (pragma, value) in [
        ("wal_autocheckpoint", log_pages),
        ("journal_size_limit", 64 << 20),
        ("cache_size", -16_000),
    ] {
        connection
            .pragma_update_and_check(None, pragma, value, |_| Ok(()))
            .or_else(none_returned)
            .map_err(sqlite)?;
    }
    connection
        .pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))
        .map_err(sqlite)?;
    connection
        .pragma_update(None, "synchronous", "full")
        .map_err(sqlite)?;
    let change = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(sqlite)?;
    migrate(&change, file)?;
    change.commit().map_err(sqlite)
}

/// Some pragmas answer with a row and some do not. This differs between versions of SQLite.
fn none_returned(error: rusqlite::Error) -> rusqlite::Result<()> {
    match error {
        rusqlite::Error::QueryReturnedNoRows => Ok(()),
        other => Err(other),
    }
}

fn migrate(change: &Transaction<'_>, file: &Path) -> Result<(), StoreError> {
    let sqlite = |error: rusqlite::Error| at_open(file, &error);
    let number = |pragma| change.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let version = number("user_version").map_err(sqlite)?;
    let application = number("application_id").map_err(sqlite)?;
    let tables: u32 = change
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(sqlite)?;
    if application != APPLICATION_ID && tables > 0 {
        return Err(StoreError::Broken(format!(
            "{} is a database of another program; give store.path a folder of its own",
            file.display()
        )));
    }
    let done = usize::try_from(version).unwrap_or(usize::MAX);
    if done > MIGRATIONS.len() {
        return Err(StoreError::Broken(format!(
            "{} was written by a newer version of spillway (schema {version}, this one knows {}); run that version",
            file.display(),
            MIGRATIONS.len()
        )));
    }
    for step in &MIGRATIONS[done..] {
        change.execute_batch(step).map_err(sqlite)?;
    }
    if done < MIGRATIONS.len() {
        let set = |pragma, value| change.pragma_update(None, pragma, value);
        set("application_id", APPLICATION_ID).map_err(sqlite)?;
        set("user_version", MIGRATIONS.len() as i32).map_err(sqlite)?;
    }
    Ok(())
}

/// The meaning of an error of SQLite while the store runs.
pub(super) fn broken(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(error.to_string()),
        _ if is_corrupt(error) || is_unreadable(error) => StoreError::Corrupt(error.to_string()),
        Some(ErrorCode::DatabaseBusy) => StoreError::Broken(format!(
            "another process has kept {DATABASE_FILE} locked for {} s; find and stop it",
            DATABASE_BUSY_TIMEOUT.as_secs()
        )),
        _ => StoreError::Broken(error.to_string()),
    }
}

/// Whether the error says that pages of the file are damaged.
pub(in crate::store) fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// Whether the file system did not return what was written, or not completely.
fn is_unreadable(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(
        code,
        Some(
            ffi::SQLITE_IOERR_READ
                | ffi::SQLITE_IOERR_SHORT_READ
                | ffi::SQLITE_IOERR_CORRUPTFS
                | ffi::SQLITE_IOERR_DATA
        )
    )
}

/// The meaning of an error at start, with the file name, because the reader can act on it.
pub(super) fn at_open(file: &Path, error: &rusqlite::Error) -> StoreError {
    if is_corrupt(error) {
        return malformed(file, &error.to_string());
    }
    match broken(error) {
        StoreError::Broken(why) => StoreError::Broken(format!("{}: {why}", file.display())),
        other => other,
    }
}

/// An error that names the file and the way to save the mail. The store does not create a new file, because the old one still
/// contains accepted mail.
pub(super) fn malformed(file: &Path, why: &str) -> StoreError {
    let file = file.display();
    StoreError::Broken(format!(
        "{file} is malformed: {why}. It was not changed, because it holds accepted mail. Stop every spillway process, \
         then restore the store from a backup, or save what can be read: sqlite3 {file} .recover | sqlite3 {file}.new, \
         and put {file}.new in its place (moving {file}-wal and {file}-shm away with the old file)"
    ))
}
