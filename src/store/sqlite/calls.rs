//! The calls of [`Store`]: each one becomes a job of the writer, or a read.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use super::search::{self, Damage, Sorted};
use super::work::{ClaimTerms, Output, Room, Work, change_of, entry};
use super::{SqliteStore, counts, interceptors, late, recovery};
use crate::message::{Content, MessageId};
use crate::store::{
    AtWork, Audit, Capacity, Cause, Change, Filter, Held, Interceptors, Lane, LaneStats, LateMail,
    LateTimes, Object, Outgoing, Queue, Record, Store, StoreError, StoreFuture, StoredInterceptor,
    SweepPosition, Times,
};

impl SqliteStore {
    async fn change_lane(
        &self,
        lane: Option<Lane>,
        id: MessageId,
        change: Change,
        audit: Option<Audit>,
    ) -> Result<(), StoreError> {
        let audit = audit.as_ref().map(entry).transpose()?;
        let work = change_of(lane, id, change, audit)?;
        self.submit(work).await.map(|_| ())
    }

    fn terms(&self, times: Times, limit: usize) -> ClaimTerms {
        ClaimTerms {
            times,
            limit,
            at_work: self.at_work.clone(),
        }
    }

    /// Submits work that claims records.
    async fn lease(&self, work: Work) -> Result<Vec<Record>, StoreError> {
        match self.submit(work).await? {
            Output::Claimed(rows) => Ok(self.keep_good(search::sort(rows)).await),
            _ => Ok(Vec::new()),
        }
    }

    /// Sets aside the records that a read found to be damaged; returns the others.
    async fn keep_good(&self, (records, damaged): Sorted) -> Vec<Record> {
        for Damage { id, why } in damaged {
            match id.parse() {
                Ok(id) => self.set_aside(id, why).await,
                Err(_) => recovery::report(&id, &why),
            }
        }
        records
    }

    async fn set_aside(&self, id: MessageId, why: String) {
        if let Err(error) = self.submit(Work::SetAside { id, why }).await {
            tracing::error!(%id, %error, "the store could not mark a message as damaged");
        }
    }

    /// Returns the outcome. If the outcome is damage, sets the record aside.
    async fn watch<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Damaged(id, why)) = &outcome {
            self.set_aside(*id, why.clone()).await;
        }
        outcome
    }
}

