//! Laws about late mail, and how it is counted: plainly, over all records.

use std::collections::BTreeMap;

use super::{at, octets, record};
use crate::store::{Cause, Failing, Lane, LateMail, LateTimes, Record, Store};
use crate::verdict::{Answer, Reason};

/// What [`Store::late`] returns for these records; a store in memory may count like this. Each record comes with whether it is
/// leased.
pub(crate) fn late_of<'a>(
    records: impl Iterator<Item = (&'a Record, bool)>,
    times: LateTimes,
) -> Vec<LateMail> {
    let mut late = BTreeMap::new();
    // Of each next hop: the first due time of a record that no worker has, late or not.
    let mut next = BTreeMap::new();
    for (record, leased) in records {
        if record.lane == Lane::Delivery && !leased {
            let first = next.entry(record.next_hop.clone());
            let first = first.or_insert(record.due_at);
            *first = record.due_at.min(*first);
        }
        let is_held = record.lane == Lane::Held && matches!(record.cause, Some(Cause::Engine(_)));
        let waits = matches!(record.lane, Lane::Scan | Lane::Delivery) || is_held;
        if !waits || record.received_at >= times.before {
            continue;
        }
        let is_plain_scan = record.lane == Lane::Scan && record.cause.is_none();
        let in_work = leased && is_plain_scan;
        let next_try =
            Some(record.due_at).filter(|due| *due > times.now && is_plain_scan && !in_work);
        let cause = record
            .cause
            .clone()
            .filter(|_| record.lane != Lane::Delivery);
        let place = [Lane::Scan, Lane::Held, Lane::Delivery];
        let place = place.iter().position(|lane| *lane == record.lane);
        let failing = Failing::of(record).filter(|_| record.lane != Lane::Delivery);
        let is_of_interceptor = matches!(cause, Some(Cause::Interceptor(_)));
        let example = Some(record.id).filter(|_| !is_of_interceptor);
        let key = (
            place,
            cause.clone(),
            failing.is_some(),
            in_work,
            next_try.is_some(),
            record.next_hop.clone(),
        );
        let mail = late.entry(key).or_insert_with(|| LateMail {
            lane: record.lane,
            next_hop: record.next_hop.clone(),
            cause,
            in_work,
            in_session: false,
            failing: failing.clone(),
            example,
            next_try,
            messages: 0,
            more: false,
            oldest: record.received_at,
        });
        mail.messages += 1;
        if record.received_at < mail.oldest {
            (mail.oldest, mail.example) = (record.received_at, example);
            mail.failing = failing;
        }
        mail.next_try = mail.next_try.into_iter().chain(next_try).min();
    }
    let mut late: Vec<LateMail> = late.into_values().collect();
    for mail in late.iter_mut().filter(|mail| mail.lane == Lane::Delivery) {
        let due = next.get(&mail.next_hop).copied();
        mail.in_work = due.is_none();
        mail.next_try = due.filter(|due| *due > times.now);
    }
    late
}

