//! Files that are removed, renamed, replaced or truncated while the relay runs.

use super::*;

/// A store with one message, after `meddle` has changed its files.
async fn after(meddle: impl Fn(&Path)) -> (TempDir, Arc<SqliteStore>) {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    put(&store, Lane::Scan, 100).await;
    meddle(&settings(&folder).path);
    (folder, store)
}

async fn refuses(store: &SqliteStore, size: usize) -> String {
    let put = store.put(vec![record(Lane::Scan)], octets(size)).await;
    put.expect_err("nothing would be left of it").to_string()
}

fn cut(path: PathBuf, octets: u64) {
    let file = fs::OpenOptions::new().write(true).open(path);
    file.expect("open").set_len(octets).expect("cut");
}

/// The law of acknowledged mail: a put that the next start would not find is an error. This holds for the first put after the
/// change of the files, and the error says why.
#[tokio::test]
async fn mail_that_the_next_start_would_not_find_is_not_acknowledged() {
    type Meddle = fn(&Path);
    let cases: [(&str, usize, Meddle); 8] = [
        ("spillway.db is gone", 10, |store| {
            fs::remove_file(store.join("spillway.db")).expect("remove");
        }),
        ("spillway.db-wal is gone", 10, |store| {
            fs::remove_file(store.join("spillway.db-wal")).expect("remove");
        }),
        ("spillway.db is gone", 10, |store| {
            fs::remove_dir_all(store).expect("remove");
        }),
        ("spillway.db is gone", 10, |store| {
            fs::rename(store, store.with_extension("old")).expect("rename");
        }),
        ("is another file", 10, |store| {
            let (file, copy) = (store.join("spillway.db"), store.join("backup"));
            fs::copy(&file, &copy).expect("copy");
            fs::rename(&copy, &file).expect("replace");
        }),
        ("spillway.db-wal has", 10, |store| {
            cut(store.join("spillway.db-wal"), 0);
        }),
        ("bodies", LARGE_OCTETS, |store| {
            fs::rename(store.join("bodies"), store.join("away")).expect("rename");
        }),
        ("spillway.db is gone", LARGE_OCTETS, |store| {
            fs::remove_file(store.join("spillway.db")).expect("remove");
        }),
    ];
    for (told, size, meddle) in cases {
        let (_folder, store) = after(meddle).await;
        let error = refuses(&store, size).await;
        assert!(error.contains(told), "{told}: {error}");
        let error = store.accepts().expect_err(told).to_string();
        assert!(error.contains(told), "{told}: {error}");
    }
}

/// Mail that the relay has goes on as long as this process runs, with its bounces: otherwise the relay would deliver the same
/// mail again after each lease.
#[tokio::test]
async fn stored_mail_and_its_bounces_go_on_without_the_files() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let id = put(&store, Lane::Scan, 100).await;
    fs::rename(database(&folder), folder.path().join("away")).expect("rename");
    refuses(&store, 10).await;
    let bounce = vec![(record(Lane::Delivery), octets(10))];
    let settled = store.settle(Lane::Scan, id, Change::Remove, bounce);
    settled.await.expect("its end");
}

/// The files are checked even without mail: `/ready` must not wait until a message is lost.
#[tokio::test]
async fn moved_files_are_noticed_without_mail() {
    for name in [
        "spillway.db",
        "spillway.db-wal",
        "spillway.db-shm",
        "bodies",
    ] {
        let (_folder, store) = after(|store| {
            fs::rename(store.join(name), store.join("away")).expect("rename");
        })
        .await;
        while store.accepts().is_ok() {
            tokio::task::yield_now().await;
        }
    }
}

/// A database file that is truncated takes no mail, although SQLite itself continues as long as it has the pages in its cache.
#[tokio::test]
async fn a_truncated_database_accepts_no_mail() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    put(&store, Lane::Scan, 100).await;
    store.close().await;
    let (store, _) = relay(&folder).await;
    put(&store, Lane::Scan, 100).await;
    // The writer has recorded the full size.
    cut(settings(&folder).path.join("spillway.db"), 5000);
    let error = refuses(&store, 100).await;
    assert!(error.contains("corrupt"), "{error}");
    assert!(matches!(store.accepts(), Err(StoreError::Corrupt(_))));
}

/// A person who compacts the database, or moves the log into it, does no harm.
#[tokio::test]
async fn a_compacted_database_accepts_mail() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let mut ids = Vec::new();
    for _ in 0..200 {
        ids.push(put(&store, Lane::Scan, 900).await);
    }
    tamper(&folder, "PRAGMA wal_checkpoint(truncate)");
    let last = put(&store, Lane::Scan, 100).await;
    let before = fs::metadata(database(&folder)).expect("metadata").len();
    for id in ids {
        let removed = store.change(id, Change::Remove, None).await;
        removed.expect("remove");
    }
    tamper(&folder, "VACUUM; PRAGMA wal_checkpoint(truncate)");
    let after = fs::metadata(database(&folder)).expect("metadata").len();
    assert!(after < before, "{after} {before}");
    put(&store, Lane::Scan, 100).await;
    store.content(last).await.expect("content");
    store.accepts().expect("all is well");
}

/// Stored mail can be finished as long as this process has the files open: no other process can do it.
#[tokio::test]
async fn stored_mail_can_be_finished_without_its_files() {
    let (_folder, store) = after(|store| fs::remove_dir_all(store).expect("remove")).await;
    refuses(&store, 10).await;
    let due = store.claim(Lane::Scan, times(0, 9), 9).await;
    let mut due = due.expect("claim");
    assert_eq!(due.len(), 1, "what was refused is not here as well");
    let due = due.swap_remove(0);
    store.content(due.id).await.expect("content");
    let removed = store.change(due.id, Change::Remove, None).await;
    removed.expect("it was delivered");
}

/// If the folder comes back, the store is the same, and accepts mail again without a restart.
#[tokio::test]
async fn a_folder_that_comes_back_accepts_mail() {
    let away = |store: &Path| store.with_extension("old");
    let (folder, store) = after(|store| fs::rename(store, away(store)).expect("rename")).await;
    refuses(&store, 10).await;
    let path = settings(&folder).path;
    fs::rename(away(&path), &path).expect("rename");
    while store.accepts().is_err() {
        tokio::task::yield_now().await;
    }
    put(&store, Lane::Scan, LARGE_OCTETS).await;
}

/// A damaged page, found by any connection, stops new mail until the next start: successful reads and writes elsewhere prove
/// nothing.
#[tokio::test]
async fn a_corrupt_page_stops_new_mail_for_good() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let id = put(&store, Lane::Held, 900).await;
    store.close().await;
    let (store, _) = relay(&folder).await;
    let mut octets = fs::read(database(&folder)).expect("read");
    octets[4096..].fill(0xA5);
    fs::write(database(&folder), &octets).expect("write");
    let read = store.get(id).await;
    assert!(matches!(read, Err(StoreError::Corrupt(_))), "{read:?}");
    assert!(matches!(store.accepts(), Err(StoreError::Corrupt(_))));
    store.health.set(Part::Database, Ok(()));
    let refused = store.put(vec![record(Lane::Scan)], super::octets(10)).await;
    assert!(
        matches!(refused, Err(StoreError::Corrupt(_))),
        "{refused:?}"
    );
}
