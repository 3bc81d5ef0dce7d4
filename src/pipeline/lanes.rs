//! The lanes: workers that claim stored messages when they are due, and pass them through the pipeline again.
//!
//! Fresh mail never waits for the lanes: they have their own slots, separate for scans and for each next hop. Each next hop has
//! its own delivery queue. The lanes claim for a next hop only as many messages as it takes now, so that a slow, throttling or
//! dead next hop delays only its own mail, however much of that mail there is.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::load::LoadError;
use super::{Generation, NextStep, Pipeline, events, settle};
use crate::deadline::{Budget, Deadline, expiry_clock, wall_clock};
use crate::observation::ScanReason;
use crate::quarantine;
use crate::store::{self, Change, Lane, Outgoing, RESCAN_RETENTION, Record, StoreError, Times};

/// Maximum time for one delivery, with all stages and recipients: 900 s. A next hop may take ten minutes for its reply to the
/// end of data (RFC 5321 4.5.3.2.6), and five minutes remain for the other stages.
pub(super) const DELIVERY_TIME_MAX: Duration = Duration::from_secs(900);
/// Interval between checks of the store for due records, if no notification comes earlier: 1 s. The queries are cheap enough
/// for that (see `Store::queues`).
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between checks for expired records: 60 s. [`expiry_clock`] finds leaps of the wall clock only when it is called,
/// and these checks are its regular callers.
const EXPIRY_CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of undeliverable bounces in quarantine; the oldest are removed first. A client that forges senders could
/// otherwise cause any number of them.
pub(super) const HELD_BOUNCES_MAX: usize = 1000;
/// Pause before the next claim while there is a backlog, unless a good part of the slots is free earlier: 50 ms. Each claim is
/// a durable write, so one claim should return several records.
const CLAIM_BATCH_WAIT: Duration = Duration::from_millis(50);
/// Minimum wait before the pace of a next hop is checked again: 2 ms, the precision of a timer.
const PACE_RECHECK_MIN: Duration = Duration::from_millis(2);
/// Delay before the next attempt for a record that found no memory, or whose content could not be read.
const RECORD_RETRY_DELAY: Duration = Duration::from_secs(10);
/// Maximum wait for memory for one message: 10 s, far below the 60 s that a lease allows beyond the work itself ([`lease`]).
pub(super) const MEMORY_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a worker retries to persist the settlement of a stored message while the store fails: 45 s. With
/// [`MEMORY_WAIT_MAX`] this stays below the 60 s that a lease allows beyond the work itself. For a message that a next hop has
/// taken, `Pipeline::owe` continues after this time.
pub(super) const PERSIST_RETRY_DURATION: Duration = Duration::from_secs(45);
/// Pause between two of these attempts.
pub(super) const PERSIST_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two attempts of `Pipeline::owe`: longer, because the store has failed for 45 s by then.
pub(super) const OWED_RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Maximum backoff before the next scan of a deferred message: 15 minutes.
const SCAN_BACKOFF_MAX: Duration = Duration::from_secs(900);

/// Duration of a lease: longer than any work on a record can take. The 60 s beyond the work itself are for the wait for memory
/// ([`MEMORY_WAIT_MAX`]) and for a store that fails ([`PERSIST_RETRY_DURATION`]).
pub(super) fn lease(budget: &Budget) -> Duration {
    budget.total + DELIVERY_TIME_MAX + Duration::from_secs(60)
}

/// Terms of a claim as of now. `longest` is the longest backoff: a record that would wait longer is due at once, because the
/// clock was set back.
pub(super) fn times(generation: &Generation, longest: Duration) -> Times {
    Times::from(wall_clock(), lease(&generation.budget), longest)
}

/// Backoff before the next scan of a message that could not be judged: 5 s, doubled with each attempt up to 15 minutes.
pub(super) fn scan_backoff(attempts: u32) -> Duration {
    Duration::from_secs(5)
        .saturating_mul(1 << attempts.saturating_sub(1).min(10))
        .min(SCAN_BACKOFF_MAX)
}

/// The workers that process stored messages.
pub struct Lanes {
    pipeline: Arc<Pipeline>,
    scan: Arc<Semaphore>,
    /// Slots for deliveries, by name of the next hop.
    outgoing: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
    /// Slots for the last attempt before a message is given up.
    last: Arc<Semaphore>,
    /// Notified when a queue has enough free slots for another claim.
    freed: Notify,
}