/// Late mail is counted by what it waits for; mail that is not late, and mail that waits for a reviewer, is not among it.
pub(super) async fn late_mail_is_counted_by_cause(store: &dyn Store) {
    let engine = |name: &str| Some(Cause::Engine(name.to_owned()));
    let interceptor = Some(Cause::Interceptor("01X".to_owned()));
    let of = |lane, cause: &Option<Cause>, hop: &str, received, due| Record {
        cause: cause.clone(),
        next_hop: hop.into(),
        received_at: at(received),
        due_at: at(due),
        ..record(lane)
    };
    let mail = [
        (of(Lane::Scan, &engine("a"), "", 5, 999), false),
        (of(Lane::Scan, &engine("a"), "", 3, 1), false),
        (of(Lane::Scan, &engine("b"), "", 4, 1), true),
        (of(Lane::Scan, &engine("b"), "", 100, 1), false),
        (of(Lane::Scan, &interceptor, "", 6, 1), false),
        (of(Lane::Scan, &None, "", 7, 1), false),
        (of(Lane::Scan, &None, "", 8, 1), true),
        (of(Lane::Scan, &None, "", 9, 300), false),
        (of(Lane::Scan, &None, "", 2, 200), false),
        (of(Lane::Held, &engine("a"), "", 1, 1), false),
        (of(Lane::Held, &interceptor, "", 1, 1), false),
        (of(Lane::Held, &None, "", 1, 1), false),
        (of(Lane::Rescan, &engine("a"), "", 1, 1), false),
        (of(Lane::Delivery, &None, "due", 10, 300), false),
        (of(Lane::Delivery, &None, "due", 11, 90), false),
        (of(Lane::Delivery, &None, "later", 12, 300), false),
        (of(Lane::Delivery, &None, "later", 13, 1), true),
        (of(Lane::Delivery, &None, "taken", 14, 1), true),
        (of(Lane::Delivery, &None, "young", 100, 1), false),
        (of(Lane::Delivery, &None, "", 15, 1), false),
    ];
    for (record, leased) in &mail {
        let put = match leased {
            true => store.put_leased(vec![record.clone()], octets(3), at(500)),
            false => store.put(vec![record.clone()], octets(3)),
        };
        put.await.expect("put");
    }
    let times = LateTimes {
        now: at(100),
        before: at(40),
    };
    let late = store.late(times).await.expect("counted");
    let expected = late_of(mail.iter().map(|(record, leased)| (record, *leased)), times);
    let sorted = |mut late: Vec<LateMail>| {
        late.sort_by_key(|mail| mail.oldest);
        late
    };
    // Any message of those without a cause may be the example.
    let comparable = |late: Vec<LateMail>| {
        let mut late = sorted(late);
        for mail in late.iter_mut().filter(|mail| mail.cause.is_none()) {
            assert!(mail.example.take().is_some());
        }
        late
    };
    let late = comparable(late);
    assert_eq!(late, comparable(expected));
    let shown = late.iter().map(|mail| {
        let try_at = mail.next_try.map(|at| at.as_second());
        (mail.oldest, mail.messages, mail.in_work, try_at)
    });
    let second = |seconds| Some(at(seconds).as_second());
    assert_eq!(
        shown.collect::<Vec<_>>(),
        [
            (at(1), 1, false, None),
            (at(2), 2, false, second(200)),
            (at(3), 2, false, None),
            (at(4), 1, false, None),
            (at(6), 1, false, None),
            (at(7), 1, false, None),
            (at(8), 1, true, None),
            (at(10), 2, false, None),
            (at(12), 2, false, second(300)),
            (at(14), 1, true, None),
            (at(15), 1, false, None),
        ]
    );
}

/// Mail that an engine answers with an error at each try is counted apart from mail that waits for the engine: the first stays
/// until a person acts, the second goes by itself.
pub(super) async fn mail_on_which_an_engine_fails_is_counted_apart(store: &dyn Store) {
    let of = |lane, reason, attempts: u32, received| {
        let mut record = Record {
            cause: Some(Cause::Engine("a".to_owned())),
            received_at: at(received),
            attempts,
            ..record(lane)
        };
        record.reports.truncate(1);
        record.reports[0].engine = "a".into();
        record.reports[0].answer = Answer::none(reason, "Can't allocate memory");
        if lane == Lane::Held {
            record.decision.as_mut().expect("decided").rule = "budget.deferral".to_owned();
        }
        record
    };
    let failed = of(Lane::Scan, Reason::EngineError, 3, 5);
    let held = of(Lane::Held, Reason::Garbage, 1, 6);
    let mail = [
        failed.clone(),
        of(Lane::Scan, Reason::Disconnected, 9, 7),
        of(Lane::Scan, Reason::EngineError, 2, 1),
        of(Lane::Scan, Reason::BreakerOpen, 9, 2),
        of(Lane::Scan, Reason::Busy, 9, 3),
        held.clone(),
        of(Lane::Held, Reason::Drained, 1, 4),
    ];
    for record in &mail {
        let put = store.put(vec![record.clone()], octets(3));
        put.await.expect("put");
    }
    let times = LateTimes {
        now: at(100),
        before: at(40),
    };
    let mut late = store.late(times).await.expect("counted");
    late.sort_by_key(|mail| mail.oldest);
    let shown = late.iter().map(|mail| {
        let words = mail.failing.as_ref().map(Failing::words);
        (mail.lane, mail.messages, words.unwrap_or_default())
    });
    let words = |text: &str| text.to_owned();
    assert_eq!(
        shown.collect::<Vec<_>>(),
        [
            (Lane::Scan, 3, words("")),
            (Lane::Held, 1, words("")),
            (
                Lane::Scan,
                2,
                words("3 tries, engine-error: Can't allocate memory")
            ),
            (Lane::Held, 1, words("garbage: Can't allocate memory")),
        ]
    );
    assert_eq!(late[2].example, Some(failed.id));
    assert_eq!(
        late[2].failing.as_ref().and_then(|failing| failing.held_at),
        Some(failed.expires_at)
    );
    assert_eq!(late[3].example, Some(held.id));
    let all = late_of(mail.iter().map(|record| (record, false)), times);
    let messages = |late: &[LateMail]| late.iter().map(|mail| mail.messages).sum::<u64>();
    assert_eq!(messages(&late), messages(&all));
}
