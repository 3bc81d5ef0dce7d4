//! Persistence: a settlement becomes durable, and what follows once it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::settle::{self, Custody, Settlement};
use super::{Generation, Pipeline, counts, events, lanes};
use crate::deadline::{Deadline, wall_clock};
use crate::message::{Content, Message};
use crate::smtp::Reply;
use crate::store::history::HistoryEntry;
use crate::store::{Change, Record, StoreError, Working};

impl Pipeline {
    /// Persists the settlement of a delivered message later, because the store fails now. Until then the record stays marked as
    /// at work, so that no worker delivers the message again. Each such message stays charged to the memory budget, which
    /// bounds their number.
    pub(super) fn owe(
        self: &Arc<Self>,
        mut settlement: Settlement,
        record: Box<Record>,
        message: Message,
    ) {
        let (pipeline, working) = (self.clone(), self.store.at_work().go_on(record.id));
        self.tasks.spawn(async move {
            let custody = Custody::Stored(record);
            loop {
                Deadline::after(lanes::OWED_RETRY_PAUSE).wait().await;
                // At shutdown: one last attempt.
                let is_last = pipeline.tasks.is_closed();
                let done = pipeline.persist(&mut settlement, &custody, &message);
                match done.await {
                    Ok(()) => {
                        pipeline.concluded(settlement, &message).await;
                        break;
                    }
                    Err(error) if may_pass(&error) && !is_last => {}
                    Err(error) => {
                        pipeline.not_kept(&message, &error);
                        break;
                    }
                }
            }
            drop(working);
        });
    }

    /// Publishes a durable settlement: wakes the lanes, writes log and history, keeps delivered mail for a later scan.
    pub(super) async fn concluded(
        self: &Arc<Self>,
        settlement: Settlement,
        message: &Message,
    ) -> Reply {
        // A kept record may be due for delivery now.
        if !settlement.keep.is_empty() {
            self.wake.notify_waiters();
        }
        if settlement.holds_a_bounce() {
            self.bounces_held.store(true, Ordering::Relaxed);
        }
        events::message(
            message,
            &settlement.history,
            &settlement.facts,
            &settlement.reply,
        );
        self.tell_touched(message, &settlement, &settlement.history);
        for entry in settlement.history {
            counts::recipients(&entry, settlement.was_held);
            events::settled(&entry);
            self.shadow.offer(&entry);
            self.history.record(entry);
        }
        if let Some(mut record) = settlement.rescan {
            if record.cause.is_none() {
                record.cause = self.recent.doubts(&record);
            }
            let content = &message.content;
            match record.cause {
                // A stand-in answer makes the scan owed, so the sender waits for the write; a failed write is only logged.
                Some(_) if settle::has_stand_in(&record.reports) => {
                    self.remember(record, content.clone()).await
                }
                Some(_) => self.remember_beside(record, content.clone()),
                None => self.recent.add(record, content),
            }
        }
        settlement.reply
    }

    /// Tells of deliveries in a settlement that is not durable: they have happened, whether or not the store works.
    pub(super) fn tell_delivered(
        &self,
        message: &Message,
        settlement: &Settlement,
        delivered: &[HistoryEntry],
    ) {
        self.tell_touched(message, settlement, delivered);
        for entry in delivered {
            counts::recipients(entry, false);
            self.history.record(entry.clone());
        }
    }

    /// Stores a delivered message for a later scan by an engine that did not answer. The message is delivered already, so a
    /// store failure is only logged.
    async fn remember(&self, record: Record, content: Content) {
        let message = record.message;
        if self.store.put(vec![record], content).await.is_err() {
            events::not_remembered(message);
        }
    }

    /// Does the same in a background slot. If no slot is free, the message is not stored.
    fn remember_beside(self: &Arc<Self>, record: Record, content: Content) {
        let Some(slot) = self.background.begin(None) else {
            return events::not_remembered(record.message);
        };
        let pipeline = self.clone();
        self.tasks.spawn(async move {
            pipeline.remember(record, content).await;
            drop(slot);
        });
    }

