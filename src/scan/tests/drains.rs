//! Drains of engines and replicas by a person.

use super::*;
use crate::scan::{Drain, DrainTerms, NotDrained};

const HOUR: Duration = Duration::from_secs(3600);

/// An engine of these replicas, all of them well.
fn engine_of(replicas: &[&'static str]) -> Guarded {
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
    let engine = |name: &&'static str| Arc::new(Replica(name)) as Arc<dyn Engine>;
    let replicas = replicas.iter().map(engine).collect();
    guard::guard(replicas, Arc::new(settings("one")), None)
}

/// What nobody would remember is refused: mail that passes without an end, without a reason, or for longer than its copies are
/// kept. So is a drain that ends at once. A name and a reason cannot break the line that shows them.
#[test]
fn terms_that_harm_are_refused() {
    let terms = |passes, term, reason: &str| DrainTerms::new(passes, term, reason, "root");
    let passing = terms(true, None, "it hangs").expect("right");
    assert_eq!(passing.term, Some(HOUR), "an end by default");
    assert_eq!(terms(false, None, "").expect("right").term, None);
    assert!(terms(true, Some(12 * HOUR), "it hangs").is_ok());
    assert!(terms(false, Some(100 * HOUR), "").is_ok());
    let long = "x".repeat(201);
    for (passes, term, reason, wrong) in [
        (true, Some(HOUR), " ", "--reason"),
        (true, Some(12 * HOUR + HOUR / 60), "it hangs", "at most 12h"),
        (false, Some(24 * 31 * HOUR), "", "at most 720h"),
        (true, Some(Duration::ZERO), "it hangs", "--for 0"),
        (false, Some(Duration::ZERO), "", "--for 0"),
        (false, None, &*long, "200 characters"),
    ] {
        let error = terms(passes, term, reason).expect_err(wrong);
        assert!(error.to_string().contains(wrong), "{error}");
    }
    let shown = DrainTerms::new(true, None, "it\r\nhangs", "ro\u{1b}ot").expect("right");
    assert_eq!(shown.why(), "it  hangs, by ro ot");
}

/// Mail passes without an engine, never without one of its replicas: while another one takes mail, no mail has to.
#[tokio::test(start_paused = true)]
async fn mail_passes_only_when_no_replica_takes_mail() {
    let engine = engine_of(&["a", "b"]);
    let refused = engine.drain(Some("a"), &Drain::passing(HOUR));
    let others = NotDrained::OthersTakeMail("one".into(), "b".to_owned());
    assert_eq!(refused, Err(others));
    assert!(engine.drains().is_empty(), "nothing has changed");
    let none = engine.drain(Some("c"), &Drain::plain());
    assert!(matches!(none, Err(NotDrained::NoReplica(..))), "{none:?}");
    assert_eq!(engine.drain(Some("b"), &Drain::plain()), Ok(()));
    assert!(engine.passes().is_none());
    assert_eq!(engine.drain(Some("a"), &Drain::passing(HOUR)), Ok(()));
    assert!(engine.passes().is_some());
    assert_eq!(engine.resume(Some("b")), Some(true));
    assert!(engine.passes().is_none(), "it takes mail");
    let health = engine.health();
    let drain = health.replicas[0].drain.as_ref().expect("a drain");
    assert!(!drain.passes, "nobody is told that mail passes");
    assert_eq!(engine.scan(sample("x")).await.missing(), None);
}

/// A second drain replaces the end, the reason and whether mail passes, and not the time since when no mail comes. A resume
/// ends all of it.
#[tokio::test(start_paused = true)]
async fn a_second_drain_replaces_the_first() {
    let engine = engine_of(&["a", "b"]);
    assert_eq!(engine.drain(None, &Drain::plain()), Ok(()));
    let since = |engine: &Guarded| engine.drains()[0].since;
    let first = since(&engine);
    tokio::time::advance(HOUR).await;
    assert_eq!(engine.drain(None, &Drain::passing(HOUR)), Ok(()));
    assert_eq!(since(&engine), first);
    let words = engine.health().words(|_| "14:30".to_owned());
    let expected = "(drained until 14:30, mail passes without it: it hangs, by a test)";
    assert!(words.ends_with(expected), "{words}");
    assert_eq!(engine.drain(None, &Drain::plain()), Ok(()));
    assert!(engine.passes().is_none());
    tokio::time::advance(2 * HOUR).await;
    assert!(engine.end_drains().is_empty(), "it has no end");
    assert_eq!(engine.resume(None), Some(true));
    assert_eq!(engine.resume(None), Some(false));
    assert!(engine.drains().is_empty());
}

/// A drain ends at its end, for each replica at its own, and then the replica gets mail.
#[tokio::test(start_paused = true)]
async fn a_drain_ends_by_itself() {
    let engine = engine_of(&["a", "b"]);
    let of = |hours: u32| {
        let terms = DrainTerms::new(false, Some(hours * HOUR), "", "root").expect("right");
        Drain::begin(terms)
    };
    assert_eq!(engine.drain(Some("a"), &of(1)), Ok(()));
    assert_eq!(engine.drain(Some("b"), &of(2)), Ok(()));
    tokio::time::advance(HOUR - Duration::from_secs(1)).await;
    assert!(engine.end_drains().is_empty());
    tokio::time::advance(Duration::from_secs(1)).await;
    let ended: Vec<_> = engine
        .end_drains()
        .into_iter()
        .map(|one| one.replica)
        .collect();
    assert_eq!(ended, [Some("a".to_owned())]);
    assert_eq!(engine.scan(sample("x")).await.missing(), None);
    tokio::time::advance(HOUR).await;
    assert_eq!(engine.end_drains().len(), 1);
    assert!(engine.drains().is_empty());
}
