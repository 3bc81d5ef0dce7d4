//! The contract of [`Store`] as one suite, for every implementation of it.

mod kept;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{
    Audit, Cause, Change, Filter, Lane, Outgoing, Queue, Record, Store, StoreError, Times,
};
use crate::message::{Content, Envelope, Mailbox, MessageId, Origin};
use crate::verdict::{
    Answer, Decision, Disposition, EngineClass, Finding, FindingKind, Reason, Report, Verdict,
};

/// Seconds after the beginning of time, for tests that set the clock themselves.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("a plain time")
}

/// It is `now`, leases last until `until`, and nobody waits for an hour.
pub(crate) fn times(now: i64, until: i64) -> Times {
    Times {
        now: at(now),
        latest: at(now + 3599),
        until: at(until),
    }
}

/// A record that is due at once and has been judged.
pub(crate) fn record(lane: Lane) -> Record {
    let mailbox = |text| Mailbox::parse(text).expect("mailbox");
    let id = MessageId::new();
    Record {
        id,
        message: id,
        lane,
        envelope: Envelope {
            reverse_path: mailbox("Sender@One.example").into(),
            recipients: vec![mailbox("Rita@two.example").into()],
            body: Default::default(),
            smtputf8: false,
            ret: None,
            envid: None,
            origin: Origin::local("smtp"),
        },
        trace: "Received: from a by b; now\r\n".into(),
        size: 0,
        sha256: String::new(),
        subject: "Quarterly Report".to_owned(),
        received_at: at(0),
        due_at: at(0),
        expires_at: at(1000),
        attempts: 1,
        spent: Duration::from_millis(1500),
        decision: Some(Decision {
            verdict: Verdict::Malicious,
            disposition: Disposition::Quarantine,
            rule: "policy.malware".to_owned(),
            reason: "clamd found Eicar-Test".to_owned(),
            score: 10.0,
            tag: false,
            missing: vec![("rspamd".into(), Reason::Timeout)],
            config: "cfg-1".into(),
        }),
        reports: vec![
            report(
                "clamd",
                Answer::Answered(vec![Finding::new(FindingKind::Malware, "Eicar-Test", 10.0)]),
            ),
            report("rspamd", Answer::none(Reason::Timeout, "5 s")),
            report("rules", Answer::Answered(Vec::new())),
        ],
        status: String::new(),
        released: false,
        cause: None,
        standing: None,
        notification: None,
        next_hop: "".into(),
    }
}

pub(crate) fn report(engine: &str, answer: Answer) -> Report {
    Report {
        engine: engine.into(),
        class: EngineClass::Av,
        answer,
        replica: None,
        signatures: Some("27000".to_owned()),
        attempts: 1,
        reused: None,
        wishes: Vec::new(),
        elapsed: Duration::from_millis(12),
    }
}

/// Content of so many octets, different at each place.
pub(crate) fn octets(count: usize) -> Content {
    let bytes: Vec<u8> = (0..count).map(|i| (i * 31 % 251) as u8).collect();
    Content::uncharged(bytes)
}

pub(crate) fn audit(record: MessageId, act: &str) -> Audit {
    Audit {
        at: at(5),
        actor: "rita".to_owned(),
        act: act.to_owned(),
        object: record.into(),
        detail: String::new(),
    }
}

/// Room of the rescan lane in the stores under test.
pub(crate) const RESCAN_BYTES: u64 = 10_000;

