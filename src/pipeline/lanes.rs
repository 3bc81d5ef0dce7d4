//! The lanes: stored messages come back to the path when they are due.
//!
//! Work on fresh mail never waits for this: the lanes have slots of their own, delivery and scan apart, and within
//! delivery no next hop may hold more than a quarter of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{Generation, Pipeline, events};
use crate::deadline::{Budget, Deadline, Elapsed, wall_clock};
use crate::message::{Content, Message};
use crate::quarantine;
use crate::scan::Errand;
use crate::store::{self, Change, Lane, Record};

/// One delivery at most, all its stages and recipients together.
pub(super) const DELIVERY: Duration = Duration::from_secs(600);
/// Wait for a slot of the next hop: one that works has a free one many times a second, and one that hangs keeps a slot of
/// the lane from others for this long at most.
const HOP: Duration = Duration::from_secs(1);
/// How often the store is asked for what is due when nobody wakes us.
const POLL: Duration = Duration::from_secs(1);
/// How often expired quarantine entries are looked for.
const EXPIRY: Duration = Duration::from_secs(60);
/// A record that finds no slot of its next hop, or no memory, is looked at again after this long.
const NO_ROOM: Duration = Duration::from_secs(10);
/// Wait for memory: far below what the lease allows beyond the work itself.
pub(super) const MEMORY: Duration = Duration::from_secs(10);

/// How long a record stays handed out: longer than any work on it can take.
pub(super) fn lease(budget: &Budget) -> Duration {
    budget.total + DELIVERY + Duration::from_secs(60)
}

/// Wait before the next scan of a message that could not be judged: 15 s doubled to at most 15 minutes.
pub(super) fn scan_backoff(attempts: u32) -> Duration {
    Duration::from_secs(15)
        .saturating_mul(1 << attempts.saturating_sub(1).min(10))
        .min(Duration::from_secs(900))
}

/// The workers that take up what is stored.
pub struct Lanes {
    pipeline: Arc<Pipeline>,
    scan: Arc<Semaphore>,
    delivery: Arc<Semaphore>,
    hops: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
}

impl Lanes {
    /// Messages that are scanned again at once.
    const SCAN_SLOTS: usize = 32;
    /// Stored messages in delivery at once.
    const DELIVERY_SLOTS: usize = 64;

    /// Workers over a path.
    pub fn new(pipeline: Arc<Pipeline>) -> Arc<Self> {
        Arc::new(Self {
            pipeline,
            scan: Arc::new(Semaphore::new(Self::SCAN_SLOTS)),
            delivery: Arc::new(Semaphore::new(Self::DELIVERY_SLOTS)),
            hops: Mutex::new(HashMap::new()),
        })
    }

    /// Takes up what is due until `closing` is cancelled; what has begun then ends by itself (see
    /// [`Pipeline::drained`]).
    pub async fn run(self: Arc<Self>, closing: CancellationToken) {
        tokio::select! {
            biased;
            () = closing.cancelled() => {}
            () = self.attend(Lane::Delivery, &self.delivery) => {}
            () = self.attend(Lane::Scan, &self.scan) => {}
            () = self.expire() => {}
        }
    }

    /// One lane, for ever. While there is a backlog, the next claim follows as soon as a good part of the slots is free
    /// again: each claim is a durable write, so it should be worth it, but a few slots that stay busy (a slow next hop)
    /// must not hold up the others.
    async fn attend(self: &Arc<Self>, lane: Lane, slots: &Arc<Semaphore>) {
        let all = slots.available_permits();
        let some = u32::try_from(all / 4).unwrap_or(1);
        loop {
            let _ = slots.acquire().await;
            let _ = Deadline::after(POLL / 20)
                .run(slots.acquire_many(some))
                .await;
            if self.take_up(lane, slots).await == 0 {
                let poll = Deadline::after(POLL);
                tokio::select! {
                    () = self.pipeline.wake.notified() => {}
                    () = poll.wait() => {}
                }
            }
        }
    }

    async fn expire(&self) {
        loop {
            let store = &**self.pipeline.store();
            if let Err(error) = quarantine::expire_due(store, wall_clock()).await {
                events::lane_failed("quarantine expiry", &error);
            }
            if let Err(error) = store::expire_rescans(store, wall_clock()).await {
                events::lane_failed("rescan expiry", &error);
            }
            Deadline::after(EXPIRY).wait().await;
        }
    }

    /// Claims as much as there are slots, and returns how much that was.
    async fn take_up(self: &Arc<Self>, lane: Lane, slots: &Arc<Semaphore>) -> usize {
        let free = slots.available_permits();
        let generation = self.pipeline.generation();
        let now = wall_clock();
        let until = now + lease(&generation.budget);
        let claimed = match self.pipeline.store.claim(lane, now, until, free).await {
            Ok(claimed) => claimed,
            Err(error) => {
                events::lane_failed(lane.as_str(), &error);
                return 0;
            }
        };
        let count = claimed.len();
        for record in claimed {
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                break;
            };
            let (lanes, generation) = (self.clone(), generation.clone());
            self.pipeline.tasks.spawn(async move {
                lanes.work(generation, record).await;
                drop(slot);
            });
        }
        count
    }

    /// Under the generation that the lease was measured by.
    async fn work(&self, generation: Arc<Generation>, record: Record) {
        let hop = match self.hop_slots(&generation, &record) {
            None => None,
            Some(slots) => match Deadline::after(HOP).run(slots.acquire_owned()).await {
                Ok(slot) => slot.ok(),
                Err(Elapsed) => return self.postpone(record).await,
            },
        };
        let pipeline = &self.pipeline;
        let size = usize::try_from(record.size).unwrap_or(usize::MAX);
        let room = Deadline::after(MEMORY).run(pipeline.memory.acquire(size));
        let Ok(charge) = room.await else {
            return self.postpone(record).await;
        };
        match pipeline.store.content(record.id).await {
            Ok(content) => {
                let message = Message {
                    id: record.message,
                    received_at: record.received_at,
                    envelope: Arc::new(record.envelope.clone()),
                    trace: record.trace.clone(),
                    content: Content::charged(content, charge),
                };
                pipeline
                    .resume(generation, message, record, Errand::Again)
                    .await;
            }
            // Set aside by the store if it is damaged; otherwise the lease ends and it is tried again.
            Err(error) => events::lane_failed("content", &error),
        }
        drop(hop);
    }

    /// The slots of the record's next hop; none where the record goes to no hop.
    fn hop_slots(&self, generation: &Generation, record: &Record) -> Option<Arc<Semaphore>> {
        let recipient = record.envelope.recipients.first();
        let route = recipient.and_then(|r| generation.delivery.route(r.mailbox.domain()));
        let (Lane::Delivery, Some(settings)) = (record.lane, route) else {
            return None;
        };
        let mut hops = self.hops.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = hops
            .entry(settings.name.clone())
            .or_insert_with(|| Arc::new(Semaphore::new(Self::DELIVERY_SLOTS / 4)));
        Some(slots.clone())
    }

    /// Its next hop is busy with others, or memory is: it may wait, the rest of the mail may not.
    async fn postpone(&self, mut record: Record) {
        let id = record.id;
        record.due_at = wall_clock() + NO_ROOM;
        if let Err(error) = self
            .pipeline
            .store
            .change(id, Change::Replace(Box::new(record)), None)
            .await
        {
            events::lane_failed("postpone", &error);
        }
    }
}
