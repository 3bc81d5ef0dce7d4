//! The message pipeline: accept, scan, decide, deliver or store. A message's whole life is in this file.
//!
//! ```text
//! accept ── cut-through ── pass: scan → decide → ONE match on disposition ── settle ── reply
//!        └─ queue ──────── store, 250 ── pass ── settle
//! lanes  ── claim what is due ─────────── pass ── settle
//! ```
//!
//! Recipients with different next hops or different decisions are separated in the store before any delivery: their first
//! pass ends with one record for each way (one decision and one next hop), and the lanes send each record on its own.
//!
//! [`Pipeline::pass`] scans, decides and delivers, and returns the outcome for each group of recipients; delivery is its only
//! external effect. [`settle`] is a pure function from these outcomes to the records that must be durable and the reply, and
//! [`Pipeline::conclude`] persists them. The responsibility law (RFC 5321 6.1): the sender gets 250 only after the next hop
//! or the store has taken the message. `conclude` keeps this law for a message that has passed; `cut_through` and `queue`
//! return 250 earlier, once the store has the unfinished message.

mod background;
mod counts;
mod drains;
mod events;
mod in_session;
mod interceptors;
mod judge;
mod keeper;
mod lanes;
mod load;
mod measures;
mod outbound;
mod persist;
mod pressure;
mod recent;
mod recovery;
mod room;
mod scan_times;
mod settle;
mod shadow;
mod stories;
mod suspicion;
mod taken;
#[cfg(test)]
mod tests;
mod touches;
mod watch;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::deadline::{Budget, Deadline};
use crate::delivery::{Delivery, DeliveryPermit, Outcome};
use crate::intercept;
use crate::measure::Measures;
use crate::message::{MemoryBudget, Message};
use crate::observation::ScanReason;
use crate::policy::Policy;
use crate::scan::Scanner;
use crate::smtp::Reply;
use crate::store::history::{History, HistoryEntry};
use crate::store::incidents::Incidents;
use crate::store::{Capacity, Record, Store};
use crate::verdict::Disposition;

use background::Background;
pub use drains::Drains;
use judge::ScanTerms;
pub use judge::{Judgement, judge};
pub use keeper::Keeper;
pub use lanes::Lanes;
use persist::may_pass;
pub use pressure::{Pressure, Shortage};
use recent::Recent;
use settle::Custody;
pub use shadow::ShadowView;
use suspicion::SharedInterception;
pub use watch::Watch;

/// When the sender gets the reply to the end of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// After scan and delivery, inside the session; once the message is durable if `budget.session` ends first.
    CutThrough,
    /// As soon as the message is durable in the store.
    Queue,
}

/// The settings and clients that one configuration gives the pipeline. A reload replaces the whole generation; a pass keeps
/// the generation with which it began.
#[derive(Debug)]
pub struct Generation {
    /// Configuration version, shown in every decision.
    pub config: Arc<str>,
    /// Host name of this relay.
    pub hostname: Arc<str>,
    /// All engines.
    pub scanner: Scanner,
    /// All rules and thresholds.
    pub policy: Policy,
    /// All next hops.
    pub delivery: Delivery,
    /// Time budgets per message.
    pub budget: Budget,
    /// How long quarantine keeps a message.
    pub retention: Duration,
    /// Storage limit for held messages.
    pub quarantine: Capacity,
}

/// The pipeline, and the state that all messages share.
pub struct Pipeline {
    generation: ArcSwap<Generation>,
    store: Arc<dyn Store>,
    history: Arc<History>,
    incidents: Arc<Incidents>,
    interception: SharedInterception,
    recent: Recent,
    shadow: shadow::Slot,
    memory: MemoryBudget,
    measures: Measures,
    rate: pressure::Rate,
    /// Slots for work that continues after its 250.
    background: Background,
    in_session: in_session::InSession,
    tasks: TaskTracker,
    wake: Notify,
    /// Set when a bounce was held after the last check for surplus bounces.
    bounces_held: AtomicBool,
}

/// State of a message before a pass: results of earlier passes, and how this pass runs.
#[derive(Debug)]
struct ResumeState {
    /// The decision of an earlier pass, if that decision still holds.
    judged: Option<Judgement>,
    /// The conditions of a scan.
    terms: ScanTerms,
    /// The step that follows a decision to deliver.
    next_step: NextStep,
}

/// The step that follows a decision to deliver.
#[derive(Debug)]
enum NextStep {
    /// Deliver now; with a permit of the next hop if the message has waited for one.
    Deliver(Option<DeliveryPermit>),
    /// Store the message in the queue of its next hop; this pass only judges it.
    Queue,
}

