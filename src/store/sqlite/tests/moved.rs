//! Files that are removed, renamed, replaced or cut under a relay that runs.

use super::*;

/// A store with a message in it, and what was done to its files.
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

/// The law of acknowledged mail: a put that the next start would not find is an error, the first one after the files were
/// moved already, and the store says why it takes no more.
#[tokio::test]
async fn nothing_is_acknowledged_that_the_next_start_would_not_find() {
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
        ("bodies", LARGE, |store| {
            fs::rename(store.join("bodies"), store.join("away")).expect("rename");
        }),
        ("spillway.db is gone", LARGE, |store| {
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

/// What is here already goes on for as long as this process has it, with all that is written about it: otherwise what a next
/// hop has taken would come again with each lease.
#[tokio::test]
async fn what_becomes_of_mail_that_is_here_goes_on() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let id = put(&store, Lane::Scan, 100).await;
    fs::rename(database(&folder), folder.path().join("away")).expect("rename");
    refuses(&store, 10).await;
    let bounce = vec![(record(Lane::Delivery), octets(10))];
    let settled = store.settle(Lane::Scan, id, Change::Remove, bounce);
    settled.await.expect("its end");
}

/// Without any mail the files are looked at all the same: `/ready` must not wait for a message to be lost.
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

/// A database file that is cut short, which SQLite itself goes on with for as long as it remembers the pages.
#[tokio::test]
async fn a_database_that_is_cut_short_takes_no_mail() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    put(&store, Lane::Scan, 100).await;
    store.close().await;
    let (store, _) = relay(&folder).await;
    put(&store, Lane::Scan, 100).await;
    // The writer has seen the whole of it.
    cut(settings(&folder).path.join("spillway.db"), 5000);
    let error = refuses(&store, 100).await;
    assert!(error.contains("corrupt"), "{error}");
    assert!(matches!(store.accepts(), Err(StoreError::Corrupt(_))));
}

/// Somebody who makes the database compact, or moves the log into it, does no harm.
#[tokio::test]
async fn a_database_that_is_made_compact_goes_on() {
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

/// What is here already is worked off for as long as the process has the files open: nobody else can any more.
#[tokio::test]
async fn what_is_here_goes_on_without_its_files() {
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

/// A folder that comes back is the same store, and takes mail again by itself.
#[tokio::test]
async fn a_folder_that_comes_back_is_taken_again() {
    let away = |store: &Path| store.with_extension("old");
    let (folder, store) = after(|store| fs::rename(store, away(store)).expect("rename")).await;
    refuses(&store, 10).await;
    let path = settings(&folder).path;
    fs::rename(away(&path), &path).expect("rename");
    while store.accepts().is_err() {
        tokio::task::yield_now().await;
    }
    put(&store, Lane::Scan, LARGE).await;
}

/// A page that is not what was written, found by whatever connection, stops new mail until somebody has looked: reading or
/// writing well elsewhere proves nothing.
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
