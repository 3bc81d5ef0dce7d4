//! The effects of a commit, and of a put whose commit fails.

use futures_util::FutureExt as _;

use super::*;

/// Makes each commit with a new message fail: SQLite checks this constraint in the COMMIT, not in a statement before it.
const REFUSED_AT_COMMIT: &str = "
    CREATE TABLE parent (id INTEGER PRIMARY KEY);
    CREATE TABLE child (parent INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED);
    CREATE TRIGGER orphan AFTER INSERT ON message BEGIN INSERT INTO child VALUES (1); END";

/// A put whose COMMIT is refused by SQLite is refused: no part of it is there, now or after the next start, and the store
/// refuses new mail until a commit succeeds.
#[tokio::test]
async fn a_put_is_refused_with_its_commit() {
    for size in [10, LARGE_OCTETS] {
        let folder = folder();
        let (store, _) = relay(&folder).await;
        tamper(&folder, REFUSED_AT_COMMIT);
        let refused = record(Lane::Scan);
        let outcome = store.put(vec![refused.clone()], octets(size)).await;
        assert!(matches!(outcome, Err(StoreError::Broken(_))), "{outcome:?}");
        assert!(matches!(store.accepts(), Err(StoreError::Broken(_))));
        assert_eq!(store.get(refused.id).await.expect("get"), None);
        assert_eq!(body_files(&folder), 0);
        tamper(&folder, "DROP TRIGGER orphan");
        let kept = put(&store, Lane::Scan, size).await;
        store.accepts().expect("healed by the next commit");
        store.close().await;
        let (store, found) = relay(&folder).await;
        assert_eq!((found.waiting, found.orphans, found.damaged), (1, 0, 0));
        assert_eq!(store.content(kept).await.expect("content").len(), size);
    }
}

/// If any step of a put fails, its file is removed before the answer: a caller that tries again with the same id finds none,
/// and a full disk does not get fuller.
#[tokio::test]
async fn a_put_that_failed_leaves_no_file() {
    let mut failed = 0;
    for nth in 1.. {
        let folder = folder();
        let faults = Faults::nth(nth);
        let store = faulty(&folder, faults.clone()).await;
        let again = record(Lane::Scan);
        let outcome = store.put(vec![again.clone()], octets(LARGE_OCTETS)).await;
        if !faults.fired() {
            outcome.expect("nothing failed");
            break;
        }
        outcome.expect_err("one step failed");
        assert_eq!(body_files(&folder), 0, "failure {nth}");
        let outcome = store.put(vec![again], octets(LARGE_OCTETS)).await;
        outcome.unwrap_or_else(|error| panic!("failure {nth}: {error}"));
        failed = nth;
    }
    assert_eq!(
        failed, 6,
        "the file is made, written and flushed, renamed, its folder flushed, its row committed"
    );
}

/// As long as the returned connection lives, the writer waits before its next transaction.
fn stopped(folder: &TempDir) -> Connection {
    let other = Connection::open(database(folder)).expect("database");
    other.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    other
}

/// A store that is closed has written all jobs that were queued before.
#[tokio::test]
async fn jobs_queued_before_the_close_are_written() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let writer = stopped(&folder);
    let puts = (0..20).map(|_| store.put(vec![record(Lane::Held)], octets(10)));
    let mut puts = join_all(puts);
    assert!(
        (&mut puts).now_or_never().is_none(),
        "the writer is stopped"
    );
    let mut close = Box::pin(store.close());
    assert!((&mut close).now_or_never().is_none());
    drop(writer);
    let (outcomes, ()) = futures_util::future::join(puts, close).await;
    for outcome in outcomes {
        outcome.expect("it was queued before the end");
    }
    let (store, _) = relay(&folder).await;
    let [_, _, held, _] = store.stats().await.expect("stats");
    assert_eq!(held.messages, 20);
}

/// A transaction holds at most 8 MiB of content and the message that exceeds them, so that a burst makes neither the log nor
/// the waits of callers grow without limit.
#[tokio::test]
async fn the_content_of_a_transaction_is_bounded() {
    let folder = folder();
    let settings = Settings {
        inline_limit: 4 << 20,
        ..settings(&folder)
    };
    let (store, _) = SqliteStore::open(&settings, Role::Relay)
        .await
        .expect("open");
    let writer = stopped(&folder);
    let large = octets(4 << 20);
    let puts = (0..9).map(|_| store.put(vec![record(Lane::Held)], large.clone()));
    let mut puts = join_all(puts);
    assert!(
        (&mut puts).now_or_never().is_none(),
        "the writer is stopped"
    );
    drop(writer);
    for outcome in puts.await {
        outcome.expect("put");
    }
    assert!(
        store.commits() >= 5,
        "{} for nine of 4 MiB",
        store.commits()
    );
}
