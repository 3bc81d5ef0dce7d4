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