    /// Persists a settlement. If the store fails and the message is stored or partly delivered, retries for up to
    /// [`lanes::PERSIST_RETRY_DURATION`]: otherwise the next hop gets the message again, after the lease or by a retry.
    pub(super) async fn persist_with_retry(
        &self,
        settlement: &mut Settlement,
        custody: &Custody,
        message: &Message,
    ) -> Result<(), StoreError> {
        let deadline = Deadline::after(lanes::PERSIST_RETRY_DURATION);
        loop {
            let done = self.persist(settlement, custody, message).await;
            let failed = done.as_ref().is_err_and(may_pass);
            let ours = matches!(custody, Custody::Stored(_)) || settlement.is_delivered();
            if !failed || !ours || deadline.passed() {
                return done;
            }
            deadline.within(lanes::PERSIST_RETRY_PAUSE).wait().await;
        }
    }

    async fn persist(
        &self,
        settlement: &mut Settlement,
        custody: &Custody,
        message: &Message,
    ) -> Result<(), StoreError> {
        match custody {
            Custody::Session => self.keep_new(settlement, message).await,
            Custody::Stored(record) => {
                self.replace_stored(settlement, record, message).await?;
                self.put_notices(settlement).await
            }
        }
    }

    async fn keep_new(
        &self,
        settlement: &mut Settlement,
        message: &Message,
    ) -> Result<(), StoreError> {
        // After a partial delivery or a bounce the rest must be stored: the sender would send the whole message again.
        let untouched = settlement.notices.is_empty() && !settlement.is_delivered();
        self.put_notices(settlement).await?;
        let (keep, content) = (settlement.keep.clone(), message.content.clone());
        if keep.is_empty() {
            return Ok(());
        }
        match untouched {
            true => {
                let quarantine = self.generation.load().quarantine;
                self.store.put_new(keep, content, quarantine).await
            }
            false => self.store.put_rest(keep, content).await,
        }
    }

    /// Stores the notifications. A bounce must be stored; a report of success may be lost.
    async fn put_notices(&self, settlement: &mut Settlement) -> Result<(), StoreError> {
        while let Some(notice) = settlement.notices.last() {
            let put = self
                .store
                .put_rest(vec![notice.record.clone()], notice.content());
            let kept = put.await;
            if notice.is_bounce {
                kept?;
            }
            settlement.notices.pop();
            self.wake.notify_waiters();
        }
        Ok(())
    }

    /// Applies a settlement to a stored message in one transaction: a delivered recipient leaves the record in the transaction
    /// that adds the bounce about another. None of these records is new mail, so a store without room accepts them.
    async fn replace_stored(
        &self,
        settlement: &mut Settlement,
        record: &Record,
        message: &Message,
    ) -> Result<(), StoreError> {
        let mut keep = settlement.keep.iter().cloned();
        let change = match keep.next() {
            Some(first) => Change::Replace(Box::new(first)),
            None => Change::Remove,
        };
        let others = keep.map(|other| (other, message.content.clone()));
        let bounces = settlement.notices.iter().filter(|notice| notice.is_bounce);
        let bounces = bounces.map(|notice| (notice.record.clone(), notice.content()));
        let beside = others.chain(bounces).collect();
        let settled = self.store.settle(record.lane, record.id, change, beside);
        settled.await?;
        let written = settlement.notices.extract_if(.., |notice| notice.is_bounce);
        if written.count() > 0 {
            self.wake.notify_waiters();
        }
        Ok(())
    }

    /// Logs a store failure. In a session, the sender keeps the message; a stored record is claimed again when its lease ends.
    pub(super) fn not_kept(&self, message: &Message, error: &StoreError) -> Reply {
        events::not_kept(message.id, error);
        match error {
            StoreError::Full(_) => Reply::no_room(),
            _ => Reply::not_kept(message.id),
        }
    }

    /// Stores a message under lease. While the returned guard exists, no other worker of this process gets the record.
    pub(super) async fn keep_leased(
        &self,
        generation: &Generation,
        record: Record,
        message: &mut Message,
    ) -> Result<Option<Working>, StoreError> {
        let (until, began) = (
            wall_clock() + lanes::lease(&generation.budget),
            Instant::now(),
        );
        let working = self.store.at_work().begin(record.id);
        let content = message.content.clone();
        self.store.put_leased(vec![record], content, until).await?;
        if let Some(times) = &mut message.times {
            times.storing = began.elapsed();
        }
        Ok(working)
    }
}

/// Whether the error is a failure of the whole store that may end, so that a retry makes sense.
pub(super) fn may_pass(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Broken(_) | StoreError::Corrupt(_) | StoreError::Full(_)
    )
}
