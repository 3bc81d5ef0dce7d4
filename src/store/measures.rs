//! The measures that `engine show`, `status` and `check-config` read: durations by series and period, in the history file.
//!
//! Like the history, measures are not mail: a write does not wait for the disk, and a damaged file is replaced with the history.
//! Each row is one series in one period of [`MEASURE_PERIOD`], so the table does not grow with the mail: 30 series (ten engines)
//! have 65,000 rows in 15 days, some 10 MB.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::StoreError;
use super::log;
use crate::measure::{Latencies, MEASURE_PERIOD, Measured, Series};

/// How long measures are kept: 15 days, so that "the same hour a week ago" is there even while the clock is set.
pub const MEASURE_RETENTION: Duration = Duration::from_secs(15 * 86_400);
/// Most rows, whatever their age.
const MEASURE_ROWS_MAX: i64 = 200_000;

/// One series in one period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measure {
    /// The start of the period.
    pub period: Timestamp,
    /// The name of the series.
    pub series: Series,
    /// The durations.
    pub latencies: Latencies,
}

/// The start of the period in which `at` lies.
pub fn period(at: Timestamp) -> Timestamp {
    let length = i64::try_from(MEASURE_PERIOD.as_secs()).unwrap_or(1);
    let start = at.as_second().div_euclid(length) * length;
    Timestamp::from_second(start).unwrap_or(at)
}

/// Adds durations to the series of the period in which `at` lies. `path` is the history file, which the relay has created. Old
/// rows are removed. Blocks on the disk.
pub fn add(path: &Path, at: Timestamp, measured: &[(Series, Latencies)]) -> Result<(), StoreError> {
    let failed =
        |error: rusqlite::Error| StoreError::Broken(format!("{}: {error}", path.display()));
    write(path, at, measured, MEASURE_ROWS_MAX).map_err(failed)
}

fn write(
    path: &Path,
    at: Timestamp,
    measured: &[(Series, Latencies)],
    rows_max: i64,
) -> rusqlite::Result<()> {
    let mut db = log::open_existing(path)?;
    let change = db.transaction()?;
    change.execute_batch(
        "CREATE TABLE IF NOT EXISTS measure (period INTEGER NOT NULL, measured TEXT NOT NULL, name TEXT NOT NULL, \
         class TEXT NOT NULL, latencies TEXT NOT NULL, PRIMARY KEY (period, measured, name, class)) STRICT, WITHOUT ROWID;",
    )?;
    let period = period(at).as_second();
    for (series, latencies) in measured {
        add_one(&change, period, series, latencies)?;
    }
    let oldest = period - i64::try_from(MEASURE_RETENTION.as_secs()).unwrap_or(i64::MAX);
    change.execute(
        "DELETE FROM measure WHERE period < ?1 OR (SELECT count(*) FROM measure) > ?2 AND period = (SELECT min(period) FROM measure)",
        params![oldest, rows_max],
    )?;
    change.commit()
}

fn add_one(
    db: &Connection,
    period: i64,
    series: &Series,
    latencies: &Latencies,
) -> rusqlite::Result<()> {
    let key = params![
        period,
        series.measured.as_str(),
        &*series.name,
        &*series.class
    ];
    let before: Option<String> = db
        .prepare_cached(
            "SELECT latencies FROM measure WHERE period = ?1 AND measured = ?2 AND name = ?3 AND class = ?4",
        )?
        .query_row(key, |row| row.get(0))
        .optional()?;
    let mut sum = latencies.clone();
    // What cannot be read is replaced.
    if let Some(before) = before.and_then(|text| serde_json::from_str(&text).ok()) {
        sum.merge(&before);
    }
    let text = serde_json::to_string(&sum).unwrap_or_default();
    db.prepare_cached("INSERT OR REPLACE INTO measure VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            period,
            series.measured.as_str(),
            &*series.name,
            &*series.class,
            text
        ])?;
    Ok(())
}