impl ResumeState {
    /// A message that has just arrived: no earlier pass, fresh scan, immediate delivery.
    const NEW_MESSAGE: Self = Self {
        judged: None,
        terms: ScanTerms::FRESH,
        next_step: NextStep::Deliver(None),
    };
}

/// The outcome of a pass for one group of recipients.
#[derive(Debug)]
enum GroupOutcome {
    /// Offered to the next hops; one delivery outcome for each recipient.
    Delivered(Vec<Outcome>),
    /// To be delivered later by the lanes.
    Queued,
    /// To be held for review.
    Held,
    /// To be rejected in the session; held if the session is over or another group is not rejected.
    Rejected,
    /// To be scanned again later.
    Deferred,
    /// To be discarded.
    Discarded,
}

/// The result of a pass.
#[derive(Debug)]
struct Passed {
    judged: Judgement,
    /// One outcome for each group.
    ends: Vec<GroupOutcome>,
    /// Positions of recipients whose delivery is in the history already.
    told: Vec<usize>,
    /// The time of the deliveries; `None` if no next hop was asked.
    delivering: Option<Duration>,
}

/// Progress of a pass, shared between the pass and the task that waits for it.
#[derive(Debug, Default)]
struct SoFar {
    judged: OnceLock<Judgement>,
    /// Positions of recipients for whom a next hop has taken the message, where the next hop answers for each recipient.
    taken: Mutex<Vec<usize>>,
    /// The stored record; empty while the sender is responsible for the message.
    stored: OnceLock<Record>,
    /// The end of data; `None` for mail that comes from the store.
    arrived: Option<Instant>,
}

/// The life of a message.
impl Pipeline {
    /// Processes a message at its end of data and returns the one reply for its sender.
    ///
    /// Cancel safety: not safe; the session that calls this method awaits it to the end.
    pub async fn accept(self: &Arc<Self>, message: Message, mode: Mode) -> Reply {
        let generation = self.generation.load_full();
        let reply = match mode {
            Mode::CutThrough => self.cut_through(generation, message).await,
            Mode::Queue => self.queue(generation, message).await,
        };
        counts::received(&reply);
        reply
    }

