//! Who answers for a message at each moment: recipients who part ways, and a store that fails.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use futures_util::future::BoxFuture;
use metrics::Gauge;
use tokio_util::sync::CancellationToken;

use super::scripted::{Fate, Operation, Witness};
use super::*;
use crate::deadline::set_wall_clock;
use crate::delivery::Outbound;
use crate::delivery::next_hop::{HopResult, HopSignal, NextHop as Server};
use crate::store::Audit;
use crate::store::StoreError;

const MINUTE: Duration = Duration::from_secs(60);

/// A next hop that takes what it is sent, or hangs, or puts one recipient off.
#[derive(Default)]
struct Hop {
    got: Arc<Mutex<Vec<(MessageId, Mailbox)>>>,
    /// Answers for one recipient after the other, and takes this long for each.
    each: Option<Duration>,
    hangs: AtomicBool,
    later: Option<&'static str>,
    refuses: Option<&'static str>,
    /// Has no room for new mail from the moment on in which it takes a message.
    fills: Option<Arc<Scripted>>,
    /// Broken by it at the moment in which it takes a message.
    breaks: Option<Arc<Scripted>>,
}

impl Hop {
    fn hanging() -> Arc<Self> {
        Arc::new(Self {
            hangs: true.into(),
            ..Self::default()
        })
    }

    fn breaking(store: &Arc<Scripted>) -> Self {
        Self {
            breaks: Some(store.clone()),
            ..Self::default()
        }
    }

    fn got(&self) -> usize {
        self.got.lock().expect("no panic").len()
    }
}

impl Server for Hop {
    fn deliver<'a>(
        &'a self,
        mail: &'a Outbound,
        recipients: Vec<usize>,
        _: &'a Gauge,
        deadline: Deadline,
    ) -> BoxFuture<'a, HopResult> {
        let hangs = self.hangs.load(Ordering::Relaxed);
        let mailbox = |at: usize| mail.envelope.recipients[at].mailbox.clone();
        let outcome = |at: usize| match self.later {
            _ if hangs => Outcome::Deferred(answer(451)),
            Some(later) if mailbox(at).as_str() == later => Outcome::Deferred(answer(451)),
            _ if self.refuses == Some(mailbox(at).as_str()) => Outcome::Failed(answer(550)),
            _ => Outcome::Delivered(answer(250)),
        };
        let outcomes: Vec<_> = recipients.into_iter().map(|at| (at, outcome(at))).collect();
        let taken = outcomes
            .iter()
            .filter(|(_, outcome)| matches!(outcome, Outcome::Delivered(_)))
            .map(|(at, _)| (mail.id, mailbox(*at)));
        let (got, each, delivered) = (self.got.clone(), self.each, mail.delivered.clone());
        if let Some(each) = each {
            let taken: Vec<_> = outcomes.iter().map(|(at, _)| *at).zip(taken).collect();
            return Box::pin(async move {
                for (at, taken) in taken {
                    Deadline::after(each).wait().await;
                    got.lock().expect("no panic").push(taken);
                    delivered.send(at, || "250 taken".to_owned());
                }
                HopResult {
                    outcomes,
                    signal: HopSignal::Fine,
                    offered: true,
                }
            });
        }
        got.lock().expect("no panic").extend(taken);
        if let Some(store) = &self.fills {
            store.full.store(true, Ordering::Relaxed);
        }
        if let Some(store) = &self.breaks {
            store.fails.store(true, Ordering::Relaxed);
        }
        Box::pin(async move {
            if hangs {
                deadline.wait().await;
            }
            HopResult {
                outcomes,
                signal: HopSignal::Fine,
                offered: true,
            }
        })
    }
}

/// These next hops, each for the domain `NAME.test`, and no engine.
fn to_hops(hops: &[(&str, &Arc<Hop>)]) -> Generation {
    let listed = |(name, hop): &(&str, &Arc<Hop>)| {
        let settings = HopSettings {
            name: (*name).into(),
            domains: vec![format!("{name}.test")],
            kind: Kind::Smtp(SmtpSettings {
                connections: 20,
                ..smtp(([127, 0, 0, 1], 1).into(), MINUTE)
            }),
            ..maildir_hop()
        };
        (settings, (*hop).clone() as Arc<dyn Server>)
    };
    let hops = hops.iter().map(listed).collect();
    let mut settings = crate::config::load(None)
        .unwrap_or_else(|problems| panic!("{problems}"))
        .policy;
    settings.coverage.clear();
    Generation {
        policy: Policy::new(settings, "test".into()),
        delivery: Delivery::scripted(hops, None).expect("next hops"),
        ..generation(Vec::new(), Budget::default())
    }
}

