//! The one path. A message's whole life is on this page.
//!
//! ```text
//! accept ── cut-through ── pass: scan → decide → ONE match on disposition ── settle ── reply
//!        └─ queue ──────── store, 250 ── pass ── settle
//! lanes  ── claim what is due ─────────── pass ── settle
//! ```
//!
//! [`Pipeline::pass`] does what has to be done for a message and returns what became of it; its only effect outside is
//! delivery. [`settle`] turns that into what must be durable and what the sender is told, as a pure function, and
//! [`Pipeline::conclude`] makes it so. The responsibility law (RFC 5321 6.1) is kept in `conclude` and nowhere else:
//! 250 only after the next hop took the message or the store did.

mod events;
mod judge;
mod lanes;
mod settle;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, Semaphore};
use tokio_util::task::TaskTracker;

use crate::deadline::{Budget, Deadline, wall_clock};
use crate::delivery::{Delivery, Outcome};
use crate::message::{Content, MemoryBudget, Message};
use crate::policy::Policy;
use crate::scan::Scanner;
use crate::smtp::Reply;
use crate::store::history::History;
use crate::store::{Change, Record, Store, StoreError};
use crate::verdict::{Decision, Disposition, Report};

pub use judge::{Judgement, judge};
pub use lanes::Lanes;
use settle::{Custody, Settlement};

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
}

/// The path, and what it shares between messages.
pub struct Pipeline {
    generation: ArcSwap<Generation>,
    store: Arc<dyn Store>,
    history: Arc<History>,
    memory: MemoryBudget,
    /// Work that goes on after its 250.
    background: Arc<Semaphore>,
    tasks: TaskTracker,
    wake: Notify,
}

/// The decision about a message and what it was made from.
#[derive(Debug, Clone)]
struct Judged {
    groups: Vec<(Decision, Vec<usize>)>,
    reports: Vec<Report>,
    spent: Duration,
}

