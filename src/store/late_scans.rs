//! The scans that ended after `timeout`, in the history file: how long each took, and whether its late answer found something.
//!
//! Like the [measures](super::measures), they are not mail. A row takes about 80 octets, so the table stays below 20 MB.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::params;

use super::StoreError;
use super::log;
use super::measures::MEASURE_RETENTION;
use crate::measure::LateScan;

/// Most rows, whatever their age.
const LATE_SCAN_ROWS_MAX: usize = 200_000;

/// Adds late scans. `path` is the history file, which the relay has created. Rows that are older than [`MEASURE_RETENTION`]
/// before the newest scan are removed, and the oldest beyond 200,000. Blocks on the disk.
pub fn add(path: &Path, scans: &[LateScan]) -> Result<(), StoreError> {
    if scans.is_empty() {
        return Ok(());
    }
    let failed =
        |error: rusqlite::Error| StoreError::Broken(format!("{}: {error}", path.display()));
    write(path, scans, LATE_SCAN_ROWS_MAX).map_err(failed)
}

fn write(path: &Path, scans: &[LateScan], rows_max: usize) -> rusqlite::Result<()> {
    let mut db = log::open_existing(path)?;
    let change = db.transaction()?;
    change.execute_batch(
        "CREATE TABLE IF NOT EXISTS late_scan (seq INTEGER PRIMARY KEY, message TEXT NOT NULL, engine TEXT NOT NULL, \
         at INTEGER NOT NULL, took_ms INTEGER NOT NULL, found INTEGER) STRICT;",
    )?;
    for scan in scans {
        change
            .prepare_cached(
                "INSERT INTO late_scan (message, engine, at, took_ms, found) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                scan.message.to_string(),
                &*scan.engine,
                scan.at.as_millisecond(),
                i64::try_from(scan.took.as_millis()).unwrap_or(i64::MAX),
                scan.found
            ])?;
    }
    let oldest = scans.iter().map(|scan| scan.at).max();
    let oldest = oldest.and_then(|newest| newest.checked_sub(MEASURE_RETENTION).ok());
    change.execute(
        "DELETE FROM late_scan WHERE at < ?1 OR seq <= (SELECT max(seq) FROM late_scan) - ?2",
        params![
            oldest.map_or(i64::MIN, Timestamp::as_millisecond),
            i64::try_from(rows_max).unwrap_or(i64::MAX)
        ],
    )?;
    change.commit()
}

/// The late scans that ended at or after `since`, and before `until`, in the order in which they were written. Empty if there
/// were none. The last minute may be missing: only the running relay has it.
///
/// Cancel safety: safe.
pub async fn read(
    path: &Path,
    since: Timestamp,
    until: Timestamp,
) -> Result<Vec<LateScan>, StoreError> {
    log::query(path, move |db| {
        let sql = "SELECT message, engine, at, took_ms, found FROM late_scan WHERE at >= ?1 AND at < ?2 ORDER BY seq";
        let mut statement = match db.prepare(sql) {
            // A history of an earlier version, or of a relay that had no late scan, has no such table.
            Err(error) if error.to_string().contains("no such table") => return Ok(Vec::new()),
            statement => statement?,
        };
        let key = params![since.as_millisecond(), until.as_millisecond()];
        let rows = statement.query_map(key, |row| {
            let (message, engine): (String, String) = (row.get(0)?, row.get(1)?);
            let (at, took, found): (i64, i64, Option<bool>) =
                (row.get(2)?, row.get(3)?, row.get(4)?);
            Ok((message, engine, at, took, found))
        })?;
        let mut scans = Vec::new();
        // One name for all scans of an engine.
        let mut engines: BTreeSet<Arc<str>> = BTreeSet::new();
        for row in rows {
            let (message, engine, at, took, found) = row?;
            let engine = engines.get(&*engine).cloned().unwrap_or_else(|| {
                let engine: Arc<str> = engine.into();
                engines.insert(engine.clone());
                engine
            });
            let (Ok(message), Ok(at)) = (message.parse(), Timestamp::from_millisecond(at)) else {
                continue;
            };
            scans.push(LateScan {
                message,
                engine,
                at,
                took: Duration::from_millis(u64::try_from(took).unwrap_or_default()),
                found,
            });
        }
        Ok(scans)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MessageId;
    use crate::store::contract::at;
    use crate::store::history::{FILE_NAME, History};

    fn scan(seconds: i64, found: Option<bool>) -> LateScan {
        LateScan {
            message: MessageId::new(),
            engine: "clamd".into(),
            at: at(seconds),
            took: Duration::from_millis(31_250),
            found,
        }
    }

    /// A late scan is read back as it was, by the time at which it ended; age and number bound the table.
    #[tokio::test]
    async fn late_scans_are_read_back_and_bounded() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(FILE_NAME);
        let all = || read(&path, Timestamp::MIN, Timestamp::MAX);
        assert_eq!(all().await.expect("no file"), []);
        let history = History::open(&path, Duration::from_secs(100)).expect("open");
        assert_eq!(all().await.expect("no table"), []);
        let scans = [
            scan(0, Some(true)),
            scan(60, None),
            scan(120, Some(false)),
            scan(180, Some(false)),
        ];
        add(&path, &scans[..2]).expect("written");
        add(&path, &scans[2..]).expect("written");
        assert_eq!(all().await.expect("read"), scans);
        let some = read(&path, at(60), at(180)).await.expect("read");
        assert_eq!(some, scans[1..3]);
        let retention = i64::try_from(MEASURE_RETENTION.as_secs()).expect("days");
        let later = scan(retention + 60, None);
        add(&path, std::slice::from_ref(&later)).expect("written");
        assert_eq!(all().await.expect("read")[0], scans[1], "by age");
        write(&path, &[], 2).expect("written");
        let kept = all().await.expect("read");
        assert_eq!(kept, [scans[3].clone(), later], "by number");
        history.close().await;
    }
}