/// One process. Nothing of it is left when `work` has ended, but what is durable.
fn life(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        set_wall_clock(Some(Timestamp::now()));
        work.await;
        set_wall_clock(None);
    });
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let patience = Deadline::after(20 * MINUTE);
    while !is_so() {
        assert!(!patience.passed(), "never: {what}");
        Deadline::after(Duration::from_millis(10)).wait().await;
    }
}

/// Promise P5: what one next hop has taken is durable when it has said so, although another one hangs: killed or stopped
/// meanwhile, the relay does not give it to the first again. That goes for mail in its session, for stored mail, and for
/// what was released to recipients of both.
#[test]
fn what_one_next_hop_has_taken_it_does_not_get_again_because_another_hangs() {
    const EACH: usize = 20;
    for (mode, stopped) in [
        (Some(Mode::CutThrough), false),
        (Some(Mode::CutThrough), true),
        (Some(Mode::Queue), false),
        (None, false),
    ] {
        let store = Arc::new(Scripted::default());
        let (a, b) = (Arc::new(Hop::default()), Hop::hanging());
        let to_both = || to_hops(&[("a", &a), ("b", &b)]);
        life(async {
            let (pipeline, _folder) = pipeline(to_both(), &store);
            let closing = CancellationToken::new();
            tokio::spawn(Lanes::new(pipeline.clone()).run(closing.clone()));
            for _ in 0..EACH {
                let message = message(&["x@a.test", "y@b.test"]);
                let Some(mode) = mode else {
                    let mut record = settle::unfinished(&pipeline.generation(), &message, None);
                    (record.lane, record.released) = (Lane::Delivery, true);
                    record.expires_at += 10 * MINUTE;
                    store.put(vec![record], message.content).await.expect("put");
                    continue;
                };
                let reply = pipeline.accept(message, mode).await;
                assert!(reply.to_string().contains("accepted as"), "{reply}");
            }
            until("the first takes all", || a.got() == EACH).await;
            until("the second is awaited", || store.all().len() == EACH).await;
            if stopped {
                closing.cancel();
                assert!(!pipeline.drained(Deadline::after(MINUTE)).await);
            }
        });
        store.reopen();
        let released = store.all().iter().filter(|r| r.released).count();
        assert_eq!(released, if mode.is_none() { EACH } else { 0 });
        b.hangs.store(false, Ordering::Relaxed);
        life(async {
            let (pipeline, _folder) = pipeline(to_both(), &store);
            tokio::spawn(Lanes::new(pipeline).run(CancellationToken::new()));
            until("nothing waits", || store.all().is_empty()).await;
        });
        assert_eq!((a.got(), b.got()), (EACH, EACH), "{mode:?}, {stopped}");
    }
}

/// Promise P5: what a next hop says of one recipient is durable soon after it has said so, although it takes its time for the
/// others: killed meanwhile, the relay gives the message to nobody again who has it. That goes for stored mail, and for
/// mail that became ours in the middle of its delivery.
#[test]
fn who_has_it_does_not_get_it_again_because_others_are_awaited() {
    let session = Budget::default().session;
    for (mode, each) in [
        (Mode::Queue, Duration::from_millis(500)),
        (Mode::CutThrough, session / 4),
    ] {
        let store = Arc::new(Scripted::default());
        let a = Arc::new(Hop {
            each: Some(each),
            ..Hop::default()
        });
        life(async {
            let (pipeline, _folder) = pipeline(to_hops(&[("a", &a)]), &store);
            let message = message(&TEN);
            tokio::spawn(async move { pipeline.accept(message, mode).await });
            until("half of them have it", || a.got() == TEN.len() / 2).await;
            Deadline::after(Duration::from_millis(200)).wait().await;
        });
        store.reopen();
        let left = store.all();
        let left: Vec<_> = left.iter().flat_map(|r| &r.envelope.recipients).collect();
        let left: Vec<_> = left.iter().map(|r| r.mailbox.as_str()).collect();
        assert_eq!(left, TEN[5..], "{mode:?}");
        life(async {
            let (pipeline, _folder) = pipeline(to_hops(&[("a", &a)]), &store);
            tokio::spawn(Lanes::new(pipeline).run(CancellationToken::new()));
            until("nothing waits", || store.all().is_empty()).await;
        });
        assert_eq!(a.got(), TEN.len(), "{mode:?}");
    }
}

