//! What a status and `/metrics` ask of the lanes. No cost depends on the number of rows: triggers keep the sums, and the index
//! `oldest` has the oldest row of each lane and next hop first.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::row::{lane_number, lossy};
use crate::store::{Lane, LaneStats};

/// The counts of each lane.
pub(super) fn stats(db: &Connection) -> rusqlite::Result<[LaneStats; Lane::ALL.len()]> {
    let mut stats = <[LaneStats; Lane::ALL.len()]>::default();
    for (slot, lane) in stats.iter_mut().zip(Lane::ALL) {
        let (messages, octets) = sums(db, lane)?;
        let oldest = oldest(db, lane)?.into_iter().map(|(_, at)| at).min();
        *slot = LaneStats {
            messages,
            octets,
            oldest,
        };
    }
    Ok(stats)
}

/// The number of messages of [`Lane::Scan`].
pub(super) fn unjudged(db: &Connection) -> rusqlite::Result<u64> {
    sums(db, Lane::Scan).map(|(messages, _)| messages)
}

/// The oldest message of each next hop in [`Lane::Delivery`].
pub(super) fn oldest_outgoing(db: &Connection) -> rusqlite::Result<Vec<(Arc<str>, Timestamp)>> {
    oldest(db, Lane::Delivery)
}

fn sums(db: &Connection, lane: Lane) -> rusqlite::Result<(u64, u64)> {
    let sql = "SELECT messages, octets FROM lane_sum WHERE lane = ?1";
    let mut statement = db.prepare_cached(sql)?;
    let both = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
    let sums = statement.query_row([lane_number(lane)], both).optional()?;
    let (messages, octets) = sums.unwrap_or_default();
    // A sum is never negative, even in a damaged file.
    let sum = |sum| u64::try_from(sum).unwrap_or_default();
    Ok((sum(messages), sum(octets)))
}

/// The oldest row of the first next hop of a lane: mail without a next hop, if there is any. Only [`Lane::Delivery`] has next
/// hops.
const SELECT_FIRST_OLDEST: &str = "SELECT next_hop, received_at FROM message INDEXED BY oldest \
     WHERE damaged IS NULL AND lane = ?1 ORDER BY next_hop, received_at LIMIT 1";

/// Steps from one next hop of a lane to the next, without reading the rows between them.
const SELECT_NEXT_OLDEST: &str = "SELECT next_hop, received_at FROM message INDEXED BY oldest \
     WHERE damaged IS NULL AND lane = ?1 AND next_hop > ?2 ORDER BY next_hop, received_at LIMIT 1";

fn oldest(db: &Connection, lane: Lane) -> rusqlite::Result<Vec<(Arc<str>, Timestamp)>> {
    let mut first = db.prepare_cached(SELECT_FIRST_OLDEST)?;
    let mut next = db.prepare_cached(SELECT_NEXT_OLDEST)?;
    let of = |row: &Row<'_>| Ok((lossy(row, 0)?, row.get::<_, i64>(1)?));
    let mut found = first.query_row([lane_number(lane)], of).optional()?;
    let mut oldest = Vec::new();
    while let Some((next_hop, received_at)) = found {
        let at = Timestamp::from_microsecond(received_at).unwrap_or(Timestamp::MIN);
        found = next
            .query_row(params![lane_number(lane), next_hop], of)
            .optional()?;
        oldest.push((next_hop.into(), at));
    }
    Ok(oldest)
}
