//! All reads: one record, its content, searches, the audit, counts. They run on reader connections, beside the writer.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};
use sha2::{Digest, Sha256};

use super::bodies::{Bodies, failed};
use super::health::Disk;
use super::row::{cause_key, decode, lane_number, lossy};
use super::schema::broken;
use crate::message::{MessageId, canonical, header};
use crate::store::{
    Audit, CAUSES_MAX, Capacity, Cause, Filter, Held, Holder, Lane, Object, Queue, Record,
    StoreError, Times,
};

/// A row that cannot be used, found while reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damage {
    /// The id column as stored; it may not be a valid id.
    pub(super) id: String,
    /// The problem.
    pub(super) why: String,
}

/// Usable records, and damaged rows.
pub(super) type Sorted = (Vec<Record>, Vec<Damage>);

/// Parses rows, and separates those that cannot be parsed.
pub(super) fn sort(rows: Vec<(String, String)>) -> Sorted {
    let mut sorted = Sorted::default();
    for (id, json) in rows {
        match decode(&id, &json) {
            Ok(record) => sorted.0.push(record),
            Err(why) => sorted.1.push(Damage { id, why }),
        }
    }
    sorted
}

/// The row of a record: its JSON, whether the content is a file, and its number.
struct Found {
    json: String,
    file: bool,
    seq: i64,
}

fn find(db: &Connection, id: MessageId) -> Result<Option<Found>, StoreError> {
    let row = db
        .prepare_cached("SELECT record, file, seq, damaged FROM message WHERE id = ?1")
        .and_then(|mut statement| {
            statement
                .query_row([id.to_string()], |row| {
                    let damage: Option<String> = row.get(3)?;
                    let found = Found {
                        json: lossy(row, 0)?,
                        file: row.get(1)?,
                        seq: row.get(2)?,
                    };
                    Ok((found, damage))
                })
                .optional()
        })
        .map_err(|error| broken(&error))?;
    match row {
        Some((_, Some(why))) => Err(StoreError::Damaged(id, why)),
        Some((found, None)) => Ok(Some(found)),
        None => Ok(None),
    }
}

/// One record.
pub(super) fn get(db: &Connection, id: MessageId) -> Result<Option<Record>, StoreError> {
    find(db, id)?
        .map(|found| decode(&id.to_string(), &found.json))
        .transpose()
        .map_err(|why| StoreError::Damaged(id, why))
}

/// The content of a record, checked against the digest that was computed at reception.
pub(super) fn content(
    db: &Connection,
    bodies: &Bodies,
    id: MessageId,
) -> Result<Bytes, StoreError> {
    let damaged = |why: String| StoreError::Damaged(id, why);
    let found = find(db, id)?.ok_or(StoreError::NotFound(id))?;
    let record = decode(&id.to_string(), &found.json).map_err(damaged)?;
    let content = if found.file {
        read_file(db, bodies, id)?
    } else {
        read_inline(db, id, found.seq)?
    };
    // Records that were stored without a digest cannot be checked.
    if !record.sha256.is_empty() && !record.sha256.eq_ignore_ascii_case(&hexadecimal(&content)) {
        return Err(damaged(
            "its content differs from the content that was received".to_owned(),
        ));
    }
    Ok(content.into())
}

fn read_inline(db: &Connection, id: MessageId, seq: i64) -> Result<Vec<u8>, StoreError> {
    let content = db
        .prepare_cached("SELECT content FROM body WHERE seq = ?1")
        .and_then(|mut statement| statement.query_row([seq], |row| row.get(0)).optional())
        .map_err(|error| broken(&error))?;
    content.ok_or_else(|| gone(db, id, "its content is missing".to_owned()))
}

fn read_file(db: &Connection, bodies: &Bodies, id: MessageId) -> Result<Vec<u8>, StoreError> {
    let path = bodies.path(id);
    fs::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            gone(db, id, format!("its content {} is missing", path.display()))
        }
        _ => failed(&path, &error),
    })
}

/// The row is removed before its content. So if a read finds a row without content, it looks again whether the row still
/// exists.
fn gone(db: &Connection, id: MessageId, why: String) -> StoreError {
    match find(db, id) {
        Ok(Some(_)) => StoreError::Damaged(id, why),
        Ok(None) => StoreError::NotFound(id),
        Err(error) => error,
    }
}