impl Lanes {
    /// Maximum number of concurrent scans of deferred messages.
    const SCAN_SLOTS: usize = 32;
    /// Maximum number of concurrent deliveries of stored messages to one next hop.
    pub(super) const HOP_SLOTS: usize = 16;

    /// Creates workers for a pipeline.
    pub fn new(pipeline: Arc<Pipeline>) -> Arc<Self> {
        Arc::new(Self {
            pipeline,
            scan: Arc::new(Semaphore::new(Self::SCAN_SLOTS)),
            outgoing: Mutex::new(HashMap::new()),
            last: Arc::new(Semaphore::new(Self::HOP_SLOTS)),
            freed: Notify::new(),
        })
    }

    /// Claims and processes due records until `closing` is cancelled. Work that has begun then continues (see
    /// [`Pipeline::drained`]).
    ///
    /// Cancel safety: records of a claim that is under way stay leased until the lease ends or the relay restarts.
    pub async fn run(self: Arc<Self>, closing: CancellationToken) {
        tokio::select! {
            biased;
            () = closing.cancelled() => {}
            () = self.deliver() => {}
            () = self.scan() => {}
            () = self.expire() => {}
        }
    }

    /// The scan lane; never returns.
    async fn scan(self: &Arc<Self>) {
        let slots = &self.scan;
        loop {
            let _ = slots.acquire().await;
            let some = Self::SCAN_SLOTS as u32 / 4;
            let _ = Deadline::after(CLAIM_BATCH_WAIT)
                .run(slots.acquire_many(some))
                .await;
            let free = slots.available_permits();
            let generation = self.pipeline.generation();
            let times = times(&generation, SCAN_BACKOFF_MAX);
            let claim = self.pipeline.store.claim(Lane::Scan, times, free);
            // This lane only judges: a next hop that hangs has its own slots, and delays no scan.
            let work = |lanes: Arc<Self>, generation, record| async move {
                lanes.work(generation, record, NextStep::Queue).await;
            };
            if self
                .take_up(&generation, ("scan", free), slots, claim, work)
                .await
                == 0
            {
                let poll = Deadline::after(POLL_INTERVAL);
                tokio::select! {
                    biased;
                    () = self.pipeline.wake.notified() => {}
                    () = poll.wait() => {}
                }
            }
        }
    }

    /// The delivery lane; never returns.
    async fn deliver(self: &Arc<Self>) {
        loop {
            // Registered before the store is queried: a record that is stored meanwhile starts the next round at once.
            let woken = self.pipeline.wake.notified();
            let next = Deadline::after(self.send_out().await);
            // Biased, so that a simulation replays identically from its seed.
            tokio::select! {
                biased;
                () = woken => {}
                () = self.freed.notified() => {}
                () = next.wait() => {}
            }
        }
    }

    /// Claims for every next hop the records that may go out now. Returns the wait before the next look; a notification may
    /// shorten the wait.
    async fn send_out(self: &Arc<Self>) -> Duration {
        let generation = self.pipeline.generation();
        let any = times(&generation, Duration::ZERO);
        let queues = match self.pipeline.store.queues(any).await {
            Ok(queues) => queues,
            Err(error) => {
                events::lane_failed("delivery", &error);
                return POLL_INTERVAL;
            }
        };
        let (mut again, mut waiting) = (POLL_INTERVAL, Vec::new());
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
                again = again.min(opens.max(PACE_RECHECK_MIN));
            }
            let claimed = match room {
                0 => 0,
                room => self.send_to(&generation, (&hop, times), &slots, room).await,
            };
            if claimed == room {
                again = if room > 0 {
                    again.min(CLAIM_BATCH_WAIT)
                } else {
                    again
                };
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
        self.take_up(generation, ("delivery", room), slots, claim, work)
            .await
    }

