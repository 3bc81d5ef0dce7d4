//! Several replicas of one engine: which one gets a message, and which one a report names.

use super::*;

/// An engine of one replica with the name "there".
#[derive(Debug)]
struct Named(Act);

impl Engine for Named {
    fn scan(self: Arc<Self>, _: Sample) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        Box::pin(self.0.clone().play())
    }

    fn replica(&self) -> Option<&str> {
        Some("there")
    }
}

/// A report names the replica that answered or failed, and the text of such an error begins with that name. This also holds for
/// an error about a probe. An error of the relay itself names no replica.
#[tokio::test(start_paused = true)]
async fn a_report_names_the_replica_that_answered_or_failed() {
    let (garbage, said) = (
        ScanError::Garbage("?".to_owned()),
        "there gave an invalid answer: ?",
    );
    let refused = ScanError::Unreachable("refused".to_owned());
    for (act, replica, detail) in [
        (Act::Clean, Some("there"), None),
        (Act::Fail(garbage), Some("there"), Some(said)),
        (
            Act::Fail(refused),
            None,
            Some("the engine is unreachable: refused"),
        ),
    ] {
        let engine = Arc::new(Named(act));
        let guarded = guard::guard(vec![engine], Arc::new(settings("one")), None);
        let report = guarded.scan(sample("x")).await;
        assert_eq!(report.replica.as_deref(), replica, "{report:?}");
        let told = match &report.answer {
            Answer::Answered(_) => None,
            Answer::None { detail, .. } => Some(detail.as_str()),
        };
        assert_eq!(told, detail);
        let tested = guarded.test().await.remove(0).1;
        let about_probe = detail.map(|detail| format!("the known-clean message: {detail}"));
        assert_eq!(tested.err(), about_probe);
    }
}

/// If one replica fails, other replicas answer and share the work.
#[tokio::test(start_paused = true)]
async fn replicas_stand_in_for_each_other() {
    let fail = Act::Fail(ScanError::Unreachable("refused".to_owned()));
    let engine = |act: Act| {
        Arc::new(Scripted {
            acts: vec![act],
            ..Scripted::default()
        })
    };
    let (dead, first, second) = (engine(fail), engine(Act::Clean), engine(Act::Clean));
    let all: Vec<Arc<dyn Engine>> = vec![dead.clone(), first.clone(), second.clone()];
    let twice = Settings {
        attempts: 3,
        ..settings("one")
    };
    let scanner = Scanner::of(vec![guard::guard(all, Arc::new(twice), None)]);
    for _ in 0..100 {
        let reports = scanner.scan(request("x", SECONDS_20)).await;
        assert_eq!(reports[0].missing(), None);
    }
    let calls = |engine: &Scripted| engine.calls.load(Ordering::SeqCst);
    assert!(calls(&dead) <= 20, "{}", calls(&dead));
    assert!(calls(&first) >= 20 && calls(&second) >= 20);
}

/// If a replica asks for a pause, another replica answers about the message. If there is no other replica, the relay sends
/// the replica nothing until the pause ends (RFC 6585 section 4).
#[tokio::test(start_paused = true)]
async fn another_replica_answers_for_one_that_asks_for_a_pause() {
    let throttled = ScanError::Throttled(SECONDS_20);
    let engine = |act: Act| {
        Arc::new(Scripted {
            acts: vec![act],
            ..Scripted::default()
        })
    };
    let twice = || {
        Arc::new(Settings {
            attempts: 2,
            ..settings("twice")
        })
    };
    let (full, free) = (engine(Act::Fail(throttled)), engine(Act::Clean));
    let both: Vec<Arc<dyn Engine>> = vec![full.clone(), free];
    let both = guard::guard(both, twice(), None);
    for at in 0..20 {
        let report = both.scan(sample(format!("Subject: {at}\r\n\r\nx"))).await;
        assert_eq!(report.missing(), None, "{report:?}");
    }
    let asked = || full.calls.load(Ordering::SeqCst);
    assert!(asked() <= 1);
    let before = asked();
    let alone = guard::guard(vec![full.clone()], twice(), None);
    for _ in 0..20 {
        assert_eq!(alone.scan(sample("x")).await.missing(), Some(Reason::Busy));
    }
    assert_eq!(asked(), before + 1);
}
