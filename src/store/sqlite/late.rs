//! Counts of late mail by what it waits for. Each count reads at most [`LATE_COUNTED_MAX`] entries of an index from its oldest end,
//! so a status stays fast while a million messages wait.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::counts;
use super::row::{decode, lane_number, lossy};
use super::search;
use crate::message::MessageId;
use crate::store::{Cause, Failing, LATE_COUNTED_MAX, Lane, LateMail, LateTimes, Record};

/// Most entries that a count reads: one more than it shows, so that it knows whether there are more.
const COUNT_ENTRIES_MAX: i64 = LATE_COUNTED_MAX as i64 + 1;

/// Most records that are read of one engine and of one kind of senders, to find the mail on which the engine fails. That mail is
/// the oldest, because the rest goes sooner or later.
const FAILING_READ_MAX: i64 = 20;

/// All kinds of late mail: scans by cause, scans without a cause, deliveries by next hop, holds by engine.
pub(super) fn late(db: &Connection, times: LateTimes) -> rusqlite::Result<Vec<LateMail>> {
    let mut late = Vec::new();
    for lane in [Lane::Scan, Lane::Held] {
        for cause in search::causes_of(db, lane)? {
            // What an interceptor holds is for a reviewer to look at, at leisure.
            if lane == Lane::Scan || matches!(cause, Cause::Engine(_)) {
                late.extend(with_cause(db, times, lane, cause)?);
            }
        }
    }
    without_cause(db, times, &mut late)?;
    for (next_hop, oldest) in counts::oldest_outgoing(db)? {
        if oldest < times.before {
            let (messages, next) = outgoing(db, times, &next_hop)?;
            late.push(LateMail {
                example: first_outgoing(db, &next_hop)?,
                next_hop,
                in_work: next.is_none(),
                next_try: next.filter(|at| *at > times.now),
                ..mail(Lane::Delivery, messages, oldest)
            });
        }
    }
    Ok(late)
}

fn mail(lane: Lane, messages: u64, oldest: Timestamp) -> LateMail {
    LateMail {
        lane,
        next_hop: "".into(),
        cause: None,
        in_work: false,
        in_session: false,
        failing: None,
        example: None,
        next_try: None,
        messages: messages.min(LATE_COUNTED_MAX),
        more: messages > LATE_COUNTED_MAX,
        oldest,
    }
}

/// Both kinds of senders have their own part of the index, each with the oldest first.
const COUNT_CAUSE: &str = "SELECT count(*), min(received_at) FROM (SELECT received_at FROM message INDEXED BY recovery \
     WHERE damaged IS NULL AND cause <> '' AND lane = ?1 AND cause = ?2 AND known = ?3 AND received_at < ?4 \
     ORDER BY received_at LIMIT ?5)";

/// Up to two kinds of late mail: that on which the engine fails each time, and the rest.
fn with_cause(
    db: &Connection,
    times: LateTimes,
    lane: Lane,
    cause: Cause,
) -> rusqlite::Result<Vec<LateMail>> {
    let mut statement = db.prepare_cached(COUNT_CAUSE)?;
    let (mut messages, mut oldest): (u64, Option<i64>) = (0, None);
    let (mut failing, mut are_more) = (Vec::new(), false);
    let mut others = None;
    for known in [false, true] {
        let key = params![
            lane_number(lane),
            cause.to_string(),
            known,
            times.before.as_microsecond(),
            COUNT_ENTRIES_MAX
        ];
        let of = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get(1)?));
        let (count, first): (i64, Option<i64>) = statement.query_row(key, of)?;
        messages += count.unsigned_abs();
        oldest = oldest.into_iter().chain(first).min();
        let read = match cause {
            Cause::Engine(_) if count > 0 => first_with_cause(db, times, (lane, &cause, known))?,
            Cause::Engine(_) | Cause::Interceptor(_) => Vec::new(),
        };
        let all = read.len();
        let (failed, rest): (Vec<Record>, _) = read.into_iter().partition(fails);
        are_more |= rest.is_empty() && count.unsigned_abs() > all as u64;
        failing.extend(failed);
        others = others.into_iter().chain(rest).min_by_key(|r| r.received_at);
    }
    let Some(oldest) = oldest else {
        return Ok(Vec::new());
    };
    let (failed, first) = (failing.len() as u64, failing.iter());
    let first = first.min_by_key(|record| record.received_at);
    let mut late = Vec::new();
    if let Some(record) = first {
        late.push(LateMail {
            cause: Some(cause.clone()),
            failing: Failing::of(record),
            example: Some(record.id),
            more: are_more,
            ..mail(lane, failed, record.received_at)
        });
    }
    if messages > failed {
        // What was not read came after all that was read.
        let last = failing.iter().map(|record| record.received_at).max();
        let first = others.as_ref().map(|record| record.received_at).or(last);
        let oldest = first.unwrap_or_else(|| timestamp(oldest));
        late.push(LateMail {
            cause: Some(cause),
            example: others.map(|record| record.id),
            ..mail(lane, messages - failed, oldest)
        });
    }
    Ok(late)
}

