//! What a new configuration changes about replicas.

use super::*;

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
        before.engines()[0].drain(taken_out, true);
        let after = engine_of(&["a", "c"], Some(&before));
        let health = after.engines()[0].health();
        let out: Vec<bool> = health.replicas.iter().map(|r| r.drained).collect();
        assert_eq!(out, drained, "{taken_out:?}");
        let reports = after.scan(request("x", SECONDS_20)).await;
        let missing = taken_out.is_none().then_some(Reason::Drained);
        assert_eq!(reports[0].missing(), missing);
    }
}
