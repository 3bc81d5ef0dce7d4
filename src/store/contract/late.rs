//! Laws about late mail, and how it is counted: plainly, over all records.

use std::collections::BTreeMap;

use super::{at, octets, record};
use crate::store::{Cause, Lane, LateMail, LateTimes, Record, Store};

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
        let key = (
            place,
            cause.clone(),
            in_work,
            next_try.is_some(),
            record.next_hop.clone(),
        );
        let mail = late.entry(key).or_insert_with(|| LateMail {
            lane: record.lane,
            next_hop: record.next_hop.clone(),
            cause,
            in_work,
            next_try,
            messages: 0,
            more: false,
            oldest: record.received_at,
        });
        mail.messages += 1;
        mail.oldest = mail.oldest.min(record.received_at);
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
    let late = sorted(late);
    assert_eq!(late, sorted(expected));
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
