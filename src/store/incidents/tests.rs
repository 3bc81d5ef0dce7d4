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

/// The incidents without their stories.
fn plain(mut incidents: Vec<Incident>) -> Vec<Incident> {
    for incident in &mut incidents {
        incident.story = None;
    }
    incidents
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
    let all = plain(log.search(Filter::default()).await.expect("search"));
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
        let found = plain(search(&path, filter.clone()).await.expect("search"));
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter:?}");
    }
    let found = with_id_prefix(&path, strike.id.to_string())
        .await
        .expect("read");
    assert_eq!(plain(found), [strike]);
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
    let kept = <Row as log::Entry>::WAITING_ENTRIES_MAX as u64;
    // One place in the queue is left for the flush. The log answers a flush when it has tried to write, so the next round
    // finds the queue empty, however slow the thread is.
    let noted = kept - 1;
    for _ in 0..3 {
        for n in 0..noted {
            log.log
                .note(Row::Incident(incident(Kind::Strike, "clamd", n as i64)));
        }
        log.log.flush().await;
    }
    assert_eq!(log.dropped(), 3 * noted - kept, "the first ones are kept");
    log.close().await;
    assert_eq!(log.dropped(), 3 * noted, "nothing was written");
}

fn touch(seconds: i64, outcome: crate::incident::TouchOutcome) -> Touch {
    Touch {
        message: MessageId::new(),
        outcome,
        at: at(seconds),
        received: at(seconds),
        delay: Duration::ZERO,
        sender: String::new(),
        recipients: Vec::new(),
        recipients_total: 0,
        subject: String::new(),
    }
}

/// A process that ends without a word loses no story that was written: the next one goes on with it, and with its counts. The
/// log has one row for each counted message, found by outcome.
#[tokio::test]
async fn a_story_outlives_its_process() {
    use crate::incident::TouchOutcome::{Held, Passed};
    let (_folder, path) = folder();
    let clamd = || Subject::engine("clamd");
    let mut first = None;
    for round in 1..=3 {
        let log = Incidents::open(&path, RETENTION_LONG).expect("open");
        log.record(incident(Kind::BreakerOpened, "clamd", round));
        for outcome in [Held, Passed, Passed] {
            log.touch(clamd(), touch(round, outcome));
        }
        log.flush().await;
        let found = stories(&path).await.expect("read");
        let [state] = &found[..] else {
            panic!("{found:?}")
        };
        let id = *first.get_or_insert(state.story.id);
        assert_eq!((state.story.id, state.incidents()), (id, round as u64));
        let counts = (state.story.touched.held, state.story.touched.passed);
        assert_eq!(counts, (round as u64, 2 * round as u64));
        let rows = async |outcomes| {
            touched(&path, id, outcomes, usize::MAX)
                .await
                .expect("rows")
                .1
        };
        assert_eq!(rows(vec![Held]).await, counts.0);
        assert_eq!(rows(vec![Passed]).await, counts.1);
        assert_eq!(rows(Vec::new()).await, counts.0 + counts.1);
        assert_eq!(log.open_stories().len(), 1);
    }
}

/// Whenever a process ends without a word, the log counts in a story just the messages that it has of it; and a later process
/// goes on so.
#[tokio::test]
async fn counts_and_messages_agree_whenever_the_process_ends() {
    use crate::incident::TouchOutcome::Passed;
    let (_folder, path) = folder();
    let agree = async || {
        let found = stories(&path).await.expect("read");
        let [state] = &found[..] else {
            panic!("{found:?}")
        };
        let (_, rows) = touched(&path, state.story.id, Vec::new(), 0)
            .await
            .expect("rows");
        assert_eq!(state.story.touched.passed, rows);
        rows
    };
    for round in 1..=3 {
        let log = Incidents::open(&path, RETENTION_LONG).expect("open");
        log.record(incident(Kind::BreakerOpened, "clamd", round));
        for _ in 0..200 {
            log.touch(Subject::engine("clamd"), touch(round, Passed));
        }
        log.flush().await;
        assert_eq!(agree().await, 200 * round as u64);
        for _ in 0..200 {
            log.touch(Subject::engine("clamd"), touch(round, Passed));
        }
        // The thread writes all that it was given, and the process ends.
        log.log.flush().await;
        drop(log);
        agree().await;
    }
}

/// A story is kept as long as an incident, and its messages go with it.
#[tokio::test]
async fn old_stories_go_with_their_messages() {
    let (_folder, path) = folder();
    let log = Incidents::open(&path, Duration::from_secs(100)).expect("open");
    log.record(incident(Kind::BreakerOpened, "clamd", 0));
    log.touch(
        Subject::engine("clamd"),
        touch(0, crate::incident::TouchOutcome::Held),
    );
    log.record(incident(Kind::BreakerOpened, "rspamd", 50));
    log.flush().await;
    let old = stories(&path).await.expect("read");
    assert_eq!(old.len(), 2);
    let id = old[1].story.id;
    let rows = async || touched(&path, id, Vec::new(), 10).await.expect("rows");
    assert_eq!(rows().await.1, 1);
    log.record(incident(Kind::Strike, "rspamd", 101));
    log.flush().await;
    let left = stories(&path).await.expect("read");
    let causes: Vec<_> = left.iter().map(|state| &state.story.cause).collect();
    assert_eq!(causes, [&Subject::engine("rspamd")]);
    assert_eq!(rows().await.1, 0);
}

/// The log of an earlier version has incidents and no story, and is read as such.
#[tokio::test]
async fn a_log_without_stories_is_read() {
    let (_folder, path) = folder();
    let db = Connection::open(&path).expect("opens");
    db.execute_batch(
        "CREATE TABLE entry (seq INTEGER PRIMARY KEY, message TEXT NOT NULL, at INTEGER NOT NULL, \
         entry TEXT NOT NULL) STRICT",
    )
    .expect("creates");
    assert_eq!(stories(&path).await.expect("read"), []);
    let id = ulid::Ulid::generate();
    let rows = touched(&path, id, Vec::new(), 10).await.expect("read");
    assert_eq!(rows, (Vec::new(), 0));
    let log = Incidents::open(&path, RETENTION_LONG).expect("open");
    log.record(incident(Kind::Strike, "clamd", 1));
    log.flush().await;
    assert_eq!(stories(&path).await.expect("read").len(), 1);
}
