use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::store::contract::{self, at, octets, record};

/// Contents of this size are files in these tests.
const LARGE: usize = 2000;

fn settings(folder: &TempDir) -> Settings {
    Settings {
        path: folder.path().join("store"),
        inline_limit: 1000,
        disk_reserve: 0,
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

/// What another program does to the database behind our back.
fn tamper(folder: &TempDir, sql: &str) {
    let db = Connection::open(database(folder)).expect("database");
    db.execute_batch(sql).expect(sql);
}

fn database(folder: &TempDir) -> PathBuf {
    settings(folder).path.join(schema::DATABASE)
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

/// A stop and a start change nothing, except that leases of the process that is gone end.
#[tokio::test]
async fn messages_outlive_the_process_and_leases_do_not() {
    let folder = folder();
    let (store, found) = relay(&folder).await;
    assert_eq!(found, Recovery::default());
    let mut ids = Vec::new();
    for size in [10, LARGE] {
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
    assert_eq!(store.content(ids[1]).await.expect("content").len(), LARGE);
    let due = store.claim(Lane::Scan, at(0), at(1), 10).await;
    assert_eq!(due.expect("claim").len(), 2);
}

/// Promise P5 under a failing disk: whichever operation fails, an acknowledged message is there after the next start, one
/// that was refused is there whole or not at all, and no file is left that no row knows.
#[tokio::test]
async fn no_single_failure_loses_what_was_acknowledged() {
    for nth in 1.. {
        let folder = folder();
        let faults = Faults::nth(nth);
        let store = faulty(&folder, faults.clone()).await;
        let mut puts = Vec::new();
        for size in [10, LARGE, 20, LARGE + 1] {
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

/// A message whose statement fails does not take its neighbours in the batch with it.
#[tokio::test]
async fn one_bad_message_fails_alone() {
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

/// Body files without a row, and drafts, are what a crash leaves; they go. What is not ours stays.
#[tokio::test]
async fn orphans_are_collected() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let kept = put(&store, Lane::Held, LARGE).await;
    let (orphan, draft) = (store.bodies.path(MessageId::new()), store.bodies.path(kept));
    store.close().await;
    fs::write(&orphan, "x").expect("orphan");
    fs::write(draft.with_extension("tmp"), "x").expect("draft");
    fs::write(draft.with_file_name("README"), "x").expect("stranger");
    let (store, found) = relay(&folder).await;
    assert_eq!((found.orphans, found.damaged), (2, 0));
    assert_eq!(body_files(&folder), 2, "the content and the stranger");
    store.content(kept).await.expect("content");
}

/// While a tool is about to commit a row, its body file is no orphan.
#[tokio::test]
async fn files_of_a_tool_at_work_are_no_orphans() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let file = store.bodies.path(MessageId::new());
    store.close().await;
    fs::write(&file, "x").expect("file");
    let lock = lock_shared(&settings(&folder).path.join(BODIES_LOCK)).expect("lock");
    let (store, found) = relay(&folder).await;
    assert_eq!(found.orphans, 0);
    store.close().await;
    drop(lock);
    assert_eq!(relay(&folder).await.1.orphans, 1);
}

/// A record that cannot be read, or has lost its content, is set aside at the start, never deleted, and in nobody's way.
#[tokio::test]
async fn damage_found_at_the_start_is_set_aside() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let json = put(&store, Lane::Scan, 10).await;
    let inline = put(&store, Lane::Scan, 10).await;
    let (missing, short) = (
        put(&store, Lane::Scan, LARGE).await,
        put(&store, Lane::Scan, LARGE).await,
    );
    let good = put(&store, Lane::Scan, LARGE).await;
    fs::remove_file(store.bodies.path(missing)).expect("remove");
    fs::write(store.bodies.path(short), "short").expect("cut");
    store.close().await;
    tamper(
        &folder,
        &format!(
            "UPDATE message SET record = '{{\"half' WHERE id = '{json}';
             DELETE FROM body WHERE seq = (SELECT seq FROM message WHERE id = '{inline}')"
        ),
    );
    let (store, found) = relay(&folder).await;
    assert_eq!((found.damaged, found.orphans, found.waiting), (4, 0, 1));
    for id in [json, inline, missing, short] {
        assert!(matches!(store.get(id).await, Err(StoreError::Damaged(found, _)) if found == id));
        assert!(matches!(
            store.content(id).await,
            Err(StoreError::Damaged(..))
        ));
        let replaced = store.change(
            id,
            Change::Replace(Box::new(Record {
                id,
                ..record(Lane::Held)
            })),
            None,
        );
        assert!(matches!(replaced.await, Err(StoreError::Damaged(..))));
    }
    let due = store
        .claim(Lane::Scan, at(0), at(9), 10)
        .await
        .expect("claim");
    assert_eq!(
        due.iter().map(|record| record.id).collect::<Vec<_>>(),
        [good]
    );
    let listed = store
        .search(Filter {
            limit: 9,
            ..Filter::default()
        })
        .await;
    assert_eq!(listed.expect("search").len(), 1);
    store.close().await;
    let (store, found) = relay(&folder).await;
    assert_eq!(found.damaged, 4, "kept, and told again at every start");
    store
        .change(json, Change::Remove, None)
        .await
        .expect("a person may delete it");
}

/// Damage that appears while the relay runs gets the same treatment, message by message.
#[tokio::test]
async fn damage_found_at_work_is_set_aside() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let json = put(&store, Lane::Scan, 10).await;
    let lost = put(&store, Lane::Scan, LARGE).await;
    let mut changed = record(Lane::Held);
    changed.sha256 = "0".repeat(64);
    store
        .put(vec![changed.clone()], octets(10))
        .await
        .expect("put");
    tamper(
        &folder,
        &format!("UPDATE message SET record = '' WHERE id = '{json}'"),
    );
    fs::remove_file(store.bodies.path(lost)).expect("remove");
    let due = store
        .claim(Lane::Scan, at(0), at(9), 10)
        .await
        .expect("claim");
    assert_eq!(
        due.iter().map(|record| record.id).collect::<Vec<_>>(),
        [lost]
    );
    assert!(matches!(
        store.content(lost).await,
        Err(StoreError::Damaged(..))
    ));
    assert!(matches!(
        store.content(changed.id).await,
        Err(StoreError::Damaged(..))
    ));
    for id in [json, lost, changed.id] {
        assert!(matches!(store.get(id).await, Err(StoreError::Damaged(..))));
    }
    put(&store, Lane::Scan, LARGE).await;
    store.accepts().expect("the rest goes on");
}

/// A file that SQLite calls malformed is never replaced by an empty one: it holds mail. The error names it and the fix.
#[tokio::test]
async fn a_malformed_database_is_refused_and_left_alone() {
    for place in [0, 4096] {
        let folder = folder();
        let (store, _) = relay(&folder).await;
        put(&store, Lane::Scan, 100).await;
        store.close().await;
        let file = database(&folder);
        let mut octets = fs::read(&file).expect("read");
        octets[place..place + 600].fill(0xA5);
        fs::write(&file, &octets).expect("write");
        let error = SqliteStore::open(&settings(&folder), Role::Relay).await;
        let text = error.expect_err("refused").to_string();
        assert!(text.contains("spillway.db is malformed"), "{text}");
        assert!(text.contains(".recover"), "{text}");
        assert_eq!(fs::read(&file).expect("read"), octets);
    }
}

/// Neither the database of a newer version nor that of another program is touched.
#[tokio::test]
async fn foreign_databases_are_refused() {
    let newer = folder();
    relay(&newer).await.0.close().await;
    tamper(&newer, "PRAGMA user_version = 99");
    let error = SqliteStore::open(&settings(&newer), Role::Relay).await;
    assert!(
        error
            .expect_err("newer")
            .to_string()
            .contains("newer version")
    );
    let other = folder();
    fs::create_dir(settings(&other).path).expect("folder");
    tamper(&other, "CREATE TABLE shop (price)");
    let error = SqliteStore::open(&settings(&other), Role::Relay).await;
    assert!(
        error
            .expect_err("other")
            .to_string()
            .contains("another program")
    );
}

/// Two relays on one store would hand out the same work; a tool beside the relay sees and changes everything, at once.
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
        .put_leased(vec![leased], octets(LARGE), at(99))
        .await
        .expect("put");
    assert_eq!(
        tool.claim(Lane::Scan, at(0), at(9), 9)
            .await
            .expect("claim"),
        []
    );
    let (theirs, ours) = futures_util::future::join(
        join_all((0..50).map(|i| put(&tool, Lane::Held, if i % 2 == 0 { 5 } else { LARGE }))),
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

/// Below the reserve nothing new comes in, and everything that makes room or progress goes on.
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
    let change = Change::Replace(Box::new(changed));
    store.change(id, change, None).await.expect("change");
    store
        .change(id, Change::Remove, None)
        .await
        .expect("remove");
}

/// After a failed write new mail is refused, until a write of that kind succeeds: the next one, or the writer's own probe.
#[tokio::test]
async fn a_broken_disk_is_told_and_heals() {
    for (size, heals_with) in [(10, 10), (LARGE, LARGE)] {
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

/// Mail is private: the folder is the relay's own, and so is every file in it.
#[tokio::test]
async fn nobody_else_can_read_the_store() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let id = put(&store, Lane::Held, LARGE).await;
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

/// A score that is no number must not make a record that cannot be read back.
#[tokio::test]
async fn endless_scores_survive_storage() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let mut odd = record(Lane::Held);
    let decision = odd.decision.as_mut().expect("decision");
    decision.score = f64::INFINITY;
    store.put(vec![odd.clone()], octets(1)).await.expect("put");
    let found = store.get(odd.id).await.expect("get").expect("record");
    assert_eq!(found.decision.expect("decision").score, f64::MAX);
}