/// Promise P5: mail that becomes ours in the middle of its delivery is ours for those only who do not have it: killed right
/// after our 250, the relay gives it to nobody again.
#[test]
fn who_has_it_when_the_mail_becomes_ours_is_not_in_its_record() {
    let session = Budget::default().session;
    let store = Arc::new(Scripted::default());
    let a = Arc::new(Hop {
        each: Some(session * 2 / 5),
        ..Hop::default()
    });
    life(async {
        let (pipeline, _folder) = pipeline(to_hops(&[("a", &a)]), &store);
        let reply = pipeline.accept(message(&TEN), Mode::CutThrough).await;
        assert!(reply.to_string().contains("accepted as"), "{reply}");
        let left = store.all();
        let left = left.iter().flat_map(|r| &r.envelope.recipients);
        let left: Vec<_> = left.map(|r| r.mailbox.to_string()).collect();
        assert_eq!(left, TEN[2..]);
    });
    assert_eq!(a.got(), 2);
    store.reopen();
    life(async {
        let (pipeline, _folder) = pipeline(to_hops(&[("a", &a)]), &store);
        tokio::spawn(Lanes::new(pipeline).run(CancellationToken::new()));
        until("nothing waits", || store.all().is_empty()).await;
    });
    assert_eq!(a.got(), TEN.len());
}

const TEN: [&str; 10] = [
    "0@a.test", "1@a.test", "2@a.test", "3@a.test", "4@a.test", "5@a.test", "6@a.test", "7@a.test",
    "8@a.test", "9@a.test",
];

/// Counts what changes in the store.
#[derive(Default)]
struct Writes(AtomicUsize);

impl Witness for Writes {
    fn fate(&self, _: Option<MessageId>, _: Operation) -> Fate {
        Fate::default()
    }

