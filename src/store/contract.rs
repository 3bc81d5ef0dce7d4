//! The contract of [`Store`] as one test suite, for every implementation.

mod kept;
mod late;
mod samples;
mod search;
mod work;

use std::future::Future;
use std::sync::Arc;

pub(crate) use self::late::late_of;
pub(crate) use self::samples::{at, audit, octets, record, report, times};
use super::{Change, Lane, Store, StoreError};
use crate::message::MessageId;

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
        search::search_matches_every_field,
        search::lanes_are_counted,
        search::the_oldest_message_of_each_next_hop_is_known,
        late::late_mail_is_counted_by_cause,
        late::mail_on_which_an_engine_fails_is_counted_apart
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
