//! A drain is kept over a restart and ends by itself, whatever the wall clock shows.

use std::fs;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::deadline::set_wall_clock;
use crate::incident::Kind as IncidentKind;
use crate::pipeline::drains::{DRAINS_FILE, Drains};
use crate::pipeline::settle;
use crate::scan::{Drain, DrainTerms, Guarded};
use crate::verdict::{Answer, Reason, Report};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

/// A relay with this folder for its store and these engines.
struct Life {
    pipeline: Arc<Pipeline>,
    drains: Arc<Drains>,
    closing: CancellationToken,
    _logs: tempfile::TempDir,
}

impl Life {
    async fn begin(store: &tempfile::TempDir, engines: &[&str]) -> Self {
        let mut settings = Vec::new();
        for name in engines {
            settings.push(engine(name, HOUR, |_| None).await);
        }
        let (pipeline, logs) = pipeline(generation(settings, Budget::default()), &Arc::default());
        let drains = Drains::open(pipeline.clone(), store.path());
        let closing = CancellationToken::new();
        tokio::spawn(drains.clone().keep(closing.clone()));
        Self {
            pipeline,
            drains,
            closing,
            _logs: logs,
        }
    }

    /// The relay is killed.
    fn end(self) {
        self.closing.cancel();
    }

    fn engine(&self) -> Guarded {
        self.pipeline.generation().scanner.engines()[0].clone()
    }

    async fn drain(&self, term: Option<Duration>, passes: bool) {
        let terms = DrainTerms::new(passes, term, "it hangs", "root").expect("right terms");
        let drained = self.engine().drain(None, &Drain::begin(terms));
        drained.expect("drained");
        self.drains.write().await.expect("written");
    }

    /// The summaries of the ends.
    async fn resumed(&self) -> Vec<String> {
        let filter = crate::store::incidents::Filter {
            kinds: vec![IncidentKind::Resumed],
            ..Default::default()
        };
        let told = self.pipeline.incidents.search(filter).await.expect("told");
        told.into_iter().map(|incident| incident.summary).collect()
    }

    /// The time until the drain has ended, in whole seconds.
    async fn left(&self) -> u64 {
        let began = Instant::now();
        while self.engine().is_drained() {
            assert!(began.elapsed() < 48 * HOUR, "it has no end");
            Deadline::after(SECOND).wait().await;
        }
        began.elapsed().as_secs()
    }
}

/// Within two of them: the check runs each second.
fn is_about(seconds: u64, expected: Duration) -> bool {
    seconds.abs_diff(expected.as_secs()) <= 2
}

/// A drain ends by itself when its time has really passed, with an incident: a clock that is set ahead does not end it, and one that
/// is set back does not prolong it.
#[tokio::test(start_paused = true)]
async fn a_drain_ends_in_time_whatever_the_clock_shows() {
    for leap in [-365 * 24, 0, 365 * 24] {
        set_wall_clock(Some(Timestamp::now()));
        let store = tempfile::tempdir().expect("a folder");
        let life = Life::begin(&store, &["clamd"]).await;
        life.drain(Some(HOUR), true).await;
        Deadline::after(HOUR / 2).wait().await;
        let hours = jiff::SignedDuration::from_hours(leap);
        set_wall_clock(Some(wall_clock() + hours));
        assert!(is_about(life.left().await, HOUR / 2), "{leap}");
        let told = life.resumed().await;
        let expected = "engine clamd was resumed: its drain for 1h has ended, and mail passes without it no more";
        assert_eq!(told, [expected]);
        life.end();
    }
    set_wall_clock(None);
}

/// A relay that is killed has the drain again, with its reason, its end, and whether mail passes: also if the clock was set while the
/// relay ran. A drain without an end stays one.
#[tokio::test(start_paused = true)]
async fn a_restart_keeps_a_drain() {
    for (leap, term, passes) in [
        (0, Some(HOUR), true),
        (365 * 24, Some(HOUR), true),
        (-365 * 24, Some(HOUR), false),
        (0, None, false),
    ] {
        set_wall_clock(Some(Timestamp::now()));
        let store = tempfile::tempdir().expect("a folder");
        let first = Life::begin(&store, &["clamd"]).await;
        first.drain(term, passes).await;
        Deadline::after(HOUR / 4).wait().await;
        set_wall_clock(Some(wall_clock() + jiff::SignedDuration::from_hours(leap)));
        Deadline::after(HOUR / 4).wait().await;
        first.end();
        let second = Life::begin(&store, &["clamd"]).await;
        let drains = second.engine().drains();
        assert_eq!(drains.len(), 1, "{leap} {term:?}");
        assert_eq!(drains[0].drain.terms.why(), "it hangs, by root");
        assert_eq!(second.engine().passes().is_some(), passes);
        match term {
            Some(_) => assert!(is_about(second.left().await, HOUR / 2), "{leap}"),
            None => assert_eq!(drains[0].drain.until, None),
        }
        second.end();
    }
    set_wall_clock(None);
}

/// A person reads since when an engine is drained, and not since when the relay runs.
#[tokio::test(start_paused = true)]
async fn a_restart_knows_since_when() {
    set_wall_clock(Some(Timestamp::now()));
    let store = tempfile::tempdir().expect("a folder");
    let mut life = Life::begin(&store, &["clamd"]).await;
    life.drain(None, false).await;
    for hours in 1..3 {
        Deadline::after(HOUR).wait().await;
        life.end();
        life = Life::begin(&store, &["clamd"]).await;
        let since = life.engine().drains()[0].since.elapsed();
        assert!(is_about(since.as_secs(), hours * HOUR), "{since:?}");
    }
    life.end();
    set_wall_clock(None);
}