    /// Runs the three expiry loops side by side: none waits while another removes a million records.
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
            Deadline::after(EXPIRY_CHECK_INTERVAL).wait().await;
        }
    }

    async fn expire_rescans(&self) {
        loop {
            let store = &*self.pipeline.store;
            if let Err(error) = store::expire_rescans(store, expiry_clock(RESCAN_RETENTION)).await {
                events::lane_failed("rescan expiry", &error);
            }
            Deadline::after(EXPIRY_CHECK_INTERVAL).wait().await;
        }
    }

    async fn give_up_in_time(self: &Arc<Self>) {
        loop {
            self.give_up().await;
            Deadline::after(EXPIRY_CHECK_INTERVAL).wait().await;
        }
    }

    /// Removes surplus bounces. Searches only if a bounce was held after the last search, which reads all held records.
    pub(super) async fn expire_bounces(&self) -> Result<(), StoreError> {
        let rule = settle::BOUNCE_UNDELIVERABLE_RULE;
        let (store, more) = (&**self.pipeline.store(), &self.pipeline.bounces_held);
        if !more.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        loop {
            match quarantine::expire_bounces(store, rule, HELD_BOUNCES_MAX, wall_clock()).await {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) => {
                    more.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    }

    /// Tries expired mail a last time, then returns it to its sender. Without this, mail for a dead next hop would be returned
    /// only after its turn as a probe.
    pub(super) async fn give_up(self: &Arc<Self>) {
        let (slots, store) = (&self.last, &self.pipeline.store);
        loop {
            let free = slots.available_permits();
            if free == 0 {
                return;
            }
            let generation = self.pipeline.generation();
            let what = Outgoing::GivenUp(expiry_clock(generation.delivery.longest_give_up()));
            let times = times(&generation, Duration::ZERO);
            let claim = store.claim_outgoing(what, times, free);
            let work = |lanes: Arc<Self>, generation, record| async move {
                lanes
                    .work(generation, record, NextStep::Deliver(None))
                    .await;
            };
            let claimed = self.take_up(&generation, ("giving up", free), slots, claim, work);
            if claimed.await < free {
                return;
            }
            let all = Self::HOP_SLOTS as u32;
            let _ = Deadline::after(POLL_INTERVAL)
                .run(slots.acquire_many(all))
                .await;
        }
    }

    /// Claims up to `limit` records and starts work on each in a slot of its own; returns the number of claimed records.
    async fn take_up<W>(
        self: &Arc<Self>,
        generation: &Arc<Generation>,
        (what, limit): (&'static str, usize),
        slots: &Arc<Semaphore>,
        claim: impl Future<Output = Result<Vec<Record>, StoreError>>,
        work: impl Fn(Arc<Self>, Arc<Generation>, Record) -> W,
    ) -> usize
    where
        W: Future<Output = ()> + Send + 'static,
    {
        // Slots are taken before the claim: a claimed record without a slot would be idle until its lease ends.
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

    /// Delivers one record, if its next hop permits a delivery now.
    async fn send(&self, generation: Arc<Generation>, mut record: Record) {
        let recipient = record.envelope.recipients.first();
        let route = recipient.and_then(|r| generation.delivery.route(r.mailbox.domain()));
        let Some(hop) = route.map(|settings| settings.name.clone()) else {
            return self.work(generation, record, NextStep::Deliver(None)).await;
        };
        let mut slot: Option<OwnedSemaphorePermit> = None;
        if hop != record.next_hop {
            // The record comes from the queue of another next hop: the routes have changed, or the record had no route.
            record.next_hop = hop.clone();
            match self.slots(&hop).try_acquire_owned() {
                Ok(own) => slot = Some(own),
                Err(_) => return self.put_back(record).await,
            }
        }
        match generation.delivery.turn(&hop) {
            Ok(turn) => {
                self.work(generation, record, NextStep::Deliver(turn)).await;
            }
            Err(why) => {
                record.status = why;
                self.put_back(record).await;
            }
        }
        drop(slot);
    }

    /// Resumes one record, under the generation that determined its lease.
    async fn work(&self, generation: Arc<Generation>, mut record: Record, next_step: NextStep) {
        match self.pipeline.load(&record).await {
            Ok(message) => {
                let resumed =
                    self.pipeline
                        .resume(generation, message, record, ScanReason::Again, next_step);
                resumed.await;
            }
            // The store sets a damaged record aside. After any other error, the next read may succeed.
            Err(LoadError::Store(StoreError::Damaged(..))) => {}
            Err(LoadError::Store(_) | LoadError::NoMemory) => {
                record.due_at = wall_clock() + RECORD_RETRY_DELAY;
                self.put_back(record).await;
            }
        }
    }

    /// The delivery slots of one next hop.
    fn slots(&self, next_hop: &Arc<str>) -> Arc<Semaphore> {
        let mut queues = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = queues
            .entry(next_hop.clone())
            .or_insert_with(|| Arc::new(Semaphore::new(Self::HOP_SLOTS)));
        slots.clone()
    }

    /// Returns a claimed record to its queue: its next hop takes nothing, memory is short, or its content cannot be read now.
    async fn put_back(&self, record: Record) {
        let id = record.id;
        let change = Change::Replace(Box::new(record));
        if let Err(error) = self.pipeline.store.change(id, change, None).await {
            events::lane_failed("put back", &error);
        }
    }
}
