//! Laws about the records that the guard keeps: mail by its cause, the rescan lane, interceptors.

use super::{RESCAN_BYTES, at, audit, octets, record, times};
use crate::message::{MessageId, SenderReputation};
use crate::store::{
    Audit, Capacity, Cause, Change, Filter, INTERCEPTORS_MAX, Lane, Object, Record, Store,
    StoreError, StoredInterceptor, SweepPosition, expire, expire_rescans,
};

pub(super) async fn recovery_claims_known_senders_first(store: &dyn Store) {
    let clamd = || Cause::Engine("clamd".to_owned());
    let mut ids = Vec::new();
    for (received, reputation) in [
        (30, None),
        (10, Some(SenderReputation::Unknown)),
        (40, Some(SenderReputation::Known)),
        (20, Some(SenderReputation::Known)),
    ] {
        let mut held = record(Lane::Held);
        held.received_at = at(received);
        held.due_at = at(9999);
        held.cause = Some(clamd());
        held.reputation = reputation;
        ids.push(held.id);
        store.put(vec![held], octets(3)).await.expect("put");
    }
    let others = [
        (Lane::Held, None),
        (Lane::Held, Some(Cause::Interceptor("clamd".to_owned()))),
        (Lane::Scan, Some(clamd())),
    ];
    for (lane, cause) in others {
        let mut other = record(lane);
        other.cause = cause;
        store.put(vec![other], octets(3)).await.expect("put");
    }
    let causes = store.causes().await.expect("causes");
    assert_eq!(causes, [Cause::Interceptor("clamd".to_owned()), clamd()]);
    let recover = async |now, until, limit| -> Vec<MessageId> {
        let found = store.recover(Lane::Held, clamd(), None, times(now, until), limit);
        let found = found.await.expect("recover");
        found.iter().map(|record| record.id).collect()
    };
    assert_eq!(
        recover(50, 100, 3).await,
        [ids[3], ids[2], ids[1]],
        "known senders first, then by age, due or not"
    );
    assert_eq!(recover(50, 100, 3).await, [ids[0]], "the rest, once");
    assert_eq!(recover(99, 200, 9).await, [], "leases hold");
    let mut clean = store.get(ids[3]).await.expect("get").expect("record");
    clean.lane = Lane::Delivery;
    clean.cause = None;
    let change = Change::Replace(Box::new(clean));
    let settled = store.change_in(Lane::Held, ids[3], change, None);
    settled.await.expect("a lease does not stop a reviewer");
    assert_eq!(
        recover(100, 200, 9).await,
        [ids[2], ids[1], ids[0]],
        "what was not settled is handed out again when its lease ends"
    );
    let scan = store
        .recover(Lane::Scan, clamd(), None, times(0, 1), 9)
        .await;
    assert_eq!(scan.expect("recover").len(), 1, "every lane for itself");
}

/// In one sweep over a backlog, each record is claimed once, whether it was changed or not.
pub(super) async fn a_recovery_goes_on_behind_records_that_stay(store: &dyn Store) {
    let clamd = || Cause::Engine("clamd".to_owned());
    let mut ids = Vec::new();
    for (received, reputation) in [
        (10, None),
        (20, Some(SenderReputation::Known)),
        (20, Some(SenderReputation::Known)),
        (30, Some(SenderReputation::Known)),
        (10, Some(SenderReputation::Unknown)),
        (40, None),
    ] {
        let mut held = record(Lane::Held);
        held.received_at = at(received);
        held.cause = Some(clamd());
        held.reputation = reputation;
        ids.push(held.id);
        store.put(vec![held], octets(3)).await.expect("put");
    }
    let (mut place, mut met, mut left) = (None, Vec::new(), ids.clone());
    for _ in &ids {
        let found = store.recover(Lane::Held, clamd(), place, times(50, 60), 1);
        let [stays] = &found.await.expect("recover")[..] else {
            panic!("after {met:?} nothing more");
        };
        place = Some(SweepPosition::of(stays));
        met.push((SweepPosition::of(stays).known, stays.received_at));
        let change = Change::Replace(Box::new(stays.clone()));
        let put_back = store.change_in(Lane::Held, stays.id, change, None);
        put_back.await.expect("put back");
        left.retain(|id| *id != stays.id);
    }
    assert_eq!(left, [], "every one is met");
    let wanted = [
        (true, 20),
        (true, 20),
        (true, 30),
        (false, 10),
        (false, 10),
        (false, 40),
    ];
    assert_eq!(met, wanted.map(|(known, received)| (known, at(received))));
    let end = store.recover(Lane::Held, clamd(), place, times(50, 60), 9);
    assert_eq!(end.await.expect("recover"), [], "that was all");
    let again = store.recover(Lane::Held, clamd(), None, times(50, 60), 9);
    assert_eq!(again.await.expect("recover").len(), 6, "all are there");
}

