mod commits;
mod damage;
mod held;
mod moved;
mod versions;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::message::MessageId;
use crate::store::contract::{self, at, octets, record, times};
use crate::store::sqlite::health::Part;
use crate::store::{Change, Filter, Lane, Record, Store};

/// Content of this size is above `inline_limit`, so it is stored in a file.
const LARGE_OCTETS: usize = 2000;

fn settings(folder: &TempDir) -> Settings {
    Settings {
        path: folder.path().join("store"),
        inline_limit: 1000,
        disk_reserve: 0,
        rescan_bytes: contract::RESCAN_BYTES,
        ..Settings::default()
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("temporary folder")
}

async fn relay(folder: &TempDir) -> (Arc<SqliteStore>, Recovery) {
    SqliteStore::open(&settings(folder), Role::Relay)
        .await
        .expect("the store opens")
}

async fn faulty(folder: &TempDir, faults: Faults) -> Arc<SqliteStore> {
    let opened = SqliteStore::open_with(&settings(folder), Role::Relay, faults).await;
    opened.expect("the store opens").0
}

/// Changes the database as another program would.
fn tamper(folder: &TempDir, sql: &str) {
    let db = Connection::open(database(folder)).expect("database");
    db.execute_batch(sql).expect(sql);
}

fn database(folder: &TempDir) -> PathBuf {
    settings(folder).path.join(schema::DATABASE_FILE)
}

fn body_files(folder: &TempDir) -> usize {
    let bodies = fs::read_dir(settings(folder).path.join("bodies")).expect("bodies");
    bodies
        .map(|entry| {
            fs::read_dir(entry.expect("entry").path())
                .expect("folder")
                .count()
        })
        .sum()
}

async fn put(store: &SqliteStore, lane: Lane, size: usize) -> MessageId {
    let record = record(lane);
    let id = record.id;
    store.put(vec![record], octets(size)).await.expect("put");
    id
}

/// Every law of the trait holds for the embedded store.
#[tokio::test]
async fn the_contract_holds() {
    contract::holds(async || {
        let folder = folder();
        let (store, _) = relay(&folder).await;
        (folder, store as Arc<dyn Store>)
    })
    .await;
}

/// A stop and a start change nothing, except that the leases of the old process end. Mail that was being scanned may be what
/// hung an engine: nobody saw the end.
#[tokio::test]
async fn messages_survive_a_restart_and_leases_do_not() {
    let folder = folder();
    let (store, found) = relay(&folder).await;
    assert_eq!(found, Recovery::default());
    let mut ids = Vec::new();
    for size in [10, LARGE_OCTETS] {
        let record = record(Lane::Scan);
        ids.push(record.id);
        store
            .put_leased(vec![record], octets(size), at(9999))
            .await
            .expect("put");
    }
    store.close().await;
    assert!(matches!(store.get(ids[0]).await, Err(StoreError::Closed)));
    let (store, found) = relay(&folder).await;
    assert_eq!(found.waiting, 2);
    assert_eq!(store.content(ids[0]).await.expect("content").len(), 10);
    assert_eq!(
        store.content(ids[1]).await.expect("content").len(),
        LARGE_OCTETS
    );
    let waits = record(Lane::Scan);
    store.put(vec![waits], octets(10)).await.expect("put");
    store.close().await;
    let (store, _) = relay(&folder).await;
    let due = store.claim(Lane::Scan, times(0, 99_999), 10).await;
    let mut hung: Vec<bool> = due
        .expect("claim")
        .iter()
        .map(|record| record.hung)
        .collect();
    hung.sort_unstable();
    assert_eq!(hung, [false, true, true]);
}

/// Promise P5 on a failing disk. If any operation fails, an acknowledged message is there after the next start, a refused
/// message is there completely or not at all, and no file is left without a row.
#[tokio::test]
async fn no_single_failure_loses_acknowledged_mail() {
    for nth in 1.. {
        let folder = folder();
        let faults = Faults::nth(nth);
        let store = faulty(&folder, faults.clone()).await;
        let mut puts = Vec::new();
        for size in [10, LARGE_OCTETS, 20, LARGE_OCTETS + 1] {
            let records = vec![record(Lane::Scan), record(Lane::Delivery)];
            let outcome = store.put(records.clone(), octets(size)).await;
            puts.push((records, size, outcome.is_ok()));
        }
        let (first, size, acknowledged) = puts.swap_remove(1);
        let removed = store
            .change(first[0].id, Change::Remove, None)
            .await
            .is_ok();
        store.close().await;

        let (store, found) = relay(&folder).await;
        assert_eq!(found.damaged, 0, "failure {nth}");
        let present = store.get(first[0].id).await.expect("get").is_some();
        assert_eq!(present, acknowledged && !removed, "failure {nth}");
        puts.push((first[1..].to_vec(), size, acknowledged));
        for (records, size, acknowledged) in puts {
            for record in records {
                let found = store.get(record.id).await.expect("get").is_some();
                assert_eq!(found, acknowledged, "failure {nth}");
                if found {
                    let content = store.content(record.id).await.expect("content");
                    assert_eq!(&content, octets(size).bytes(), "failure {nth}");
                }
            }
        }
        let files: i64 = Connection::open(database(&folder))
            .and_then(|db| db.query_row("SELECT sum(file) FROM message", [], |row| row.get(0)))
            .expect("count of files");
        assert_eq!(body_files(&folder) as i64, files, "failure {nth}");
        if !faults.fired() {
            assert!(nth > 20, "the failures must have had something to hit");
            return;
        }
    }
}

/// Many sessions share one flush of the disk.
#[tokio::test]
async fn waiting_messages_are_committed_together() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    join_all((0..300).map(|_| put(&store, Lane::Scan, 100))).await;
    assert!(
        store.commits() < 100,
        "{} commits for 300 puts",
        store.commits()
    );
    let [scan, ..] = store.stats().await.expect("stats");
    assert_eq!(scan.messages, 300);
}