    fn changed(&self, _: &[Record], _: &[(Record, Content)], _: Option<&Audit>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Striking off costs writes only where answers come one after the other, several of them in one write; and each recipient is
/// in the history once.
#[tokio::test(start_paused = true)]
async fn only_slow_answers_cost_more_writes() {
    let millis = |millis| Some(Duration::from_millis(millis));
    for (each, recipients, writes) in [
        (None, 10, 2),
        (millis(1000), 1, 2),
        (millis(1), 10, 2),
        (millis(30), 10, 4),
        (millis(1000), 10, 11),
    ] {
        let counted = Arc::new(Writes::default());
        let store = Arc::new(Scripted::watched(counted.clone()));
        let a = Arc::new(Hop {
            each,
            ..Hop::default()
        });
        let (pipeline, _folder) = pipeline(to_hops(&[("a", &a)]), &store);
        let message = message(&TEN[..recipients]);
        let id = message.id;
        pipeline.accept(message, Mode::Queue).await;
        assert!(pipeline.drained(Deadline::after(MINUTE)).await);
        assert_eq!(store.all(), []);
        assert_eq!(counted.0.load(Ordering::Relaxed), writes, "{each:?}");
        let told = pipeline.history.entries(id).await.expect("history");
        let told = told.iter().filter(|entry| entry.event == "delivered");
        let told: Vec<_> = told.map(|entry| entry.recipients[0].as_str()).collect();
        assert_eq!(told, TEN[..recipients], "{each:?}");
    }
}

/// The sender is answered when the message is durable for all who part ways, each with a record of its own, and before
/// anybody gets it: until then a sender who hears nothing would send it again.
#[tokio::test(start_paused = true)]
async fn who_parts_ways_is_answered_for_before_the_first_delivery() {
    let store = Arc::new(Scripted::default());
    let (a, b) = (Arc::new(Hop::default()), Arc::new(Hop::default()));
    let (pipeline, _folder) = pipeline(to_hops(&[("a", &a), ("b", &b)]), &store);
    let message = message(&["x@a.test", "y@b.test", "z@a.test"]);
    let reply = pipeline.accept(message.clone(), Mode::CutThrough).await;
    assert!(reply.to_string().contains("accepted as"), "{reply}");
    let kept = store.all();
    let ways: Vec<_> = kept
        .iter()
        .map(|r| (r.lane, &*r.next_hop, r.envelope.recipients.len()))
        .collect();
    assert_eq!(ways, [(Lane::Delivery, "a", 2), (Lane::Delivery, "b", 1)]);
    assert!(kept.iter().all(|record| record.message == message.id));
    assert!(kept.iter().all(|record| record.attempts == 0));
    assert_eq!((a.got(), b.got()), (0, 0));
}

/// A store that fails leaves a message whose recipients part ways with its sender for all of them: otherwise a recipient
/// would get it with every try.
#[tokio::test(start_paused = true)]
async fn a_store_that_fails_leaves_all_ways_to_the_sender() {
    let store = Arc::new(Scripted::default());
    store.fails.store(true, Ordering::Relaxed);
    let (a, b) = (Arc::new(Hop::default()), Arc::new(Hop::default()));
    let (pipeline, _folder) = pipeline(to_hops(&[("a", &a), ("b", &b)]), &store);
    let generation = pipeline.generation();
    let held = passed(vec![
        (Disposition::Deliver, vec![0], GroupOutcome::Queued),
        (Disposition::Quarantine, vec![1], GroupOutcome::Held),
    ]);
    let by_policy = || ResumeState {
        judged: Some(held.judged.clone()),
        ..ResumeState::NEW_MESSAGE
    };
    for (to, before) in [
        (["x@a.test", "y@b.test"], ResumeState::NEW_MESSAGE),
        (["x@a.test", "y@a.test"], by_policy()),
    ] {
        let message = message(&to);
        let pass =
            pipeline
                .clone()
                .pass(generation.clone(), message.clone(), before, Arc::default());
        let passed = pass.await;
        let reply = pipeline
            .conclude(&generation, &message, Custody::Session, passed)
            .await;
        assert_eq!(reply.code(), 451, "{reply}");
        assert_eq!((a.got(), b.got()), (0, 0), "{to:?}");
    }
}

/// What is asked of a store, counted.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Witness for Counting {
    fn fate(&self, _: Option<MessageId>, _: Operation) -> Fate {
        self.0.fetch_add(1, Ordering::Relaxed);
        Fate::default()
    }

    fn changed(&self, _: &[Record], _: &[(Record, Content)], _: Option<&Audit>) {}
}

/// Nothing is stored in the normal case: a message for one next hop, however many recipients it has there, whoever is
/// refused, and what nobody is to get, does not so much as ask the store; and its sender gets the next hop's own answer.
#[tokio::test(start_paused = true)]
async fn nothing_is_stored_in_the_normal_case() {
    let counting = Arc::new(Counting::default());
    let store = Arc::new(Scripted::watched(counting.clone()));
    let a = Arc::new(Hop::default());
    let (pipeline, _folder) = pipeline(to_hops(&[("a", &a)]), &store);
    let one = message(&["x@a.test"]);
    let several = message(&["x@a.test", "y@a.test", "z@A.test"]);
    for message in [one, several] {
        let reply = pipeline.accept(message, Mode::CutThrough).await;
        assert!(reply.to_string().contains("said the hop"), "{reply}");
    }
    assert_eq!(a.got(), 4);
    let discarded = passed(vec![
        (Disposition::Deliver, vec![1], GroupOutcome::Queued),
        (Disposition::Discard, vec![0], GroupOutcome::Discarded),
    ]);
    let before = ResumeState {
        judged: Some(discarded.judged),
        ..ResumeState::NEW_MESSAGE
    };
    let (generation, message) = (pipeline.generation(), message(&["x@b.test", "y@a.test"]));
    let pass = pipeline
        .clone()
        .pass(generation.clone(), message.clone(), before, Arc::default());
    let passed = pass.await;
    let reply = pipeline
        .conclude(&generation, &message, Custody::Session, passed)
        .await;
    assert!(reply.to_string().contains("said the hop"), "{reply}");
    assert_eq!(a.got(), 5);
    assert_eq!(counting.0.load(Ordering::Relaxed), 0);
}

/// What a next hop has taken it does not get again because the store fails for a while just then: the relay insists for as
/// long as the lease of the record allows.
#[tokio::test(start_paused = true)]
async fn what_was_taken_is_made_durable_as_soon_as_the_store_works_again() {
    let store = Arc::new(Scripted::default());
    let a = Arc::new(Hop::breaking(&store));
    let (pipeline, _folder) = pipeline(to_hops(&[("a", &a)]), &store);
    let reply = pipeline.accept(message(&["x@a.test"]), Mode::Queue).await;
    assert!(reply.to_string().contains("accepted as"), "{reply}");
    until("it is taken", || a.got() == 1).await;
    Deadline::after(lanes::PERSIST_RETRY_DURATION / 2)
        .wait()
        .await;
    assert_eq!(store.all().len(), 1, "the store does not know it yet");
    store.fails.store(false, Ordering::Relaxed);
    assert!(pipeline.drained(Deadline::after(MINUTE)).await);
    assert_eq!(store.all(), [], "it is done, and not taken up again");
    assert_eq!(a.got(), 1);
}

/// However long the store fails: what a next hop has taken is owed to the store, and nobody takes the message up before it knows.
#[tokio::test(start_paused = true)]
async fn what_was_taken_is_owed_to_a_store_that_fails_for_long() {
    let store = Arc::new(Scripted::default());
    let a = Arc::new(Hop::breaking(&store));
    let (pipeline, _folder) = pipeline(to_hops(&[("a", &a)]), &store);
    tokio::spawn(Lanes::new(pipeline.clone()).run(CancellationToken::new()));
    let reply = pipeline.accept(message(&["x@a.test"]), Mode::Queue).await;
    assert!(reply.to_string().contains("accepted as"), "{reply}");
    until("it is taken", || a.got() == 1).await;
    let lease = lanes::lease(&pipeline.generation().budget);
    Deadline::after(2 * lease).wait().await;
    store.fails.store(false, Ordering::Relaxed);
    Deadline::after(2 * lease).wait().await;
    assert_eq!(a.got(), 1);
    assert_eq!(store.all(), []);
}

/// Mail for a next hop that hangs keeps no other mail waiting for its scan or for its delivery, however much of it there is.
#[tokio::test(start_paused = true)]
async fn a_next_hop_that_hangs_keeps_no_other_mail_waiting() {
    let store = Arc::new(Scripted::default());
    let (a, b) = (Hop::hanging(), Arc::new(Hop::default()));
    let (pipeline, _folder) = pipeline(to_hops(&[("a", &a), ("b", &b)]), &store);
    tokio::spawn(Lanes::new(pipeline.clone()).run(CancellationToken::new()));
    for recipient in std::iter::repeat_n("x@a.test", 400).chain(["y@b.test"]) {
        let reply = pipeline.accept(message(&[recipient]), Mode::Queue).await;
        assert!(reply.to_string().contains("accepted as"), "{reply}");
    }
    Deadline::after(MINUTE).wait().await;
    assert_eq!((a.got(), b.got()), (0, 1));
}

/// The bounce about one recipient and what is known of the others are one act on mail that is here: a store that has no room
/// for new mail does not make the next hop get again what it has taken, and the bounce is written.
#[tokio::test(start_paused = true)]
async fn a_bounce_finds_room_where_new_mail_finds_none() {
    let store = Arc::new(Scripted::default());
    let a = Arc::new(Hop {
        refuses: Some("y@a.test"),
        fills: Some(store.clone()),
        ..Hop::default()
    });
    let (pipeline, _folder) = pipeline(to_hops(&[("a", &a)]), &store);
    tokio::spawn(Lanes::new(pipeline.clone()).run(CancellationToken::new()));
    let message = message(&["x@a.test", "y@a.test"]);
    let reply = pipeline.accept(message, Mode::Queue).await;
    assert!(reply.to_string().contains("accepted as"), "{reply}");
    let got = |mailbox: &str| {
        let got = a.got.lock().expect("no panic");
        got.iter().filter(|(_, to)| to.as_str() == mailbox).count()
    };
    until("it is told", || got("sender@a.test") == 1).await;
    assert_eq!(got("x@a.test"), 1);
    let lease = lanes::lease(&pipeline.generation().budget);
    Deadline::after(2 * lease).wait().await;
    assert_eq!((got("x@a.test"), got("sender@a.test")), (1, 1));
    assert_eq!(store.all(), []);
}

/// The store is waited for while the sender waits too, for what is left of a message that the next hop has taken in part: refused
/// now, all of it would be sent again. It is no new mail: the reserve of the disk is for it.
#[tokio::test(start_paused = true)]
async fn what_is_left_is_kept_as_soon_as_the_store_works_again() {
    let store = Arc::new(Scripted::default());
    let a = Arc::new(Hop {
        later: Some("y@a.test"),
        ..Hop::breaking(&store)
    });
    let (pipeline, _folder) = pipeline(to_hops(&[("a", &a)]), &store);
    let accepting = pipeline.clone();
    let message = message(&["x@a.test", "y@a.test"]);
    let accepted = tokio::spawn(async move { accepting.accept(message, Mode::CutThrough).await });
    until("it is taken", || a.got() == 1).await;
    Deadline::after(lanes::PERSIST_RETRY_DURATION / 2)
        .wait()
        .await;
    store.full.store(true, Ordering::Relaxed);
    store.fails.store(false, Ordering::Relaxed);
    let reply = accepted.await.expect("no panic");
    assert_eq!(reply.code(), 250, "{reply}");
    let kept = store.all();
    let kept: Vec<_> = kept.iter().flat_map(|r| &r.envelope.recipients).collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].mailbox.as_str(), "y@a.test");
}

