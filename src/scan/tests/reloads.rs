//! What a new configuration changes about engines and their replicas, and what it keeps.

use super::*;
use crate::incident::Kind;

/// A replica that nothing is the matter with.
#[derive(Debug)]
struct Replica(&'static str);

impl Engine for Replica {
    fn scan(self: Arc<Self>, _: Sample) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        Box::pin(Act::Clean.play())
    }

    fn replica(&self) -> Option<&str> {
        Some(self.0)
    }
}

/// An engine of these replicas.
fn engine_of(replicas: &[&'static str], before: Option<&Scanner>) -> Scanner {
    let engine = |name: &&'static str| Arc::new(Replica(name)) as Arc<dyn Engine>;
    let settings = Settings {
        // Another configuration each time, as other addresses are.
        kind: engine::Kind::Rules {
            builtin: true,
            paths: replicas.iter().map(std::path::PathBuf::from).collect(),
        },
        ..settings("one")
    };
    Scanner::of_engines(
        vec![(settings, replicas.iter().map(engine).collect())],
        before,
    )
}

/// A person has taken an engine out, not the machines that it ran on: a replica that is new is no exception. Who has taken out one
/// replica of several has said nothing about others.
#[tokio::test(start_paused = true)]
async fn a_new_replica_of_an_engine_that_a_person_took_out_is_out() {
    for (taken_out, drained) in [(None, [true, true]), (Some("a"), [true, false])] {
        let before = engine_of(&["a", "b"], None);
        let drained_now = before.engines()[0].drain(taken_out, &Drain::plain());
        drained_now.expect("drained");
        let after = engine_of(&["a", "c"], Some(&before));
        let health = after.engines()[0].health();
        let out: Vec<bool> = health.replicas.iter().map(|r| r.drained).collect();
        assert_eq!(out, drained, "{taken_out:?}");
        let reports = after.scan(request("x", SECONDS_20)).await;
        let missing = taken_out.is_none().then_some(Reason::Drained);
        assert_eq!(reports[0].missing(), missing);
    }
}

/// The timers of an engine go on after a reload: also between the reading of a configuration and its start, and after the
/// last message of the old one has ended. So an engine that is out comes back.
#[tokio::test(start_paused = true)]
async fn time_goes_on_after_a_new_configuration() {
    for probe in [None, Some(Duration::from_secs(10))] {
        let clamd = |slots: usize| Settings {
            slots,
            probe,
            kind: engine::Kind::Clamd {
                addresses: vec![engine::Address::Unix("/nowhere/clamd.ctl".into())],
                connect_timeout: Duration::from_secs(1),
            },
            ..settings("clamd")
        };
        let before = Scanner::new(vec![clamd(4)], None).expect("an engine");
        before.watch();
        let after = Scanner::new(vec![clamd(8)], Some(&before)).expect("an engine");
        // The old configuration is still in force.
        for _ in 0..5 {
            before.scan(request("x", SECONDS_20)).await;
        }
        assert!(after.engines()[0].is_out(), "nobody is there");
        after.watch();
        drop(before);
        let told = |wanted: Kind| {
            let incidents = after.incidents();
            incidents.iter().any(|incident| incident.kind == wanted)
        };
        until(|| told(Kind::BreakerProbing)).await;
    }
}

/// A reload keeps the state of a guard: a new configuration does not make a failing engine healthy.
#[tokio::test(start_paused = true)]
async fn a_new_configuration_keeps_the_state_of_the_guard() {
    let clamd = |slots: usize| Settings {
        slots,
        kind: engine::Kind::Clamd {
            addresses: vec![engine::Address::Unix("/nowhere/clamd.ctl".into())],
            connect_timeout: Duration::from_secs(1),
        },
        ..settings("clamd")
    };
    let before = Scanner::new(vec![clamd(4)], None).expect("an engine");
    for _ in 0..5 {
        before.scan(request("x", SECONDS_20)).await;
    }
    assert!(before.engines()[0].is_out(), "nobody is there");
    let after = Scanner::new(vec![clamd(8)], Some(&before)).expect("an engine");
    assert!(after.engines()[0].is_out());
    assert_eq!(
        before.engines()[0].health().slots,
        4,
        "it may be refused yet"
    );
    after.watch();
    assert_eq!(after.engines()[0].health().slots, 8);
    let mut elsewhere = clamd(4);
    elsewhere.kind = engine::Kind::Rules {
        builtin: true,
        paths: Vec::new(),
    };
    let other = Scanner::new(vec![elsewhere], Some(&after)).expect("an engine");
    assert!(!other.engines()[0].is_out(), "another engine");
}

/// An engine that a person has drained stays drained, whatever a reload changes, until a person resumes it. This also holds
/// for engines in process, and for engines that change their kind.
#[tokio::test(start_paused = true)]
async fn a_reload_resumes_no_drained_engine() {
    let engines = |acts: [&str; 2]| {
        let one = |name: &str| -> (Settings, Vec<Arc<dyn Engine>>) {
            let acts = vec![Act::Clean];
            let engine = Scripted {
                acts,
                ..Scripted::default()
            };
            (settings(name), vec![Arc::new(engine)])
        };
        acts.map(one).to_vec()
    };
    let before = Scanner::of_engines(engines(["out", "in"]), None);
    assert_eq!(before.engines[0].drain(None, &Drain::plain()), Ok(()));
    let after = Scanner::of_engines(engines(["out", "in"]), Some(&before));
    let missing = |reports: Vec<Report>| reports.iter().map(Report::missing).collect::<Vec<_>>();
    let reports = after.scan(request("Subject: x\r\n\r\nx", SECONDS_20)).await;
    assert_eq!(missing(reports), [Some(Reason::Drained), None]);
    assert_eq!(after.engines[0].resume(None), Some(true));
    let again = Scanner::of_engines(engines(["out", "in"]), Some(&after));
    let reports = again.scan(request("Subject: x\r\n\r\nx", SECONDS_20)).await;
    assert_eq!(missing(reports), [None, None]);
}

/// A reload puts the thresholds of the guard in force for the state that it takes over: an engine that was out by the old ones is
/// out no longer than the new ones say, and one that is in use goes out by the new ones.
#[tokio::test(start_paused = true)]
async fn new_thresholds_hold_for_the_state_that_is_taken_over() {
    let clamd = |failures, pause| {
        let mut clamd = Settings {
            kind: engine::Kind::Clamd {
                addresses: vec![engine::Address::Unix("/nowhere/clamd.ctl".into())],
                connect_timeout: Duration::from_secs(1),
            },
            ..settings("clamd")
        };
        clamd.guard.failures_in_a_row = failures;
        clamd.guard.open_first = pause;
        clamd.guard.open_max = pause;
        clamd
    };
    let (long, short) = (Duration::from_secs(3000), Duration::from_secs(2));
    let before = Scanner::new(vec![clamd(8, long)], None).expect("an engine");
    before.watch();
    for _ in 0..4 {
        before.scan(request("x", SECONDS_20)).await;
    }
    assert!(!before.engines()[0].is_out(), "four of eight failures");
    let after = Scanner::new(vec![clamd(5, long)], Some(&before)).expect("an engine");
    after.watch();
    after.scan(request("x", SECONDS_20)).await;
    assert!(after.engines()[0].is_out(), "the fifth of five");
    Deadline::after(Duration::from_secs(60)).wait().await;
    let told = |engines: &Scanner| {
        let incidents = engines.engines()[0].incidents();
        let told = incidents.into_iter().map(|incident| incident.kind);
        told.collect::<Vec<_>>()
    };
    assert_eq!(told(&after), [Kind::BreakerOpened]);
    let last = Scanner::new(vec![clamd(5, short)], Some(&after)).expect("an engine");
    last.watch();
    Deadline::after(Duration::from_secs(6)).wait().await;
    let told = told(&last);
    assert_eq!(told, [Kind::BreakerProbing], "the pause of 3000 s is over");
}