/// A message whose statement fails does not make other messages of the batch fail.
#[tokio::test]
async fn a_bad_message_does_not_fail_its_batch() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let known = record(Lane::Scan);
    store
        .put(vec![known.clone()], octets(1))
        .await
        .expect("put");
    let puts = (0..50).map(|i| {
        let record = if i == 25 {
            known.clone()
        } else {
            record(Lane::Scan)
        };
        store.put(vec![record], octets(10))
    });
    let outcomes = join_all(puts).await;
    let failed: Vec<usize> = (0..50).filter(|i| outcomes[*i].is_err()).collect();
    assert_eq!(failed, [25]);
    store.accepts().expect("the disk is fine");
}

/// Two relays with one store would work on the same records. A tool beside the relay sees and changes everything at once.
#[tokio::test]
async fn one_relay_and_any_number_of_tools() {
    let folder = folder();
    let none = SqliteStore::open(&settings(&folder), Role::Tool).await;
    assert!(
        none.expect_err("no store yet")
            .to_string()
            .contains("there is no store")
    );
    let (store, _) = relay(&folder).await;
    let second = SqliteStore::open(&settings(&folder), Role::Relay).await;
    assert!(
        second
            .expect_err("taken")
            .to_string()
            .contains("another relay")
    );
    let (tool, found) = SqliteStore::open(&settings(&folder), Role::Tool)
        .await
        .expect("tool");
    assert_eq!(found, Recovery::default());
    let leased = record(Lane::Scan);
    store
        .put_leased(vec![leased], octets(LARGE_OCTETS), at(99))
        .await
        .expect("put");
    assert_eq!(
        tool.claim(Lane::Scan, times(0, 99), 9)
            .await
            .expect("claim"),
        []
    );
    let (theirs, ours) = futures_util::future::join(
        join_all(
            (0..50).map(|i| put(&tool, Lane::Held, if i % 2 == 0 { 5 } else { LARGE_OCTETS })),
        ),
        join_all((0..50).map(|_| put(&store, Lane::Held, 5))),
    )
    .await;
    for id in theirs {
        store.content(id).await.expect("content");
        tool.change(id, Change::Remove, None).await.expect("remove");
        assert_eq!(store.get(id).await.expect("get"), None);
    }
    for id in ours {
        tool.content(id).await.expect("content");
    }
}

/// Below the reserve the store refuses new mail, and continues everything that makes room or progress.
#[tokio::test]
async fn below_the_reserve_only_new_mail_is_refused() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let id = put(&store, Lane::Scan, 10).await;
    store.close().await;
    let full = Settings {
        disk_reserve: u64::MAX,
        ..settings(&folder)
    };
    let (store, _) = SqliteStore::open(&full, Role::Relay).await.expect("open");
    assert!(matches!(store.accepts(), Err(StoreError::Full(_))));
    let refused = store.put(vec![record(Lane::Scan)], octets(1)).await;
    assert!(matches!(refused, Err(StoreError::Full(_))));
    let mut changed = store.get(id).await.expect("get").expect("record");
    changed.lane = Lane::Delivery;
    let first = Change::Replace(Box::new(changed.clone()));
    let settle = async |lane, change, beside: Record| {
        let bounce = vec![(beside, octets(20))];
        store.settle(lane, id, change, bounce).await
    };
    let parted = settle(Lane::Scan, first, record(Lane::Delivery)).await;
    parted.expect("what parts ways is here already");
    let rest = store.put_rest(vec![record(Lane::Delivery)], octets(LARGE_OCTETS));
    rest.await.expect("others have got it already");
    let change = Change::Replace(Box::new(changed));
    store.change(id, change, None).await.expect("change");
    let bounce = record(Lane::Delivery);
    let gone = settle(Lane::Delivery, Change::Remove, bounce.clone()).await;
    gone.expect("a bounce takes its place");
    assert_eq!(store.get(id).await.expect("get"), None);
    let content = store.content(bounce.id).await.expect("content");
    assert_eq!(content.len(), 20);
    let again = settle(Lane::Delivery, Change::Remove, record(Lane::Delivery)).await;
    assert!(matches!(again, Err(StoreError::NotFound(_))), "{again:?}");
    let all = store.stats().await.expect("stats");
    assert_eq!(all[1].messages, 3, "and no second bounce");
}

