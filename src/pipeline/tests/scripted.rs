//! A store for the tests of the path.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use jiff::Timestamp;

use crate::message::{Content, MessageId};
use crate::store::{
    Audit, Cause, Change, Filter, Interceptors, Lane, LaneStats, Object, Outgoing, Record, Store,
    StoreError, StoreFuture, StoredInterceptor,
};

/// A store in memory that can be told to fail.
#[derive(Default)]
pub(super) struct Scripted {
    pub(super) records: Mutex<HashMap<MessageId, Record>>,
    /// Handed out by the next claims.
    pub(super) due: Mutex<Vec<Record>>,
    pub(super) fails: AtomicBool,
}

impl Scripted {
    pub(super) fn all(&self) -> Vec<Record> {
        self.records
            .lock()
            .expect("lock")
            .values()
            .cloned()
            .collect()
    }

    fn done<T: Send + 'static>(&self, value: T) -> StoreFuture<'_, T> {
        let fails = self.fails.load(Ordering::Relaxed);
        Box::pin(async move {
            if fails {
                Err(StoreError::Broken("told to".to_owned()))
            } else {
                Ok(value)
            }
        })
    }
}

impl Store for Scripted {
    fn put(&self, records: Vec<Record>, _: Content) -> StoreFuture<'_, ()> {
        if !self.fails.load(Ordering::Relaxed) {
            let mut kept = self.records.lock().expect("lock");
            for record in records {
                assert!(kept.insert(record.id, record).is_none(), "ids are unique");
            }
        }
        self.done(())
    }

    fn put_leased(
        &self,
        records: Vec<Record>,
        content: Content,
        _: Timestamp,
    ) -> StoreFuture<'_, ()> {
        self.put(records, content)
    }

    fn split(&self, first: Record, others: Vec<Record>, content: Content) -> StoreFuture<'_, ()> {
        self.records.lock().expect("lock").insert(first.id, first);
        self.put(others, content)
    }

    fn change(&self, id: MessageId, change: Change, _: Option<Audit>) -> StoreFuture<'_, ()> {
        let mut kept = self.records.lock().expect("lock");
        match change {
            Change::Replace(record) => kept.insert(id, *record),
            Change::Remove => kept.remove(&id),
        };
        self.done(())
    }

    fn change_in(
        &self,
        _: Lane,
        id: MessageId,
        change: Change,
        audit: Option<Audit>,
    ) -> StoreFuture<'_, ()> {
        self.change(id, change, audit)
    }

    fn hasten(&self, _: MessageId, _: Timestamp) -> StoreFuture<'_, bool> {
        self.done(false)
    }

    fn claim(
        &self,
        lane: Lane,
        _: Timestamp,
        _: Timestamp,
        _: usize,
    ) -> StoreFuture<'_, Vec<Record>> {
        let mut due = self.due.lock().expect("lock");
        let claimed = due.extract_if(.., |record| record.lane == lane).collect();
        self.done(claimed)
    }

    fn claim_outgoing(
        &self,
        what: Outgoing,
        now: Timestamp,
        _: Timestamp,
        limit: usize,
    ) -> StoreFuture<'_, Vec<Record>> {
        let mut due = self.due.lock().expect("lock");
        let wanted = |record: &Record| match &what {
            Outgoing::To(next_hop) => record.next_hop == *next_hop,
            Outgoing::GivenUp => record.expires_at <= now,
        };
        let those = due.extract_if(.., |record| record.lane == Lane::Delivery && wanted(record));
        let claimed = those.take(limit).collect();
        self.done(claimed)
    }

    fn next_hops(&self, _: Timestamp) -> StoreFuture<'_, Vec<Arc<str>>> {
        let due = self.due.lock().expect("lock");
        let outgoing = due.iter().filter(|record| record.lane == Lane::Delivery);
        let names: BTreeSet<Arc<str>> = outgoing.map(|record| record.next_hop.clone()).collect();
        self.done(names.into_iter().collect())
    }

    fn recover(
        &self,
        lane: Lane,
        cause: Cause,
        _: Timestamp,
        _: Timestamp,
        _: usize,
    ) -> StoreFuture<'_, Vec<Record>> {
        let mut due = self.due.lock().expect("lock");
        let waits =
            |record: &mut Record| record.lane == lane && record.cause == Some(cause.clone());
        let claimed = due.extract_if(.., waits).collect();
        self.done(claimed)
    }

    fn get(&self, id: MessageId) -> StoreFuture<'_, Option<Record>> {
        let found = self.records.lock().expect("lock").get(&id).cloned();
        self.done(found)
    }

    fn content(&self, _: MessageId) -> StoreFuture<'_, Bytes> {
        self.done(Bytes::new())
    }

    fn search(&self, _: Filter) -> StoreFuture<'_, Vec<Record>> {
        self.done(Vec::new())
    }

    fn audit(&self, _: Audit) -> StoreFuture<'_, ()> {
        self.done(())
    }

    fn interceptors(&self, _: Option<u64>) -> StoreFuture<'_, Option<Interceptors>> {
        self.done(None)
    }

    fn keep_interceptor(
        &self,
        _: StoredInterceptor,
        _: Option<Audit>,
    ) -> StoreFuture<'_, Option<u64>> {
        self.done(None)
    }

    fn drop_interceptor(&self, _: String, _: Option<Audit>) -> StoreFuture<'_, bool> {
        self.done(false)
    }

    fn audited(&self, _: Option<Object>, _: usize) -> StoreFuture<'_, Vec<Audit>> {
        self.done(Vec::new())
    }

    fn stats(&self) -> StoreFuture<'_, [LaneStats; Lane::ALL.len()]> {
        self.done(<[LaneStats; Lane::ALL.len()]>::default())
    }

    fn unjudged(&self) -> StoreFuture<'_, u64> {
        self.done(0)
    }

    fn accepts(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