    /// Scans and delivers inside the session. If `budget.session` ends first, the message becomes durable, the sender gets
    /// 250, and the same future continues in the background.
    async fn cut_through(
        self: &Arc<Self>,
        generation: Arc<Generation>,
        mut message: Message,
    ) -> Reply {
        let deadline = Deadline::after(generation.budget.session);
        let so_far = Arc::new(SoFar {
            arrived: Some(Instant::now()),
            ..SoFar::default()
        });
        let mut work = Box::pin(self.clone().pass(
            generation.clone(),
            message.clone(),
            ResumeState::NEW_MESSAGE,
            so_far.clone(),
        ));
        let passed = tokio::select! {
            biased;
            passed = &mut work => passed,
            () = self.in_session.wait(&generation, &message, &so_far, deadline) => {
                let record = settle::unfinished(&generation, &message, so_far.judged.get());
                let kept = match so_far.rest(record, &message) {
                    Some(record) => {
                        let kept = self.keep_leased(&generation, record.clone(), &mut message);
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
                    Some(Err(error)) if so_far.judged.get().is_none() => return self.refuse_unkept(&message, &error),
                    // Every recipient has the message, or a next hop may be taking it now: 451 would cause a duplicate.
                    Some(Err(_)) | None => work.await,
                }
            }
        };
        self.conclude(&generation, &message, Custody::Session, passed)
            .await
    }

    /// Stores the message first, always; then answers 250 and continues in a background slot, if one is free.
    async fn queue(self: &Arc<Self>, generation: Arc<Generation>, mut message: Message) -> Reply {
        let record = settle::unfinished(&generation, &message, None);
        let id = message.id;
        let slot = self
            .background
            .begin(settle::first_hop(&generation, &record));
        let kept = match &slot {
            Some(_) => {
                self.keep_leased(&generation, record.clone(), &mut message)
                    .await
            }
            // No background slot is free: the lanes claim the record when it is due.
            None => {
                let put = self
                    .store
                    .put(vec![record.clone()], message.content.clone());
                put.await.map(|()| None)
            }
        };
        let working = match kept {
            Ok(working) => working,
            Err(error) => return self.refuse_unkept(&message, &error),
        };
        if let Some(slot) = slot {
            let pipeline = self.clone();
            self.tasks.spawn(async move {
                let next_step = match slot.delivers() {
                    true => NextStep::Deliver(None),
                    false => NextStep::Queue,
                };
                pipeline
                    .resume(generation, message, record, ScanReason::Fresh, next_step)
                    .await;
                drop((working, slot));
            });
        }
        Reply::accepted(id)
    }

    /// Continues a stored message at the step that is left: scan, or delivery by the stored decision.
    async fn resume(
        self: &Arc<Self>,
        generation: Arc<Generation>,
        message: Message,
        record: Record,
        scan_reason: ScanReason,
        next_step: NextStep,
    ) {
        let message = settle::as_sent(&record, message);
        let before = ResumeState {
            judged: self.judged_before(&record, &message).await,
            terms: ScanTerms::of(&record, scan_reason),
            next_step,
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

    /// Scans, decides and delivers; returns the outcome for each group of recipients.
    async fn pass(
        self: Arc<Self>,
        generation: Arc<Generation>,
        message: Message,
        before: ResumeState,
        so_far: Arc<SoFar>,
    ) -> Passed {
        let judged = match before.judged {
            Some(judged) => judged,
            None => self.judge(&generation, &message, before.terms).await,
        };
        let judged = so_far.judged.get_or_init(|| judged).clone();
        // Each way has a durable record before any delivery. A crash while one next hop is slow then does not lose the
        // delivery to another, and a store failure leaves the whole message with its sender.
        let mut next_step = match settle::part_ways(&generation, &message, &judged) {
            true => NextStep::Queue,
            false => before.next_step,
        };
        let (mut ends, mut told) = (Vec::with_capacity(judged.groups.len()), Vec::new());
        let mut delivering = None;
        for group in &judged.groups {
            // The only branch on the disposition in the program.
            ends.push(match group.0.disposition {
                Disposition::Deliver => match &mut next_step {
                    NextStep::Queue => GroupOutcome::Queued,
                    NextStep::Deliver(turn) => {
                        let (what, began) = ((&judged, group), Instant::now());
                        let (outcomes, those) = self
                            .deliver(&generation, &message, what, turn.take(), &so_far)
                            .await;
                        told.extend(those);
                        *delivering.get_or_insert_default() += began.elapsed();
                        GroupOutcome::Delivered(outcomes)
                    }
                },
                Disposition::Quarantine => GroupOutcome::Held,
                Disposition::Reject => GroupOutcome::Rejected,
                Disposition::Defer => GroupOutcome::Deferred,
                Disposition::Discard => GroupOutcome::Discarded,
            });
        }
        Passed {
            judged,
            ends,
            told,
            delivering,
        }
    }

    /// Persists the result of a pass, writes log, metrics and history, and returns the reply for an open session.
    async fn conclude(
        self: &Arc<Self>,
        generation: &Generation,
        message: &Message,
        custody: Custody,
        passed: Passed,
    ) -> Reply {
        let mut settlement = settle::settle(generation, message, &custody, &passed);
        if let Err(error) = self
            .persist_with_retry(&mut settlement, &custody, message)
            .await
        {
            // A delivery has happened, whether or not the store works.
            let is_delivered = |entry: &mut HistoryEntry| entry.event == "delivered";
            let delivered: Vec<_> = settlement.history.extract_if(.., is_delivered).collect();
            self.tell_delivered(message, &settlement, &delivered);
            match custody {
                Custody::Session => self.tell_refused(message, &error),
                Custody::Stored(record) if !delivered.is_empty() && may_pass(&error) => {
                    self.owe(settlement, record, message.clone());
                }
                Custody::Stored(_) => {}
            }
            return self.not_kept(message, &error);
        }
        counts::judged(&custody, &passed);
        counts::passed(&custody, &passed);
        self.concluded(settlement, message).await
    }
}

/// Construction, reload, queries and shutdown.
impl Pipeline {
    /// Creates a pipeline over `store`, with `in_flight_bytes` octets of memory for messages.
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
            interception: SharedInterception::new(intercept),
            recent: Recent::default(),
            shadow: shadow::Slot::default(),
            memory: MemoryBudget::new(in_flight_bytes),
            measures: Measures::default(),
            rate: pressure::Rate::default(),
            background: Background::default(),
            in_session: in_session::InSession::default(),
            tasks: TaskTracker::new(),
            wake: Notify::new(),
            // Bounces held before the start are not counted yet.
            bounces_held: AtomicBool::new(true),
        })
    }

    /// The current configuration generation.
    pub fn generation(&self) -> Arc<Generation> {
        self.generation.load_full()
    }

    /// Sets a new configuration for all passes that begin from now on.
    pub fn replace(&self, generation: Generation, intercept: intercept::Settings) {
        self.interception.lock().configure(intercept);
        self.generation.store(Arc::new(generation));
    }

    /// Whether a next hop takes mail for `domain`.
    pub fn has_route(&self, domain: &str) -> bool {
        self.generation.load().delivery.route(domain).is_some()
    }

    /// The memory budget that message contents are charged to.
    pub fn memory(&self) -> &MemoryBudget {
        &self.memory
    }

    /// The durable store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}