impl Store for SqliteStore {
    fn put(&self, records: Vec<Record>, content: Content) -> StoreFuture<'_, ()> {
        Box::pin(self.put_until(records, content, None, Room::New))
    }

    fn put_new(
        &self,
        records: Vec<Record>,
        content: Content,
        quarantine: Capacity,
    ) -> StoreFuture<'_, ()> {
        Box::pin(self.put_until(records, content, None, Room::Held(quarantine)))
    }

    fn put_rest(&self, records: Vec<Record>, content: Content) -> StoreFuture<'_, ()> {
        Box::pin(self.put_until(records, content, None, Room::Reserve))
    }

    fn put_leased(
        &self,
        records: Vec<Record>,
        content: Content,
        until: Timestamp,
    ) -> StoreFuture<'_, ()> {
        Box::pin(self.put_until(records, content, Some(until), Room::New))
    }

    fn settle(
        &self,
        lane: Lane,
        id: MessageId,
        change: Change,
        beside: Vec<(Record, Content)>,
    ) -> StoreFuture<'_, ()> {
        Box::pin(self.settle_in(lane, id, change, beside))
    }

    fn change(&self, id: MessageId, change: Change, audit: Option<Audit>) -> StoreFuture<'_, ()> {
        Box::pin(self.change_lane(None, id, change, audit))
    }

    fn change_in(
        &self,
        lane: Lane,
        id: MessageId,
        change: Change,
        audit: Option<Audit>,
    ) -> StoreFuture<'_, ()> {
        Box::pin(self.change_lane(Some(lane), id, change, audit))
    }

    fn claim(&self, lane: Lane, times: Times, limit: usize) -> StoreFuture<'_, Vec<Record>> {
        let terms = self.terms(times, limit);
        Box::pin(self.lease(Work::Claim { lane, terms }))
    }

    fn claim_outgoing(
        &self,
        what: Outgoing,
        times: Times,
        limit: usize,
    ) -> StoreFuture<'_, Vec<Record>> {
        let terms = self.terms(times, limit);
        Box::pin(self.lease(Work::ClaimOutgoing { what, terms }))
    }

    fn queues(&self, times: Times) -> StoreFuture<'_, Vec<Queue>> {
        Box::pin(self.readers.query(move |db| search::queues(db, times)))
    }

    fn causes(&self) -> StoreFuture<'_, Vec<Cause>> {
        Box::pin(self.readers.query(search::causes))
    }

    fn recover(
        &self,
        lane: Lane,
        cause: Cause,
        after: Option<SweepPosition>,
        times: Times,
        limit: usize,
    ) -> StoreFuture<'_, Vec<Record>> {
        Box::pin(self.lease(Work::Recover {
            lane,
            cause,
            after,
            terms: self.terms(times, limit),
        }))
    }

    fn at_work(&self) -> &AtWork {
        &self.at_work
    }

    fn make_due(&self, id: MessageId, now: Timestamp) -> StoreFuture<'_, bool> {
        Box::pin(async move {
            match self.submit(Work::MakeDue { id, now }).await {
                Ok(_) => Ok(true),
                Err(StoreError::NotFound(_)) => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    fn get(&self, id: MessageId) -> StoreFuture<'_, Option<Record>> {
        Box::pin(async move {
            let found = self.readers.run(move |db| search::get(db, id)).await;
            self.watch(found).await
        })
    }

    fn content(&self, id: MessageId) -> StoreFuture<'_, Bytes> {
        Box::pin(async move {
            let bodies = self.bodies.clone();
            let read = move |db: &_| search::content(db, &bodies, id);
            let found = self.readers.run(read).await;
            self.watch(found).await
        })
    }

    fn count(&self, filter: Filter) -> StoreFuture<'_, u64> {
        Box::pin(self.readers.query(move |db| search::count(db, &filter)))
    }

    fn search(&self, filter: Filter) -> StoreFuture<'_, Vec<Record>> {
        Box::pin(async move {
            let found = self.readers.query(move |db| search::search(db, &filter));
            Ok(self.keep_good(found.await?).await)
        })
    }

    fn audit(&self, audit: Audit) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let entry = entry(&audit)?;
            self.submit(Work::Audit(entry)).await.map(|_| ())
        })
    }

    fn audited(&self, of: Option<Object>, limit: usize) -> StoreFuture<'_, Vec<Audit>> {
        let read = move |db: &_| search::audited(db, of.as_ref(), limit);
        Box::pin(self.readers.query(read))
    }

    fn interceptors(&self, known: Option<u64>) -> StoreFuture<'_, Option<Interceptors>> {
        Box::pin(self.readers.query(move |db| interceptors::read(db, known)))
    }

    fn keep_interceptor(
        &self,
        interceptor: StoredInterceptor,
        audit: Option<Audit>,
    ) -> StoreFuture<'_, Option<u64>> {
        Box::pin(async move {
            let audit = audit.as_ref().map(entry).transpose()?;
            let work = Work::KeepInterceptor { interceptor, audit };
            match self.submit(work).await? {
                Output::Version(version) => Ok(Some(version)),
                _ => Ok(None),
            }
        })
    }

    fn drop_interceptor(&self, id: String, audit: Option<Audit>) -> StoreFuture<'_, bool> {
        Box::pin(async move {
            let audit = audit.as_ref().map(entry).transpose()?;
            let work = Work::DropInterceptor { id, audit };
            Ok(matches!(self.submit(work).await?, Output::Done))
        })
    }

    fn held(&self, quarantine: Capacity) -> StoreFuture<'_, Held> {
        let disk = self.health.disk();
        let read = move |db: &_| search::held(db, quarantine, disk);
        Box::pin(self.readers.query(read))
    }

    fn oldest_outgoing(&self) -> StoreFuture<'_, Vec<(Arc<str>, Timestamp)>> {
        Box::pin(self.readers.query(counts::oldest_outgoing))
    }

    fn late(&self, times: LateTimes) -> StoreFuture<'_, Vec<LateMail>> {
        Box::pin(self.readers.query(move |db| late::late(db, times)))
    }

    fn stats(&self) -> StoreFuture<'_, [LaneStats; Lane::ALL.len()]> {
        Box::pin(self.readers.query(counts::stats))
    }

    fn unjudged(&self) -> StoreFuture<'_, u64> {
        Box::pin(self.readers.query(counts::unjudged))
    }

    fn rescan_room(&self) -> StoreFuture<'_, u64> {
        let most = self.rescan_bytes / 2;
        let left = move |db: &_| Ok(most.saturating_sub(search::rescan_octets(db)?));
        Box::pin(self.readers.query(left))
    }

    fn accepts(&self) -> Result<(), StoreError> {
        self.health.check()
    }
}