/// What became of one group of recipients.
#[derive(Debug)]
enum End {
    /// Handed to the next hops, which said this about each recipient.
    Delivered(Vec<Outcome>),
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
        let so_far = Arc::new(OnceLock::new());
        let mut work = Box::pin(Self::pass(
            generation.clone(),
            message.clone(),
            None,
            Duration::ZERO,
            so_far.clone(),
        ));
        let passed = tokio::select! {
            biased;
            passed = &mut work => passed,
            () = patience.wait() => {
                let record = settle::unfinished(&generation, &message, so_far.get());
                match self.keep_leased(&generation, record.clone(), message.content.clone()).await {
                    Ok(()) => {
                        let (pipeline, id) = (self.clone(), message.id);
                        self.tasks.spawn(async move {
                            let passed = work.await;
                            pipeline.conclude(&generation, &message, Custody::Stored(Box::new(record)), passed).await;
                        });
                        return Reply::accepted(id);
                    }
                    Err(error) if so_far.get().is_none() => return self.not_kept(&message, &error),
                    // The next hop may be taking it at this moment, and 451 would make two messages of one.
                    Err(_) => work.await,
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
        let slot = self.background.clone().try_acquire_owned();
        let kept = match &slot {
            Ok(_) => {
                self.keep_leased(&generation, record.clone(), message.content.clone())
                    .await
            }
            // Too much goes on already: the lanes take it up when its turn comes.
            Err(_) => {
                self.store
                    .put(vec![record.clone()], message.content.clone())
                    .await
            }
        };
        if let Err(error) = kept {
            return self.not_kept(&message, &error);
        }
        if let Ok(slot) = slot {
            let pipeline = self.clone();
            self.tasks.spawn(async move {
                pipeline.resume(generation, message, record).await;
                drop(slot);
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
    ) {
        let judged = settle::judged_before(&record, &message);
        let spent = record.spent;
        let passed = Self::pass(
            generation.clone(),
            message.clone(),
            judged,
            spent,
            Arc::default(),
        )
        .await;
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
        generation: Arc<Generation>,
        message: Message,
        judged: Option<Judged>,
        spent: Duration,
        so_far: Arc<OnceLock<Judged>>,
    ) -> Passed {
        let judged = match judged {
            Some(judged) => judged,
            None => Self::judge(&generation, &message, spent).await,
        };
        let judged = so_far.get_or_init(|| judged).clone();
        // One for all groups: the lease of a stored message ends soon after it, and somebody else takes the message up.
        let deadline = Deadline::after(lanes::DELIVERY);
        let mut ends = Vec::with_capacity(judged.groups.len());
        for (decision, recipients) in &judged.groups {
            // The only fork in the program.
            ends.push(match decision.disposition {
                Disposition::Deliver => {
                    let outbound = settle::outbound(&generation, &message, decision, recipients);
                    End::Delivered(generation.delivery.deliver(&outbound, deadline).await)
                }
                Disposition::Quarantine => End::Held,
                Disposition::Reject => End::Rejected,
                Disposition::Defer => End::Deferred,
                Disposition::Discard => End::Discarded,
            });
        }
        Passed { judged, ends }
    }

    /// All engines at once, then policy.
    async fn judge(generation: &Generation, message: &Message, spent: Duration) -> Judged {
        let began = tokio::time::Instant::now();
        let deadline = Deadline::after(generation.budget.total.saturating_sub(spent));
        let (scanner, policy) = (&generation.scanner, &generation.policy);
        let Judgement { groups, reports } = judge(scanner, policy, message, deadline).await;
        Judged {
            groups,
            reports,
            spent: spent + began.elapsed(),
        }
    }

    /// Makes durable what must be, tells what became of it, and returns the reply for a session that still waits.
    async fn conclude(
        &self,
        generation: &Generation,
        message: &Message,
        custody: Custody,
        passed: Passed,
    ) -> Reply {
        let settlement = settle::settle(generation, message, &custody, &passed);
        if let Err(error) = self.make_so(&settlement, &custody, message).await {
            return self.not_kept(message, &error);
        }
        for entry in settlement.history {
            events::settled(&entry, &settlement.reply);
            self.history.record(entry);
        }
        settlement.reply
    }

    async fn make_so(
        &self,
        settlement: &Settlement,
        custody: &Custody,
        message: &Message,
    ) -> Result<(), StoreError> {
        for notice in &settlement.notices {
            let content = Content::uncharged(notice.content.clone());
            let kept = self.store.put(vec![notice.record.clone()], content).await;
            if notice.is_bounce {
                kept?;
            }
        }
        let keep = settlement.keep.clone();
        match custody {
            Custody::Session if keep.is_empty() => {}
            Custody::Session => self.store.put(keep, message.content.clone()).await?,
            Custody::Stored(record) => {
                let mut keep = keep.into_iter();
                match (keep.next(), keep.len()) {
                    (None, _) => self.store.change(record.id, Change::Remove, None).await?,
                    (Some(only), 0) => {
                        let change = Change::Replace(Box::new(only));
                        self.store.change(record.id, change, None).await?;
                    }
                    (Some(first), _) => {
                        self.store
                            .split(first, keep.collect(), message.content.clone())
                            .await?;
                    }
                }
            }
        }
        if !settlement.notices.is_empty() {
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

    async fn keep_leased(
        &self,
        generation: &Generation,
        record: Record,
        content: Content,
    ) -> Result<(), StoreError> {
        let until = wall_clock() + lanes::lease(&generation.budget);
        self.store.put_leased(vec![record], content, until).await
    }
}

/// What surrounds it.
impl Pipeline {
    /// Work after 250 that may go on at once without being taken up from the store.
    const BACKGROUND: usize = 256;

    /// A path over `store`, with `in_flight_bytes` of memory for messages.
    pub fn new(
        generation: Generation,
        store: Arc<dyn Store>,
        history: Arc<History>,
        in_flight_bytes: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            generation: ArcSwap::from_pointee(generation),
            store,
            history,
            memory: MemoryBudget::new(in_flight_bytes),
            background: Arc::new(Semaphore::new(Self::BACKGROUND)),
            tasks: TaskTracker::new(),
            wake: Notify::new(),
        })
    }

    /// The configuration in force.
    pub fn generation(&self) -> Arc<Generation> {
        self.generation.load_full()
    }

    /// Puts a new configuration in force for messages that come from now on.
    pub fn replace(&self, generation: Generation) {
        self.generation.store(Arc::new(generation));
    }

    /// Whether mail for that domain has somewhere to go.
    pub fn has_route(&self, domain: &str) -> bool {
        self.generation.load().delivery.route(domain).is_some()
    }

    /// Whether new mail can be kept if it has to be.
    pub fn has_room(&self) -> bool {
        self.store.accepts().is_ok()
    }

    /// The memory that messages are charged to.
    pub fn memory(&self) -> &MemoryBudget {
        &self.memory
    }

    /// The durable state.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Tells the lanes that something may be due.
    pub fn wake(&self) {
        self.wake.notify_waiters();
    }

    /// Waits for work that goes on after its 250. What does not end in time is stored and goes on after the next start.
    pub async fn drained(&self, deadline: Deadline) -> bool {
        self.tasks.close();
        deadline.run(self.tasks.wait()).await.is_ok()
    }
}
