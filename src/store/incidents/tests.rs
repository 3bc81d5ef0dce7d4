//! The incident log: what is read back, kept, and lost.

use rusqlite::Connection;

use super::*;
use crate::incident::Kind;
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
    log.log.flush().await;
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
        log.log.flush().await;
    }
    assert_eq!(log.dropped(), 3 * noted - kept, "the first ones are kept");
    log.close().await;
    assert_eq!(log.dropped(), 3 * noted, "nothing was written");
}