fn hexadecimal(content: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(64);
    for octet in Sha256::digest(content) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{octet:02x}");
    }
    text
}

/// A condition with its parameters.
struct Query {
    sql: String,
    values: Vec<Value>,
}

impl Query {
    fn and(&mut self, condition: &str, value: impl Into<Value>) {
        self.sql.push_str(" AND ");
        self.values.push(value.into());
        let number = format!("?{}", self.values.len());
        self.sql.push_str(&condition.replace('?', &number));
    }

    fn contains(&mut self, columns: &[&str], text: Option<&String>) {
        if let Some(text) = text {
            let any: Vec<String> = columns
                .iter()
                .map(|column| format!("instr({column}, ?) > 0"))
                .collect();
            self.and(&format!("({})", any.join(" OR ")), text.to_lowercase());
        }
    }

    /// Part of an address as it was received, or any spelling of it.
    fn contains_address(&mut self, column: &str, text: Option<&String>) {
        let Some(text) = text else { return };
        let mut spelled = |spelling: String| {
            self.values.push(spelling.into());
            format!("instr({column}, ?{}) > 0", self.values.len())
        };
        let received = spelled(text.to_lowercase());
        let canonical = spelled(canonical::part(text).into_owned());
        self.sql
            .push_str(&format!(" AND ({received} OR {canonical})"));
    }
}

/// The table with the index that suits the filter, and the condition that selects its lanes.
fn source(filter: &Filter) -> String {
    match filter.lanes.as_slice() {
        [] if filter.cause.is_some() => "message WHERE cause <> ''".to_owned(),
        [lane] if filter.cause.is_some() => {
            let lane = lane_number(*lane);
            format!("message INDEXED BY recovery WHERE cause <> '' AND lane = {lane}")
        }
        [Lane::Rescan] if filter.expired.is_some() => {
            "message INDEXED BY rescans WHERE lane = 3".to_owned()
        }
        // The condition must be written exactly as in the definition of the index, or SQLite does not use the index.
        [Lane::Held] if filter.expired.is_some() => {
            "message INDEXED BY expiry WHERE lane = 2".to_owned()
        }
        [Lane::Held] => "message INDEXED BY held WHERE lane = 2".to_owned(),
        // The index of the column's UNIQUE constraint.
        [] if filter.id_prefix.is_some() => {
            "message INDEXED BY sqlite_autoindex_message_1 WHERE true".to_owned()
        }
        [] => "message WHERE true".to_owned(),
        lanes => {
            let numbers: Vec<String> = lanes
                .iter()
                .map(|lane| lane_number(*lane).to_string())
                .collect();
            format!("message WHERE lane IN ({})", numbers.join(", "))
        }
    }
}

fn conditions(filter: &Filter) -> Query {
    let mut query = Query {
        sql: format!("SELECT seq FROM {} AND damaged IS NULL", source(filter)),
        values: Vec::new(),
    };
    query.contains(&["rule", "reason"], filter.reason.as_ref());
    query.contains(&["findings"], filter.finding.as_ref());
    query.contains_address("sender", filter.sender.as_ref());
    query.contains_address("recipients", filter.recipient.as_ref());
    if let Some(text) = &filter.subject {
        // Earlier versions stored subjects as they came, and their column is in lower case, which base64 does not survive.
        // Only for such rows (char(61, 63) is `=?`) the record is read.
        let either = format!(
            "(instr(subject, ?) > 0 OR instr(subject, char(61, 63)) > 0 AND instr({DECODED_SUBJECT_FUNCTION}(record), ?) > 0)"
        );
        query.and(&either, text.to_lowercase());
    }
    if let Some(prefix) = &filter.id_prefix {
        query.and("id >= ?", prefix.clone());
        // No character of an id comes after `~`.
        query.and("id < ?", format!("{prefix}~"));
    }
    if let Some(engine) = &filter.engine {
        query.and(
            "instr(engines, ?) > 0",
            format!("\n{}\n", engine.to_lowercase()),
        );
    }
    if filter.cause.is_some() {
        query.and("cause = ?", cause_key(filter.cause.as_ref()));
    }
    if let Some(before) = filter.before {
        query.and("received_at < ?", before.as_microsecond());
    }
    if let Some(after) = filter.after {
        query.and("received_at >= ?", after.as_microsecond());
    }
    if let Some(expired) = filter.expired {
        query.and("expires_at <= ?", expired.as_microsecond());
    }
    if let Some(size) = &filter.size {
        let number = |octets: u64| i64::try_from(octets).unwrap_or(i64::MAX);
        query.and("size >= ?", number(size.start));
        query.and("size < ?", number(size.end));
    }
    query
}

