//! The lanes: stored messages come back to the path when they are due.
//!
//! Work on fresh mail never waits for this: the lanes have slots of their own, scans and each next hop apart. Mail that is to
//! be delivered is one queue for each next hop: only what it takes now is claimed for it, so that mail for one that is slow,
//! throttles or does not work keeps nobody else's waiting, however much of it there is.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{Generation, Onward, Pipeline, events, settle};
use crate::deadline::{Budget, Deadline, expiry_clock, wall_clock};
use crate::message::{Content, Message};
use crate::quarantine;
use crate::scan::ScanReason;
use crate::store::{self, Change, Lane, Outgoing, RESCAN_FOR, Record, StoreError, Times};

/// One delivery at most, all its stages and recipients together: five minutes beside the ten that a next hop may take for its
/// reply to the end of data (RFC 5321 4.5.3.2.6).
pub(super) const DELIVERY: Duration = Duration::from_secs(900);
/// How often the store is asked for what is due when nobody wakes us.
const POLL: Duration = Duration::from_secs(1);
/// How often it is looked for what has expired.
const EXPIRY: Duration = Duration::from_secs(60);
/// Bounces that nobody takes are held up to this number; the oldest give way. Whoever forges senders could make them without
/// end.
pub(super) const BOUNCES_HELD: usize = 1000;
/// While there is a backlog, the next claim follows after this long, or when a good part of the slots is free again: each
/// claim is a durable write, so it should be worth it.
const BATCH: Duration = Duration::from_millis(50);
/// A next hop's pace is asked again after this long at least: a timer is no more exact.
const TICK: Duration = Duration::from_millis(2);
/// A record that finds no memory is looked at again after this long.
const NO_ROOM: Duration = Duration::from_secs(10);
/// Wait for memory: far below what the lease allows beyond the work itself.
pub(super) const MEMORY: Duration = Duration::from_secs(10);

/// How long a store that fails is asked to keep what became of a stored message by the one who works on it: below what the
/// lease allows beyond the work itself, and beyond [`MEMORY`]. What a next hop has taken is owed to the store longer than that.
pub(super) const INSIST: Duration = Duration::from_secs(45);
/// Between two times.
pub(super) const AGAIN: Duration = Duration::from_secs(1);
/// The same for what is owed to the store.
pub(super) const OWED_AGAIN: Duration = Duration::from_secs(5);

/// The longest wait before the next scan.
const SCAN_BACKOFF: Duration = Duration::from_secs(900);

/// How long a record stays handed out: longer than any work on it can take.
pub(super) fn lease(budget: &Budget) -> Duration {
    budget.total + DELIVERY + Duration::from_secs(60)
}

/// What is handed out now, where no wait is longer than `longest`.
pub(super) fn times(generation: &Generation, longest: Duration) -> Times {
    Times::from(wall_clock(), lease(&generation.budget), longest)
}

/// Wait before the next scan of a message that could not be judged: 5 s doubled to at most 15 minutes.
pub(super) fn scan_backoff(attempts: u32) -> Duration {
    Duration::from_secs(5)
        .saturating_mul(1 << attempts.saturating_sub(1).min(10))
        .min(SCAN_BACKOFF)
}

/// The workers that take up what is stored.
pub struct Lanes {
    pipeline: Arc<Pipeline>,
    scan: Arc<Semaphore>,
    /// By the name of the next hop.
    outgoing: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
    /// For what is tried a last time.
    last: Arc<Semaphore>,
    /// Told when a queue has slots again that a claim is worth for.
    freed: Notify,
}

impl Lanes {
    /// Messages that are scanned again at once.
    const SCAN_SLOTS: usize = 32;
    /// Stored messages in delivery to one next hop at once.
    pub(super) const HOP_SLOTS: usize = 16;

    /// Workers over a path.
    pub fn new(pipeline: Arc<Pipeline>) -> Arc<Self> {
        Arc::new(Self {
            pipeline,
            scan: Arc::new(Semaphore::new(Self::SCAN_SLOTS)),
            outgoing: Mutex::new(HashMap::new()),
            last: Arc::new(Semaphore::new(Self::HOP_SLOTS)),
            freed: Notify::new(),
        })
    }

    /// Takes up what is due until `closing` is cancelled; what has begun then ends by itself (see
    /// [`Pipeline::drained`]).
    pub async fn run(self: Arc<Self>, closing: CancellationToken) {
        tokio::select! {
            biased;
            () = closing.cancelled() => {}
            () = self.deliver() => {}
            () = self.scan() => {}
            () = self.expire() => {}
        }
    }

