//! The task of a way, with a sender that a test scripts, on paused time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::way::{DRAIN_TIMEOUT, Terms, Way};
use super::*;
use crate::telemetry::metrics::{Counted, is_declared};

/// Takes notes of what it is asked to tell, and answers as told to.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Failure>>,
    hangs: AtomicBool,
    asked: Mutex<Vec<(String, String, Instant)>>,
}

impl Script {
    fn failing(answers: impl IntoIterator<Item = Failure>) -> Arc<Self> {
        Arc::new(Self {
            answers: Mutex::new(answers.into_iter().collect()),
            ..Self::default()
        })
    }

    /// The phases that were told or tried.
    fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().expect("the notes");
        asked.iter().map(|(phase, ..)| phase.clone()).collect()
    }
}

struct Scripted(Arc<Script>);

impl Sender for Scripted {
    fn send<'a>(&'a self, told: &'a Notification) -> BoxFuture<'a, Result<String, Failure>> {
        Box::pin(async {
            let note = (told.phase().to_owned(), told.id(), Instant::now());
            self.0.asked.lock().expect("the notes").push(note);
            if self.0.hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let answer = self.0.answers.lock().expect("the script").pop_front();
            answer.map_or(Ok("told".to_owned()), Err)
        })
    }
}

/// A running way.
struct Running {
    way: Arc<Way>,
    closing: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(name: &str, script: &Arc<Script>) -> Self {
        let (way, closing) = (
            Arc::new(Way::new(terms(name, script))),
            CancellationToken::new(),
        );
        let task = tokio::spawn(way.clone().run(closing.clone()));
        Self { way, closing, task }
    }

    async fn end(self) {
        self.closing.cancel();
        self.task.await.expect("it ends");
    }
}

fn terms(name: &str, script: &Arc<Script>) -> Terms {
    Terms {
        settings: settings(name),
        relay: "mx.example.com".into(),
        sender: Box::new(Scripted(script.clone())),
    }
}

/// Lets the tasks work until nothing happens for this time.
async fn quiet(time: Duration) {
    Deadline::after(time).wait().await;
}

use crate::deadline::Deadline;

fn again() -> Failure {
    Failure::Passing("later".to_owned())
}

fn value(counted: &Counted, outcome: &str) -> Option<f64> {
    assert!(is_declared(
        "spillway_notifications_total",
        "outcome",
        outcome
    ));
    counted.value(&format!(
        "spillway_notifications_total{{way=\"x\",outcome=\"{outcome}\"}}"
    ))
}

/// A try that fails is repeated after longer and longer waits, with the same id, and is given up after `attempts`. Nobody hears of
/// an end without a beginning then, and new trouble has its own tries.
#[tokio::test(start_paused = true)]
async fn tries_are_repeated_and_bounded() {
    let (counted, _guard) = Counted::begin();
    let script = Script::failing([again(), again(), again(), again()]);
    let running = Running::start("x", &script);
    running.way.note(StoryPhase::Begin, &story(1));
    quiet(Duration::from_secs(600)).await;
    let asked = script.asked.lock().expect("the notes").clone();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|(_, id, _)| *id == asked[0].1));
    let (first, second) = (asked[1].2 - asked[0].2, asked[2].2 - asked[1].2);
    assert!(first >= Duration::from_millis(7500) && first <= Duration::from_secs(10));
    assert!(second >= Duration::from_secs(15) && second <= Duration::from_secs(20));
    running.way.note(StoryPhase::End, &story(1));
    quiet(Duration::from_secs(600)).await;
    assert_eq!(script.asked().len(), 3);
    running.way.note(StoryPhase::Begin, &story(2));
    quiet(Duration::from_secs(600)).await;
    assert_eq!(script.asked().len(), 5, "the second try succeeds");
    assert_eq!(value(&counted, "failed"), Some(1.0));
    assert_eq!(value(&counted, "told"), Some(1.0));
    running.end().await;
}

/// However many tries a way has, none waits longer than five minutes for the next: whom nobody can reach now is told soon after.
#[tokio::test(start_paused = true)]
async fn waits_between_tries_are_bounded() {
    let script = Script::failing(std::iter::repeat_with(again).take(12));
    let running = Running::start("x", &script);
    running.way.replace(Terms {
        settings: Settings {
            attempts: 12,
            ..settings("x")
        },
        ..terms("x", &script)
    });
    running.way.note(StoryPhase::Begin, &story(1));
    quiet(Duration::from_secs(100_000)).await;
    let asked = script.asked.lock().expect("the notes").clone();
    assert_eq!(asked.len(), 12);
    let waits: Vec<Duration> = asked.windows(2).map(|two| two[1].2 - two[0].2).collect();
    assert!(
        waits[6..].iter().all(|wait| wait.as_secs() >= 225),
        "{waits:?}"
    );
    assert!(waits.iter().all(|wait| wait.as_secs() <= 300), "{waits:?}");
    running.end().await;
}

