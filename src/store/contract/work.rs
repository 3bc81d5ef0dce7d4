//! Laws about claims: which records, for which worker, and for how long.

use super::{at, octets, record, times};
use crate::message::MessageId;
use crate::store::{Cause, Change, Lane, Outgoing, Queue, Record, Store, StoreError};

pub(super) async fn due_records_are_claimed_once(store: &dyn Store) {
    let mut ids = Vec::new();
    for due in [30, 10, 20, 99] {
        let mut record = record(Lane::Delivery);
        record.due_at = at(due);
        ids.push(record.id);
        store.put(vec![record], octets(3)).await.expect("put");
    }
    let mut other = record(Lane::Scan);
    other.due_at = at(1);
    store.put(vec![other], octets(3)).await.expect("put");
    let claim = async |now, until, limit| -> Vec<MessageId> {
        let found = store.claim(Lane::Delivery, times(now, until), limit).await;
        found
            .expect("claim")
            .iter()
            .map(|record| record.id)
            .collect()
    };
    assert_eq!(claim(9, 100, 10).await, [], "nothing is due");
    assert_eq!(claim(30, 60, 2).await, [ids[1], ids[2]], "oldest due first");
    assert_eq!(
        claim(30, 70, 10).await,
        [ids[0]],
        "leased ones are not handed out"
    );
    assert_eq!(claim(59, 90, 10).await, [], "leases hold until their end");
    assert_eq!(claim(60, 90, 10).await, [ids[1], ids[2]], "and end by time");
}

/// Stores mail for next hops, each as (next hop, due, expires).
async fn outgoing(store: &dyn Store, mail: &[(&str, i64, i64)]) -> Vec<MessageId> {
    let mut ids = Vec::new();
    for (next_hop, due, expires) in mail {
        let mut record = record(Lane::Delivery);
        record.next_hop = (*next_hop).into();
        record.due_at = at(*due);
        record.expires_at = at(*expires);
        ids.push(record.id);
        store.put(vec![record], octets(3)).await.expect("put");
    }
    ids
}

async fn claim(store: &dyn Store, what: Outgoing, now: i64, limit: usize) -> Vec<MessageId> {
    let claimed = store.claim_outgoing(what, times(now, now + 50), limit);
    let claimed = claimed.await.expect("claim");
    claimed.iter().map(|record| record.id).collect()
}

pub(super) async fn each_next_hop_has_a_queue_of_its_own(store: &dyn Store) {
    let mail = [
        ("slow", 1, 900),
        ("well", 30, 900),
        ("slow", 2, 900),
        ("", 40, 900),
        ("well", 20, 900),
    ];
    let ids = outgoing(store, &mail).await;
    let mut scan = record(Lane::Scan);
    scan.next_hop = "none".into();
    store.put(vec![scan], octets(3)).await.expect("put");
    let to = |name: &str| Outgoing::To(name.into());
    let queues = async |now| store.queues(times(now, now + 50)).await.expect("queues");
    let queue = |next_hop: &str, first, last| Queue {
        next_hop: next_hop.into(),
        first: at(first),
        last: at(last),
    };
    let (none, slow, well) = (
        queue("", 40, 40),
        queue("slow", 1, 2),
        queue("well", 20, 30),
    );
    assert_eq!(queues(0).await, [none.clone(), slow.clone(), well]);
    assert_eq!(claim(store, to("well"), 40, 9).await, [ids[4], ids[1]]);
    assert_eq!(queues(40).await, [none, slow], "leased");
    assert_eq!(claim(store, to("slow"), 40, 1).await, [ids[0]], "oldest");
    assert_eq!(
        queues(40).await[1],
        queue("slow", 2, 2),
        "without the leased record"
    );
    assert_eq!(claim(store, to("slow"), 40, 9).await, [ids[2]], "once");
    assert_eq!(claim(store, to(""), 40, 9).await, [ids[3]]);
    assert_eq!(claim(store, to("none"), 40, 9).await, [], "another lane");
    let mut moved = store.get(ids[0]).await.expect("get").expect("record");
    assert_eq!(&*moved.next_hop, "slow");
    moved.next_hop = "well".into();
    let change = Change::Replace(Box::new(moved));
    store.change(ids[0], change, None).await.expect("change");
    let moved = queues(40).await;
    assert_eq!(moved, [queue("well", 1, 1)], "it has another queue now");
}

