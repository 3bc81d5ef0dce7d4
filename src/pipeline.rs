//! The one path. A message's whole life is on this page.
//!
//! ```text
//! accept ── cut-through ── pass: scan → decide → ONE match on disposition ── settle ── reply
//!        └─ queue ──────── store, 250 ── pass ── settle
//! lanes  ── claim what is due ─────────── pass ── settle
//! ```
//!
//! Recipients who part ways (several next hops, several decisions) do so in the store, before anything is delivered: their
//! first pass ends with a record for each way, and the lanes send each on its own.
//!
//! [`Pipeline::pass`] does what has to be done for a message and returns what became of it; its only effect outside is
//! delivery. [`settle`] turns that into what must be durable and what the sender is told, as a pure function, and
//! [`Pipeline::conclude`] makes it so. The responsibility law (RFC 5321 6.1) is kept in `conclude` and nowhere else:
//! 250 only after the next hop took the message or the store did.

mod background;
mod events;
mod interceptors;
mod judge;
mod keeper;
mod lanes;
mod outbound;
mod pressure;
mod recent;
mod recovery;
mod room;
mod settle;
mod suspicion;
mod taken;
#[cfg(test)]
mod tests;
mod watch;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::deadline::{Budget, Deadline, wall_clock};
use crate::delivery::{Delivery, Outcome, Turn};
use crate::intercept;
use crate::message::{Content, MemoryBudget, Message, Standing};
use crate::policy::Policy;
use crate::scan::{ScanReason, Scanner};
use crate::smtp::Reply;
use crate::store::history::{History, HistoryEntry};
use crate::store::incidents::Incidents;
use crate::store::{Capacity, Change, Record, Store, StoreError, Working};
use crate::verdict::{Decision, Disposition, Report};

use background::Background;
use judge::Terms;
pub use judge::{Judgement, judge};
pub use keeper::Keeper;
pub use lanes::Lanes;
pub use pressure::Pressure;
use recent::Recent;
use settle::{Custody, Settlement};
use suspicion::Suspicion;
pub use watch::Watch;

/// When the sender is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// After scan and delivery, inside the session, as long as `budget.session` allows.
    CutThrough,
    /// As soon as the message is durable here.
    Queue,
}

/// Everything one configuration decides about the path; replaced as a whole by a reload. A message keeps the
/// generation it met.
#[derive(Debug)]
pub struct Generation {
    /// Shown in every decision.
    pub config: Arc<str>,
    /// Our name.
    pub hostname: Arc<str>,
    /// All engines.
    pub scanner: Scanner,
    /// All rules and thresholds.
    pub policy: Policy,
    /// All next hops.
    pub delivery: Delivery,
    /// Allowances per message.
    pub budget: Budget,
    /// How long quarantine keeps.
    pub retention: Duration,
    /// Room for what is held.
    pub quarantine: Capacity,
}

/// The path, and what it shares between messages.
pub struct Pipeline {
    generation: ArcSwap<Generation>,
    store: Arc<dyn Store>,
    history: Arc<History>,
    incidents: Arc<Incidents>,
    suspicion: Suspicion,
    recent: Recent,
    memory: MemoryBudget,
    rate: pressure::Rate,
    /// Work that goes on after its 250.
    background: Background,
    tasks: TaskTracker,
    wake: Notify,
    /// A bounce was held since it was last looked whether there are too many.
    bounces_held: AtomicBool,
}

/// The decision about a message and what it was made from.
#[derive(Debug, Clone)]
struct Judged {
    groups: Vec<(Decision, Vec<usize>)>,
    reports: Vec<Report>,
    spent: Duration,
    /// What speaks for its sender; none if that was not asked.
    standing: Option<Standing>,
}

/// What is known of a message before it passes.
#[derive(Debug)]
struct Before {
    /// A decision that was made in an earlier pass and holds.
    judged: Option<Judged>,
    /// Scan time of earlier passes.
    spent: Duration,
    /// Why it is scanned now.
    scan_reason: ScanReason,
    /// It ran into an engine's timeout before.
    struck: bool,
    /// What is to be done once nothing speaks against it.
    onward: Onward,
}

/// How a message goes on that is to be delivered.
#[derive(Debug)]
enum Onward {
    /// At once; with its turn at its next hop, if it has waited for one.
    Deliver(Option<Turn>),
    /// When it is its turn: it is enough to judge it.
    Queue,
}

impl Before {
    /// Nothing: it has just come in.
    const NOTHING: Self = Self {
        judged: None,
        spent: Duration::ZERO,
        scan_reason: ScanReason::Fresh,
        struck: false,
        onward: Onward::Deliver(None),
    };

    fn terms(&self) -> Terms {
        Terms {
            spent: self.spent,
            scan_reason: self.scan_reason,
            struck: self.struck,
            stand_ins: true,
        }
    }
}