fn fails(record: &Record) -> bool {
    Failing::of(record).is_some()
}

const SELECT_FIRST_WITH_CAUSE: &str = "SELECT id, record FROM message INDEXED BY recovery \
     WHERE damaged IS NULL AND cause <> '' AND lane = ?1 AND cause = ?2 AND known = ?3 AND received_at < ?4 \
     ORDER BY received_at LIMIT ?5";

/// The oldest late records of a cause. Damaged ones are left out.
fn first_with_cause(
    db: &Connection,
    times: LateTimes,
    (lane, cause, known): (Lane, &Cause, bool),
) -> rusqlite::Result<Vec<Record>> {
    let mut statement = db.prepare_cached(SELECT_FIRST_WITH_CAUSE)?;
    let key = params![
        lane_number(lane),
        cause.to_string(),
        known,
        times.before.as_microsecond(),
        FAILING_READ_MAX
    ];
    let rows = statement.query_map(key, |row| Ok((row.get::<_, String>(0)?, lossy(row, 1)?)))?;
    let mut records = Vec::new();
    for row in rows {
        let (id, json) = row?;
        records.extend(decode(&id, &json));
    }
    Ok(records)
}

/// The index does not have the cause, so rows are read, at most [`LATE_COUNTED_MAX`] of the lane: the first to be due.
const COUNT_NO_CAUSE: &str = "SELECT leased, later, count(*), min(received_at), min(due_at), id FROM ( \
         SELECT received_at, due_at, cause, id, lease_until > ?2 AS leased, due_at > ?2 AS later \
         FROM message INDEXED BY work WHERE damaged IS NULL AND lane = 0 AND received_at < ?1 LIMIT ?3) \
     WHERE cause = '' GROUP BY leased, later";

fn without_cause(
    db: &Connection,
    times: LateTimes,
    late: &mut Vec<LateMail>,
) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached(COUNT_NO_CAUSE)?;
    let LateTimes { now, before } = times;
    let (before, now) = (before.as_microsecond(), now.as_microsecond());
    let mut rows = statement.query(params![before, now, COUNT_ENTRIES_MAX])?;
    while let Some(row) = rows.next()? {
        let (in_work, later): (bool, bool) = (row.get(0)?, row.get(1)?);
        let messages = row.get::<_, i64>(2)?.unsigned_abs();
        let (oldest, due): (i64, i64) = (row.get(3)?, row.get(4)?);
        late.push(LateMail {
            in_work,
            next_try: (later && !in_work).then(|| timestamp(due)),
            example: row.get::<_, String>(5)?.parse().ok(),
            ..mail(Lane::Scan, messages, timestamp(oldest))
        });
    }
    Ok(())
}

const COUNT_OUTGOING: &str = "SELECT count(*) FROM (SELECT 1 FROM message INDEXED BY oldest \
     WHERE lane = 1 AND damaged IS NULL AND next_hop = ?1 AND received_at < ?2 LIMIT ?3)";

/// The first record of the queue that no worker has.
const SELECT_NEXT_DUE: &str = "SELECT due_at FROM message INDEXED BY outgoing WHERE lane = 1 AND damaged IS NULL \
     AND next_hop = ?1 AND lease_until <= ?2 ORDER BY due_at LIMIT 1";

const SELECT_FIRST_OUTGOING: &str = "SELECT id FROM message INDEXED BY oldest \
     WHERE lane = 1 AND damaged IS NULL AND next_hop = ?1 ORDER BY received_at LIMIT 1";

/// The oldest message for a next hop.
fn first_outgoing(db: &Connection, next_hop: &str) -> rusqlite::Result<Option<MessageId>> {
    let mut first = db.prepare_cached(SELECT_FIRST_OUTGOING)?;
    let id: Option<String> = first.query_row([next_hop], |row| row.get(0)).optional()?;
    Ok(id.and_then(|id| id.parse().ok()))
}

/// The number of late messages for a next hop, and the due time of the first message that no worker has.
fn outgoing(
    db: &Connection,
    times: LateTimes,
    next_hop: &str,
) -> rusqlite::Result<(u64, Option<Timestamp>)> {
    let mut count = db.prepare_cached(COUNT_OUTGOING)?;
    let key = params![next_hop, times.before.as_microsecond(), COUNT_ENTRIES_MAX];
    let messages: i64 = count.query_row(key, |row| row.get(0))?;
    let mut next = db.prepare_cached(SELECT_NEXT_DUE)?;
    let key = params![next_hop, times.now.as_microsecond()];
    let due: Option<i64> = next.query_row(key, |row| row.get(0)).optional()?;
    Ok((messages.unsigned_abs(), due.map(timestamp)))
}

