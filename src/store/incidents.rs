//! The incident log: what the relay did by itself, and why (docs/GLOSSARY.md, "incident"). A post-mortem can be written from
//! it.
//!
//! Incidents are few, and worth more than history. Their [log](super::log) has its own file and its own queue, so that a flood
//! of messages does not crowd them out. They survive power loss a second after they happened, and a failed write is tried
//! again. This module also writes each incident to the relay's own log and to a metric.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::StoreError;
use super::log::{self, Log, Wanted};
use crate::incident::{Incident, Kind, Subject};
use crate::message::MessageId;

/// Name of the incident log inside `store.path`.
pub const FILE_NAME: &str = "incidents.db";

impl log::Entry for Incident {
    const LOG_NAME: &str = "incidents";
    const WAITING_ENTRIES_MAX: usize = 1024;
    /// 100,000 incidents take about 100 MB.
    const ROWS_MAX: u64 = 100_000;
    const IS_DURABLE: bool = true;

    fn at(&self) -> Timestamp {
        self.at
    }

    fn message(&self) -> Option<MessageId> {
        self.message
    }
}

/// The writing end, which only the relay has. [`Incidents::close`] writes the incidents that wait.
#[derive(Debug)]
pub struct Incidents(Log<Incident>);

impl Incidents {
    /// Opens the incident log `path`, and creates it if it is missing. Entries are kept for `retention`. The folder must
    /// exist. Blocks for a few milliseconds.
    ///
    /// A file that cannot be used is renamed to `….damaged`, and a new one is created.
    pub fn open(path: &Path, retention: Duration) -> Result<Arc<Self>, StoreError> {
        let log = Log::open(path, retention, <Incident as log::Entry>::ROWS_MAX)?;
        Ok(Arc::new(Self(log)))
    }

    /// Writes the incident to the relay's log and the metrics, and stores it: durable within a second. Never waits. If the
    /// queue is full, the incident is only in the relay's log, and counted as lost.
    pub fn record(&self, incident: Incident) {
        tell(&incident);
        self.0.note(incident);
    }

    /// An incident log that a test reads.
    #[cfg(test)]
    pub(crate) fn detached() -> (Arc<Self>, impl FnMut() -> Option<Incident> + Send) {
        let (log, next) = Log::detached();
        (Arc::new(Self(log)), next)
    }

    /// Waits until all incidents recorded before can be read by any process. If the queue is full, this does not wait.
    ///
    /// Cancel safety: safe.
    pub async fn flush(&self) {
        self.0.flush().await;
    }

    /// Number of incidents lost since the start, because the queue was full or writes failed.
    pub fn dropped(&self) -> u64 {
        self.0.dropped()
    }

    /// Like [`search`], including all incidents recorded before this call.
    ///
    /// Cancel safety: safe.
    pub async fn search(&self, filter: Filter) -> Result<Vec<Incident>, StoreError> {
        self.0.flush().await;
        search(self.0.path(), filter).await
    }

    /// Writes the incidents that wait, then ends. Later incidents are dropped.
    ///
    /// Cancel safety: the close goes on.
    pub async fn close(&self) {
        self.0.close().await;
    }
}

/// Writes the log line and the metric.
fn tell(incident: &Incident) {
    let kind = incident.kind.as_str();
    metrics::counter!("spillway_incidents_total", "kind" => kind).increment(1);
    let message = incident.message.map(tracing::field::display);
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                incident = %incident.id,
                kind,
                subject = %incident.subject,
                summary = incident.summary,
                evidence = %Evidence(incident),
                id = message,
                "incident"
            )
        };
    }
    if incident.kind.is_trouble() {
        line!(warn);
    } else {
        line!(info);
    }
}

/// The evidence as text: `precision 0.97, risk 41`.
struct Evidence<'a>(&'a Incident);