/// Number of records that match, without [`Filter::limit`] and [`Filter::offset`].
pub(super) fn count(db: &Connection, filter: &Filter) -> rusqlite::Result<u64> {
    let query = conditions(filter);
    let sql = format!("SELECT count(*) FROM ({})", query.sql);
    let count: i64 = db
        .prepare_cached(&sql)?
        .query_row(params_from_iter(query.values), |row| row.get(0))?;
    Ok(count.unsigned_abs())
}

/// Name of the SQL function that [`add_functions`] adds.
const DECODED_SUBJECT_FUNCTION: &str = "decoded_subject";

/// Adds the function that [`search`] and [`count`] need to a connection: the decoded subject of a record in lower case.
pub(super) fn add_functions(db: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    db.create_scalar_function(DECODED_SUBJECT_FUNCTION, 1, flags, |context| {
        let json = context.get_raw(0).as_bytes_or_null().ok().flatten();
        // A damaged record has no subject here; reads of the record report the damage.
        let stored = json.and_then(|json| serde_json::from_slice::<StoredSubject>(json).ok());
        let subject = stored.map_or_else(String::new, |stored| stored.subject);
        Ok(header::decoded(&subject).to_lowercase())
    })
}

/// The part of a record that [`add_functions`] reads.
#[derive(serde::Deserialize)]
struct StoredSubject {
    subject: String,
}

