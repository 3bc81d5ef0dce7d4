use std::sync::Arc;

use futures_util::future::join_all;
use tempfile::TempDir;

use super::export::{Format, export, mbox};
use super::stats::{Group, collect};
use super::*;
use crate::message::Content;
use crate::store::Settings as StoreSettings;
use crate::store::contract::{at, octets, record, times};
use crate::store::sqlite::{Role, SqliteStore};

const DELIVERY_TIME: Duration = Duration::from_secs(500);

async fn store() -> (TempDir, Arc<dyn Store>) {
    let folder = tempfile::tempdir().expect("folder");
    let settings = StoreSettings {
        path: folder.path().to_owned(),
        disk_reserve: 0,
        ..StoreSettings::default()
    };
    let opened = SqliteStore::open(&settings, Role::Relay).await;
    (folder, opened.expect("store").0)
}

fn act(seconds: i64) -> Act {
    Act {
        actor: "rita".to_owned(),
        at: at(seconds),
    }
}

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text).expect(text)
}

/// Puts a message into quarantine for 100 seconds.
async fn put_held(store: &dyn Store, now: i64) -> MessageId {
    let mut entry = record(Lane::Held);
    entry.due_at = at(now);
    entry.expires_at = at(now + 100);
    entry.received_at = at(now);
    entry.size = 10;
    let id = entry.id;
    store.put(vec![entry], octets(10)).await.expect("put");
    id
}

/// A released message is due at once, gets no other decision, and has the full time of a new delivery.
#[tokio::test]
async fn a_release_moves_the_message_to_delivery() {
    let (_folder, store) = store().await;
    let id = put_held(&*store, 0).await;
    let released = release(&*store, id, None, DELIVERY_TIME, &act(99))
        .await
        .expect("release");
    let due = store
        .claim(Lane::Delivery, times(99, 200), 9)
        .await
        .expect("claim");
    assert_eq!(due, [released]);
    assert!(due[0].released);
    assert_eq!(due[0].expires_at, at(599));
    let audit = store.audited(Some(id.into()), 9).await.expect("audit");
    assert_eq!(audit.len(), 1);
    assert_eq!((&*audit[0].act, &*audit[0].actor), ("release", "rita"));
    assert!(audit[0].detail.contains("Rita@two.example"));
}

/// A bounce must not tell the sender who reads quarantined mail instead of the recipient.
#[tokio::test]
async fn other_recipients_stay_unknown_to_the_sender() {
    let (_folder, store) = store().await;
    let id = put_held(&*store, 0).await;
    let own = held(&*store, id).await.expect("held").envelope.recipients;
    let to = vec![mailbox("Rita@two.example"), mailbox("audit@two.example")];
    let released = release(&*store, id, Some(to), DELIVERY_TIME, &act(1))
        .await
        .expect("release");
    let notify: Vec<_> = released
        .envelope
        .recipients
        .iter()
        .map(|to| to.notify)
        .collect();
    assert_eq!(notify, [None, Some(Notify::default())]);
    assert_eq!(released.instead_of, own, "it is theirs if it comes back");
    let nobody = put_held(&*store, 0).await;
    let refused = release(&*store, nobody, Some(Vec::new()), DELIVERY_TIME, &act(1)).await;
    assert!(matches!(refused, Err(QuarantineError::NoRecipients)));
    held(&*store, nobody).await.expect("it is still there");
}

/// If several reviewers act on one entry at once, one of them succeeds, and the others get an error.
#[tokio::test]
async fn exactly_one_reviewer_succeeds() {
    let (_folder, store) = store().await;
    let id = put_held(&*store, 0).await;
    let reviewer = act(1);
    let releases = join_all((0..8).map(|_| release(&*store, id, None, DELIVERY_TIME, &reviewer)));
    let deletes = join_all((0..8).map(|_| delete(&*store, id, &reviewer)));
    let (releases, deletes) = futures_util::future::join(releases, deletes).await;
    let outcomes: Vec<_> = releases
        .into_iter()
        .map(|release| release.map(|_| ()))
        .chain(deletes)
        .collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for outcome in outcomes.into_iter().filter(Result::is_err) {
        assert!(matches!(outcome, Err(QuarantineError::NotHeld(found)) if found == id));
    }
    assert_eq!(store.audited(None, 99).await.expect("audit").len(), 1);
}

/// Only a held message can be deleted. A message on its way to the next hop cannot.
#[tokio::test]
async fn delete_removes_held_messages_only() {
    let (_folder, store) = store().await;
    let id = put_held(&*store, 0).await;
    delete(&*store, id, &act(1)).await.expect("delete");
    assert_eq!(store.get(id).await.expect("get"), None);
    let moving = record(Lane::Delivery);
    store
        .put(vec![moving.clone()], octets(1))
        .await
        .expect("put");
    let refused = delete(&*store, moving.id, &act(1)).await;
    assert!(matches!(refused, Err(QuarantineError::NotHeld(_))));
    let refused = export(&*store, moving.id, Format::Eml, "x", &act(1)).await;
    assert!(matches!(refused, Err(QuarantineError::NotHeld(_))));
}

