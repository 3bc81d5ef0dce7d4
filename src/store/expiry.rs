//! The removal of expired records, in batches.

use futures_util::future::join_all;
use jiff::Timestamp;

use super::{Audit, Change, Filter, Lane, Record, Store, StoreError};

/// Number of removals in one batch: enough to share a flush, and few enough that they do not make a commit noticeably longer.
pub const REMOVALS_PER_BATCH: usize = 64;

/// Removes all records in `lane` whose [`Record::expires_at`] is not after `now`; returns their number. Works in batches, so
/// that mail whose sender waits for a 250 is written between them.
///
/// Cancel safety: like [`remove_all`].
pub async fn expire(
    store: &dyn Store,
    lane: Lane,
    now: Timestamp,
    audit: impl Fn(&Record) -> Option<Audit>,
    tell: impl Fn(&Record),
) -> Result<usize, StoreError> {
    let mut expired = 0;
    loop {
        let due = Filter {
            lanes: vec![lane],
            expired: Some(now),
            limit: REMOVALS_PER_BATCH,
            ..Filter::default()
        };
        let due = store.search(due).await?;
        match remove_all(store, lane, &due, &audit, &tell).await? {
            0 => return Ok(expired),
            removed => expired += removed,
        }
    }
}

/// Removes those of these records that are still in `lane`, each with the audit entry that `audit` returns. Calls `tell` for
/// each removed record; returns their number.
///
/// Cancel safety: removals that were done stay done; the next call finds the other records.
pub async fn remove_all(
    store: &dyn Store,
    lane: Lane,
    records: &[Record],
    audit: impl Fn(&Record) -> Option<Audit>,
    tell: impl Fn(&Record),
) -> Result<usize, StoreError> {
    let removals = records
        .iter()
        .map(|record| store.change_in(lane, record.id, Change::Remove, audit(record)));
    let (mut removed, mut failed) = (0, None);
    for (record, outcome) in records.iter().zip(join_all(removals).await) {
        match outcome {
            Ok(()) => {
                removed += 1;
                tell(record);
            }
            // A reviewer or the last scan removed the record first.
            Err(StoreError::NotFound(_)) => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(removed), Err)
}

/// Removes records of [`Lane::Rescan`] that are older than [`RESCAN_RETENTION`](super::RESCAN_RETENTION); returns their number.
///
/// Cancel safety: like [`expire`].
pub async fn expire_rescans(store: &dyn Store, now: Timestamp) -> Result<usize, StoreError> {
    let expired = expire(store, Lane::Rescan, now, |_| None, |_| ()).await?;
    dropped("age", expired);
    Ok(expired)
}

/// Counts delivered messages that will not be scanned again, by reason.
pub(super) fn dropped(why: &'static str, messages: usize) {
    metrics::counter!("spillway_rescans_dropped_total", "why" => why).increment(messages as u64);
    if messages > 0 {
        tracing::warn!(messages, why, "delivered mail is not scanned again");
    }
}
