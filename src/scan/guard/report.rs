//! The report: exactly one, whatever happens.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tower::layer::{Layer, layer_fn};
use tower::{Service, ServiceExt};

use super::Call;
use super::layer::{Next, Outcome};
use crate::message::{MessageId, edit};
use crate::scan::Settings;
use crate::scan::engine::{EngineAnswer, Sample};
use crate::verdict::{Answer, Report};

/// Turns outcomes into reports, counts and logs them.
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
            let report = write(
                &settings,
                outcome,
                progress.attempts(),
                arrived.elapsed(),
                smtputf8,
            );
            tell(id, &report);
            Ok(report)
        })
    }
}

pub(super) fn write(
    settings: &Settings,
    outcome: Outcome,
    attempts: u32,
    elapsed: Duration,
    smtputf8: bool,
) -> Report {
    let answered = outcome.unwrap_or_else(|error| EngineAnswer {
        replica: error.replica().map(str::to_owned),
        answer: Answer::none(error.reason(), error.to_string()),
        signatures: None,
        wanted: Vec::new(),
    });
    Report {
        engine: settings.name.clone(),
        class: settings.class,
        answer: answered.answer,
        replica: answered.replica,
        signatures: answered.signatures,
        attempts,
        wishes: edit::grant(answered.wanted, settings.edits, smtputf8),
        elapsed,
    }
}

fn tell(id: MessageId, report: &Report) {
    let answer = match (&report.answer, report.missing()) {
        (_, Some(reason)) => reason.as_str(),
        (Answer::Answered(findings), None) if findings.is_empty() => "nothing-found",
        (_, None) => "found",
    };
    metrics::counter!("spillway_scans_total", "engine" => report.engine.to_string(), "answer" => answer)
        .increment(1);
    metrics::histogram!("spillway_scan_seconds", "engine" => report.engine.to_string())
        .record(report.elapsed.as_secs_f64());
    let milliseconds = u64::try_from(report.elapsed.as_millis()).unwrap_or(u64::MAX);
    match &report.answer {
        Answer::Answered(findings) => tracing::debug!(
            %id, engine = %report.engine, answer, findings = findings.len(),
            attempts = report.attempts, milliseconds, "scanned"
        ),
        Answer::None {
            detail, findings, ..
        } => tracing::warn!(
            %id, engine = %report.engine, reason = answer, detail, findings = findings.len(),
            replica = report.replica, attempts = report.attempts, milliseconds, "engine did not answer"
        ),
    }
}
