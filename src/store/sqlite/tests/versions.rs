//! Stores of earlier versions, and the sums of the triggers.

use super::*;
use crate::store::{Cause, expire_rescans};

/// A store of version 1.
const VERSION_1: &str = include_str!("version-1.sql");

fn older(folder: &TempDir, sql: &str) {
    fs::create_dir(settings(folder).path).expect("folder");
    tamper(folder, sql);
}

/// A start migrates a store of an earlier version once, and keeps everything in it. New features work on it.
#[tokio::test]
async fn stores_of_earlier_versions_are_migrated() {
    let folder = folder();
    older(&folder, VERSION_1);
    let (store, found) = relay(&folder).await;
    assert_eq!((found.waiting, found.damaged), (2, 0));
    let all = Filter {
        limit: 9,
        ..Filter::default()
    };
    let records = store.search(all).await.expect("search");
    assert_eq!(records.len(), 3);
    for record in &records {
        assert_eq!((&record.cause, record.reputation), (&None, None));
        let content = store.content(record.id).await.expect("content");
        assert_eq!(&content, octets(16).bytes());
    }
    assert_eq!(store.audited(None, 9).await.expect("audit").len(), 1);
    let cause = Cause::Engine("clamd".to_owned());
    let mut held = records[0].clone();
    held.lane = Lane::Held;
    held.cause = Some(cause.clone());
    let change = Change::Replace(Box::new(held.clone()));
    store.change(held.id, change, None).await.expect("change");
    let recovered = store.recover(Lane::Held, cause, None, times(0, 1), 9).await;
    assert_eq!(recovered.expect("recover"), [held]);
    store.close().await;
    let (store, found) = relay(&folder).await;
    assert_eq!(found.damaged, 0, "a second start changes nothing");
    store.close().await;
}

/// Earlier versions stored subjects as they came. Such mail is shown and found by its decoded subject too.
#[tokio::test]
async fn subjects_of_earlier_versions_are_decoded() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let mut held = record(Lane::Held);
    held.subject = "=?UTF-8?B?w5xCRVI=?= all".to_owned();
    let mut other = record(Lane::Held);
    other.subject = "=?utf-8?q?other?=".to_owned();
    for record in [&held, &other] {
        let put = store.put(vec![record.clone()], octets(3));
        put.await.expect("put");
    }
    let find = async |text: &str, limit: usize| {
        let filter = Filter {
            lanes: vec![Lane::Held],
            subject: Some(text.to_owned()),
            limit,
            ..Filter::default()
        };
        let count = store.count(filter.clone()).await.expect("count");
        let found = store.search(filter).await.expect("search");
        let subjects = found.into_iter().map(|record| record.subject);
        (count, subjects.collect::<Vec<_>>())
    };
    let decoded = vec!["ÜBER all".to_owned()];
    assert_eq!(find("über", 9).await, (1, decoded.clone()));
    assert_eq!(find("BER ALL", 9).await, (1, decoded));
    assert_eq!(find("nowhere", 9).await, (0, Vec::new()));
    let shown = store.get(held.id).await.expect("get").expect("a record");
    assert_eq!(shown.subject, "ÜBER all");
}

/// After a crash, the next start resumes a recovery: leases end with their process.
#[tokio::test]
async fn a_recovery_resumes_after_a_crash() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let cause = Cause::Interceptor("one".to_owned());
    let mut held = record(Lane::Held);
    held.cause = Some(cause.clone());
    store.put(vec![held.clone()], octets(3)).await.expect("put");
    let recovered = store.recover(Lane::Held, cause.clone(), None, times(0, 9999), 9);
    assert_eq!(recovered.await.expect("recover").len(), 1);
    store.close().await;
    let (store, _) = relay(&folder).await;
    let recovered = store.recover(Lane::Held, cause, None, times(0, 9999), 9);
    // It was in work, and nobody knows what became of its scan.
    held.hung = true;
    assert_eq!(recovered.await.expect("recover"), [held]);
}