/// What became of one group of recipients.
#[derive(Debug)]
enum End {
    /// Handed to the next hops, which said this about each recipient.
    Delivered(Vec<Outcome>),
    /// To be delivered when it is its turn.
    Queued,
    /// To be kept for review.
    Held,
    /// To be refused, if there is still a session to refuse it in.
    Rejected,
    /// To be scanned again.
    Deferred,
    /// To be forgotten.
    Discarded,
}

/// A message that has been through.
#[derive(Debug)]
struct Passed {
    judged: Judged,
    /// One for each group.
    ends: Vec<End>,
    /// Those of whom it is in the history already that they have the message.
    told: Vec<usize>,
}

/// What the work on a message and whoever waits for it tell each other.
#[derive(Debug, Default)]
struct SoFar {
    judged: OnceLock<Judged>,
    /// Positions of those of whom a next hop has said that they have it, where it answers for each.
    taken: Mutex<Vec<usize>>,
    /// The record by which we answer for it; none while its sender does.
    stored: OnceLock<Record>,
}

/// The life of a message.
impl Pipeline {
    /// Takes a message at its end of data and returns the one reply.
    ///
    /// Cancel safety: not safe; the session that calls this awaits it to the end.
    pub async fn accept(self: &Arc<Self>, message: Message, mode: Mode) -> Reply {
        let generation = self.generation.load_full();
        match mode {
            Mode::CutThrough => self.cut_through(generation, message).await,
            Mode::Queue => self.queue(generation, message).await,
        }
    }

    /// Scan and delivery inside the session; when `budget.session` runs out first, the message becomes durable and
    /// the same work goes on in the background from where it stands.
    async fn cut_through(self: &Arc<Self>, generation: Arc<Generation>, message: Message) -> Reply {
        let patience = Deadline::after(generation.budget.session);
        let so_far = Arc::new(SoFar::default());
        let mut work = Box::pin(self.clone().pass(
            generation.clone(),
            message.clone(),
            Before::NOTHING,
            so_far.clone(),
        ));
        let passed = tokio::select! {
            biased;
            passed = &mut work => passed,
            () = patience.wait() => {
                let record = settle::unfinished(&generation, &message, so_far.judged.get());
                let kept = match so_far.rest(record, &message) {
                    Some(record) => {
                        let kept = self.keep_leased(&generation, record.clone(), message.content.clone());
                        Some(kept.await.map(|working| (record, working)))
                    }
                    None => None,
                };
                match kept {
                    Some(Ok((record, working))) => {
                        let (pipeline, id) = (self.clone(), message.id);
                        so_far.stored.get_or_init(|| record.clone());
                        self.tasks.spawn(async move {
                            let passed = work.await;
                            pipeline.conclude(&generation, &message, Custody::Stored(Box::new(record)), passed).await;
                            drop(working);
                        });
                        return Reply::accepted(id);
                    }
                    Some(Err(error)) if so_far.judged.get().is_none() => return self.not_kept(&message, &error),
                    // All have it, or the next hop may be taking it at this moment, and 451 would make two messages of one.
                    Some(Err(_)) | None => work.await,
                }
            }
        };
        self.conclude(&generation, &message, Custody::Session, passed)
            .await
    }

    /// Durable first, always.
    async fn queue(self: &Arc<Self>, generation: Arc<Generation>, message: Message) -> Reply {
        let record = settle::unfinished(&generation, &message, None);
        let id = message.id;
        let slot = self
            .background
            .begin(settle::first_hop(&generation, &record));
        let kept = match &slot {
            Some(_) => {
                self.keep_leased(&generation, record.clone(), message.content.clone())
                    .await
            }
            // Too much goes on already: the lanes take it up when its turn comes.
            None => {
                let put = self
                    .store
                    .put(vec![record.clone()], message.content.clone());
                put.await.map(|()| None)
            }
        };
        let working = match kept {
            Ok(working) => working,
            Err(error) => return self.not_kept(&message, &error),
        };
        if let Some(slot) = slot {
            let pipeline = self.clone();
            self.tasks.spawn(async move {
                let onward = match slot.delivers() {
                    true => Onward::Deliver(None),
                    false => Onward::Queue,
                };
                pipeline
                    .resume(generation, message, record, ScanReason::Fresh, onward)
                    .await;
                drop((working, slot));
            });
        }
        Reply::accepted(id)
    }