/// A failure that would tell somebody twice, or that would happen again, is not tried again.
#[tokio::test(start_paused = true)]
async fn a_lasting_failure_is_final() {
    let script = Script::failing([Failure::Lasting("never".to_owned())]);
    let running = Running::start("x", &script);
    running.way.note(StoryPhase::Begin, &story(1));
    quiet(Duration::from_secs(3000)).await;
    assert_eq!(script.asked(), ["begin"]);
    running.end().await;
}

/// A way that hangs delays no other way and nobody who records an incident, and the relay ends without it.
#[tokio::test(start_paused = true)]
async fn a_hanging_way_delays_nobody() {
    let (counted, _guard) = Counted::begin();
    let (hung, well) = (Script::failing([]), Script::failing([]));
    hung.hangs.store(true, Ordering::SeqCst);
    let (stuck, other) = (Running::start("x", &hung), Running::start("y", &well));
    let began = Instant::now();
    for number in 0..1000 {
        stuck.way.note(StoryPhase::Begin, &story(number));
    }
    other.way.note(StoryPhase::Begin, &story(1));
    assert_eq!(began.elapsed(), Duration::ZERO);
    quiet(Duration::from_secs(60)).await;
    assert_eq!((hung.asked().len(), well.asked().len()), (1, 1));
    let began = Instant::now();
    other.end().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    stuck.end().await;
    assert_eq!(began.elapsed(), DRAIN_TIMEOUT);
    assert_eq!(value(&counted, "dropped"), Some(1000.0), "each is counted");
}

/// At the end of the relay, what is still to be told is told at once, with one try.
#[tokio::test(start_paused = true)]
async fn the_end_of_the_relay_is_not_the_end_of_the_news() {
    let script = Script::failing([]);
    let running = Running::start("x", &script);
    let late = Settings {
        end_after: Duration::from_secs(3000),
        ..settings("x")
    };
    running.way.replace(Terms {
        settings: late,
        ..terms("x", &script)
    });
    running.way.note(StoryPhase::Begin, &story(1));
    quiet(Duration::from_secs(1)).await;
    running.way.note(StoryPhase::End, &story(1));
    quiet(Duration::from_secs(1)).await;
    assert_eq!(script.asked(), ["begin"]);
    script
        .answers
        .lock()
        .expect("the script")
        .push_back(again());
    running.end().await;
    assert_eq!(script.asked(), ["begin", "end"]);
}

/// While a try waits to be repeated, the end of the relay makes it the last one.
#[tokio::test(start_paused = true)]
async fn the_end_does_not_wait_for_a_retry() {
    let script = Script::failing([again(), again()]);
    let running = Running::start("x", &script);
    running.way.note(StoryPhase::Begin, &story(1));
    quiet(Duration::from_secs(1)).await;
    let began = Instant::now();
    running.end().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(script.asked(), ["begin", "begin"]);
}

/// A test is one try, told as it ends, and counts for nothing.
#[tokio::test(start_paused = true)]
async fn a_test_counts_for_nothing() {
    let (counted, _guard) = Counted::begin();
    let script = Script::failing([again()]);
    let running = Running::start("x", &script);
    let tested = running.way.test().await;
    assert_eq!(
        (tested.told, tested.wrong.as_deref()),
        (None, Some("later"))
    );
    for _ in 0..20 {
        let tested = running.way.test().await;
        assert_eq!(tested.told.as_deref(), Some("told"));
    }
    running.way.note(StoryPhase::Begin, &story(1));
    quiet(Duration::from_secs(1)).await;
    assert_eq!(script.asked().last().map(String::as_str), Some("begin"));
    assert_eq!(value(&counted, "told"), Some(1.0));
    running.end().await;
}

fn ways(names: &[&str]) -> Vec<Prepared> {
    let settings: Vec<Settings> = names
        .iter()
        .map(|name| Settings {
            kind: Kind::Command(vec!["/bin/true".to_owned()]),
            ..settings(name)
        })
        .collect();
    Prepared::all(&settings).expect("no files")
}

/// A reload keeps what a way has told under its name; a way that is gone ends; a new one begins.
#[tokio::test]
async fn a_reload_forgets_nothing() {
    let (counted, _guard) = Counted::begin();
    let delivery = Delivery::new(Vec::new(), None).expect("no next hop");
    let notifier = Notifier::start(ways(&["x", "old"]), "mx.example.com", &delivery);
    notifier.story(StoryPhase::Begin, &story(1));
    while value(&counted, "told") != Some(1.0) {
        tokio::task::yield_now().await;
    }
    notifier.apply(ways(&["new", "x"]), "mx.example.com", &delivery);
    notifier.story(StoryPhase::Begin, &story(1));
    notifier.story(StoryPhase::End, &story(1));
    notifier.drain().await;
    assert_eq!(value(&counted, "told"), Some(2.0), "not a second beginning");
    let of = |way| {
        counted.value(&format!(
            "spillway_notifications_total{{way=\"{way}\",outcome=\"told\"}}"
        ))
    };
    assert!(of("new").is_none_or(|told| told <= 1.0));
    assert_eq!(of("old"), Some(1.0));
    assert!(notifier.test(Some("old")).await.is_err());
}