/// A message that is removed from the rescan lane leaves no file, whether for lack of room or by expiry.
#[tokio::test]
async fn a_removed_rescan_leaves_no_file() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    for _ in 0..10 {
        put(&store, Lane::Rescan, LARGE_OCTETS).await;
    }
    // The writer removes files after its answer.
    store.close().await;
    assert_eq!(body_files(&folder), 5, "as many as there is room for");
    let (store, _) = relay(&folder).await;
    expire_rescans(&*store, at(9999)).await.expect("expires");
    store.close().await;
    assert_eq!(body_files(&folder), 0);
}

/// The sum of the rescan lane is right after every change of a row, and a start computes it again.
#[tokio::test]
async fn the_sum_of_the_rescan_lane_is_right() {
    let folder = folder();
    let sum = || -> i64 {
        let db = Connection::open(database(&folder)).expect("database");
        db.query_row("SELECT octets FROM rescan", [], |row| row.get(0))
            .expect("sum")
    };
    let (store, _) = relay(&folder).await;
    let mut ids = Vec::new();
    for size in [10, 20, LARGE_OCTETS] {
        ids.push(put(&store, Lane::Rescan, size).await);
    }
    assert_eq!(sum(), 2030);
    let mut found = store.get(ids[0]).await.expect("get").expect("record");
    for (lane, expected) in [
        (Lane::Rescan, 2030),
        (Lane::Held, 2020),
        (Lane::Rescan, 2030),
    ] {
        found.lane = lane;
        let change = Change::Replace(Box::new(found.clone()));
        store.change(ids[0], change, None).await.expect("change");
        assert_eq!(sum(), expected, "{lane:?}");
    }
    let removed = store.change(ids[2], Change::Remove, None).await;
    removed.expect("remove");
    assert_eq!(sum(), 30);
    store.close().await;
    tamper(&folder, "UPDATE rescan SET octets = 7");
    relay(&folder).await.0.close().await;
    assert_eq!(sum(), 30);
}

/// The counts of the lanes are right after every change of a row, with damaged rows left out, and a start computes them again.
#[tokio::test]
async fn the_sums_of_the_lanes_are_right() {
    let folder = folder();
    let sums = || -> Vec<(i64, i64)> {
        let db = Connection::open(database(&folder)).expect("database");
        let sql = "SELECT messages, octets FROM lane_sum ORDER BY lane";
        let mut sums = db.prepare(sql).expect("SQL");
        let rows = sums.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        rows.expect("sums").map(|row| row.expect("a row")).collect()
    };
    let (store, _) = relay(&folder).await;
    let mut ids = Vec::new();
    for (lane, size) in [
        (Lane::Scan, 10),
        (Lane::Delivery, LARGE_OCTETS),
        (Lane::Held, 30),
        (Lane::Held, 40),
    ] {
        ids.push(put(&store, lane, size).await);
    }
    let large = LARGE_OCTETS as i64;
    assert_eq!(sums(), [(1, large), (2, 70), (0, 0)]);
    let mut found = store.get(ids[0]).await.expect("get").expect("record");
    found.lane = Lane::Held;
    let change = Change::Replace(Box::new(found));
    store.change(ids[0], change, None).await.expect("change");
    assert_eq!(sums(), [(1, large), (3, 80), (0, 0)]);
    let removed = store.change(ids[1], Change::Remove, None).await;
    removed.expect("remove");
    assert_eq!(sums(), [(0, 0), (3, 80), (0, 0)]);
    store.close().await;
    let spoil = format!(
        "UPDATE message SET damaged = 'x' WHERE id = '{}'; UPDATE lane_sum SET messages = 9",
        ids[2]
    );
    tamper(&folder, &spoil);
    let (store, _) = relay(&folder).await;
    let [.., held, _] = store.stats().await.expect("stats");
    assert_eq!((held.messages, held.octets), (2, 50));
    store.close().await;
    assert_eq!(sums(), [(0, 0), (2, 50), (0, 0)]);
}
