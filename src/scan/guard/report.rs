//! The report layer: exactly one report for each call, whatever happens below.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tower::layer::{Layer, layer_fn};
use tower::{Service, ServiceExt};

use super::layers::{Next, Outcome};
use super::{Call, Progress};
use crate::message::{MessageId, Rights, edit};
use crate::scan::Settings;
use crate::scan::engine::{EngineAnswer, Sample};
use crate::verdict::{Answer, Reason, Report};

/// The layer that turns outcomes into reports, and counts and logs the reports.
pub(super) fn layer<S: Next>(
    settings: Arc<Settings>,
) -> impl Layer<S, Service = Reporting<S>> + Clone {
    layer_fn(move |next| Reporting {
        next,
        settings: settings.clone(),
    })
}

/// The service of [`layer`].
#[derive(Clone)]
pub(super) struct Reporting<S> {
    next: S,
    settings: Arc<Settings>,
}

impl<S: Next> Service<Sample> for Reporting<S> {
    type Response = Report;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Report, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, sample: Sample) -> Self::Future {
        let (next, settings) = (self.next.clone(), self.settings.clone());
        Box::pin(async move {
            let call = Call::new(sample);
            let (id, arrived) = (call.sample.request().id, call.arrived);
            let progress = call.progress.clone();
            let smtputf8 = call.sample.request().envelope.smtputf8;
            let outcome = next.oneshot(call).await;
            let report = write(&settings, outcome, &progress, arrived.elapsed(), smtputf8);
            log_report(id, &report);
            Ok(report)
        })
    }
}

pub(super) fn write(
    settings: &Settings,
    outcome: Outcome,
    progress: &Progress,
    elapsed: Duration,
    smtputf8: bool,
) -> Report {
    let answered = outcome.unwrap_or_else(|error| EngineAnswer {
        replica: error.replica().map(str::to_owned),
        answer: Answer::none(error.reason(), error.to_string()),
        signatures: None,
        wanted: Vec::new(),
    });
    let unable = settings.edits == Rights::Fields && edit::exceeds(&answered.wanted);
    let answer = match answered.answer {
        // The engine judged the message with its edits applied. The edits are too many to apply, so the answer does not hold.
        Answer::Answered(findings) if unable => Answer::None {
            reason: Reason::LimitsReached,
            detail: "it wants more changed than may be in one report; none of it is done"
                .to_owned(),
            findings,
        },
        answer => answer,
    };
    Report {
        engine: settings.name.clone(),
        class: settings.class,
        answer,
        replica: answered.replica,
        signatures: answered.signatures,
        attempts: progress.attempts(),
        reused: progress.reused.get().copied(),
        passed: None,
        requested_edits: edit::grant(answered.wanted, settings.edits, smtputf8),
        elapsed,
        waited: progress.waited.get().copied().unwrap_or_default(),
    }
}

fn log_report(id: MessageId, report: &Report) {
    let answer = match (&report.answer, report.missing()) {
        (_, Some(reason)) => reason.as_str(),
        (Answer::Answered(findings), None) if findings.is_empty() => "nothing-found",
        (_, None) => "found",
    };
    metrics::counter!("spillway_scan_reports_total", "engine" => report.engine.to_string(), "answer" => answer)
        .increment(1);
    metrics::histogram!("spillway_scan_seconds", "engine" => report.engine.to_string())
        .record(report.elapsed.as_secs_f64());
    let reused = report
        .reused
        .map(|reused| tracing::field::display(reused.from));
    let stand_in = report.stand_in().is_some();
    let milliseconds = u64::try_from(report.elapsed.as_millis()).unwrap_or(u64::MAX);
    match &report.answer {
        Answer::Answered(findings) => tracing::debug!(
            %id, engine = %report.engine, answer, findings = findings.len(),
            attempts = report.attempts, reused, stand_in, milliseconds, "scanned"
        ),
        Answer::None {
            detail, findings, ..
        } => tracing::warn!(
            %id, engine = %report.engine, reason = answer, detail, findings = findings.len(),
            replica = report.replica, attempts = report.attempts, milliseconds, "engine did not answer"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::edit::{Edit, Wanted};
    use crate::message::{RequestedEdit, Rights};
    use crate::scan::tests::settings;
    use crate::verdict::{Finding, FindingKind};

    /// P4: an engine that requests more edits than are allowed has given no answer, but its findings count. For an engine
    /// without the right to edit, the number of edits makes no difference.
    #[test]
    fn wishes_that_cannot_be_done_are_no_answer() {
        let finding = Finding::new(FindingKind::Info, "dkim=fail", 0.0);
        let wanted = |count: usize| {
            let edit = Edit::Change {
                name: "X".to_owned(),
                nth: 1,
                value: "v".to_owned(),
            };
            let answer = EngineAnswer {
                wanted: vec![Wanted::Field(edit); count],
                ..EngineAnswer::new(Answer::Answered(vec![finding.clone()]))
            };
            Ok(answer)
        };
        for (edits, count, missing, granted) in [
            (Rights::Fields, 1, None, 1),
            (Rights::Fields, 1000, Some(Reason::LimitsReached), 0),
            (Rights::None, 1000, None, 0),
        ] {
            let settings = Settings {
                edits,
                ..settings("one")
            };
            let report = write(
                &settings,
                wanted(count),
                &Progress::default(),
                Duration::ZERO,
                false,
            );
            assert_eq!(report.missing(), missing, "{edits:?} {count}");
            assert_eq!(report.findings(), std::slice::from_ref(&finding));
            let done = report
                .requested_edits
                .iter()
                .filter_map(RequestedEdit::granted)
                .count();
            assert_eq!(done, granted, "{edits:?} {count}");
        }
    }
}