/// On a completely full disk, stored mail can still be delivered and removed; the store refuses only new mail.
#[tokio::test]
async fn a_full_disk_stops_new_mail_only() {
    for (reserve, goes_on, bounces) in [(1 << 20, true, 0), (1 << 20, true, 1), (0, false, 0)] {
        let folder = folder();
        let settings = Settings {
            disk_reserve: reserve,
            ..settings(&folder)
        };
        let ballast = settings.path.join("ballast");
        let opened = SqliteStore::open_with(&settings, Role::Relay, Faults::nth_full(2));
        let (store, _) = opened.await.expect("open");
        assert_eq!(ballast.exists(), goes_on);
        let id = put(&store, Lane::Scan, 10).await;
        let bounces = (0..bounces).map(|_| (record(Lane::Delivery), octets(10)));
        let removed = store.settle(Lane::Scan, id, Change::Remove, bounces.collect());
        let removed = removed.await;
        assert_eq!(removed.is_ok(), goes_on, "{removed:?}");
        if goes_on {
            assert!(!ballast.exists(), "it was needed");
            while !ballast.exists() {
                tokio::task::yield_now().await;
            }
        } else {
            assert!(matches!(removed, Err(StoreError::Full(_))));
        }
    }
}

/// On a full disk, the rest of a message that was delivered in part can still be stored: otherwise its sender would send the
/// message again to all recipients.
#[tokio::test]
async fn the_rest_of_a_delivered_message_may_use_the_reserve() {
    let folder = folder();
    let settings = Settings {
        disk_reserve: 1 << 20,
        ..settings(&folder)
    };
    for (is_rest, is_kept) in [(false, false), (true, true)] {
        let opened = SqliteStore::open_with(&settings, Role::Relay, Faults::nth_full(1));
        let (store, _) = opened.await.expect("open");
        let (records, content) = (vec![record(Lane::Delivery)], octets(10));
        let kept = match is_rest {
            true => store.put_rest(records, content).await,
            false => store.put(records, content).await,
        };
        assert_eq!(kept.is_ok(), is_kept, "{kept:?}");
        store.close().await;
    }
}

/// After a failed write the store refuses new mail until a write of that kind succeeds: the next one, or the writer's own
/// probe.
#[tokio::test]
async fn a_broken_disk_refuses_mail_until_a_write_succeeds() {
    for (size, heals_with) in [(10, 10), (LARGE_OCTETS, LARGE_OCTETS)] {
        let folder = folder();
        let store = faulty(&folder, Faults::nth(1)).await;
        let broken = store.put(vec![record(Lane::Scan)], octets(size)).await;
        assert!(matches!(broken, Err(StoreError::Broken(_))));
        assert!(matches!(store.accepts(), Err(StoreError::Broken(_))));
        put(&store, Lane::Scan, heals_with).await;
        store.accepts().expect("healed by the next write");
        let again = MessageId::new();
        store
            .health
            .set(Part::Files, Err(StoreError::NotFound(again)));
        store
            .health
            .set(Part::Database, Err(StoreError::NotFound(again)));
        while store.accepts().is_err() {
            tokio::task::yield_now().await;
        }
    }
}

/// Mail is private: only the relay's user can read the folder and the files in it.
#[tokio::test]
async fn only_the_relay_can_read_the_store() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let id = put(&store, Lane::Held, LARGE_OCTETS).await;
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    let root = settings(&folder).path;
    assert_eq!(mode(&root), 0o700);
    assert_eq!(mode(&root.join("bodies")), 0o700);
    assert_eq!(mode(&store.bodies.path(id)), 0o600);
    for entry in fs::read_dir(&root).expect("list") {
        let path = entry.expect("entry").path();
        if path.is_file() {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
}

/// A score that is not finite must not make a record that cannot be read back.
#[tokio::test]
async fn infinite_scores_survive_storage() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let mut odd = record(Lane::Held);
    let decision = odd.decision.as_mut().expect("decision");
    decision.score = f64::INFINITY;
    store.put(vec![odd.clone()], octets(1)).await.expect("put");
    let found = store.get(odd.id).await.expect("get").expect("record");
    assert_eq!(found.decision.expect("decision").score, f64::MAX);
}