impl fmt::Display for Evidence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (what, value)) in self.0.evidence.iter().enumerate() {
            let between = if index == 0 { "" } else { ", " };
            write!(f, "{between}{what} {value}")?;
        }
        Ok(())
    }
}

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

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::store::contract::at;

    const RETENTION_LONG: Duration = Duration::from_secs(86_400);

    fn folder() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(FILE_NAME);
        (folder, path)
    }

    fn incident(kind: Kind, engine: &str, seconds: i64) -> Incident {
        let subject = Subject::Engine {
            name: engine.to_owned(),
            replica: Some("127.0.0.1:3310".to_owned()),
        };
        let mut incident =
            Incident::new(kind, subject, "it did").with("failed", format!("{seconds} of 20"));
        incident.at = at(seconds);
        incident
    }

    /// Incidents are read back complete, the newest first, by every condition, also by a process without the writing end.
    #[tokio::test]
    async fn incidents_are_read_back_by_every_field() {
        let (_folder, path) = folder();
        let log = Incidents::open(&path, RETENTION_LONG).expect("open");
        let (about, named) = (MessageId::new(), MessageId::new());
        let opened = incident(Kind::BreakerOpened, "clamd", 1);
        let strike = incident(Kind::Strike, "clamd", 2).about(about);
        let strike = strike.with("samples", format!("{named}, {about}"));
        let closed = incident(Kind::BreakerClosed, "rspamd", 3);
        let mut lifted = incident(Kind::InterceptorLifted, "", 0);
        lifted.subject = Subject::Interceptor("clamd".to_owned());
        for incident in [&lifted, &opened, &strike, &closed] {
            log.record(incident.clone());
        }
        let all = log.search(Filter::default()).await.expect("search");
        let newest_first = [&closed, &strike, &opened, &lifted];
        assert_eq!(all, newest_first.map(Incident::clone));
        let any = Filter::default;
        let named_so = |name: &str| Some(name.to_owned());
        let kinds = vec![Kind::BreakerOpened, Kind::BreakerClosed];
        let since = Some(at(2));
        for (filter, expected) in [
            (Filter { since, ..any() }, vec![&closed, &strike]),
            (Filter { kinds, ..any() }, vec![&closed, &opened]),
            (
                Filter {
                    engine: named_so("clamd"),
                    ..any()
                },
                vec![&strike, &opened],
            ),
            (
                Filter {
                    messages: vec![about],
                    ..any()
                },
                vec![&strike],
            ),
            (
                Filter {
                    messages: vec![named],
                    ..any()
                },
                vec![&strike],
            ),
            (
                Filter {
                    messages: vec![MessageId::new()],
                    ..any()
                },
                vec![],
            ),
            (Filter { limit: 1, ..any() }, vec![&closed]),
            (
                Filter {
                    interceptor: named_so("clamd"),
                    ..any()
                },
                vec![&lifted],
            ),
            (
                Filter {
                    engine: named_so("clam"),
                    ..any()
                },
                vec![],
            ),
        ] {
            let found = search(&path, filter.clone()).await.expect("search");
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter:?}");
        }
        let found = with_id_prefix(&path, strike.id.to_string())
            .await
            .expect("read");
        assert_eq!(found, [strike]);
        let nobody = ulid::Ulid::generate().to_string();
        assert_eq!(with_id_prefix(&path, nobody).await.expect("read"), []);
        log.close().await;
        assert_eq!(log.dropped(), 0);
    }

    /// The log keeps incidents for its retention and no longer.
    #[tokio::test]
    async fn old_incidents_are_removed() {
        let (_folder, path) = folder();
        let log = Incidents::open(&path, Duration::from_secs(100)).expect("open");
        for seconds in [0, 60, 101] {
            log.record(incident(Kind::Strike, "clamd", seconds));
            log.search(Filter::default()).await.expect("written");
        }
        let left = log.search(Filter::default()).await.expect("search");
        let left: Vec<_> = left.iter().map(|incident| incident.at).collect();
        assert_eq!(left, [at(101), at(60)]);
    }

    /// A disk that fails for a while costs no incident: the log writes the incidents when the disk works again.
    #[tokio::test]
    async fn an_incident_is_written_later_if_the_disk_fails() {
        let (_folder, path) = folder();
        let log = Incidents::open(&path, RETENTION_LONG).expect("open");
        let tamper = |sql: &str| {
            let db = Connection::open(&path).expect("second connection");
            db.execute_batch(sql).expect(sql);
        };
        tamper("ALTER TABLE entry RENAME TO away");
        log.record(incident(Kind::Strike, "clamd", 1));
        // The log answers when it has tried to write.
        log.0.flush().await;
        tamper("ALTER TABLE away RENAME TO entry");
        log.record(incident(Kind::Strike, "clamd", 2));
        let found = log.search(Filter::default()).await.expect("search");
        assert_eq!(found.len(), 2);
        assert_eq!(log.dropped(), 0);
    }

    /// A disk that fails for a long time costs bounded memory, and lost incidents are counted.
    #[tokio::test]
    async fn a_lost_incident_is_counted() {
        let (_folder, path) = folder();
        let log = Incidents::open(&path, RETENTION_LONG).expect("open");
        let db = Connection::open(&path).expect("second connection");
        db.execute_batch("DROP TABLE entry").expect("drops");
        let kept = <Incident as log::Entry>::WAITING_ENTRIES_MAX as u64;
        // One place in the queue is left for the flush. The log answers a flush when it has tried to write, so the next round
        // finds the queue empty, however slow the thread is.
        let noted = kept - 1;
        for _ in 0..3 {
            for n in 0..noted {
                log.record(incident(Kind::Strike, "clamd", n as i64));
            }
            log.0.flush().await;
        }
        assert_eq!(log.dropped(), 3 * noted - kept, "the first ones are kept");
        log.close().await;
        assert_eq!(log.dropped(), 3 * noted, "nothing was written");
    }
}
