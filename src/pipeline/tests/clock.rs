//! The wall clock is set, or the machine slept: no message is delivered twice for it, none waits, none is given up early.

use std::sync::atomic::AtomicU32;

use futures_util::future::BoxFuture;
use metrics::Gauge;

use super::*;
use crate::deadline::{set_wall_clock, wall_clock};
use crate::delivery::next_hop::{HopResult, HopSignal, NextHop as Server};
use crate::delivery::{Outbound, Outcome};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// A server that takes everything, after a while.
pub(super) struct Taking {
    after: Duration,
    begun: AtomicU32,
}

impl Taking {
    pub(super) fn new(after: Duration) -> Arc<Self> {
        let begun = AtomicU32::new(0);
        Arc::new(Self { after, begun })
    }

    pub(super) fn begun(&self) -> u32 {
        self.begun.load(Ordering::Relaxed)
    }
}

impl Server for Taking {
    fn deliver<'a>(
        &'a self,
        _: &'a Outbound,
        at: Vec<usize>,
        _: &'a Gauge,
        _: Deadline,
    ) -> BoxFuture<'a, HopResult> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let taken = Deadline::after(self.after);
        Box::pin(async move {
            taken.wait().await;
            let outcome = |at| (at, Outcome::Delivered(answer(250)));
            HopResult {
                outcomes: at.into_iter().map(outcome).collect(),
                signal: HopSignal::Fine,
                offered: true,
            }
        })
    }
}

fn over(server: &Arc<Taking>, store: &Arc<Scripted>) -> (Arc<Pipeline>, tempfile::TempDir) {
    let mut generation = generation(Vec::new(), Budget::default());
    let hop = (maildir_hop(), server.clone() as Arc<dyn Server>);
    generation.delivery = Delivery::scripted(vec![hop], None).expect("a next hop");
    let mut settings = crate::config::load(None)
        .unwrap_or_else(|problems| panic!("{problems}"))
        .policy;
    settings.coverage.clear();
    generation.policy = Policy::new(settings, "test".into());
    pipeline(generation, store)
}

/// A message whose next hop said "later", as it is settled now.
fn delayed(generation: &Generation) -> Record {
    let later = GroupOutcome::Delivered(vec![Outcome::Deferred(answer(451))]);
    let passed = passed(vec![(Disposition::Deliver, vec![0], later)]);
    let mut message = message(&["x@b.test"]);
    message.received_at = wall_clock();
    let settled = settle::settle(generation, &message, &Custody::Session, &passed);
    settled.keep.into_iter().next().expect("it is kept")
}

/// Every lease ends when the clock is set an hour ahead, and none of the work under them does: whoever began it, what a next
/// hop is taking at that moment it gets once.
#[tokio::test(start_paused = true)]
async fn a_clock_set_ahead_delivers_nothing_twice() {
    set_wall_clock(Some(Timestamp::now()));
    let (server, store) = (Taking::new(Duration::from_secs(100)), Arc::default());
    let (pipeline, _folder) = over(&server, &store);
    let mut waiting = delayed(&pipeline.generation());
    waiting.due_at = wall_clock();
    let put = store.put(vec![waiting], Content::uncharged("x"));
    put.await.expect("put");
    let closing = tokio_util::sync::CancellationToken::new();
    tokio::spawn(Lanes::new(pipeline.clone()).run(closing.clone()));
    for mode in [Mode::Queue, Mode::CutThrough] {
        let mut message = message(&["x@b.test"]);
        message.received_at = wall_clock();
        let reply = pipeline.accept(message, mode).await;
        assert!(reply.to_string().starts_with("250"), "{reply}");
    }
    while server.begun() < 3 || store.all().len() < 3 {
        Deadline::after(Duration::from_secs(1)).wait().await;
    }
    set_wall_clock(Some(wall_clock() + HOUR));
    while !store.all().is_empty() {
        Deadline::after(Duration::from_secs(1)).wait().await;
    }
    assert_eq!(server.begun(), 3, "each once");
    closing.cancel();
    set_wall_clock(None);
}

