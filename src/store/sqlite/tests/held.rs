//! The use of quarantine: in total and by each party.

use super::*;
use crate::message::ReversePath;
use crate::store::{Capacity, Holder, expire};

/// A held record from this client and sender.
fn held_of(client: &str, sender: &str) -> Record {
    let mut held = record(Lane::Held);
    held.envelope.origin.client = client.parse().expect("an address");
    held.envelope.reverse_path = match sender {
        "" => ReversePath::NULL,
        sender => crate::message::Mailbox::parse(sender)
            .expect("mailbox")
            .into(),
    };
    held
}

type Sums = Vec<(String, i64, i64)>;

fn sums(folder: &TempDir, sql: &str) -> Sums {
    let db = Connection::open(database(folder)).expect("database");
    let mut statement = db.prepare(sql).expect(sql);
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    rows.expect(sql).map(|row| row.expect(sql)).collect()
}

/// Checks the sums of the triggers against a count; returns the octets of all mail.
fn check(folder: &TempDir, what: &str) -> i64 {
    let kept = sums(
        folder,
        "SELECT party, octets, messages FROM held_by ORDER BY party",
    );
    let counted = sums(
        folder,
        "WITH held AS (SELECT client, domain, size + overhead AS octets FROM message WHERE lane = 2) \
         SELECT party, sum(octets), count(*) FROM (SELECT '' AS party, octets FROM held \
         UNION ALL SELECT client, octets FROM held UNION ALL SELECT domain, octets FROM held) \
         GROUP BY party ORDER BY party",
    );
    assert_eq!(kept, counted, "{what}");
    kept.first().map_or(0, |(_, octets, _)| *octets)
}

/// The sums in octets are exact, for all mail and for each party, after every change of a message, in every process, and after
/// a restart. A party without mail in quarantine has no row.
#[tokio::test]
async fn the_sums_of_quarantine_are_right() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let (tool, _) = SqliteStore::open(&settings(&folder), Role::Tool)
        .await
        .expect("tool");
    let a = held_of("192.0.2.1", "a@One.example");
    let b = held_of("2001:db8::1", "b@one.example");
    let c = held_of("2001:db8::2", "");
    let mut waiting = record(Lane::Scan);
    for (record, size) in [(&a, 10), (&b, LARGE_OCTETS), (&c, 0), (&waiting, 300)] {
        let put = store.put(vec![record.clone()], octets(size)).await;
        put.expect("put");
        check(&folder, "put");
    }
    let names: Vec<String> = sums(&folder, "SELECT party, 0, 0 FROM held_by ORDER BY party")
        .into_iter()
        .map(|(name, ..)| name)
        .collect();
    let expected = [
        "",
        "client 192.0.2.1",
        "client 2001:db8::",
        "sender <>",
        "sender one.example",
    ];
    assert_eq!(names, expected);
    waiting.lane = Lane::Held;
    let change = Change::Replace(Box::new(waiting.clone()));
    store.change(waiting.id, change, None).await.expect("hold");
    let before = check(&folder, "held later");
    waiting.status = "x".repeat(1000);
    let change = Change::Replace(Box::new(waiting.clone()));
    store
        .change(waiting.id, change, None)
        .await
        .expect("change");
    assert_eq!(check(&folder, "more is known of it"), before + 1000);
    let others = vec![(held_of("192.0.2.9", "x@two.example"), octets(300))];
    let change = Change::Replace(Box::new(waiting.clone()));
    let parted = store.settle(Lane::Held, waiting.id, change, others).await;
    parted.expect("parts");
    check(&folder, "parted");
    let mut released = a.clone();
    released.lane = Lane::Delivery;
    let change = Change::Replace(Box::new(released));
    tool.change_in(Lane::Held, a.id, change, None)
        .await
        .expect("release");
    check(&folder, "released");
    tool.change_in(Lane::Held, b.id, Change::Remove, None)
        .await
        .expect("delete");
    check(&folder, "deleted");
    store.close().await;
    tool.close().await;
    tamper(
        &folder,
        "DELETE FROM held_by; INSERT INTO held_by VALUES ('x', 7, 7)",
    );
    let (store, _) = relay(&folder).await;
    check(&folder, "restarted");
    let expired = expire(&*store, Lane::Held, at(9999), |_| None, |_| ()).await;
    assert_eq!(expired.expect("expires"), 3);
    assert_eq!(check(&folder, "expired"), 0);
    assert_eq!(sums(&folder, "SELECT party, 0, 0 FROM held_by"), []);
}

async fn put_new(store: &SqliteStore, record: Record, size: usize, room: u64) -> bool {
    let put = store
        .put_new(vec![record], octets(size), Capacity::Octets(room))
        .await;
    assert!(matches!(put, Ok(()) | Err(StoreError::Full(_))), "{put:?}");
    store.accepts().expect("a full quarantine is no trouble");
    put.is_ok()
}