/// Runs every law on a store of its own, made by `fresh` with [`RESCAN_BYTES`].
pub(crate) async fn holds<F, S>(fresh: impl Fn() -> F)
where
    F: Future<Output = (S, Arc<dyn Store>)>,
{
    macro_rules! laws {
        ($($law:path),*) => { $( let (_keep, store) = fresh().await; $law(&*store).await; )* };
    }
    laws!(
        what_is_put_comes_back,
        ids_are_unique,
        a_put_is_all_or_nothing,
        due_work_is_handed_out_once,
        each_next_hop_has_a_queue_of_its_own,
        what_was_tried_for_long_enough_is_handed_out_to_be_given_up,
        a_lease_ends_with_the_next_change,
        what_is_worked_on_is_not_handed_out_whatever_time_it_is,
        a_clock_that_was_set_back_makes_nothing_wait,
        kept::what_waits_for_a_cause_is_handed_out_known_first,
        kept::a_recovery_goes_on_after_what_stays,
        kept::what_is_taken_is_leased,
        kept::a_cause_is_found_and_forgotten,
        kept::what_is_kept_to_be_scanned_again_is_bounded,
        kept::what_is_kept_to_be_scanned_again_expires,
        kept::what_has_expired_is_removed_to_the_last,
        kept::new_mail_is_held_while_there_is_room,
        kept::interceptors_are_kept_by_whoever_saw_the_last_change,
        only_what_waits_is_hastened,
        what_is_gone_is_not_found,
        audit_goes_with_the_change,
        one_of_two_wins,
        search_matches_every_field,
        lanes_are_counted
    );
}

async fn what_is_put_comes_back(store: &dyn Store) {
    for size in [0, 1, 5000, 300_000] {
        let records = vec![record(Lane::Scan), record(Lane::Held)];
        store.put(records.clone(), octets(size)).await.expect("put");
        for record in records {
            let found = store.get(record.id).await.expect("get").expect("record");
            assert_eq!(found, record);
            let content = store.content(record.id).await.expect("content");
            assert_eq!(&content, octets(size).bytes());
        }
    }
}

async fn ids_are_unique(store: &dyn Store) {
    for size in [10, 300_000] {
        let first = record(Lane::Scan);
        store
            .put(vec![first.clone()], octets(size))
            .await
            .expect("put");
        let again = store.put(vec![first.clone()], octets(size + 1)).await;
        again.expect_err("the id is taken");
        let content = store.content(first.id).await.expect("the first is whole");
        assert_eq!(content.len(), size);
        store
            .accepts()
            .expect("a caller's mistake is no trouble of the disk");
    }
}

async fn a_put_is_all_or_nothing(store: &dyn Store) {
    for size in [10, 300_000] {
        let (first, fresh) = (record(Lane::Scan), record(Lane::Scan));
        store
            .put(vec![first.clone()], octets(size))
            .await
            .expect("put");
        let both = vec![fresh.clone(), first.clone()];
        store
            .put(both, octets(size))
            .await
            .expect_err("one id is taken");
        assert_eq!(store.get(fresh.id).await.expect("get"), None);
        store
            .put(vec![fresh], octets(size))
            .await
            .expect("nothing of the failed put is in the way");
    }
}

