//! Damage that a start or a read finds.

use super::*;
use crate::store::sqlite::folder::lock_shared;

/// A crash leaves drafts and body files without a row, and the next start removes them. Files of others stay.
#[tokio::test]
async fn orphans_are_collected() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let kept = put(&store, Lane::Held, LARGE_OCTETS).await;
    let (orphan, draft) = (store.bodies.path(MessageId::new()), store.bodies.path(kept));
    store.close().await;
    fs::write(&orphan, "x").expect("orphan");
    fs::write(draft.with_extension("tmp"), "x").expect("draft");
    fs::write(draft.with_file_name("README"), "x").expect("foreign file");
    let (store, found) = relay(&folder).await;
    assert_eq!((found.orphans, found.damaged), (2, 0));
    assert_eq!(body_files(&folder), 2, "the content and the foreign file");
    store.content(kept).await.expect("content");
}

/// While a tool is about to commit a row, its body file is not removed as an orphan.
#[tokio::test]
async fn files_of_a_tool_at_work_are_not_removed() {
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

/// A record that cannot be read or has lost its content is set aside at the start. It is never deleted, and affects no other
/// record.
#[tokio::test]
async fn damage_found_at_the_start_is_set_aside() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let json = put(&store, Lane::Scan, 10).await;
    let inline = put(&store, Lane::Scan, 10).await;
    let (missing, short) = (
        put(&store, Lane::Scan, LARGE_OCTETS).await,
        put(&store, Lane::Scan, LARGE_OCTETS).await,
    );
    let good = put(&store, Lane::Scan, LARGE_OCTETS).await;
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
        .claim(Lane::Scan, times(0, 9), 10)
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
    assert_eq!(found.damaged, 4, "kept, and reported at every start");
    store
        .change(json, Change::Remove, None)
        .await
        .expect("a person may delete it");
}

/// Damage that appears while the relay runs is handled in the same way, message by message.
#[tokio::test]
async fn damage_found_at_work_is_set_aside() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let json = put(&store, Lane::Scan, 10).await;
    let lost = put(&store, Lane::Scan, LARGE_OCTETS).await;
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
        .claim(Lane::Scan, times(0, 9), 10)
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
    put(&store, Lane::Scan, LARGE_OCTETS).await;
    store.accepts().expect("the rest goes on");
}

/// A file that SQLite calls malformed is never replaced by an empty one, because it contains mail. The error names the file
/// and the fix.
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

/// The start finds damage even in pages that it does not need and that may not be read for months.
#[tokio::test]
async fn damage_in_pages_that_are_not_read_is_found_at_the_start() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    put(&store, Lane::Scan, 100).await;
    store.close().await;
    let place = Connection::open(database(&folder)).and_then(|db| {
        let page: u32 = db.query_row(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'audit'",
            [],
            |row| row.get(0),
        )?;
        let size: u32 = db.pragma_query_value(None, "page_size", |row| row.get(0))?;
        Ok(((page - 1) * size) as usize)
    });
    let place = place.expect("the audit log");
    let mut octets = fs::read(database(&folder)).expect("read");
    octets[place..place + 600].fill(0xA5);
    fs::write(database(&folder), &octets).expect("write");
    let error = SqliteStore::open(&settings(&folder), Role::Relay).await;
    let text = error.expect_err("refused").to_string();
    assert!(text.contains("spillway.db is malformed"), "{text}");
    assert_eq!(fs::read(database(&folder)).expect("read"), octets);
}

/// The store changes neither a database of a newer version nor one of another program.
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
