//! The contract of [`Store`] as one test suite, for every implementation.

mod kept;
mod work;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Audit, Change, Filter, Lane, Record, Store, StoreError, Times};
use crate::message::{Content, Envelope, Mailbox, MessageId, Origin};
use crate::verdict::{
    Answer, Decision, Disposition, EngineClass, Finding, FindingKind, Reason, Report, Verdict,
};

/// The time `seconds` after a fixed start, for tests that set the clock themselves.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("a plain time")
}

/// The time is `now`, leases last until `until`, and no wait is as long as an hour.
pub(crate) fn times(now: i64, until: i64) -> Times {
    Times {
        now: at(now),
        latest: at(now + 3599),
        until: at(until),
    }
}

/// A record with a decision that is due at once.
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
        reputation: None,
        notification: None,
        instead_of: Vec::new(),
        timeouts: 0,
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
        requested_edits: Vec::new(),
        elapsed: Duration::from_millis(12),
    }
}

/// Content of `count` octets, with a different octet at each place.
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

/// Limit of the rescan lane in the stores under test.
pub(crate) const RESCAN_BYTES: u64 = 10_000;

/// Runs every law on its own store, which `fresh` creates with [`RESCAN_BYTES`].
pub(crate) async fn holds<F, S>(fresh: impl Fn() -> F)
where
    F: Future<Output = (S, Arc<dyn Store>)>,
{
    macro_rules! laws {
        ($($law:path),*) => { $( let (_keep, store) = fresh().await; $law(&*store).await; )* };
    }
    laws!(
        a_stored_message_is_read_back,
        ids_are_unique,
        a_put_is_all_or_nothing,
        work::due_records_are_claimed_once,
        work::each_next_hop_has_a_queue_of_its_own,
        work::expired_deliveries_are_claimed_to_be_given_up,
        work::a_lease_ends_with_the_next_change,
        work::a_record_in_work_is_not_claimed_at_any_time,
        work::a_clock_that_was_set_back_makes_no_record_wait,
        kept::recovery_claims_known_senders_first,
        kept::a_recovery_goes_on_behind_records_that_stay,
        kept::a_record_that_is_taken_is_leased,
        kept::a_cause_is_found_and_forgotten,
        kept::the_rescan_lane_is_bounded,
        kept::the_rescan_lane_expires,
        kept::all_expired_records_are_removed,
        kept::new_mail_is_held_while_there_is_room,
        kept::an_interceptor_changes_only_from_its_last_version,
        work::only_waiting_records_become_due,
        work::a_settlement_is_all_or_nothing,
        a_removed_record_is_not_found,
        audit_goes_with_the_change,
        one_of_two_changes_succeeds,
        search_matches_every_field,
        lanes_are_counted
    );
}

async fn a_stored_message_is_read_back(store: &dyn Store) {
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

async fn a_removed_record_is_not_found(store: &dyn Store) {
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

async fn one_of_two_changes_succeeds(store: &dyn Store) {
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
