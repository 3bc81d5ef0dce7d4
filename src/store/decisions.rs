//! The recorded decisions, for `what-if`: the entries of the history with a [`Basis`](super::basis::Basis), in the order in which
//! they were recorded, a page at a time, so that a history of any size is read in little memory.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};

use super::StoreError;
use super::history::HistoryEntry;
use super::log;
use crate::message::MessageId;

/// Rows of one page: 2000, a few megabytes.
const PAGE_ROWS: i64 = 2000;

/// A reader of a history that the relay may be writing.
#[derive(Debug)]
pub struct Decisions {
    path: PathBuf,
    since: Timestamp,
    /// The rows from the first to the last one that were there when the reading began.
    first: i64,
    next: i64,
    last: i64,
}

impl Decisions {
    /// A reader of the decisions of the history `path` since `since`. Where the clock was set back, decisions shortly after
    /// `since` may be left out.
    ///
    /// Cancel safety: safe.
    pub async fn since(path: &Path, since: Timestamp) -> Result<Self, StoreError> {
        let found = log::query(path, move |db| rows(db, since)).await?;
        let (first, last) = found.unwrap_or((1, 0));
        Ok(Self {
            path: path.to_owned(),
            since,
            first,
            next: first,
            last,
        })
    }

    /// The next decisions; may be empty. None at the end.
    ///
    /// Cancel safety: safe; the page is read again.
    pub async fn page(&mut self) -> Result<Option<Vec<HistoryEntry>>, StoreError> {
        if self.next > self.last {
            return Ok(None);
        }
        let (from, since) = (self.next, self.since);
        let to = (from + PAGE_ROWS).min(self.last + 1);
        let entries = log::query(&self.path, move |db| decisions(db, from, to, since)).await?;
        self.next = to;
        Ok(Some(entries))
    }

    /// Adds every entry about each of these messages to `sum`, on one connection: there may be a late scan for every other message
    /// of a page.
    ///
    /// Cancel safety: safe.
    pub async fn about<T: Default + Send + 'static>(
        &self,
        messages: Vec<MessageId>,
        mut sum: T,
        add: fn(&mut T, &HistoryEntry),
    ) -> Result<T, StoreError> {
        log::query(&self.path, move |db| {
            let mut statement =
                db.prepare("SELECT entry FROM entry WHERE message = ?1 ORDER BY seq")?;
            for message in messages {
                let mut rows = statement.query([message.to_string()])?;
                while let Some(row) = rows.next()? {
                    if let Ok(entry) = serde_json::from_str(&row.get::<_, String>(0)?) {
                        add(&mut sum, &entry);
                    }
                }
            }
            Ok(sum)
        })
        .await
    }

    /// How many rows of the history are read, and how many there are to read.
    pub fn progress(&self) -> (u64, u64) {
        let rows = |to: i64| u64::try_from(to - self.first).unwrap_or_default();
        (rows(self.next), rows(self.last + 1))
    }
}

/// The first row since that time and the last row. The time has no index, but rows are in the order of time.
fn rows(db: &Connection, since: Timestamp) -> rusqlite::Result<Option<(i64, i64)>> {
    let ends = "SELECT min(seq), max(seq) FROM entry";
    let ends = db.query_row(ends, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (Some(mut low), Some(last)): (Option<i64>, Option<i64>) = ends else {
        return Ok(None);
    };
    let mut high = last + 1;
    let mut row =
        db.prepare("SELECT seq, at FROM entry WHERE seq >= ?1 AND seq < ?2 ORDER BY seq LIMIT 1")?;
    while low < high {
        let middle = low + (high - low) / 2;
        let found: Option<(i64, i64)> = row
            .query_row((middle, high), |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        match found {
            Some((seq, at)) if at < since.as_second() => low = seq + 1,
            Some(_) | None => high = middle,
        }
    }
    Ok(Some((low, last)))
}

fn decisions(
    db: &Connection,
    from: i64,
    to: i64,
    since: Timestamp,
) -> rusqlite::Result<Vec<HistoryEntry>> {
    // Quotes in texts are escaped, so only the key itself is found.
    let sql = "SELECT entry FROM entry WHERE seq >= ?1 AND seq < ?2 AND at >= ?3 AND instr(entry, ',\"basis\":{') > 0 \
               ORDER BY seq";
    let mut statement = db.prepare(sql)?;
    let mut rows = statement.query((from, to, since.as_second()))?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        // What another version wrote and this one cannot read is left out.
        let entry: Result<HistoryEntry, _> = serde_json::from_str(&row.get::<_, String>(0)?);
        entries.extend(entry.ok().filter(|entry| entry.basis.is_some()));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::Lane;
    use crate::store::basis::Basis;
    use crate::store::contract::{at, record};
    use crate::store::history::{FILE_NAME, History};

    fn entry(seconds: i64) -> HistoryEntry {
        let record = record(Lane::Held);
        HistoryEntry {
            at: at(seconds),
            message: MessageId::new(),
            part_of: None,
            event: "held".into(),
            sender: record.envelope.reverse_path,
            recipients: Vec::new(),
            client: record.envelope.origin.client,
            listener: record.envelope.origin.listener,
            size: 1,
            decision: record.decision,
            reports: record.reports,
            subject: String::new(),
            attachments: Vec::new(),
            basis: None,
            detail: "what the sender calls ,\"basis\":{} is none".to_owned(),
        }
    }

    /// Every decision since a time is read exactly once and in order, over page limits, and nothing else is.
    #[tokio::test]
    async fn decisions_are_read_once_and_in_order() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(FILE_NAME);
        let history = History::open(&path, Duration::from_secs(1 << 30)).expect("open");
        let mut none = Decisions::since(&path, Timestamp::MIN)
            .await
            .expect("opens");
        assert_eq!(none.page().await.expect("reads"), None, "an empty history");
        let mut expected = Vec::new();
        for n in 0..2 * PAGE_ROWS + 10 {
            let mut entry = entry(n / 2);
            if n % 3 != 0 {
                entry.basis = Some(Basis::default());
                expected.push(entry.clone());
            }
            history.record(entry);
            if n % 1000 == 0 {
                history.flush().await;
            }
        }
        history.flush().await;
        for since in [0, 1, 777, PAGE_ROWS] {
            let mut reader = Decisions::since(&path, at(since)).await.expect("opens");
            let mut seen = Vec::new();
            while let Some(page) = reader.page().await.expect("reads") {
                seen.extend(page);
            }
            let wanted = expected.iter().filter(|entry| entry.at >= at(since));
            assert!(seen.iter().eq(wanted), "since {since}");
            let (read, all) = reader.progress();
            assert_eq!(read, all);
        }
    }
}