    /// The scan lane, for ever.
    async fn scan(self: &Arc<Self>) {
        let slots = &self.scan;
        loop {
            let _ = slots.acquire().await;
            let some = Self::SCAN_SLOTS as u32 / 4;
            let _ = Deadline::after(BATCH).run(slots.acquire_many(some)).await;
            let free = slots.available_permits();
            let generation = self.pipeline.generation();
            let times = times(&generation, SCAN_BACKOFF);
            let claim = self.pipeline.store.claim(Lane::Scan, times, free);
            // Judged, and no more: a next hop that hangs has its own slots, and keeps nobody's scan waiting.
            let work = |lanes: Arc<Self>, generation, record| async move {
                lanes.work(generation, record, Onward::Queue).await;
            };
            if self
                .take_up(&generation, "scan", slots, free, claim, work)
                .await
                == 0
            {
                let poll = Deadline::after(POLL);
                tokio::select! {
                    () = self.pipeline.wake.notified() => {}
                    () = poll.wait() => {}
                }
            }
        }
    }

    /// The delivery lane, for ever.
    async fn deliver(self: &Arc<Self>) {
        loop {
            // Asked for before the store is: what is put there meanwhile has its turn at once.
            let woken = self.pipeline.wake.notified();
            let next = Deadline::after(self.send_out().await);
            tokio::select! {
                () = woken => {}
                () = self.freed.notified() => {}
                () = next.wait() => {}
            }
        }
    }

    /// Claims for every next hop what may go out to it now; returns when to look again if nobody tells.
    async fn send_out(self: &Arc<Self>) -> Duration {
        let generation = self.pipeline.generation();
        let any = times(&generation, Duration::ZERO);
        let queues = match self.pipeline.store.queues(any).await {
            Ok(queues) => queues,
            Err(error) => {
                events::lane_failed("delivery", &error);
                return POLL;
            }
        };
        let (mut again, mut waiting) = (POLL, Vec::new());
        for queue in queues {
            let hop = queue.next_hop;
            let times = times(&generation, generation.delivery.longest_wait(&hop));
            if !times.is_due(queue.first) && !times.is_due(queue.last) {
                continue;
            }
            let slots = self.slots(&hop);
            let free = slots.available_permits();
            let (room, opens) = generation.delivery.room(&hop, free);
            if let Some(opens) = opens {
                again = again.min(opens.max(TICK));
            }
            let claimed = match room {
                0 => 0,
                room => self.send_to(&generation, (&hop, times), &slots, room).await,
            };
            if claimed == room {
                again = if room > 0 { again.min(BATCH) } else { again };
                waiting.push(hop);
            }
        }
        let waits = |hop: &str| waiting.iter().any(|waiting| **waiting == *hop);
        generation.delivery.waits(waits);
        again
    }

    async fn send_to(
        self: &Arc<Self>,
        generation: &Arc<Generation>,
        (hop, times): (&Arc<str>, Times),
        slots: &Arc<Semaphore>,
        room: usize,
    ) -> usize {
        let what = Outgoing::To(hop.clone());
        let claim = self.pipeline.store.claim_outgoing(what, times, room);
        let work = |lanes: Arc<Self>, generation, record| async move {
            lanes.send(generation, record).await;
        };
        self.take_up(generation, "delivery", slots, room, claim, work)
            .await
    }

    /// Each for itself: none waits for a million of another.
    async fn expire(self: &Arc<Self>) {
        tokio::join!(
            self.expire_held(),
            self.expire_rescans(),
            self.give_up_in_time()
        );
    }

    async fn expire_held(&self) {
        loop {
            let store = &*self.pipeline.store;
            let until = expiry_clock(self.pipeline.generation().retention);
            if let Err(error) = quarantine::expire_due(store, until, wall_clock()).await {
                events::lane_failed("quarantine expiry", &error);
            }
            if let Err(error) = self.expire_bounces().await {
                events::lane_failed("quarantine expiry", &error);
            }
            Deadline::after(EXPIRY).wait().await;
        }
    }

    async fn expire_rescans(&self) {
        loop {
            let store = &*self.pipeline.store;
            if let Err(error) = store::expire_rescans(store, expiry_clock(RESCAN_FOR)).await {
                events::lane_failed("rescan expiry", &error);
            }
            Deadline::after(EXPIRY).wait().await;
        }
    }

    async fn give_up_in_time(self: &Arc<Self>) {
        loop {
            self.give_up().await;
            Deadline::after(EXPIRY).wait().await;
        }
    }