async fn due_work_is_handed_out_once(store: &dyn Store) {
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

/// Mail for next hops, as (next hop, due, expires).
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

async fn each_next_hop_has_a_queue_of_its_own(store: &dyn Store) {
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
        "so far as it is free"
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

async fn what_was_tried_for_long_enough_is_handed_out_to_be_given_up(store: &dyn Store) {
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

async fn a_lease_ends_with_the_next_change(store: &dyn Store) {
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

/// A clock that is set an hour ahead ends every lease, and must not make two deliveries of one message.
async fn what_is_worked_on_is_not_handed_out_whatever_time_it_is(store: &dyn Store) {
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
    let begin = |id: &MessageId| store.at_work().begin(*id).expect("nobody works on it");
    let working: Vec<_> = ids.iter().map(begin).collect();
    assert!(store.at_work().begin(ids[0]).is_none(), "somebody does");
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

/// Of what was put down by a clock that ran ahead nothing is lost, and nothing waits until that time comes again: neither
/// what is to wait for longer than anything does, nor what is leased for longer than anything is.
async fn a_clock_that_was_set_back_makes_nothing_wait(store: &dyn Store) {
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

async fn only_what_waits_is_hastened(store: &dyn Store) {
    let hasten = async |id| store.hasten(id, at(50)).await.expect("hasten");
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
        assert_eq!(hasten(record.id).await, waits, "{lane:?}");
        if waits {
            record.due_at = at(50);
            let claimed = store.claim(lane, times(50, 60), 1).await.expect("claim");
            assert_eq!(claimed, [record.clone()], "due, and otherwise as it was");
            let leased = store.hasten(record.id, at(55)).await.expect("hasten");
            assert!(!leased, "somebody works on it");
        }
    }
    assert!(!hasten(MessageId::new()).await, "it is not there");
}

async fn what_is_gone_is_not_found(store: &dyn Store) {
    for size in [10, 300_000] {
        let record = record(Lane::Scan);
        store
            .put(vec![record.clone()], octets(size))
            .await
            .expect("put");
        store
            .change(record.id, Change::Remove, None)
            .await
            .expect("remove");
        assert_eq!(store.get(record.id).await.expect("get"), None);
        let content = store.content(record.id).await;
        assert!(matches!(content, Err(StoreError::NotFound(id)) if id == record.id));
        for change in [Change::Remove, Change::Replace(Box::new(record.clone()))] {
            let changed = store.change(record.id, change, None).await;
            assert!(matches!(changed, Err(StoreError::NotFound(id)) if id == record.id));
        }
        let again = store.put(vec![record], octets(size)).await;
        again.expect("nothing is left of it");
    }
}

async fn audit_goes_with_the_change(store: &dyn Store) {
    let record = record(Lane::Held);
    store
        .put(vec![record.clone()], octets(3))
        .await
        .expect("put");
    let export = audit(record.id, "export");
    store.audit(export.clone()).await.expect("audit");
    let delete = audit(record.id, "delete");
    let removed = store.change(record.id, Change::Remove, Some(delete.clone()));
    removed.await.expect("remove");
    let again = store
        .change(record.id, Change::Remove, Some(delete.clone()))
        .await;
    again.expect_err("it is gone");
    let of_record = store
        .audited(Some(record.id.into()), 10)
        .await
        .expect("audited");
    assert_eq!(
        of_record,
        [delete.clone(), export],
        "newest first, and nothing for the failed act"
    );
    assert_eq!(store.audited(None, 1).await.expect("audited"), [delete]);
    assert_eq!(
        store
            .audited(Some(MessageId::new().into()), 9)
            .await
            .expect("audited"),
        []
    );
}

async fn one_of_two_wins(store: &dyn Store) {
    let held = record(Lane::Held);
    store.put(vec![held.clone()], octets(3)).await.expect("put");
    let release = |actor: &str| {
        let mut record = held.clone();
        record.lane = Lane::Delivery;
        record.status = format!("released by {actor}");
        let entry = audit(held.id, "release");
        store.change_in(
            Lane::Held,
            held.id,
            Change::Replace(Box::new(record)),
            Some(entry),
        )
    };
    let (one, two) = futures_util::future::join(release("a"), release("b")).await;
    assert_eq!(usize::from(one.is_ok()) + usize::from(two.is_ok()), 1);
    let loser = one.and(two);
    assert!(matches!(loser, Err(StoreError::NotFound(id)) if id == held.id));
    let delete = store
        .change_in(Lane::Held, held.id, Change::Remove, None)
        .await;
    assert!(
        matches!(delete, Err(StoreError::NotFound(_))),
        "it is no longer held"
    );
    assert_eq!(store.audited(None, 9).await.expect("audited").len(), 1);
}

async fn search_matches_every_field(store: &dyn Store) {
    let mut wanted = record(Lane::Held);
    wanted.received_at = at(50);
    let mut other = record(Lane::Delivery);
    other.received_at = at(60);
    other.expires_at = at(2000);
    other.envelope.reverse_path = Default::default();
    let nobody = Mailbox::parse("nobody@x.example").expect("mailbox");
    other.envelope.recipients = vec![nobody.into()];
    other.subject = "ÄRGER".to_owned();
    other.decision = None;
    other.reports = Vec::new();
    store
        .put(vec![wanted.clone()], octets(100))
        .await
        .expect("put");
    store
        .put(vec![other.clone()], octets(5000))
        .await
        .expect("put");
    let find = async |filter: Filter| -> Vec<MessageId> {
        let found = store
            .search(Filter {
                limit: 10,
                ..filter
            })
            .await;
        found
            .expect("search")
            .iter()
            .map(|record| record.id)
            .collect()
    };
    let text = |text: &str| Some(text.to_owned());
    let any = Filter::default;
    assert_eq!(find(any()).await, [other.id, wanted.id], "newest first");
    assert_eq!(find(Filter { offset: 1, ..any() }).await, [wanted.id]);
    assert_eq!(
        find(Filter {
            subject: text("ärg"),
            ..any()
        })
        .await,
        [other.id]
    );
    for lanes in [
        vec![],
        vec![Lane::Held],
        vec![Lane::Held, Lane::Scan, Lane::Delivery],
    ] {
        let base = || Filter {
            lanes: lanes.clone(),
            ..any()
        };
        for (what, filter) in [
            (
                "rule",
                Filter {
                    reason: text("policy.malware"),
                    ..base()
                },
            ),
            (
                "reason",
                Filter {
                    reason: text("FOUND eicar"),
                    ..base()
                },
            ),
            (
                "engine that found",
                Filter {
                    engine: text("clamd"),
                    ..base()
                },
            ),
            (
                "engine without answer",
                Filter {
                    engine: text("Rspamd"),
                    ..base()
                },
            ),
            (
                "finding",
                Filter {
                    finding: text("eicar-t"),
                    ..base()
                },
            ),
            (
                "sender",
                Filter {
                    sender: text("sender@ONE"),
                    ..base()
                },
            ),
            (
                "recipient",
                Filter {
                    recipient: text("rita@"),
                    ..base()
                },
            ),
            (
                "subject",
                Filter {
                    subject: text("REPORT"),
                    ..base()
                },
            ),
            (
                "before",
                Filter {
                    before: Some(at(60)),
                    ..base()
                },
            ),
            (
                "size",
                Filter {
                    size: Some(100..5000),
                    ..base()
                },
            ),
            (
                "expired",
                Filter {
                    expired: Some(at(1000)),
                    ..base()
                },
            ),
        ] {
            assert_eq!(find(filter).await, [wanted.id], "{what} in {lanes:?}");
        }
        for (what, filter) in [
            (
                "part of an engine's name",
                Filter {
                    engine: text("clam"),
                    ..base()
                },
            ),
            (
                "an engine that is content",
                Filter {
                    engine: text("rules"),
                    ..base()
                },
            ),
            (
                "a wildcard is no wildcard",
                Filter {
                    sender: text("%"),
                    ..base()
                },
            ),
            (
                "not expired",
                Filter {
                    expired: Some(at(999)),
                    ..base()
                },
            ),
        ] {
            assert_eq!(find(filter).await, [], "{what} in {lanes:?}");
        }
    }
    assert_eq!(
        find(Filter {
            after: Some(at(60)),
            ..any()
        })
        .await,
        [other.id]
    );
}

async fn lanes_are_counted(store: &dyn Store) {
    let mut old = record(Lane::Held);
    old.received_at = at(-7);
    store
        .put(vec![record(Lane::Held)], octets(10))
        .await
        .expect("put");
    store.put(vec![old], octets(300_000)).await.expect("put");
    store
        .put(vec![record(Lane::Scan)], octets(5))
        .await
        .expect("put");
    store
        .put(vec![record(Lane::Rescan)], octets(6))
        .await
        .expect("put");
    let [scan, delivery, held, rescan] = store.stats().await.expect("stats");
    assert_eq!(
        (scan.messages, scan.octets, scan.oldest),
        (1, 5, Some(at(0)))
    );
    assert_eq!(store.unjudged().await.expect("count"), 1);
    assert_eq!(
        (delivery.messages, delivery.octets, delivery.oldest),
        (0, 0, None)
    );
    assert_eq!(
        (held.messages, held.octets, held.oldest),
        (2, 300_010, Some(at(-7)))
    );
    assert_eq!(
        (rescan.messages, rescan.octets, rescan.oldest),
        (1, 6, Some(at(0)))
    );
}