/// What waits for its next attempt, or only for its turn, waits no longer than the longest wait of its next hop when the
/// clock is set back by a day.
#[tokio::test(start_paused = true)]
async fn a_clock_set_back_makes_nothing_wait_for_a_day() {
    set_wall_clock(Some(Timestamp::now()));
    let (server, store) = (Taking::new(Duration::ZERO), Arc::default());
    let (pipeline, _folder) = over(&server, &store);
    let refused = delayed(&pipeline.generation());
    let mut held_back = delayed(&pipeline.generation());
    held_back.due_at = held_back.received_at;
    for record in [refused, held_back] {
        let put = store.put(vec![record], Content::uncharged("x"));
        put.await.expect("put");
    }
    set_wall_clock(Some(wall_clock() - DAY));
    let began = Instant::now();
    let closing = tokio_util::sync::CancellationToken::new();
    tokio::spawn(Lanes::new(pipeline.clone()).run(closing.clone()));
    while !store.all().is_empty() {
        Deadline::after(Duration::from_secs(1)).wait().await;
        let longest = maildir_hop().retry_max;
        assert!(began.elapsed() <= longest, "{:?}", store.all());
    }
    closing.cancel();
    set_wall_clock(None);
}

/// The time for deliveries and for deferrals is time that has passed: a year by which the clock is set ahead bounces
/// nothing and hands nothing to a reviewer.
#[tokio::test(start_paused = true)]
async fn a_clock_set_ahead_gives_nothing_up() {
    let now = Timestamp::now();
    set_wall_clock(Some(now));
    let budget = Budget::default();
    let generation = generation(Vec::new(), budget.clone());
    let mut message = message(&["x@b.test"]);
    message.received_at = now;
    let mut waiting = settle::unfinished(&generation, &message, None);
    waiting.lane = Lane::Delivery;
    waiting.expires_at = now + DAY;
    let settle = |custody: Custody, disposition, end| {
        let passed = passed(vec![(disposition, vec![0], end)]);
        settle::settle(&generation, &message, &custody, &passed).keep
    };
    let deliver = || {
        let later = GroupOutcome::Delivered(vec![Outcome::Deferred(answer(451))]);
        let custody = Custody::Stored(Box::new(waiting.clone()));
        settle(custody, Disposition::Deliver, later)
    };
    let defer = || settle(Custody::Session, Disposition::Defer, GroupOutcome::Deferred)[0].lane;
    set_wall_clock(Some(now + 365 * DAY));
    assert_eq!(deliver().len(), 1, "tried again");
    assert_eq!(defer(), Lane::Scan);
    tokio::time::advance(budget.deferral).await;
    assert_eq!(defer(), Lane::Held);
    assert_eq!(deliver().len(), 1);
    tokio::time::advance(DAY).await;
    assert_eq!(deliver(), [], "bounced");
    set_wall_clock(None);
}

/// What expires after the clock was set ahead ends by the time that has passed, and the audit tells the time of the act by the
/// clock that people read.
#[tokio::test(start_paused = true)]
async fn an_expiry_is_on_record_with_the_time_of_the_act() {
    let now = Timestamp::now();
    set_wall_clock(Some(now));
    let store = Arc::<Scripted>::default();
    let (pipeline, _folder) = pipeline(generation(Vec::new(), Budget::default()), &store);
    let mut held = settle::unfinished(&pipeline.generation(), &message(&["x@b.test"]), None);
    (held.lane, held.expires_at) = (Lane::Held, now + HOUR);
    let put = store.put(vec![held.clone()], Content::uncharged("x"));
    put.await.expect("put");
    set_wall_clock(Some(now + DAY));
    let closing = tokio_util::sync::CancellationToken::new();
    tokio::spawn(Lanes::new(pipeline).run(closing.clone()));
    let began = Instant::now();
    while !store.all().is_empty() {
        Deadline::after(Duration::from_secs(1)).wait().await;
        assert!(began.elapsed() < 2 * HOUR, "{:?}", store.all());
    }
    assert!(began.elapsed() >= HOUR, "the hour has passed");
    let acts = store.audited(Some(held.id.into()), 9).await;
    let at = acts.expect("audited")[0].at;
    assert!(at >= now + DAY + HOUR, "{at}");
    closing.cancel();
    set_wall_clock(None);
}