/// Records that match, the newest first, or with [`Filter::expired`] the longest expired first. The query finds them in the
/// index alone, and then reads only the records that it returns.
pub(super) fn search(db: &Connection, filter: &Filter) -> rusqlite::Result<Sorted> {
    let mut query = conditions(filter);
    let number = |count: usize| Value::from(i64::try_from(count).unwrap_or(i64::MAX));
    let limit = query.values.len() + 1;
    query.values.push(number(filter.limit));
    query.values.push(number(filter.offset));
    // Expired records are a range at the beginning of their index, so they are not sorted; there may be a million.
    let order = match filter.expired {
        Some(_) => "expires_at",
        None => "received_at DESC",
    };
    let sql = format!(
        "SELECT id, record FROM message WHERE seq IN ({} ORDER BY {order} LIMIT ?{limit} OFFSET ?{}) \
         ORDER BY {order}, seq DESC",
        query.sql,
        limit + 1
    );
    let rows = db
        .prepare_cached(&sql)?
        .query_map(params_from_iter(query.values), |row| {
            Ok((lossy(row, 0)?, lossy(row, 1)?))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(sort(rows))
}

/// The audit, the newest entry first.
pub(super) fn audited(
    db: &Connection,
    of: Option<&Object>,
    limit: usize,
) -> rusqlite::Result<Vec<Audit>> {
    let sql = match of {
        Some(_) => "SELECT entry FROM audit WHERE record = ?1 ORDER BY seq DESC LIMIT ?2",
        None => "SELECT entry FROM audit WHERE ?1 IS NULL ORDER BY seq DESC LIMIT ?2",
    };
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = db
        .prepare_cached(sql)?
        .query_map(params![of.map(Object::to_string), limit], |row| {
            lossy(row, 0)
        })?
        .collect::<rusqlite::Result<Vec<String>>>()?;
    let parse = |json: &String| match serde_json::from_str(json) {
        Ok(entry) => Some(entry),
        Err(error) => {
            tracing::error!(%error, entry = json, "an audit entry cannot be read and is skipped");
            None
        }
    };
    Ok(rows.iter().filter_map(parse).collect())
}

/// Octets in quarantine of a party; of all parties if the name is empty.
pub(super) fn held_by(db: &Connection, party: &str) -> rusqlite::Result<u64> {
    let octets: Option<i64> = db
        .prepare_cached("SELECT octets FROM held_by WHERE party = ?1")?
        .query_row([party], |row| row.get(0))
        .optional()?;
    Ok(octets.map_or(0, octets_of))
}

/// The use of quarantine and its limit.
pub(super) fn held(db: &Connection, quarantine: Capacity, disk: Disk) -> rusqlite::Result<Held> {
    let octets = held_by(db, "")?;
    let largest = db
        .prepare_cached(
            "SELECT party, octets FROM held_by INDEXED BY largest_holder WHERE party <> '' ORDER BY octets DESC LIMIT 1",
        )?
        .query_row([], |row| {
            Ok(Holder {
                name: lossy(row, 0)?,
                octets: octets_of(row.get(1)?),
            })
        })
        .optional()?;
    Ok(Held {
        octets,
        limit: disk.limit(quarantine, octets),
        largest,
    })
}

/// A sum is never negative, even in a damaged file.
fn octets_of(sum: i64) -> u64 {
    u64::try_from(sum).unwrap_or_default()
}

/// One step in the index for each next hop, and from either end of its queue to the first record that is not leased.
const SELECT_QUEUES: &str = "WITH RECURSIVE hop (name) AS ( \
         SELECT min(next_hop) FROM message INDEXED BY outgoing WHERE lane = 1 AND damaged IS NULL \
         UNION ALL SELECT (SELECT min(next_hop) FROM message INDEXED BY outgoing \
             WHERE lane = 1 AND damaged IS NULL AND next_hop > hop.name) FROM hop WHERE hop.name IS NOT NULL) \
     SELECT name, \
         (SELECT due_at FROM message INDEXED BY outgoing WHERE lane = 1 AND damaged IS NULL AND next_hop = name \
             AND (lease_until <= ?1 OR lease_until > ?2) ORDER BY due_at LIMIT 1), \
         (SELECT due_at FROM message INDEXED BY outgoing WHERE lane = 1 AND damaged IS NULL AND next_hop = name \
             AND (lease_until <= ?1 OR lease_until > ?2) ORDER BY due_at DESC LIMIT 1) \
     FROM hop WHERE name IS NOT NULL";

/// The queues of next hops.
pub(super) fn queues(db: &Connection, times: Times) -> rusqlite::Result<Vec<Queue>> {
    let mut statement = db.prepare_cached(SELECT_QUEUES)?;
    let mut rows = statement.query(params![
        times.now.as_microsecond(),
        times.until.as_microsecond()
    ])?;
    let mut queues = Vec::new();
    while let Some(row) = rows.next()? {
        let at = |column| row.get::<_, Option<i64>>(column);
        // All records of the queue may be leased.
        let (Some(first), Some(last)) = (at(1)?, at(2)?) else {
            continue;
        };
        queues.push(Queue {
            next_hop: lossy(row, 0)?.into(),
            first: Timestamp::from_microsecond(first).unwrap_or(Timestamp::MIN),
            last: Timestamp::from_microsecond(last).unwrap_or(Timestamp::MAX),
        });
    }
    Ok(queues)
}

/// Steps from one cause of a lane to the next in the index, without reading all records of each cause.
const SELECT_NEXT_CAUSE: &str = "SELECT cause FROM message INDEXED BY recovery WHERE damaged IS NULL AND cause <> '' \
     AND lane = ?1 AND cause > ?2 ORDER BY cause LIMIT 1";

/// The causes that mail waits for.
pub(super) fn causes(db: &Connection) -> rusqlite::Result<Vec<Cause>> {
    let mut causes = BTreeSet::new();
    for lane in Lane::ALL {
        causes.extend(causes_of(db, lane)?);
    }
    Ok(causes.into_iter().take(CAUSES_MAX).collect())
}

/// The causes that mail in a lane waits for, at most [`CAUSES_MAX`].
pub(super) fn causes_of(db: &Connection, lane: Lane) -> rusqlite::Result<Vec<Cause>> {
    let mut statement = db.prepare_cached(SELECT_NEXT_CAUSE)?;
    let (mut causes, mut last) = (Vec::new(), String::new());
    while causes.len() < CAUSES_MAX {
        let next = statement.query_row(params![lane_number(lane), last], |row| lossy(row, 0));
        let Some(next) = next.optional()? else {
            break;
        };
        causes.extend(next.parse::<Cause>());
        last = next;
    }
    Ok(causes)
}

/// Octets in [`Lane::Rescan`].
pub(super) fn rescan_octets(db: &Connection) -> rusqlite::Result<u64> {
    let mut statement = db.prepare_cached("SELECT octets FROM rescan")?;
    let octets: i64 = statement.query_row([], |row| row.get(0))?;
    Ok(octets.unsigned_abs())
}