/// Nobody knows how long no relay ran while the clock was set. A drain then ends too early or in the time that the person gave, and
/// never later.
#[tokio::test(start_paused = true)]
async fn no_drain_lasts_longer_after_a_restart() {
    for (leap, left) in [(-365 * 24, HOUR), (2, Duration::ZERO)] {
        set_wall_clock(Some(Timestamp::now()));
        let store = tempfile::tempdir().expect("a folder");
        let first = Life::begin(&store, &["clamd"]).await;
        first.drain(Some(HOUR), true).await;
        first.end();
        set_wall_clock(Some(wall_clock() + jiff::SignedDuration::from_hours(leap)));
        let second = Life::begin(&store, &["clamd"]).await;
        assert!(is_about(second.left().await, left), "{leap}");
        let told = second.resumed().await;
        assert_eq!(told.len(), 1, "{leap}");
        assert!(told[0].contains("its drain for 1h "), "{told:?}");
        assert!(
            told[0].ends_with("mail passes without it no more"),
            "{told:?}"
        );
        second.end();
    }
    set_wall_clock(None);
}

/// A drain that has ended is not there after a restart, and neither is that of an engine that is no longer configured.
#[tokio::test(start_paused = true)]
async fn a_restart_knows_no_drain_that_has_ended() {
    let store = tempfile::tempdir().expect("a folder");
    let first = Life::begin(&store, &["clamd"]).await;
    first.drain(None, false).await;
    first.engine().resume(None);
    first.drains.write().await.expect("written");
    first.end();
    let second = Life::begin(&store, &["clamd"]).await;
    assert!(!second.engine().is_drained());
    second.drain(None, false).await;
    second.end();
    let third = Life::begin(&store, &["other"]).await;
    assert!(!third.engine().is_drained());
    let expected = "engine clamd was resumed: it is no longer configured";
    assert_eq!(third.resumed().await, [expected]);
    Deadline::after(2 * SECOND).wait().await;
    third.end();
    let fourth = Life::begin(&store, &["clamd"]).await;
    assert!(!fourth.engine().is_drained(), "it has ended");
}

/// A reload that removes an engine ends its drain, with an incident.
#[tokio::test(start_paused = true)]
async fn the_drain_of_a_removed_engine_ends() {
    let store = tempfile::tempdir().expect("a folder");
    let life = Life::begin(&store, &["clamd"]).await;
    life.drain(None, false).await;
    Deadline::after(2 * SECOND).wait().await;
    let other = engine("other", HOUR, |_| None).await;
    let next = generation(vec![other], Budget::default());
    life.pipeline.replace(next, intercept::Settings::default());
    Deadline::after(5 * SECOND).wait().await;
    let expected = "engine clamd was resumed: it is no longer configured";
    assert_eq!(life.resumed().await, [expected], "once");
    let kept = fs::read_to_string(store.path().join(DRAINS_FILE)).expect("the file");
    assert_eq!(kept, "[]");
}

/// A file that cannot be read is set aside, and costs the relay its start no more than its drains. A disk that takes no file does
/// not prevent a drain, and the person is told.
#[tokio::test(start_paused = true)]
async fn a_damaged_file_is_set_aside() {
    let store = tempfile::tempdir().expect("a folder");
    let file = store.path().join(DRAINS_FILE);
    fs::write(&file, "[{]").expect("written");
    let life = Life::begin(&store, &["clamd"]).await;
    assert!(!life.engine().is_drained());
    assert!(!file.exists());
    assert!(store.path().join("drains.json.set-aside").exists());
    fs::create_dir(store.path().join("drains.json.tmp")).expect("a folder in its way");
    let drained = life.engine().drain(None, &Drain::plain());
    drained.expect("drained");
    let why = life.drains.write().await.expect_err("not written");
    assert!(why.contains("drains.json"), "{why}");
    assert!(life.engine().is_drained());
}

/// Mail waits for the engine whose answer it lacks: not for one without which a person lets mail pass, and not for one of a class
/// that has answers enough. Otherwise a person repairs the wrong engine, and the return of the right one scans nothing.
#[tokio::test(start_paused = true)]
async fn mail_waits_for_the_engine_that_it_lacks() {
    let mut generation = generation(Vec::new(), Budget::default());
    let mut coverage = crate::config::load(None).expect("the defaults").policy;
    coverage.coverage.insert(EngineClass::Spam, 1);
    generation.policy = Policy::new(coverage, "test".into());
    let report = |engine: &str, class, reason| Report {
        engine: engine.into(),
        class,
        ..crate::store::contract::report(engine, Answer::none(reason, "out"))
    };
    let drained = |engine| report(engine, EngineClass::Av, Reason::Drained);
    let passed = Report {
        passed: Some("it hangs, by root".into()),
        ..drained("rules")
    };
    let waits = drained("clamd");
    let spam = report("rspamd", EngineClass::Spam, Reason::Busy);
    let both = [passed.clone(), waits.clone(), spam.clone()];
    let awaited = |reports: &[Report], rule| settle::awaited(&generation, reports, rule);
    for (reports, rule, engine) in [
        (&both[..], "coverage.av", Some("clamd")),
        (&both, "coverage.spam", Some("rspamd")),
        (&both, "a rule of a person", Some("clamd")),
        (&both[..1], "coverage.av", None),
    ] {
        assert_eq!(awaited(reports, rule).as_deref(), engine, "{rule}");
    }
    let owed = settle::owed(&generation, &both[..1]);
    let owed = owed.map(|(engine, _)| engine);
    assert_eq!(
        owed.as_deref(),
        Some("rules"),
        "it is scanned when it is back"
    );
}
