use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::store::contract::at;
use serde::Deserialize;

/// An entry of a log that only these tests have.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Noted(i64);

impl Entry for Noted {
    const LOG_NAME: &str = "history";
    const WAITING_ENTRIES_MAX: usize = 64;
    const ROWS_MAX: u64 = 100;
    const IS_DURABLE: bool = false;

    fn at(&self) -> Timestamp {
        at(self.0)
    }

    fn message(&self) -> Option<MessageId> {
        None
    }
}

fn opened(path: &Path) -> Log<Noted> {
    Log::open(path, Duration::from_secs(1000), Noted::ROWS_MAX).expect("a thread")
}

/// The numbers in the file, the oldest first.
async fn kept(path: &Path) -> Vec<i64> {
    let all = read::<Noted>(path, Wanted::Since(Timestamp::MIN), usize::MAX, |_| true).await;
    let mut numbers: Vec<i64> = all.expect("read").into_iter().map(|Noted(n)| n).collect();
    numbers.reverse();
    numbers
}

/// Waits until the log records: the thread tries by itself, without an entry and without a question.
async fn recovered(log: &Log<Noted>) {
    while log.trouble().is_some() {
        tokio::task::yield_now().await;
    }
}

/// A file that cannot be used is no reason not to start: the log says so, with what to do, loses its entries and nothing else, and
/// records again by itself when it can. (A folder stands in the place of the file, which stops every user, root too.)
#[tokio::test]
async fn a_file_that_cannot_be_opened_costs_its_entries_only() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("history.db");
    std::fs::create_dir(&path).expect("in the way");
    let log = opened(&path);
    let trouble = log.trouble().expect("trouble");
    assert_eq!((&*trouble.log, &trouble.file), ("history", &path));
    assert!(trouble.error.contains("unable to open"), "{trouble:?}");
    assert!(trouble.advice.contains("away"), "{trouble:?}");
    log.note(Noted(1));
    log.flush().await;
    assert_eq!(log.dropped(), 1);
    std::fs::remove_dir(&path).expect("out of the way");
    recovered(&log).await;
    log.note(Noted(2));
    log.flush().await;
    assert_eq!((kept(&path).await, log.dropped()), (vec![2], 1));
    let mode = std::fs::metadata(&path).expect("a file").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    log.close().await;
}

/// A file that is removed or replaced while the relay runs is noticed with the next entry: SQLite would write on into the removed
/// one. The next entries are where the next reader looks.
#[tokio::test]
async fn a_file_that_is_removed_is_made_anew() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("history.db");
    let log = opened(&path);
    log.note(Noted(1));
    log.flush().await;
    assert_eq!(kept(&path).await, [1]);
    std::fs::remove_file(&path).expect("removed");
    log.note(Noted(2));
    log.flush().await;
    assert_eq!((kept(&path).await, log.dropped()), (vec![2], 0));
    // A check is enough, too: what else writes into the file finds it.
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(log.check().await, None);
    assert!(kept(&path).await.is_empty());
    log.close().await;
}

/// A file that is overwritten while the relay runs is set aside by the next check, and the log goes on with a new one. What else
/// writes into the file asks for a check when it fails, each minute.
#[tokio::test]
async fn a_file_that_is_damaged_at_work_is_set_aside() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("history.db");
    let log = opened(&path);
    log.note(Noted(1));
    log.flush().await;
    // Into the same file, as a program does that has mistaken it for its own.
    let octets = "no database ".repeat(10_000);
    std::fs::write(&path, &octets).expect("written");
    std::fs::write(path.with_extension("db-wal"), &octets).expect("written");
    // SQLite goes on with the pages that it knows; whoever opens the file next finds it.
    assert_eq!(log.check().await, None);
    log.note(Noted(2));
    log.flush().await;
    assert_eq!(kept(&path).await, [2]);
    assert!(path.with_extension("db.damaged").exists());
    log.close().await;
}

/// Another process that keeps the file locked costs entries; it is named as the cause, and the log goes on when it ends.
#[tokio::test]
async fn a_locked_file_says_so() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("history.db");
    let log = opened(&path);
    let other = Connection::open(&path).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("locks");
    log.note(Noted(1));
    log.flush().await;
    let trouble = log.trouble().expect("trouble");
    assert!(trouble.advice.contains("fuser"), "{trouble:?}");
    assert_eq!(log.dropped(), 1);
    other.execute_batch("ROLLBACK").expect("unlocks");
    recovered(&log).await;
    log.note(Noted(2));
    log.flush().await;
    assert_eq!(kept(&path).await, [2]);
    log.close().await;
}
