//! What the file of the incident log holds beside incidents: stories, and the messages that they touched.

use jiff::Timestamp;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use crate::incident::{Incident, StoryState, Touch};
use crate::message::MessageId;
use crate::store::log;

/// Most stories in the file, whatever their age: 10,000 take about 20 MB.
const STORIES_KEPT_MAX: i64 = 10_000;
/// Most messages of all stories together in the file: 200,000 take about 100 MB.
const TOUCHED_KEPT_MAX: i64 = 200_000;
/// Most rows that one write removes of each table: more than it adds.
const REMOVED_AT_ONCE_MAX: i64 = 2 * 8192;

/// An item for the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Row {
    /// An incident, for the log itself.
    Incident(Incident),
    /// A story as it is now, which replaces the row of the same story, with the messages that it has touched since then. One
    /// row of the queue, so that both are written in one transaction.
    Story {
        /// The story.
        state: Box<StoryState>,
        /// The messages.
        messages: Vec<Touch>,
    },
}

impl log::Entry for Row {
    const LOG_NAME: &str = <Incident as log::Entry>::LOG_NAME;
    /// The queue takes 64 KiB.
    const WAITING_ENTRIES_MAX: usize = 8192;
    const ROWS_MAX: u64 = <Incident as log::Entry>::ROWS_MAX;
    const IS_DURABLE: bool = <Incident as log::Entry>::IS_DURABLE;
    const TABLES: &str = "CREATE TABLE IF NOT EXISTS story (id TEXT PRIMARY KEY, began INTEGER NOT NULL, \
         last INTEGER NOT NULL, entry TEXT NOT NULL) STRICT;
         CREATE INDEX IF NOT EXISTS story_by_begin ON story (began);
         CREATE INDEX IF NOT EXISTS story_by_last ON story (last);
         CREATE TABLE IF NOT EXISTS touched (seq INTEGER PRIMARY KEY, story TEXT NOT NULL, outcome TEXT NOT NULL, \
         entry TEXT NOT NULL) STRICT;
         CREATE INDEX IF NOT EXISTS touched_by_story ON touched (story, seq);";

    fn at(&self) -> Timestamp {
        match self {
            Self::Incident(incident) => incident.at,
            Self::Story { state, .. } => state.last,
        }
    }

    fn message(&self) -> Option<MessageId> {
        match self {
            Self::Incident(incident) => incident.message,
            Self::Story { .. } => None,
        }
    }

    fn insert_beside(&self, db: &Connection) -> rusqlite::Result<bool> {
        // What cannot be written as JSON must not cause the loss of the rest.
        let Self::Story { state, messages } = self else {
            return Ok(false);
        };
        let story = &state.story;
        if let Ok(json) = serde_json::to_string(state) {
            db.prepare_cached(
                "INSERT OR REPLACE INTO story (id, began, last, entry) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                story.id.to_string(),
                story.began.as_second(),
                state.last.as_second(),
                json
            ])?;
        }
        for touch in messages {
            let Ok(json) = serde_json::to_string(touch) else {
                continue;
            };
            db.prepare_cached("INSERT INTO touched (story, outcome, entry) VALUES (?1, ?2, ?3)")?
                .execute(params![story.id.to_string(), touch.outcome.as_str(), json])?;
        }
        Ok(true)
    }

    fn prune_beside(db: &Connection, cutoff: i64) -> rusqlite::Result<()> {
        let gone: Vec<String> = db
            .prepare_cached(
                "DELETE FROM story WHERE last < ?1 OR began < (SELECT began FROM story ORDER BY began DESC \
                 LIMIT 1 OFFSET ?2) RETURNING id",
            )?
            .query_map(params![cutoff, STORIES_KEPT_MAX], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for story in gone {
            db.prepare_cached("DELETE FROM touched WHERE story = ?1")?
                .execute([story])?;
        }
        db.prepare_cached(
            "DELETE FROM touched WHERE seq < (SELECT min(seq) FROM touched) + ?1 \
             AND seq <= (SELECT max(seq) FROM touched) - ?2",
        )?
        .execute(params![REMOVED_AT_ONCE_MAX, TOUCHED_KEPT_MAX])?;
        Ok(())
    }
}