    /// The rest of a stored message's life, at the step it needs.
    async fn resume(
        self: &Arc<Self>,
        generation: Arc<Generation>,
        message: Message,
        record: Record,
        scan_reason: ScanReason,
        onward: Onward,
    ) {
        let message = settle::as_sent(&record, message);
        let before = Before {
            judged: self.judged_before(&record, &message).await,
            spent: record.spent,
            scan_reason,
            struck: record.timeouts > 0,
            onward,
        };
        let so_far = SoFar {
            stored: record.clone().into(),
            ..SoFar::default()
        };
        let passed = self
            .clone()
            .pass(generation.clone(), message.clone(), before, so_far.into());
        let passed = passed.await;
        self.conclude(
            &generation,
            &message,
            Custody::Stored(Box::new(record)),
            passed,
        )
        .await;
    }

    /// Scan, decide, act: what becomes of every group of recipients.
    async fn pass(
        self: Arc<Self>,
        generation: Arc<Generation>,
        message: Message,
        before: Before,
        so_far: Arc<SoFar>,
    ) -> Passed {
        let judged = match before.judged {
            Some(judged) => judged,
            None => self.judge(&generation, &message, before.terms()).await,
        };
        let judged = so_far.judged.get_or_init(|| judged).clone();
        // Each way is durable before anything goes one of them: what one next hop has taken is not forgotten with us
        // while another makes us wait, and a store that fails leaves all of it with its sender.
        let mut onward = match settle::part_ways(&generation, &message, &judged) {
            true => Onward::Queue,
            false => before.onward,
        };
        let (mut ends, mut told) = (Vec::with_capacity(judged.groups.len()), Vec::new());
        for group in &judged.groups {
            // The only fork in the program.
            ends.push(match group.0.disposition {
                Disposition::Deliver => match &mut onward {
                    Onward::Queue => End::Queued,
                    Onward::Deliver(turn) => {
                        let what = (&judged, group);
                        let (outcomes, those) = self
                            .deliver(&generation, &message, what, turn.take(), &so_far)
                            .await;
                        told.extend(those);
                        End::Delivered(outcomes)
                    }
                },
                Disposition::Quarantine => End::Held,
                Disposition::Reject => End::Rejected,
                Disposition::Defer => End::Deferred,
                Disposition::Discard => End::Discarded,
            });
        }
        Passed { judged, ends, told }
    }

    /// Makes durable what must be, tells what became of it, and returns the reply for a session that still waits.
    async fn conclude(
        self: &Arc<Self>,
        generation: &Generation,
        message: &Message,
        custody: Custody,
        passed: Passed,
    ) -> Reply {
        let mut settlement = settle::settle(generation, message, &custody, &passed);
        if let Err(error) = self.insist(&mut settlement, &custody, message).await {
            // What a next hop has taken it has, whatever the store does.
            let is_delivered = |entry: &mut HistoryEntry| entry.event == "delivered";
            let delivered: Vec<_> = settlement.history.extract_if(.., is_delivered).collect();
            if let Custody::Stored(record) = custody
                && !delivered.is_empty()
                && may_pass(&error)
            {
                self.owe(settlement, record, message.clone());
            }
            for entry in delivered {
                self.history.record(entry);
            }
            return self.not_kept(message, &error);
        }
        self.concluded(settlement, message).await
    }

