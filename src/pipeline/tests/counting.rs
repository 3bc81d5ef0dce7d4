//! What the metrics say about messages: each one once, however often it is tried, and how long its user has waited for it.

use std::sync::atomic::AtomicU32;

use futures_util::future::BoxFuture;
use metrics::Gauge;

use super::*;
use crate::deadline::set_wall_clock;
use crate::delivery::Outbound;
use crate::delivery::next_hop::{HopResult, HopSignal, NextHop as Server};
use crate::telemetry::metrics::Counted;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// A server that puts the first deliveries off, and then takes everything after a while.
struct Reluctant {
    refusals: AtomicU32,
    after: Duration,
}

impl Server for Reluctant {
    fn deliver<'a>(
        &'a self,
        _: &'a Outbound,
        at: Vec<usize>,
        _: &'a Gauge,
        _: Deadline,
    ) -> BoxFuture<'a, HopResult> {
        let fewer = |refusals: u32| refusals.checked_sub(1);
        let order = Ordering::Relaxed;
        let refuses = self.refusals.fetch_update(order, order, fewer).is_ok();
        let answered = Deadline::after(self.after);
        Box::pin(async move {
            answered.wait().await;
            let outcome = match refuses {
                true => Outcome::Deferred(answer(451)),
                false => Outcome::Delivered(answer(250)),
            };
            HopResult {
                outcomes: at.into_iter().map(|at| (at, outcome.clone())).collect(),
                signal: HopSignal::Fine,
                offered: true,
            }
        })
    }
}

fn over(
    refusals: u32,
    after: Duration,
    store: &Arc<Scripted>,
) -> (Arc<Pipeline>, tempfile::TempDir) {
    let mut generation = generation(Vec::new(), Budget::default());
    let server = Reluctant {
        refusals: refusals.into(),
        after,
    };
    let hop = (maildir_hop(), Arc::new(server) as Arc<dyn Server>);
    generation.delivery = Delivery::scripted(vec![hop], None).expect("a next hop");
    let mut settings = crate::config::load(None)
        .unwrap_or_else(|problems| panic!("{problems}"))
        .policy;
    settings.coverage.clear();
    generation.policy = Policy::new(settings, "test".into());
    pipeline(generation, store)
}

/// Runs the lanes until nothing is stored.
async fn empty(pipeline: &Arc<Pipeline>, store: &Scripted) {
    let closing = tokio_util::sync::CancellationToken::new();
    tokio::spawn(Lanes::new(pipeline.clone()).run(closing.clone()));
    while !store.all().is_empty() {
        Deadline::after(Duration::from_secs(1)).wait().await;
    }
    closing.cancel();
}

/// A message that was put off three times is one message with four attempts: a dashboard of messages shows mail, and not the
/// trouble of a next hop.
#[tokio::test(start_paused = true)]
async fn a_message_counts_once_however_often_it_is_tried() {
    let (counted, _guard) = Counted::begin();
    set_wall_clock(Some(Timestamp::now()));
    let store = Arc::<Scripted>::default();
    let (pipeline, _folder) = over(3, Duration::ZERO, &store);
    let mut message = message(&["x@b.test", "y@b.test"]);
    message.received_at = wall_clock();
    let reply = pipeline.accept(message, Mode::CutThrough).await;
    assert!(reply.to_string().starts_with("250"), "{reply}");
    empty(&pipeline, &store).await;
    for (series, expected) in [
        ("received_messages_total{reply=\"accepted\"}", 1.0),
        ("judged_messages_total{verdict=\"undetermined\"}", 1.0),
        ("recipients_total{event=\"delivered\"}", 2.0),
        ("recipient_attempts_total{event=\"delayed\"}", 6.0),
        (
            "delivery_attempts_total{next_hop=\"hop\",outcome=\"deferred\"}",
            3.0,
        ),
        (
            "delivery_attempts_total{next_hop=\"hop\",outcome=\"delivered\"}",
            1.0,
        ),
        ("message_delay_seconds_count{lane=\"delivery\"}", 1.0),
    ] {
        let value = counted.value(&format!("spillway_{series}"));
        assert_eq!(value, Some(expected), "{series}");
    }
    set_wall_clock(None);
}

/// Mail that recovery takes out of quarantine and holds again is not held twice, and is not judged a second time. Mail that was
/// only deferred is.
#[test]
fn mail_that_is_held_again_counts_once() {
    let generation = generation(Vec::new(), Budget::default());
    let message = message(&["x@b.test"]);
    let held = passed(vec![(Disposition::Quarantine, vec![0], GroupOutcome::Held)]);
    for (before, counts) in [
        (Disposition::Quarantine, None),
        (Disposition::Defer, Some(1.0)),
    ] {
        let (counted, _guard) = Counted::begin();
        let mut record = settle::unfinished(&generation, &message, None);
        record.decision = Some(decision(before));
        let custody = Custody::Stored(Box::new(record));
        let settlement = settle::settle(&generation, &message, &custody, &held);
        for entry in &settlement.history {
            counts::recipients(entry, settlement.was_held);
        }
        counts::judged(&custody, &held);
        for series in [
            "spillway_recipients_total{event=\"held\"}",
            "spillway_judged_messages_total{verdict=\"suspect\"}",
        ] {
            assert_eq!(counted.value(series), counts, "{series} after {before:?}");
        }
    }
}