/// A full quarantine refuses mail that its sender still has, even with many callers at once, and leaves no file of it. Mail
/// that the relay has is held nevertheless, and mail for other lanes is not limited.
#[tokio::test]
async fn a_full_quarantine_refuses_new_mail_only() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let puts = (0..100).map(|n| {
        let record = held_of(&format!("192.0.2.{n}"), &format!("a@d{n}.example"));
        put_new(&store, record, LARGE_OCTETS, 100_000)
    });
    let taken = join_all(puts)
        .await
        .into_iter()
        .filter(|taken| *taken)
        .count();
    let octets_held = check(&folder, "filled") as u64;
    assert!((5..50).contains(&taken), "{taken}");
    assert!(octets_held <= 100_000, "{octets_held}");
    assert_eq!(body_files(&folder), taken, "refused mail leaves no file");
    let refused = held_of("198.51.100.1", "new@new.example");
    assert!(!put_new(&store, refused, LARGE_OCTETS, octets_held).await);
    assert!(put_new(&store, record(Lane::Scan), LARGE_OCTETS, octets_held).await);
    assert!(put_new(&store, record(Lane::Delivery), LARGE_OCTETS, octets_held).await);
    put(&store, Lane::Held, LARGE_OCTETS).await;
    let mut waiting = store
        .claim(Lane::Scan, times(0, 9), 1)
        .await
        .expect("claim")
        .swap_remove(0);
    waiting.lane = Lane::Held;
    let id = waiting.id;
    let change = Change::Replace(Box::new(waiting));
    store.change(id, change, None).await.expect("it is here");
}

/// One sender, or one client with many senders, gets at most two thirds of quarantine; the rest is for others.
#[tokio::test]
async fn one_party_cannot_fill_the_quarantine() {
    for (client, sender) in [(true, false), (false, true)] {
        let folder = folder();
        let (store, _) = relay(&folder).await;
        for n in 0..200 {
            let of = |same: bool| if same { 0 } else { n };
            let record = held_of(
                &format!("192.0.2.{}", of(client)),
                &format!("a@d{}.example", of(sender)),
            );
            put_new(&store, record, 900, 300_000).await;
        }
        let greedy = check(&folder, "flooded") as u64;
        assert!((190_000..=200_000).contains(&greedy), "{greedy}");
        let other = held_of("198.51.100.1", "o@other.example");
        assert!(put_new(&store, other, 50_000, 300_000).await);
        let held = store.held(Capacity::Octets(300_000)).await.expect("held");
        let name = match client {
            true => "client 192.0.2.0",
            false => "sender d0.example",
        };
        assert_eq!(held.limit, 300_000);
        assert_eq!(
            held.largest,
            Some(Holder {
                name: name.to_owned(),
                octets: greedy
            })
        );
    }
}

/// The metadata of a message counts: a small message to a thousand recipients is not small in the store.
#[tokio::test]
async fn the_metadata_of_a_message_counts() {
    let folder = folder();
    let (store, _) = relay(&folder).await;
    let mut long = record(Lane::Held);
    let name = |n| crate::message::Mailbox::parse(&format!("recipient-{n}@two.example"));
    long.envelope.recipients = (0..1000)
        .map(|n| name(n).expect("mailbox").into())
        .collect();
    store.put(vec![long], octets(1)).await.expect("put");
    let counted = check(&folder, "a thousand recipients");
    let db = Connection::open(database(&folder)).expect("database");
    let pages: i64 = db
        .query_row("PRAGMA page_count", [], |row| row.get(0))
        .expect("pages");
    // The pages include those of an empty store.
    let taken = pages * 4096;
    assert!(counted > 100_000, "{counted}");
    assert!(taken < 2 * counted, "{taken} octets for {counted}");
}

/// The database does not shrink, so its free pages take new mail even if other programs fill the disk. The room for the log
/// must be free.
#[test]
fn an_empty_store_takes_mail_on_a_full_disk() {
    let folder = folder();
    let free = Health::new(folder.path().to_owned(), 0).disk().spare;
    for (reserve, reusable, takes) in [
        (2 * free, 0, false),
        (2 * free, 3 * free, true),
        (8 * free, 16 * free, false),
    ] {
        let health = Health::new(folder.path().to_owned(), reserve);
        health.set_reusable(reusable);
        health.measure();
        assert_eq!(health.check().is_ok(), takes, "{reserve} {reusable}");
    }
}

/// The limit of quarantine is the configured one, or the room of the disk above twice the reserve: the reserve stays for other
/// mail.
#[test]
fn the_disk_bounds_the_quarantine() {
    let disk = health::Disk {
        size: 1_000_000,
        spare: 5000,
    };
    assert_eq!(disk.limit(Capacity::Octets(70_000), 1000), 6000);
    assert_eq!(disk.limit(Capacity::Octets(70_000), 69_000), 70_000);
    assert_eq!(disk.limit(Capacity::Percent(50), 600_000), 500_000);
    assert_eq!(disk.limit(Capacity::Percent(50), 1000), 6000);
    let folder = folder();
    let measured = |reserve| Health::new(folder.path().to_owned(), reserve).disk();
    let free = measured(0).spare;
    assert!(
        measured(free / 2 + (1 << 30)).spare == 0,
        "twice the reserve"
    );
    assert!(measured(free / 4).spare > 0);
    let health = Health::new(folder.path().to_owned(), u64::MAX / 2);
    health.set_reusable(u64::MAX);
    health.measure();
    assert!(
        health.disk().spare > 0,
        "what was removed can be used again"
    );
}