/// A message is removed when its retention ends and not earlier, and the audit describes the message.
#[tokio::test]
async fn a_message_expires_with_its_retention() {
    let (_folder, store) = store().await;
    let (first, second) = (put_held(&*store, 0).await, put_held(&*store, 50).await);
    store
        .put(vec![record(Lane::Delivery)], octets(1))
        .await
        .expect("put");
    let expire = async |until| {
        expire_due(&*store, at(until), at(7000))
            .await
            .expect("expire")
    };
    assert_eq!(expire(99).await, 0);
    assert_eq!(expire(100).await, 1);
    assert_eq!(store.get(first).await.expect("get"), None);
    held(&*store, second).await.expect("not yet");
    let audit = store.audited(Some(first.into()), 9).await.expect("audit");
    assert_eq!((&*audit[0].act, &*audit[0].actor), ("expire", Act::RELAY));
    assert_eq!(audit[0].at, at(7000), "the time of the act");
    assert!(
        audit[0].detail.contains("Quarterly Report"),
        "{}",
        audit[0].detail
    );
    assert_eq!(expire(100_000).await, 1);
}

/// While many messages expire, the store also writes mail whose sender waits for a 250.
#[tokio::test]
async fn fresh_mail_does_not_wait_for_expiring_mail() {
    let (_folder, store) = store().await;
    for _ in 0..300 {
        put_held(&*store, 0).await;
    }
    let fresh = async {
        let put = store.put(vec![record(Lane::Scan)], octets(3));
        put.await.expect("put");
        let [_, _, held, _] = store.stats().await.expect("stats");
        held.messages
    };
    let expired = expire_due(&*store, at(100), at(100));
    let (expired, left) = futures_util::future::join(expired, fresh).await;
    assert_eq!(expired.expect("expires"), 300);
    assert!(left > 0, "it waits for a few at most");
}

/// An .eml file is the message as it would have been delivered, and the audit has the export.
#[tokio::test]
async fn an_exported_message_is_complete() {
    let (_folder, store) = store().await;
    let id = put_held(&*store, 0).await;
    let eml = export(&*store, id, Format::Eml, "case-1.eml", &act(1))
        .await
        .expect("export");
    let mut expected = record(Lane::Held).trace.as_bytes().to_vec();
    expected.extend_from_slice(octets(10).bytes());
    assert_eq!(eml, expected);
    let audit = store.audited(Some(id.into()), 9).await.expect("audit");
    assert_eq!(
        (&*audit[0].act, &*audit[0].detail),
        ("export", "case-1.eml")
    );
}

/// A mailbox file can be split at its `From ` lines, whatever the messages contain.
#[test]
fn mbox_quotes_lines_that_look_like_a_separator() {
    let mut entry = record(Lane::Held);
    entry.trace = "Received: x\r\n".into();
    let content =
        Content::uncharged(&b"A: b\r\n\r\nFrom me\r\n>From you\r\nfrom\r\n>> From\r\nFrom end"[..]);
    let text = |entry: &Record| String::from_utf8(mbox(entry, content.bytes())).expect("text");
    assert_eq!(
        text(&entry),
        "From Sender@One.example Fri Jan 15 08:00:00 2027\nReceived: x\nA: b\n\n>From me\n>>From you\nfrom\n>> From\n>From end\n\n"
    );
    entry.envelope.reverse_path = Default::default();
    assert!(text(&entry).starts_with("From MAILER-DAEMON Fri"));
}

/// Every held message counts once in total, by rule and by age, and once for each engine concerned.
#[tokio::test]
async fn stats_count_held_messages() {
    let (_folder, store) = store().await;
    for received in [0, 0, 4000] {
        put_held(&*store, received).await;
    }
    store
        .put(vec![record(Lane::Scan)], octets(1))
        .await
        .expect("put");
    let stats = collect(&*store, at(4001)).await.expect("stats");
    let three = Group {
        messages: 3,
        octets: 30,
    };
    assert_eq!(stats.total, three);
    assert_eq!(stats.by_reason.len(), 1);
    assert_eq!(
        (&*stats.by_reason[0].name, stats.by_reason[0].group),
        ("policy.malware", three)
    );
    let engines: Vec<_> = stats.by_engine.iter().map(|named| &*named.name).collect();
    assert_eq!(
        engines,
        ["clamd", "rspamd"],
        "the engine that found, the one without answer"
    );
    let ages: Vec<_> = stats
        .by_age
        .iter()
        .map(|named| named.group.messages)
        .collect();
    assert_eq!(ages, [1, 2, 0, 0, 0]);
}