/// A worker that takes a record out of quarantine keeps it: the record cannot be made due, and no lane returns it at the same
/// time.
pub(super) async fn a_record_that_is_taken_is_leased(store: &dyn Store) {
    let mut taken = record(Lane::Held);
    store
        .put(vec![taken.clone()], octets(3))
        .await
        .expect("put");
    taken.lane = Lane::Scan;
    taken.due_at = at(1);
    let change = || Change::Take(Box::new(taken.clone()), at(100));
    let take = async || store.change_in(Lane::Held, taken.id, change(), None).await;
    take().await.expect("take");
    take().await.expect_err("it is no longer held");
    let claim = async |now| store.claim(Lane::Scan, times(now, 200), 9).await;
    assert_eq!(claim(99).await.expect("claim"), [], "leased");
    assert!(!store.make_due(taken.id, at(50)).await.expect("hasten"));
    assert_eq!(claim(100).await.expect("claim"), [taken.clone()], "by time");
}

pub(super) async fn a_cause_is_found_and_forgotten(store: &dyn Store) {
    let cause = Cause::Interceptor("01KAJ".to_owned());
    let mut held = record(Lane::Held);
    held.cause = Some(cause.clone());
    store.put(vec![held.clone()], octets(3)).await.expect("put");
    let without = record(Lane::Held);
    store.put(vec![without], octets(3)).await.expect("put");
    let find = async |lanes: &[Lane]| -> Vec<Record> {
        let filter = Filter {
            lanes: lanes.to_vec(),
            cause: Some(cause.clone()),
            limit: 9,
            ..Filter::default()
        };
        store.search(filter).await.expect("search")
    };
    for lanes in [&[][..], &[Lane::Held], &[Lane::Scan, Lane::Held]] {
        assert_eq!(find(lanes).await, [held.clone()], "{lanes:?}");
    }
    assert_eq!(find(&[Lane::Scan]).await, []);
    held.cause = None;
    let change = Change::Replace(Box::new(held.clone()));
    store.change(held.id, change, None).await.expect("change");
    assert_eq!(find(&[]).await, [], "it is held for something else now");
}

/// A record of the rescan lane.
fn delivered(expires: i64) -> Record {
    let mut record = record(Lane::Rescan);
    record.expires_at = at(expires);
    record
}

async fn octets_of_rescans(store: &dyn Store) -> u64 {
    let [.., rescan] = store.stats().await.expect("stats");
    rescan.octets
}

pub(super) async fn the_rescan_lane_is_bounded(store: &dyn Store) {
    let mut ids = Vec::new();
    for (expires, size) in [(30, 4000), (10, 500), (20, 4000)] {
        let record = delivered(expires);
        ids.push(record.id);
        store.put(vec![record], octets(size)).await.expect("put");
    }
    let left = async || {
        let mut left = Vec::new();
        for (index, id) in ids.iter().enumerate() {
            if store.get(*id).await.expect("get").is_some() {
                left.push(index);
            }
        }
        left
    };
    assert_eq!(left().await, [0, 1, 2], "there is room");
    let fourth = delivered(40);
    let put = store.put(vec![fourth.clone()], octets(2000));
    put.await.expect("put");
    assert_eq!(left().await, [0, 2], "what expires first gave way");
    assert_eq!(octets_of_rescans(store).await, 10_000, "and no more");
    assert_eq!(room(store).await, 0, "more than half of it is taken");
    let mut waiting = record(Lane::Scan);
    let put = store.put(vec![waiting.clone()], octets(3000));
    put.await.expect("put");
    assert_eq!(left().await, [0, 2], "other lanes have their own room");
    waiting.lane = Lane::Rescan;
    waiting.expires_at = at(50);
    let change = Change::Replace(Box::new(waiting.clone()));
    store
        .change(waiting.id, change, None)
        .await
        .expect("change");
    assert_eq!(left().await, [0], "a message may come from another lane");
    store
        .change(fourth.id, Change::Remove, None)
        .await
        .expect("remove");
    let large = delivered(60);
    let put = store.put(vec![large.clone()], octets(10_001));
    put.await.expect("more than the lane holds is no error");
    assert_eq!(store.get(large.id).await.expect("get"), None);
    assert_eq!(octets_of_rescans(store).await, 0, "everything gave way");
    assert_eq!(room(store).await, RESCAN_BYTES / 2);
    let small = delivered(70);
    let put = store.put(vec![small], octets(1000));
    put.await.expect("put");
    assert_eq!(room(store).await, RESCAN_BYTES / 2 - 1000);
}

async fn room(store: &dyn Store) -> u64 {
    store.rescan_room().await.expect("room")
}

pub(super) async fn the_rescan_lane_expires(store: &dyn Store) {
    let (old, young, mut held) = (delivered(10), delivered(11), record(Lane::Held));
    held.expires_at = at(0);
    for record in [&old, &young, &held] {
        let put = store.put(vec![record.clone()], octets(3));
        put.await.expect("put");
    }
    let expired = expire_rescans(store, at(10)).await;
    assert_eq!(expired.expect("expires"), 1);
    assert_eq!(store.get(old.id).await.expect("get"), None);
    for kept in [young.id, held.id] {
        assert!(store.get(kept).await.expect("get").is_some());
    }
}