/// A message is judged once, also if it is stored in the middle of a delivery that outlasts `budget.session`.
#[tokio::test(start_paused = true)]
async fn a_delivery_that_outlasts_the_session_is_judged_once() {
    let (counted, _guard) = Counted::begin();
    let store = Arc::<Scripted>::default();
    let (pipeline, _folder) = over(0, Duration::from_secs(40), &store);
    let reply = pipeline.accept(message(&["x@b.test"]), Mode::CutThrough);
    let reply = reply.await;
    assert!(reply.to_string().starts_with("250"), "{reply}");
    assert!(!store.all().is_empty(), "it is stored meanwhile");
    empty(&pipeline, &store).await;
    let series = "spillway_judged_messages_total{verdict=\"undetermined\"}";
    assert_eq!(counted.value(series), Some(1.0));
}

/// A message whose scan is deferred has no verdict yet.
#[test]
fn a_deferred_message_is_not_judged() {
    let (counted, _guard) = Counted::begin();
    let deferred = passed(vec![(Disposition::Defer, vec![0], GroupOutcome::Deferred)]);
    counts::judged(&Custody::Session, &deferred);
    let series = "spillway_judged_messages_total{verdict=\"suspect\"}";
    assert_eq!(counted.value(series), None);
}

const DELAY: &str = "spillway_message_delay_seconds";

/// The delay in the session is the time that has passed, wherever the clock of the machine goes meanwhile.
#[tokio::test(start_paused = true)]
async fn a_delay_in_the_session_is_monotonic() {
    for (ahead, back) in [(HOUR, Duration::ZERO), (Duration::ZERO, DAY)] {
        let (counted, _guard) = Counted::begin();
        set_wall_clock(Some(Timestamp::now()));
        let (pipeline, _folder) = over(0, Duration::from_secs(10), &Arc::default());
        let mut message = message(&["x@b.test"]);
        message.received_at = wall_clock();
        let sets_the_clock = async {
            Deadline::after(Duration::from_secs(5)).wait().await;
            set_wall_clock(Some(wall_clock() + ahead - back));
        };
        tokio::join!(pipeline.accept(message, Mode::CutThrough), sets_the_clock);
        let sum = counted.value(&format!("{DELAY}_sum{{lane=\"session\"}}"));
        assert_eq!(sum.map(f64::round), Some(10.0), "{ahead:?} {back:?}");
        set_wall_clock(None);
    }
}

/// The delay of stored mail is that of its user, without the hour by which the clock is set ahead. After the clock was set back
/// nothing says how old the mail is, and it is not counted as fast. Neither the relay's own mail nor a reviewer's release is
/// mail that waited for the relay.
#[tokio::test(start_paused = true)]
async fn a_delay_of_stored_mail_is_that_of_its_user() {
    for (what, set, lane, expected) in [
        ("plain", 0, "delivery", Some(100.0)),
        ("the clock is set ahead", 3600, "delivery", Some(100.0)),
        ("the clock is set back", -86_400, "delivery", None),
        ("a release", 0, "held", Some(100.0)),
        ("a bounce", 0, "delivery", None),
    ] {
        let (counted, _guard) = Counted::begin();
        set_wall_clock(Some(Timestamp::now()));
        let store = Arc::<Scripted>::default();
        let (pipeline, _folder) = over(0, Duration::ZERO, &store);
        let mut message = message(&["x@b.test"]);
        message.received_at = wall_clock();
        let mut record = settle::unfinished(&pipeline.generation(), &message, None);
        record.lane = Lane::Delivery;
        record.decision = Some(decision(Disposition::Deliver));
        record.expires_at = wall_clock() + DAY;
        record.released = what == "a release";
        let report = crate::store::Notification::Report;
        record.notification = (what == "a bounce").then_some(report);
        let put = store.put(vec![record.clone()], message.content.clone());
        put.await.expect("put");
        tokio::time::advance(Duration::from_secs(100)).await;
        let step = jiff::SignedDuration::from_secs(set);
        if set != 0 {
            set_wall_clock(Some(wall_clock() + step));
        }
        let next_step = NextStep::Deliver(None);
        pipeline
            .resume(
                pipeline.generation(),
                message,
                record,
                ScanReason::Again,
                next_step,
            )
            .await;
        assert!(store.all().is_empty(), "{what}: it is delivered");
        let sum = counted.value(&format!("{DELAY}_sum{{lane=\"{lane}\"}}"));
        assert_eq!(sum.map(f64::round), expected, "{what}");
        set_wall_clock(None);
    }
}