pub(super) async fn expired_deliveries_are_claimed_to_be_given_up(store: &dyn Store) {
    let mail = [("a", 500, 30), ("b", 1, 20), ("a", 1, 40), ("b", 500, 31)];
    let ids = outgoing(store, &mail).await;
    let mut held = record(Lane::Held);
    held.expires_at = at(1);
    store.put(vec![held], octets(3)).await.expect("put");
    let claim = async |now, limit| claim(store, Outgoing::GivenUp(at(now)), 0, limit).await;
    assert_eq!(claim(19, 9).await, []);
    assert_eq!(claim(30, 1).await, [ids[1]], "the longest expired first");
    assert_eq!(claim(31, 9).await, [ids[0], ids[3]], "due or not");
    assert_eq!(claim(31, 9).await, [], "leased");
}

pub(super) async fn a_lease_ends_with_the_next_change(store: &dyn Store) {
    let mut record = record(Lane::Scan);
    store
        .put_leased(vec![record.clone()], octets(3), at(500))
        .await
        .expect("put");
    let claim = async |lane, now| {
        let found = store.claim(lane, times(now, 900), 10).await;
        found.expect("claim").len()
    };
    assert_eq!(claim(Lane::Scan, 499).await, 0, "leased from the start");
    record.lane = Lane::Delivery;
    record.due_at = at(300);
    let change = Change::Replace(Box::new(record.clone()));
    store.change(record.id, change, None).await.expect("change");
    assert_eq!(claim(Lane::Delivery, 299).await, 0);
    assert_eq!(
        claim(Lane::Delivery, 300).await,
        1,
        "the lease is over, the record due"
    );
    assert_eq!(claim(Lane::Scan, 999).await, 0, "it has left the lane");
    let content = store.content(record.id).await.expect("content");
    assert_eq!(content.len(), 3, "a change keeps the content");
}

/// A clock that is set an hour ahead ends every lease, but must not cause two deliveries of one message.
pub(super) async fn a_record_in_work_is_not_claimed_at_any_time(store: &dyn Store) {
    let cause = Cause::Engine("clamd".to_owned());
    let mut ids = Vec::new();
    for (lane, next_hop) in [
        (Lane::Scan, ""),
        (Lane::Delivery, "hop"),
        (Lane::Held, ""),
        (Lane::Rescan, ""),
    ] {
        let mut record = record(lane);
        record.cause = Some(cause.clone());
        record.next_hop = next_hop.into();
        ids.push(record.id);
        store.put(vec![record], octets(3)).await.expect("put");
    }
    let to = || Outgoing::To("hop".into());
    let hand_out = async |now: i64| -> Vec<MessageId> {
        let times = times(now, now + 60);
        let mut found = store.claim(Lane::Scan, times, 9).await.expect("claim");
        let outgoing = store.claim_outgoing(to(), times, 9).await;
        found.extend(outgoing.expect("claim"));
        for lane in [Lane::Held, Lane::Rescan] {
            let recover = store.recover(lane, cause.clone(), None, times, 9);
            found.extend(recover.await.expect("recover"));
        }
        found.iter().map(|record| record.id).collect()
    };
    assert_eq!(hand_out(0).await, ids);
    let begin = |id: &MessageId| {
        store
            .at_work()
            .begin(*id)
            .expect("the record is not in work")
    };
    let working: Vec<_> = ids.iter().map(begin).collect();
    assert!(
        store.at_work().begin(ids[0]).is_none(),
        "the record is in work"
    );
    assert_eq!(hand_out(3600).await, [], "an hour ahead");
    let given_up = store.claim_outgoing(Outgoing::GivenUp(at(5000)), times(5000, 5060), 9);
    assert_eq!(given_up.await.expect("claim"), [], "not even a last time");
    let mut other = record(Lane::Scan);
    other.due_at = at(1);
    store
        .put(vec![other.clone()], octets(3))
        .await
        .expect("put");
    let next = store.claim(Lane::Scan, times(3600, 3660), 1).await;
    assert_eq!(next.expect("claim"), [other], "what is behind it is");
    drop(working);
    assert_eq!(hand_out(3600).await, ids, "the work has ended");
}

