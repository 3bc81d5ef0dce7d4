//! Mail for a next hop that takes nothing: what waiting costs it, and others.

use super::*;

/// A server that is not there.
async fn nobody() -> HopSettings {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    HopSettings {
        name: "dead".into(),
        domains: vec!["dead.test".to_owned()],
        kind: Kind::Smtp(smtp(address, Duration::from_secs(60))),
        ..maildir_hop()
    }
}

/// Records of mail to this domain that are to be delivered.
fn stored(pipeline: &Pipeline, to: &str, count: usize) -> Vec<Record> {
    let generation = pipeline.generation();
    let later = || End::Delivered(vec![Outcome::Deferred(answer(451))]);
    let record = |_| {
        let passed = passed(vec![(Disposition::Deliver, vec![0], later())]);
        let message = message(&[to]);
        let settled = settle::settle(&generation, &message, &Custody::Session, &passed);
        let mut record = settled.keep.into_iter().next().expect("it is kept");
        record.due_at = record.received_at;
        record
    };
    (0..count).map(record).collect()
}

/// A message that was held back has had no attempt, and keeps its place: its next hop's pace decides when it goes, and the
/// oldest goes first. One that was refused has had an attempt and waits its own time.
#[test]
fn what_is_held_back_keeps_its_place_and_its_attempts() {
    let generation = generation(Vec::new(), Budget::default());
    let message = message(&["x@b.test"]);
    let settle = |custody: &Custody, held_back| {
        let outcome = Outcome::Deferred(Answer {
            held_back,
            ..answer(451)
        });
        let end = End::Delivered(vec![outcome]);
        let passed = passed(vec![(Disposition::Deliver, vec![0], end)]);
        let settled = settle::settle(&generation, &message, custody, &passed);
        settled.keep.into_iter().next().expect("it is kept")
    };
    let refused = settle(&Custody::Session, false);
    assert_eq!((refused.attempts, &*refused.next_hop), (1, "hop"));
    assert!(refused.due_at > refused.received_at);
    let held_back = settle(&Custody::Session, true);
    assert_eq!((held_back.attempts, &*held_back.next_hop), (0, "hop"));
    assert_eq!(held_back.due_at, held_back.received_at);
    let again = settle(&Custody::Stored(Box::new(refused)), true);
    assert_eq!(
        (again.attempts, again.due_at),
        (1, held_back.due_at),
        "no attempt was made"
    );
    let refused = settle(&Custody::Stored(Box::new(again)), false);
    assert_eq!(refused.attempts, 2);
}

/// However much waits for a next hop that does not work: other mail goes out, and the rest of it is not even claimed.
#[tokio::test(start_paused = true)]
async fn a_dead_next_hop_keeps_nobody_elses_mail_waiting() {
    let store = Arc::new(Scripted::default());
    let mailboxes = tempfile::tempdir().expect("a folder");
    let path = mailboxes.path().join("{local}");
    let folder = HopSettings {
        name: "zulu".into(),
        kind: Kind::Maildir {
            path: path.to_string_lossy().into_owned(),
        },
        ..maildir_hop()
    };
    let mut generation = generation(Vec::new(), Budget::default());
    let hops = vec![nobody().await, folder];
    generation.delivery = Delivery::new(hops, None).expect("next hops");
    let (pipeline, _folder) = pipeline(generation, &store);
    let dead = stored(&pipeline, "x@dead.test", 500);
    let well = stored(&pipeline, "x@b.test", 20);
    for record in dead.into_iter().chain(well) {
        let put = store.put(vec![record], Content::uncharged("x"));
        put.await.expect("put");
    }
    let closing = tokio_util::sync::CancellationToken::new();
    tokio::spawn(Lanes::new(pipeline.clone()).run(closing.clone()));
    while store.all().iter().any(|record| &*record.next_hop == "zulu") {
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    let waiting = store.never_claimed();
    assert!(waiting >= 500 - 2 * Lanes::HOP_SLOTS, "{waiting}");
    let tried = store.all();
    assert!(!tried.is_empty());
    for record in tried {
        assert_eq!((record.attempts, record.due_at), (1, record.received_at));
    }
    closing.cancel();
}

/// Mail for a next hop that does not work is returned to its sender when its time is up, however rarely the hop is probed.
#[tokio::test(start_paused = true)]
async fn mail_for_a_dead_next_hop_is_returned_in_time() {
    let store = Arc::new(Scripted::default());
    let mut generation = generation(Vec::new(), Budget::default());
    let hops = vec![nobody().await, maildir_hop()];
    generation.delivery = Delivery::new(hops, None).expect("next hops");
    let (pipeline, _folder) = pipeline(generation, &store);
    let mut old = stored(&pipeline, "x@dead.test", 40);
    for record in &mut old {
        record.expires_at = record.received_at;
        record.due_at = record.received_at + Duration::from_secs(3600);
        record.next_hop = "not due".into();
    }
    let ids: Vec<MessageId> = old.iter().map(|record| record.id).collect();
    for record in old {
        let put = store.put(vec![record], Content::uncharged("x"));
        put.await.expect("put");
    }
    let lanes = Lanes::new(pipeline.clone());
    let giving_up = tokio::spawn(async move { lanes.give_up().await });
    while store.all().iter().any(|record| ids.contains(&record.id)) {
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    let bounces = store.all();
    assert_eq!(bounces.len(), 40, "each sender is told");
    giving_up.await.expect("it ends");
}