/// Delivers one message, put off for 100 s, that is stored as `change` makes it.
async fn deliver_stored(pipeline: &Arc<Pipeline>, store: &Scripted, change: impl Fn(&mut Record)) {
    let mut message = message(&["x@b.test"]);
    message.received_at = wall_clock();
    let mut record = settle::unfinished(&pipeline.generation(), &message, None);
    record.lane = Lane::Delivery;
    record.decision = Some(decision(Disposition::Deliver));
    record.expires_at = wall_clock() + DAY;
    change(&mut record);
    let put = store.put(vec![record.clone()], message.content.clone());
    put.await.expect("put");
    tokio::time::advance(Duration::from_secs(100)).await;
    let (generation, next_step) = (pipeline.generation(), NextStep::Deliver(None));
    let resumed = pipeline.resume(generation, message, record, ScanReason::Again, next_step);
    resumed.await;
    assert!(store.all().is_empty(), "it is delivered");
}

/// The delay that a status begins with is that of valid mail: what users wait for. The relay's own mail, what a reviewer let go
/// and what is known to be malicious are not. Known and unknown senders stay apart.
#[tokio::test(start_paused = true)]
async fn the_delay_of_a_status_is_that_of_valid_mail() {
    let judge = |record: &mut Record, verdict| {
        let decided = record.decision.as_mut().expect("decided");
        decided.verdict = verdict;
    };
    let known = Some(SenderReputation::Known);
    for (what, class, change) in [
        (
            "plain",
            Some(""),
            &(|_: &mut Record| {}) as &dyn Fn(&mut Record),
        ),
        ("of a known sender", Some("known"), &|r| {
            r.reputation = known
        }),
        ("without an engine", Some(""), &|r| {
            judge(r, Verdict::Undetermined)
        }),
        ("malicious", None, &|r| judge(r, Verdict::Malicious)),
        ("released", None, &|r| r.released = true),
        ("a bounce", None, &|r| {
            r.notification = Some(crate::store::Notification::Report);
        }),
    ] {
        set_wall_clock(Some(Timestamp::now()));
        let store = Arc::<Scripted>::default();
        let (pipeline, _folder) = over(0, Duration::ZERO, &store);
        deliver_stored(&pipeline, &store, change).await;
        let delay = pipeline.delays();
        assert_eq!(delay.now.messages, u64::from(class.is_some()), "{what}");
        assert_eq!(delay.last_hour, delay.now, "{what}");
        let pending = pipeline.measures().pending();
        let classes: Vec<_> = pending.iter().map(|(series, _)| &*series.class).collect();
        assert_eq!(classes, Vec::from_iter(class), "{what}");
        if class.is_some() {
            let p99 = delay.now.p99_ms.expect("mail");
            assert!((100_000..113_000).contains(&p99), "{what}: {p99} ms");
        }
        set_wall_clock(None);
    }
}

/// A restart forgets the last minutes and nothing else: the last hour and the same hour a week ago come from the history file.
#[tokio::test(start_paused = true)]
async fn delays_outlive_a_restart() {
    // The middle of a period, so that no second more or less changes its end.
    let began = Timestamp::from_second(1_800_000_300).expect("a time");
    set_wall_clock(Some(began));
    let folder = tempfile::tempdir().expect("a folder");
    let start = || {
        let store = Arc::<Scripted>::default();
        let (pipeline, _other) = over(0, Duration::ZERO, &store);
        let generation = Arc::into_inner(pipeline).expect("the only one").generation;
        let history = History::open(&folder.path().join("history.db"), DAY).expect("history");
        let incidents = Incidents::open(&folder.path().join("incidents.db"), DAY).expect("log");
        let pipeline = Pipeline::new(
            Arc::into_inner(generation.into_inner()).expect("the only one"),
            store.clone(),
            (history, incidents),
            intercept::Settings::default(),
            64 << 20,
        );
        (pipeline, store)
    };
    let (first, store) = start();
    deliver_stored(&first, &store, |_| {}).await;
    first.write_measures().await;
    assert_eq!(
        first.delays().last_hour.messages,
        1,
        "written, not counted twice"
    );
    deliver_stored(&first, &store, |_| {}).await;
    assert_eq!(
        first.delays().last_hour.messages,
        2,
        "the second is not written yet"
    );
    first.write_measures().await;
    first.history.close().await;
    drop(first);

    let week = 7 * DAY;
    for (what, later, expected) in [
        ("at once", Duration::ZERO, (2, 0)),
        ("40 minutes later", 2 * HOUR / 3, (2, 0)),
        ("two hours later", 2 * HOUR, (0, 0)),
        ("a week later", week, (0, 2)),
        ("a week and two hours later", week + 2 * HOUR, (0, 0)),
    ] {
        set_wall_clock(None);
        set_wall_clock(Some(began + later));
        let (pipeline, _store) = start();
        pipeline.read_delays().await;
        let delay = pipeline.delays();
        let counts = (delay.last_hour.messages, delay.week_ago.messages);
        assert_eq!(counts, expected, "{what}");
        assert_eq!(delay.now.messages, 0, "{what}");
        pipeline.history.close().await;
    }
    set_wall_clock(None);
}