/// The measures of one kind whose period begins at or after `since`, and before `until`, the oldest first. Empty if nothing was
/// measured. The last minute may be missing: only the running relay has it.
///
/// Cancel safety: safe.
pub async fn read(
    path: &Path,
    measured: Measured,
    since: Timestamp,
    until: Timestamp,
) -> Result<Vec<Measure>, StoreError> {
    log::query(path, move |db| {
        let sql = "SELECT period, name, class, latencies FROM measure WHERE measured = ?1 AND period >= ?2 AND period < ?3 \
                   ORDER BY period, name, class";
        let mut statement = match db.prepare(sql) {
            // A history of an earlier version, or of a relay that has not run for a minute, has no such table.
            Err(error) if error.to_string().contains("no such table") => return Ok(Vec::new()),
            statement => statement?,
        };
        let key = params![measured.as_str(), since.as_second(), until.as_second()];
        let rows = statement.query_map(key, |row| {
            let (period, name): (i64, String) = (row.get(0)?, row.get(1)?);
            let (class, latencies): (String, String) = (row.get(2)?, row.get(3)?);
            let series = Series {
                measured,
                name: name.into(),
                class: class.into(),
            };
            Ok((period, series, latencies))
        })?;
        let mut measures = Vec::new();
        for row in rows {
            let (period, series, latencies) = row?;
            let (Ok(period), Ok(latencies)) = (
                Timestamp::from_second(period),
                serde_json::from_str(&latencies),
            ) else {
                continue;
            };
            measures.push(Measure {
                period,
                series,
                latencies,
            });
        }
        Ok(measures)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::at;
    use crate::store::history::{FILE_NAME, History};

    fn series(name: &str) -> Series {
        Series {
            measured: Measured::Scan,
            name: name.into(),
            class: "small".into(),
        }
    }

    fn latencies(count: u64) -> Latencies {
        let mut latencies = Latencies::default();
        (0..count).for_each(|_| latencies.add(Duration::from_secs(1)));
        latencies
    }

    /// Two writes in one period add up, a restart of the relay in between or not; periods and series stay apart; what is older
    /// than the retention goes.
    #[tokio::test]
    async fn measures_add_up_within_their_period() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(FILE_NAME);
        let all = || read(&path, Measured::Scan, Timestamp::MIN, Timestamp::MAX);
        assert_eq!(all().await.expect("no file"), []);
        let history = History::open(&path, Duration::from_secs(100)).expect("open");
        assert_eq!(all().await.expect("no table"), []);
        let day = 86_400;
        let write = |seconds: i64, name: &str, count: u64| {
            add(&path, at(seconds), &[(series(name), latencies(count))]).expect("written");
        };
        write(day, "clamd", 3);
        write(day + 599, "clamd", 4);
        write(day + 1, "rspamd", 1);
        write(day + 600, "clamd", 5);
        let counts = |measures: &[Measure]| -> Vec<(i64, String, u64)> {
            let row = |m: &Measure| {
                let since = m.period.as_second() - at(day).as_second();
                (since, m.series.name.to_string(), m.latencies.count())
            };
            measures.iter().map(row).collect()
        };
        let row = |since: i64, name: &str, count: u64| (since, name.to_owned(), count);
        let first = [
            row(0, "clamd", 7),
            row(0, "rspamd", 1),
            row(600, "clamd", 5),
        ];
        assert_eq!(counts(&all().await.expect("read")), first);
        let later = read(&path, Measured::Scan, at(day + 600), at(day + 1200)).await;
        assert_eq!(counts(&later.expect("read")), first[2..]);
        let other = read(&path, Measured::Delay, Timestamp::MIN, Timestamp::MAX).await;
        assert_eq!(other.expect("read"), []);
        let retention = i64::try_from(MEASURE_RETENTION.as_secs()).expect("days");
        write(day + 600 + retention, "clamd", 1);
        let kept = counts(&all().await.expect("read"));
        assert_eq!(kept[0], first[2], "the older ones are gone");
        assert_eq!(kept.len(), 2);
        for (rows_max, left) in [(2, 2), (1, 1)] {
            super::write(&path, at(day + 600 + retention), &[], rows_max).expect("written");
            assert_eq!(counts(&all().await.expect("read")), kept[2 - left..]);
        }
        history.close().await;
    }
}