pub(super) async fn all_expired_records_are_removed(store: &dyn Store) {
    let mut ids = Vec::new();
    for n in 0..300 {
        let mut held = record(Lane::Held);
        held.expires_at = at(n % 3);
        ids.push(held.id);
        store.put(vec![held], octets(3)).await.expect("put");
    }
    let entry = |record: &Record| Some(audit(record.id, "expire"));
    let expired = expire(store, Lane::Held, at(1), entry, |_| ()).await;
    assert_eq!(expired.expect("expires"), 200, "all of them, and no other");
    for (n, id) in ids.into_iter().enumerate() {
        let acts = store.audited(Some(id.into()), 9).await.expect("audited");
        let expected = if n % 3 < 2 {
            vec![audit(id, "expire")]
        } else {
            vec![]
        };
        assert_eq!(acts, expected);
        assert_eq!(store.get(id).await.expect("get").is_some(), n % 3 == 2);
    }
}

pub(super) async fn new_mail_is_held_while_there_is_room(store: &dyn Store) {
    let put_new = async |lane, size| {
        let quarantine = Capacity::Octets(50_000);
        let put = store.put_new(vec![record(lane)], octets(size), quarantine);
        put.await
    };
    put_new(Lane::Held, 20_000).await.expect("there is room");
    let refused = put_new(Lane::Held, 40_000).await;
    assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    put_new(Lane::Scan, 40_000).await.expect("it is not held");
    let here = store.put(vec![record(Lane::Held)], octets(40_000)).await;
    here.expect("stored mail has no limit");
    let held = store.held(Capacity::Octets(50_000)).await.expect("held");
    assert!(held.octets >= 60_000 && held.limit <= 50_000, "{held:?}");
    store.accepts().expect("other mail is taken");
}

fn interceptor(id: &str, version: u64, body: &str) -> StoredInterceptor {
    StoredInterceptor {
        id: id.to_owned(),
        version,
        body: body.to_owned(),
    }
}

pub(super) async fn an_interceptor_changes_only_from_its_last_version(store: &dyn Store) {
    let list = async |known| {
        let found = store.interceptors(known).await.expect("interceptors");
        found.map(|found| (found.version, found.all))
    };
    let keep = async |wanted: &StoredInterceptor| {
        let kept = store.keep_interceptor(wanted.clone(), None).await;
        kept.expect("keep")
    };
    let (start, none) = list(None).await.expect("a first look");
    assert_eq!(none, []);
    assert_eq!(list(Some(start)).await, None, "nothing has changed");

    let act = |act: &str| Audit {
        object: Object::Interceptor("b".to_owned()),
        ..audit(MessageId::new(), act)
    };
    let new = interceptor("b", 0, "{\"made\":1}");
    let made = store.keep_interceptor(new.clone(), Some(act("add"))).await;
    let made = made.expect("keep").expect("added");
    assert_eq!(keep(&new).await, None, "it is there already");
    let other = keep(&interceptor("a", 0, "{}")).await.expect("added");
    let (version, all) = list(Some(start)).await.expect("changed");
    let (a, b) = (
        interceptor("a", other, "{}"),
        interceptor("b", made, &new.body),
    );
    assert_eq!(all, [a.clone(), b.clone()]);
    assert_eq!(version, other, "a version is that of the latest change");

    let changed = interceptor("b", made, "{\"made\":1,\"hits\":2}");
    let newer = keep(&changed).await.expect("changed");
    assert!(newer > version);
    assert_eq!(
        keep(&changed).await,
        None,
        "another process changed it meanwhile"
    );
    let removed = store.drop_interceptor("b".to_owned(), Some(act("remove")));
    assert!(removed.await.expect("removes"));
    let gone = interceptor("b", newer, &changed.body);
    assert_eq!(
        keep(&gone).await,
        None,
        "what a person removed does not come back"
    );
    let again = store.drop_interceptor("b".to_owned(), Some(act("remove")));
    assert!(!again.await.expect("nothing to do"));
    let (after, all) = list(Some(newer)).await.expect("a removal is a change");
    assert_eq!(all, [a]);
    assert_eq!(list(Some(after)).await, None);
    let object = Object::Interceptor("b".to_owned());
    let acts = store.audited(Some(object), 9).await.expect("audited");
    assert_eq!(
        acts,
        [act("remove"), act("add")],
        "what was not done is not audited"
    );

    for n in 1..INTERCEPTORS_MAX {
        keep(&interceptor(&format!("{n:04}"), 0, "{}"))
            .await
            .expect("room");
    }
    let one_more = store
        .keep_interceptor(interceptor("z", 0, "{}"), None)
        .await;
    assert!(matches!(one_more, Err(StoreError::Full(_))), "{one_more:?}");
    let (_, all) = list(None).await.expect("all");
    assert_eq!(all.len(), INTERCEPTORS_MAX);
    let there = interceptor("a", other, "{\"hits\":1}");
    keep(&there).await.expect("a change takes no room");
}