    /// Looks for surplus only when there may be some: the search reads everything that is held.
    pub(super) async fn expire_bounces(&self) -> Result<(), StoreError> {
        let rule = settle::BOUNCE_UNDELIVERABLE;
        let (store, more) = (&**self.pipeline.store(), &self.pipeline.bounces_held);
        if !more.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        loop {
            match quarantine::expire_bounces(store, rule, BOUNCES_HELD, wall_clock()).await {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) => {
                    more.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    }

    /// What was tried for long enough gets a last chance, and is returned: without this, mail for a next hop that is dead
    /// would wait for its turn as a probe to be told so.
    pub(super) async fn give_up(self: &Arc<Self>) {
        let (slots, store) = (&self.last, &self.pipeline.store);
        loop {
            let free = slots.available_permits();
            if free == 0 {
                return;
            }
            let generation = self.pipeline.generation();
            let what = Outgoing::GivenUp(expiry_clock(generation.delivery.longest_patience()));
            let times = times(&generation, Duration::ZERO);
            let claim = store.claim_outgoing(what, times, free);
            let work = |lanes: Arc<Self>, generation, record| async move {
                lanes.work(generation, record, Onward::Deliver(None)).await;
            };
            let claimed = self.take_up(&generation, "giving up", slots, free, claim, work);
            if claimed.await < free {
                return;
            }
            let all = Self::HOP_SLOTS as u32;
            let _ = Deadline::after(POLL).run(slots.acquire_many(all)).await;
        }
    }

    /// Claims at most so many records and begins to work on them, each in a slot; returns how many.
    async fn take_up<W>(
        self: &Arc<Self>,
        generation: &Arc<Generation>,
        what: &'static str,
        slots: &Arc<Semaphore>,
        limit: usize,
        claim: impl Future<Output = Result<Vec<Record>, StoreError>>,
        work: impl Fn(Arc<Self>, Arc<Generation>, Record) -> W,
    ) -> usize
    where
        W: Future<Output = ()> + Send + 'static,
    {
        // Taken before the claim: a record that finds no slot then would lie there until its lease ends.
        let permits = u32::try_from(limit).unwrap_or(u32::MAX);
        let Ok(mut permits) = slots.clone().try_acquire_many_owned(permits) else {
            return 0;
        };
        let claimed = match claim.await {
            Ok(claimed) => claimed,
            Err(error) => {
                events::lane_failed(what, &error);
                return 0;
            }
        };
        let count = claimed.len();
        for record in claimed {
            let Some(slot) = permits.split(1) else {
                break;
            };
            let Some(working) = self.pipeline.store.at_work().begin(record.id) else {
                continue;
            };
            let work = work(self.clone(), generation.clone(), record);
            let (lanes, slots) = (self.clone(), slots.clone());
            self.pipeline.tasks.spawn(async move {
                work.await;
                drop((working, slot));
                if slots.available_permits() >= Self::HOP_SLOTS / 4 {
                    lanes.freed.notify_one();
                }
            });
        }
        count
    }

    /// One delivery, if its next hop has a turn for it.
    async fn send(&self, generation: Arc<Generation>, mut record: Record) {
        let recipient = record.envelope.recipients.first();
        let route = recipient.and_then(|r| generation.delivery.route(r.mailbox.domain()));
        let Some(hop) = route.map(|settings| settings.name.clone()) else {
            return self.work(generation, record, Onward::Deliver(None)).await;
        };
        let mut slot: Option<OwnedSemaphorePermit> = None;
        if hop != record.next_hop {
            // It was claimed from a queue that is not its own: the routes have changed, or nobody had routed it.
            record.next_hop = hop.clone();
            match self.slots(&hop).try_acquire_owned() {
                Ok(own) => slot = Some(own),
                Err(_) => return self.put_back(record).await,
            }
        }
        match generation.delivery.turn(&hop) {
            Ok(turn) => {
                self.work(generation, record, Onward::Deliver(turn)).await;
            }
            Err(why) => {
                record.status = why;
                self.put_back(record).await;
            }
        }
        drop(slot);
    }

    /// Under the generation that the lease was measured by.
    async fn work(&self, generation: Arc<Generation>, mut record: Record, onward: Onward) {
        let pipeline = &self.pipeline;
        let size = usize::try_from(record.size).unwrap_or(usize::MAX);
        let room = Deadline::after(MEMORY).run(pipeline.memory.acquire(size));
        let Ok(charge) = room.await else {
            record.due_at = wall_clock() + NO_ROOM;
            return self.put_back(record).await;
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
                    .resume(generation, message, record, ScanReason::Again, onward)
                    .await;
            }
            Err(error) => {
                events::lane_failed("content", &error);
                // Set aside by the store if it is damaged; otherwise the disk may well read it in a moment.
                if !matches!(error, StoreError::Damaged(..)) {
                    record.due_at = wall_clock() + NO_ROOM;
                    self.put_back(record).await;
                }
            }
        }
    }

    /// The slots of one queue.
    fn slots(&self, next_hop: &Arc<str>) -> Arc<Semaphore> {
        let mut queues = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = queues
            .entry(next_hop.clone())
            .or_insert_with(|| Arc::new(Semaphore::new(Self::HOP_SLOTS)));
        slots.clone()
    }

    /// It waits again, as if it had not been claimed: its next hop takes nothing, or there is no memory.
    async fn put_back(&self, record: Record) {
        let id = record.id;
        let change = Change::Replace(Box::new(record));
        if let Err(error) = self.pipeline.store.change(id, change, None).await {
            events::lane_failed("put back", &error);
        }
    }
}