/// If the clock is set back, no record that was stored before waits until the earlier time comes again: neither a record with
/// a due time beyond every wait, nor a record with a lease beyond every lease.
pub(super) async fn a_clock_that_was_set_back_makes_no_record_wait(store: &dyn Store) {
    let day = 86_400;
    let mail = [
        ("a", day, 2 * day),
        ("a", 3600, day),
        ("a", 3599, day),
        ("b", 3599, day),
        ("b", day, day),
    ];
    let ids = outgoing(store, &mail).await;
    let mut scan = record(Lane::Scan);
    scan.due_at = at(day);
    let leased = store.put_leased(vec![scan.clone()], octets(3), at(day + 60));
    leased.await.expect("put");
    let queues = store.queues(times(0, 60)).await.expect("queues");
    let ends: Vec<_> = queues.iter().map(|q| (q.first, q.last)).collect();
    assert_eq!(ends, [(at(3599), at(day)); 2]);
    let to = |name: &str| Outgoing::To(name.into());
    assert_eq!(claim(store, to("a"), 0, 1).await, [ids[1]], "nearest first");
    assert_eq!(claim(store, to("a"), 0, 9).await, [ids[0]]);
    assert_eq!(claim(store, to("b"), 0, 9).await, [ids[4]]);
    let claimed = store.claim(Lane::Scan, times(0, 60), 9).await;
    assert_eq!(claimed.expect("claim"), [scan.clone()]);
    let again = store.claim(Lane::Scan, times(1, 61), 9).await;
    assert_eq!(again.expect("claim"), [], "under a lease of this clock");
}

pub(super) async fn only_waiting_records_become_due(store: &dyn Store) {
    let make_due = async |id| store.make_due(id, at(50)).await.expect("hasten");
    for (lane, waits) in [
        (Lane::Scan, true),
        (Lane::Delivery, true),
        (Lane::Held, false),
        (Lane::Rescan, false),
    ] {
        let mut record = record(lane);
        record.due_at = at(99);
        let put = store.put(vec![record.clone()], octets(3));
        put.await.expect("put");
        assert_eq!(make_due(record.id).await, waits, "{lane:?}");
        if waits {
            record.due_at = at(50);
            let claimed = store.claim(lane, times(50, 60), 1).await.expect("claim");
            assert_eq!(claimed, [record.clone()], "due, and otherwise unchanged");
            let leased = store.make_due(record.id, at(55)).await.expect("hasten");
            assert!(!leased, "the record is leased");
        }
    }
    assert!(!make_due(MessageId::new()).await, "it is not there");
}

/// A change and the records beside it are one transaction, with separate content for each. Nothing is stored if the record
/// does not exist in the lane, or if an id is in use.
pub(super) async fn a_settlement_is_all_or_nothing(store: &dyn Store) {
    for size in [10, 300_000] {
        let first = record(Lane::Scan);
        store
            .put(vec![first.clone()], octets(size))
            .await
            .expect("put");
        let delivered = Record {
            lane: Lane::Delivery,
            ..first.clone()
        };
        let (other, bounce) = (record(Lane::Delivery), record(Lane::Delivery));
        let beside = || vec![(other.clone(), octets(size)), (bounce.clone(), octets(20))];
        let replace = || Change::Replace(Box::new(delivered.clone()));
        let settle = |lane, change, beside| store.settle(lane, first.id, change, beside);
        let elsewhere = settle(Lane::Held, replace(), beside()).await;
        assert!(matches!(elsewhere, Err(StoreError::NotFound(_))));
        let there = record(Lane::Scan);
        store
            .put(vec![there.clone()], octets(1))
            .await
            .expect("put");
        let mut taken = beside();
        taken.push((there, octets(1)));
        settle(Lane::Scan, replace(), taken)
            .await
            .expect_err("a name is taken");
        assert_eq!(store.get(other.id).await.expect("get"), None);
        assert_eq!(store.get(first.id).await.expect("get"), Some(first.clone()));
        settle(Lane::Scan, replace(), beside())
            .await
            .expect("parts");
        for (record, size) in [(&delivered, size), (&other, size), (&bounce, 20)] {
            assert_eq!(
                store.get(record.id).await.expect("get").as_ref(),
                Some(record)
            );
            let content = store.content(record.id).await.expect("content");
            assert_eq!(&content, octets(size).bytes());
        }
        let last = record(Lane::Delivery);
        let beside = vec![(last.clone(), octets(30))];
        settle(Lane::Delivery, Change::Remove, beside)
            .await
            .expect("goes");
        assert_eq!(store.get(first.id).await.expect("get"), None);
        assert_eq!(store.get(last.id).await.expect("get"), Some(last));
        settle(Lane::Delivery, Change::Remove, Vec::new())
            .await
            .expect_err("gone");
    }
}