/// Fails to read while it is told to.
#[derive(Default)]
struct Unreadable(AtomicBool);

impl Witness for Unreadable {
    fn fate(&self, _: Option<MessageId>, what: Operation) -> Fate {
        let fails = what == Operation::Read && self.0.load(Ordering::Relaxed);
        Fate {
            error: fails.then(|| StoreError::Broken("told to".to_owned())),
            ..Fate::default()
        }
    }

    fn changed(&self, _: &[Record], _: &[(Record, Content)], _: Option<&Audit>) {}
}

/// Stored mail that cannot be read for a moment waits for that moment, and not until its lease ends.
#[tokio::test(start_paused = true)]
async fn mail_that_cannot_be_read_for_a_moment_goes_on_soon() {
    set_wall_clock(Some(Timestamp::now()));
    let unreadable = Arc::new(Unreadable::default());
    let store = Arc::new(Scripted::watched(unreadable.clone()));
    let a = Arc::new(Hop::default());
    let (pipeline, _folder) = pipeline(to_hops(&[("a", &a)]), &store);
    let message = message(&["x@a.test"]);
    let record = settle::unfinished(&pipeline.generation(), &message, None);
    store.put(vec![record], message.content).await.expect("put");
    unreadable.0.store(true, Ordering::Relaxed);
    let closing = CancellationToken::new();
    tokio::spawn(Lanes::new(pipeline.clone()).run(closing.clone()));
    Deadline::after(Duration::from_secs(5)).wait().await;
    unreadable.0.store(false, Ordering::Relaxed);
    Deadline::after(MINUTE).wait().await;
    assert_eq!(a.got(), 1);
    closing.cancel();
    set_wall_clock(None);
}

/// Promise P7: what a next hop has taken is in the history, also where the store fails and the message is kept by its
/// sender, or taken up again later; and nothing else is told there, because nothing else has happened.
#[tokio::test(start_paused = true)]
async fn what_was_delivered_is_told_although_the_store_fails() {
    for mode in [Mode::CutThrough, Mode::Queue] {
        let store = Arc::new(Scripted::default());
        let a = Arc::new(Hop {
            later: Some("y@a.test"),
            ..Hop::breaking(&store)
        });
        let (pipeline, _folder) = pipeline(to_hops(&[("a", &a)]), &store);
        let message = message(&["x@a.test", "y@a.test"]);
        let reply = pipeline.accept(message.clone(), mode).await;
        let expected = if mode == Mode::CutThrough { 451 } else { 250 };
        assert_eq!(reply.code(), expected, "{reply}");
        assert!(pipeline.drained(Deadline::after(MINUTE)).await);
        let told = pipeline.history.entries(message.id).await.expect("history");
        let told: Vec<_> = told
            .iter()
            .map(|entry| (&*entry.event, entry.recipients[0].as_str()))
            .collect();
        assert_eq!(told, [("delivered", "x@a.test")], "{mode:?}");
    }
}
