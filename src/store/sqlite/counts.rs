//! What a status and `/metrics` ask of the lanes. Triggers keep the sums of most lanes, and indexes have the oldest rows first, so
//! the cost does not depend on how much mail waits for delivery or is held. Only the scan lane is counted, which is short:
//! `limits.backlog` bounds it.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};

use super::row::{lane_number, lossy};
use crate::store::{Lane, LaneStats};

/// The counts of each lane.
pub(super) fn stats(db: &Connection) -> rusqlite::Result<[LaneStats; Lane::ALL.len()]> {
    let mut stats = <[LaneStats; Lane::ALL.len()]>::default();
    for (slot, lane) in stats.iter_mut().zip(Lane::ALL) {
        *slot = match lane {
            Lane::Scan => lane_stats(db, COUNT_SCAN, None)?,
            Lane::Delivery => LaneStats {
                oldest: oldest_outgoing(db)?.into_iter().map(|(_, at)| at).min(),
                ..lane_stats(db, SELECT_SUMS, Some(lane))?
            },
            Lane::Held => LaneStats {
                oldest: oldest(db, SELECT_OLDEST_HELD)?,
                ..lane_stats(db, SELECT_SUMS, Some(lane))?
            },
            Lane::Rescan => LaneStats {
                oldest: oldest(db, SELECT_OLDEST_RESCAN)?,
                ..lane_stats(db, SELECT_SUMS, Some(lane))?
            },
        };
    }
    Ok(stats)
}

/// The number of messages of [`Lane::Scan`], in their part of the index alone: quarantine may hold a million.
pub(super) fn unjudged(db: &Connection) -> rusqlite::Result<u64> {
    lane_stats(db, COUNT_SCAN, None).map(|stats| stats.messages)
}

const COUNT_SCAN: &str = "SELECT count(*), coalesce(sum(size), 0), min(received_at) FROM message INDEXED BY work \
     WHERE damaged IS NULL AND lane = 0";
const SELECT_SUMS: &str = "SELECT messages, octets, NULL FROM lane_sum WHERE lane = ?1";
const SELECT_OLDEST_HELD: &str = "SELECT received_at FROM message INDEXED BY held \
     WHERE lane = 2 AND damaged IS NULL ORDER BY received_at LIMIT 1";
const SELECT_OLDEST_RESCAN: &str = "SELECT received_at FROM message INDEXED BY oldest_rescan \
     WHERE lane = 3 AND damaged IS NULL ORDER BY received_at LIMIT 1";

fn lane_stats(db: &Connection, sql: &str, lane: Option<Lane>) -> rusqlite::Result<LaneStats> {
    let mut statement = db.prepare_cached(sql)?;
    let stats = statement.query_row(params_from_iter(lane.map(lane_number)), |row| {
        let (messages, octets): (i64, i64) = (row.get(0)?, row.get(1)?);
        let oldest: Option<i64> = row.get(2)?;
        Ok(LaneStats {
            // A sum is never negative, even in a damaged file.
            messages: u64::try_from(messages).unwrap_or_default(),
            octets: u64::try_from(octets).unwrap_or_default(),
            oldest: oldest.and_then(|at| Timestamp::from_microsecond(at).ok()),
        })
    });
    Ok(stats.optional()?.unwrap_or_default())
}

fn oldest(db: &Connection, sql: &str) -> rusqlite::Result<Option<Timestamp>> {
    let mut statement = db.prepare_cached(sql)?;
    let oldest: Option<i64> = statement.query_row([], |row| row.get(0)).optional()?;
    Ok(oldest.and_then(|at| Timestamp::from_microsecond(at).ok()))
}

/// The oldest row of the first next hop: mail without a next hop, if there is any.
const SELECT_FIRST_OUTGOING: &str = "SELECT next_hop, received_at FROM message INDEXED BY oldest \
     WHERE lane = 1 AND damaged IS NULL ORDER BY next_hop, received_at LIMIT 1";

/// Steps from one next hop to the next, without reading the rows between them.
const SELECT_NEXT_OUTGOING: &str = "SELECT next_hop, received_at FROM message INDEXED BY oldest \
     WHERE lane = 1 AND damaged IS NULL AND next_hop > ?1 ORDER BY next_hop, received_at LIMIT 1";

/// The oldest message of each next hop in [`Lane::Delivery`].
pub(super) fn oldest_outgoing(db: &Connection) -> rusqlite::Result<Vec<(Arc<str>, Timestamp)>> {
    let mut first = db.prepare_cached(SELECT_FIRST_OUTGOING)?;
    let mut next = db.prepare_cached(SELECT_NEXT_OUTGOING)?;
    let of = |row: &Row<'_>| Ok((lossy(row, 0)?, row.get::<_, i64>(1)?));
    let mut found = first.query_row([], of).optional()?;
    let mut oldest = Vec::new();
    while let Some((next_hop, received_at)) = found {
        let at = Timestamp::from_microsecond(received_at).unwrap_or(Timestamp::MIN);
        found = next.query_row([&next_hop], of).optional()?;
        oldest.push((next_hop.into(), at));
    }
    Ok(oldest)
}
