//! Reading the incident log, by any process.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::Connection;
use serde::de::DeserializeOwned;
use ulid::Ulid;

use crate::incident::{Incident, Kind, StoryState, Subject, Touch, TouchOutcome};
use crate::message::MessageId;
use crate::store::StoreError;
use crate::store::log::{self, Wanted};

/// Which incidents a search returns; every condition that is set must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// At or after this instant.
    pub since: Option<Timestamp>,
    /// Only these kinds; all kinds if empty.
    pub kinds: Vec<Kind>,
    /// Incidents of this engine and of its replicas.
    pub engine: Option<String>,
    /// Incidents of the interceptors whose id begins so.
    pub interceptor: Option<String>,
    /// Only the incidents of this story.
    pub story: Option<Ulid>,
    /// Incidents that name one of these messages; all incidents if empty.
    pub messages: Vec<MessageId>,
    /// Maximum number of incidents, the newest first.
    pub limit: usize,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            since: None,
            kinds: Vec::new(),
            engine: None,
            interceptor: None,
            story: None,
            messages: Vec::new(),
            limit: usize::MAX,
        }
    }
}

impl Filter {
    fn matches(&self, incident: &Incident) -> bool {
        let of_engine = |wanted: &String| matches!(&incident.subject, Subject::Engine { name, .. } if name == wanted);
        let of_interceptor = |wanted: &String| matches!(&incident.subject, Subject::Interceptor(id) if id.starts_with(wanted.as_str()));
        let names = |message: MessageId| self.messages.contains(&message);
        self.since.is_none_or(|since| incident.at >= since)
            && (self.kinds.is_empty() || self.kinds.contains(&incident.kind))
            && self.engine.as_ref().is_none_or(of_engine)
            && self.interceptor.as_ref().is_none_or(of_interceptor)
            && self.story.is_none_or(|story| incident.story == Some(story))
            && (self.messages.is_empty() || incident.messages().any(names))
    }
}

/// Incidents that match, the newest first, read from a log that a relay may be writing; incidents get there within a second.
/// Empty if there is no log.
///
/// Cancel safety: safe.
pub async fn search(path: &Path, filter: Filter) -> Result<Vec<Incident>, StoreError> {
    let since = Wanted::Since(filter.since.unwrap_or(Timestamp::MIN));
    let limit = filter.limit;
    log::read(path, since, limit, move |incident| filter.matches(incident)).await
}

/// The incidents whose id begins with `prefix`, the newest first; empty if the log has none, or no longer.
///
/// Cancel safety: safe.
pub async fn with_id_prefix(path: &Path, prefix: String) -> Result<Vec<Incident>, StoreError> {
    let all = Wanted::Since(Timestamp::MIN);
    let is_named = move |incident: &Incident| incident.id.to_string().starts_with(&prefix);
    log::read(path, all, usize::MAX, is_named).await
}

/// All stories of the log, the newest first. Empty if there is no log, or one of a version without stories.
///
/// Cancel safety: safe.
pub async fn stories(path: &Path) -> Result<Vec<StoryState>, StoreError> {
    log::query(path, |db| all_stories(db, usize::MAX)).await
}

/// The messages of a story in the order of their outcomes' times, at most `limit`, and the number of all that the log has.
///
/// Cancel safety: safe.
pub async fn touched(
    path: &Path,
    story: Ulid,
    outcomes: Vec<TouchOutcome>,
    limit: usize,
) -> Result<(Vec<Touch>, u64), StoreError> {
    let of_story = move |db: &Connection| {
        if !has_stories(db)? {
            return Ok(Default::default());
        }
        let words = outcomes.iter().map(|outcome| outcome.as_str());
        let words = words.collect::<Vec<_>>().join(" ");
        let chosen = "FROM touched WHERE story = ?1 AND (?2 = '' OR instr(?2, outcome) > 0)";
        let story = story.to_string();
        let total: i64 = db.query_row(
            &format!("SELECT count(*) {chosen}"),
            (&story, &words),
            |row| row.get(0),
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let sql = format!("SELECT entry {chosen} ORDER BY seq LIMIT ?3");
        let mut statement = db.prepare(&sql)?;
        let found = parsed(statement.query((&story, &words, limit))?)?;
        Ok((found, u64::try_from(total).unwrap_or_default()))
    };
    log::query(path, of_story).await
}

/// At most `limit` stories, the newest first.
pub(super) fn all_stories(db: &Connection, limit: usize) -> rusqlite::Result<Vec<StoryState>> {
    if !has_stories(db)? {
        return Ok(Vec::new());
    }
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement =
        db.prepare("SELECT entry FROM story ORDER BY began DESC, id DESC LIMIT ?1")?;
    parsed(statement.query([limit])?)
}

fn has_stories(db: &Connection) -> rusqlite::Result<bool> {
    db.table_exists(None, "story")
}

/// The entries that can be read. Entries of a later version that cannot are left out, with a warning.
fn parsed<T: DeserializeOwned>(mut rows: rusqlite::Rows<'_>) -> rusqlite::Result<Vec<T>> {
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        match serde_json::from_str(&row.get::<_, String>(0)?) {
            Ok(entry) => all.push(entry),
            Err(error) => tracing::warn!(log = "incidents", %error, "a log entry cannot be read"),
        }
    }
    Ok(all)
}