fn timestamp(microseconds: i64) -> Timestamp {
    Timestamp::from_microsecond(microseconds).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::{at, octets, record};
    use crate::store::sqlite::{Role, SqliteStore};
    use crate::store::{Record, Settings, Store};

    async fn opened(folder: &tempfile::TempDir) -> std::sync::Arc<SqliteStore> {
        let settings = Settings {
            path: folder.path().to_owned(),
            disk_reserve: 0,
            ..Settings::default()
        };
        let opened = SqliteStore::open(&settings, Role::Relay).await;
        opened.expect("open").0
    }

    /// Mail is late once it is older than the threshold. Damaged records are no mail that waits, and the next try is that of a
    /// record that no worker has.
    #[tokio::test]
    async fn only_whole_mail_that_waits_for_long_is_late() {
        let folder = tempfile::tempdir().expect("folder");
        let store = opened(&folder).await;
        for (hop, received, due) in [
            ("young", 900, 900),
            ("mx", 0, 500),
            ("mx", 10, 1500),
            ("mx", 20, 1400),
        ] {
            let record = Record {
                next_hop: hop.into(),
                received_at: at(received),
                due_at: at(due),
                ..record(Lane::Delivery)
            };
            store.put(vec![record], octets(1)).await.expect("put");
        }
        let db = Connection::open(folder.path().join("spillway.db")).expect("opens");
        let change = |sql: &str, received: i64| {
            let key = params![at(received).as_microsecond(), at(2000).as_microsecond()];
            assert_eq!(db.execute(sql, key).expect("changes"), 1);
        };
        change(
            "UPDATE message SET lease_until = ?2 WHERE received_at = ?1",
            0,
        );
        change(
            "UPDATE message SET damaged = 'x' WHERE received_at = ?1 AND ?2 > 0",
            20,
        );
        let times = LateTimes {
            now: at(1000),
            before: at(900),
        };
        let late = late(&db, times).expect("counts");
        let expected = LateMail {
            next_hop: "mx".into(),
            example: late[0].example,
            next_try: Some(at(1500)),
            ..mail(Lane::Delivery, 2, at(0))
        };
        assert_eq!(late, [expected]);
    }

    /// No count reads more rows than it shows: a status stays fast while a million messages wait for one cause. Instructions of
    /// SQLite stand for time.
    #[tokio::test]
    async fn a_count_stops_at_its_limit() {
        let folder = tempfile::tempdir().expect("folder");
        let store = opened(&folder).await;
        let first = |lane: Lane, hop: &str, cause: Option<&str>| Record {
            next_hop: hop.into(),
            cause: cause.map(|name| Cause::Engine(name.to_owned())),
            received_at: at(0),
            ..record(lane)
        };
        for record in [
            first(Lane::Scan, "", Some("clamd")),
            first(Lane::Held, "", Some("clamd")),
            first(Lane::Delivery, "mx", None),
        ] {
            store.put(vec![record], octets(1)).await.expect("put");
        }
        let db = Connection::open(folder.path().join("spillway.db")).expect("opens");
        let times = LateTimes {
            now: at(1000),
            before: at(900),
        };
        let mut counted = Vec::new();
        for more in [COUNT_ENTRIES_MAX + 10, COUNT_ENTRIES_MAX] {
            db.execute(
                "INSERT INTO message SELECT NULL, hex(randomblob(16)), lane, due_at, lease_until, received_at, expires_at, size, \
                 file, damaged, sender, recipients, subject, rule, reason, engines, findings, record, cause, known, next_hop, \
                 client, domain, overhead FROM message, (WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
                 SELECT i FROM n) WHERE message.seq <= 3",
                [more],
            )
            .expect("copies");
            let late = late(&db, times).expect("counts");
            assert_eq!(late.len(), 3, "{late:?}");
            for mail in &late {
                assert_eq!((mail.messages, mail.more), (LATE_COUNTED_MAX, true));
                assert_eq!(mail.oldest, at(0));
            }
            let mut steps = 0;
            for sql in [COUNT_CAUSE, COUNT_OUTGOING] {
                let mut statement = db.prepare(sql).expect("prepares");
                let mut rows = match sql {
                    COUNT_CAUSE => statement.query(params![
                        lane_number(Lane::Scan),
                        "engine:clamd",
                        false,
                        times.before.as_microsecond(),
                        COUNT_ENTRIES_MAX
                    ]),
                    _ => statement.query(params![
                        "mx",
                        times.before.as_microsecond(),
                        COUNT_ENTRIES_MAX
                    ]),
                }
                .expect("queries");
                while rows.next().expect("reads").is_some() {}
                drop(rows);
                steps += statement.get_status(rusqlite::StatementStatus::VmStep);
            }
            counted.push(steps);
        }
        assert_eq!(counted[0], counted[1], "however many more there are");
    }
}