    /// A next hop has what the store cannot be told now. Until it can, nobody takes the record up: the next hop would get it once
    /// more. Bounded by the memory for messages, which this one keeps a part of.
    fn owe(self: &Arc<Self>, mut settlement: Settlement, record: Box<Record>, message: Message) {
        let (pipeline, working) = (self.clone(), self.store.at_work().go_on(record.id));
        self.tasks.spawn(async move {
            let custody = Custody::Stored(record);
            loop {
                Deadline::after(lanes::OWED_AGAIN).wait().await;
                // Once more where the relay stops.
                let is_last = pipeline.tasks.is_closed();
                let done = pipeline.make_so(&mut settlement, &custody, &message);
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

    /// What is durable is told.
    async fn concluded(self: &Arc<Self>, settlement: Settlement, message: &Message) -> Reply {
        // Mail that is to be delivered may have its turn.
        if !settlement.keep.is_empty() {
            self.wake.notify_waiters();
        }
        if settlement.holds_a_bounce() {
            self.bounces_held.store(true, Ordering::Relaxed);
        }
        for entry in settlement.history {
            events::settled(&entry, &settlement.reply);
            self.history.record(entry);
        }
        if let Some(mut record) = settlement.rescan {
            if record.cause.is_none() {
                record.cause = self.recent.doubts(&record);
            }
            let content = &message.content;
            match record.cause {
                // It is owed: its sender waits for it to be kept, though what the next hop has said is true in any case.
                Some(_) if settle::has_stand_in(&record.reports) => {
                    self.remember(record, content.clone()).await
                }
                Some(_) => self.remember_beside(record, content.clone()),
                None => self.recent.add(record, content),
            }
        }
        settlement.reply
    }

    /// Keeps what was delivered without an engine that should have answered, for when it does. It is no mail any more: a
    /// store that fails is told, and changes nothing.
    async fn remember(&self, record: Record, content: Content) {
        let message = record.message;
        if self.store.put(vec![record], content).await.is_err() {
            events::not_remembered(message);
        }
    }

    /// The same while nobody waits for it; where too much goes on already it is not kept.
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

    /// Makes a settlement so, against a store that fails for a while if the mail is stored, or delivered in part: what a next
    /// hop has taken would go to it once more when the lease of the record ends, or when its sender tries again.
    async fn insist(
        &self,
        settlement: &mut Settlement,
        custody: &Custody,
        message: &Message,
    ) -> Result<(), StoreError> {
        let patience = Deadline::after(lanes::INSIST);
        loop {
            let done = self.make_so(settlement, custody, message).await;
            let failed = done.as_ref().is_err_and(may_pass);
            let ours = matches!(custody, Custody::Stored(_)) || settlement.is_delivered();
            if !failed || !ours || patience.passed() {
                return done;
            }
            patience.within(lanes::AGAIN).wait().await;
        }
    }

    async fn make_so(
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
        // Once something of it is delivered or returned, what is left is kept: its sender would send all of it again.
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

    /// A bounce must be kept, a report of success need not.
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

    /// All that must be of it at once: what a next hop has taken is out of the record in the moment in which the bounce about
    /// another is there. None of it is new mail, so that a store without room does not keep the one from being known.
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

    /// The store failed: in a session the sender keeps the message; stored work is found again when its lease ends.
    fn not_kept(&self, message: &Message, error: &StoreError) -> Reply {
        events::not_kept(message.id, error);
        match error {
            StoreError::Full(_) => Reply::no_room(),
            _ => Reply::not_kept(message.id),
        }
    }

    /// For as long as what it returns is there nobody else takes the record up.
    async fn keep_leased(
        &self,
        generation: &Generation,
        record: Record,
        content: Content,
    ) -> Result<Option<Working>, StoreError> {
        let until = wall_clock() + lanes::lease(&generation.budget);
        let working = self.store.at_work().begin(record.id);
        self.store.put_leased(vec![record], content, until).await?;
        Ok(working)
    }
}

/// Trouble of the store as a whole, which somebody may end.
fn may_pass(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Broken(_) | StoreError::Corrupt(_) | StoreError::Full(_)
    )
}

/// What surrounds it.
impl Pipeline {
    /// A path over `store`, with `in_flight_bytes` of memory for messages.
    pub fn new(
        generation: Generation,
        store: Arc<dyn Store>,
        (history, incidents): (Arc<History>, Arc<Incidents>),
        intercept: intercept::Settings,
        in_flight_bytes: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            generation: ArcSwap::from_pointee(generation),
            store,
            history,
            incidents,
            suspicion: Suspicion::new(intercept),
            recent: Recent::default(),
            memory: MemoryBudget::new(in_flight_bytes),
            rate: pressure::Rate::default(),
            background: Background::default(),
            tasks: TaskTracker::new(),
            wake: Notify::new(),
            // Who knows what is held from before.
            bounces_held: AtomicBool::new(true),
        })
    }

    /// The configuration in force.
    pub fn generation(&self) -> Arc<Generation> {
        self.generation.load_full()
    }

    /// Puts a new configuration in force for messages that come from now on.
    pub fn replace(&self, generation: Generation, intercept: intercept::Settings) {
        self.suspicion.lock().configure(intercept);
        self.generation.store(Arc::new(generation));
    }

    /// Whether mail for that domain has somewhere to go.
    pub fn has_route(&self, domain: &str) -> bool {
        self.generation.load().delivery.route(domain).is_some()
    }

    /// Whether one more recipient is taken for new mail that has so many. Without room in the store only what may need
    /// none: cut-through mail for one recipient (of two, the next hop may take one and put off the other, who would have to
    /// be kept).
    pub fn has_room(&self, mode: Mode, recipients: usize) -> bool {
        match self.store.accepts() {
            Ok(()) => true,
            Err(StoreError::Full(_)) => mode == Mode::CutThrough && recipients == 0,
            Err(_) => false,
        }
    }

    /// The memory that messages are charged to.
    pub fn memory(&self) -> &MemoryBudget {
        &self.memory
    }

    /// The durable state.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Tells the lanes that something may be due, or work again.
    pub fn wake(&self) {
        self.generation.load().delivery.nudge();
        self.wake.notify_waiters();
    }

    /// Waits for work that goes on after its 250. What does not end in time is stored and goes on after the next start.
    pub async fn drained(&self, deadline: Deadline) -> bool {
        self.tasks.close();
        deadline.run(self.tasks.wait()).await.is_ok()
    }
}
