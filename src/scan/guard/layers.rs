//! The layers that belong to a scan, from the outermost to the innermost: size, further attempts, gate, attempt. Each layer is
//! one async function that reads from top to bottom; [`around`] makes a tower layer from the function. The two layers that
//! belong to the caller have files of their own: [`report`](super::report) and [`coalesce`](super::coalesce).

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use metrics::Counter;
use rand::RngExt as _;
use tokio::time::Instant;
use tower::layer::{Layer, layer_fn};
use tower::{Service, ServiceExt};

use super::Call;
use super::answer_cache::is_bad;
use super::gate::{GateRefusal, GateRequest, LARGE_OCTETS_MIN, ScanEnd};
use super::state::{GuardState, Phase};
use crate::chance;
use crate::deadline::Deadline;
use crate::measure::SizeClass;
use crate::observation::ScanReason;
use crate::scan::engine::{Class, Engine, EngineAnswer, ScanError};
use crate::verdict::{Answer, Reason};

/// Upper bound of the random pause before the first retry; each further retry doubles the bound. 50 ms hardly delays a message.
const RETRY_PAUSE_FIRST: Duration = Duration::from_millis(50);
/// Upper bound of the random pause before any retry: the sender may still wait in its session.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Passes content of at most `max` octets to the next layer; larger content is [`ScanError::TooLarge`].
pub(super) async fn bound_size(max: u64, call: Call, next: impl Next) -> Outcome {
    let size = call.sample.content().len() as u64;
    if size > max {
        return Err(ScanError::TooLarge { size, max });
    }
    next.oneshot(call).await
}

/// Makes up to `settings.attempts` attempts. Further attempts queue behind fresh mail.
///
/// An engine that went away in the middle of an attempt may have been made to by the message. If the further attempts find it
/// gone, that says nothing about the message, so the error of the attempt that broke is the one that counts.
pub(super) async fn retry(state: Arc<GuardState>, mut call: Call, next: impl Next) -> Outcome {
    let mut made = 1;
    let mut broke = None;
    loop {
        let began = Instant::now();
        let error = match next.clone().oneshot(call.clone()).await {
            Ok(answer) => {
                state.records().retries.earn(began.elapsed());
                return Ok(answer);
            }
            Err(error) => error,
        };
        let error = match broke.take() {
            Some(first) if error.reason() == Reason::Unreachable => first,
            _ => error,
        };
        // Full jitter: callers that failed together must not retry together.
        let longest = RETRY_PAUSE_FIRST
            .saturating_mul(1 << (made - 1).min(10))
            .min(RETRY_PAUSE_MAX);
        let pause = longest.mul_f64(chance::rng().random());
        let fits = call.sample.deadline().remaining() > pause;
        let over = error.class() == Class::Permanent
            || made >= state.settings.attempts
            || !fits
            || state.look(|gate| gate.refuses().is_some());
        let cost = state.settings.timeout.max(began.elapsed());
        if over || !state.records().retries.spend(Instant::now(), cost) {
            return Err(error);
        }
        let engine = &state.settings.name;
        tracing::debug!(%engine, id = %call.sample.request().id, attempt = made, %error, "scan is tried again");
        metrics::counter!("spillway_scan_retries_total", "engine" => engine.to_string())
            .increment(1);
        broke = Some(error).filter(|error| error.reason() == Reason::Disconnected);
        Deadline::after(pause).wait().await;
        call.scan_reason = ScanReason::Again;
        made += 1;
    }
}

/// Waits for a slot, scans, and gives the slot back when the engine has really ended the scan, whether or not a caller still
/// waits. An attempt leaves the queue as soon as its last caller has given up.
///
/// Cancel safety: dropping the future gives back the place in the queue or the slot, as the engine's connection is closed then.
pub(super) async fn pass_gate(state: Arc<GuardState>, mut call: Call, next: impl Next) -> Outcome {
    let in_flight = call.in_flight.clone();
    let (entered, started) = state.enter(gate_request(&call), in_flight.clone());
    let ordered = tokio::select! {
        biased;
        ordered = started => ordered,
        () = in_flight.closed() => return Err(ScanError::Busy),
    };
    call.replica = match ordered {
        Ok(Ok(replica)) => replica,
        Ok(Err(refusal)) => return Err(refused(refusal)),
        Err(_) => return Err(ScanError::Stopping),
    };
    let (since, replica) = (Instant::now(), call.replica);
    in_flight.send_replace(Phase::Running {
        since,
        blocked: false,
    });
    let outcome = next.oneshot(call).await;
    if let Ok(answer) = &outcome {
        state.observe_answer(replica, answer, since.elapsed());
    }
    entered.end(match &outcome {
        Ok(answer) => match &answer.answer {
            Answer::Answered(findings) | Answer::None { findings, .. } => ScanEnd::Answered {
                found: is_bad(findings),
            },
        },
        Err(ScanError::Throttled(pause)) => ScanEnd::Rests(*pause),
        Err(ScanError::NoAnswer(_)) => ScanEnd::Lost,
        Err(ScanError::Disconnected(_)) => ScanEnd::Broken,
        Err(ScanError::Unreachable(_)) => ScanEnd::Unreachable,
        Err(_) => ScanEnd::Failed,
    });
    state.named(replica, outcome)
}

/// The request to the gate for a call.
pub(super) fn gate_request(call: &Call) -> GateRequest {
    let request = call.sample.request();
    GateRequest {
        id: request.id,
        fingerprint: request.fingerprint.clone(),
        reputation: request.reputation,
        scan_reason: call.scan_reason,
        timed_out_before: request.timed_out_before,
        fairness_key: call.sample.fairness_key(),
        large: request.content.len() >= LARGE_OCTETS_MIN,
        size: SizeClass::of(request.content.len() as u64),
        arrived: call.arrived,
    }
}

fn refused(refusal: GateRefusal) -> ScanError {
    match refusal {
        GateRefusal::Busy => ScanError::Busy,
        GateRefusal::Open(why) => ScanError::BreakerOpen(why),
        GateRefusal::Drained => ScanError::Drained,
        GateRefusal::Resting => ScanError::Resting,
        GateRefusal::Parked(why) => ScanError::Parked(why),
        GateRefusal::Suspect(why) => ScanError::Suspect(why),
    }
}

/// Calls the engine and waits up to `limit`, the engine's own limit: callers give up at `timeout`, long before (M1, T2;
/// RESILIENCE section 2, "Slots and zombies"). The engine's future is dropped only at `limit`, which closes the connection.
pub(super) async fn attempt(
    limit: Duration,
    counter: Counter,
    mut call: Call,
    next: impl Next,
) -> Outcome {
    if call.progress.attempts.fetch_add(1, Ordering::Relaxed) == 0 {
        // This is the first attempt, so the cell is empty.
        let _ = call.progress.waited.set(call.arrived.elapsed());
    }
    counter.increment(1);
    let deadline = Deadline::after(limit);
    call.sample = call.sample.until(deadline);
    deadline
        .run(next.oneshot(call))
        .await
        .unwrap_or(Err(ScanError::NoAnswer(limit)))
}

/// Result of every layer below the report layer.
pub(super) type Outcome = Result<EngineAnswer, ScanError>;

/// The layers between a layer and the engine. This service is always ready: every wait is inside the call, where the deadline
/// bounds it.
pub(super) trait Next:
    Service<Call, Response = EngineAnswer, Error = ScanError, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Next for S where
    S: Service<Call, Response = EngineAnswer, Error = ScanError, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// The layer that runs `work` with the call and the inner layers.
pub(super) fn around<S, F>(work: F) -> impl Layer<S, Service = Around<S, F>> + Clone
where
    F: Clone,
{
    layer_fn(move |next| Around {
        next,
        work: work.clone(),
    })
}

/// The service of [`around`].
#[derive(Clone)]
pub(super) struct Around<S, F> {
    next: S,
    work: F,
}

impl<S, F, Fut> Service<Call> for Around<S, F>
where
    S: Next,
    F: Fn(Call, S) -> Fut,
    Fut: Future<Output = Outcome>,
{
    type Response = EngineAnswer;
    type Error = ScanError;
    type Future = Fut;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ScanError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Fut {
        (self.work)(call, self.next.clone())
    }
}

/// The replicas of the engine as a service; the call names the replica.
#[derive(Debug, Clone)]
pub(super) struct Innermost {
    engines: Arc<[Arc<dyn Engine>]>,
}

impl Innermost {
    pub(super) fn new(engines: &[Arc<dyn Engine>]) -> Self {
        Self {
            engines: engines.into(),
        }
    }
}

impl Service<Call> for Innermost {
    type Response = EngineAnswer;
    type Error = ScanError;
    type Future = BoxFuture<'static, Outcome>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ScanError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        match self.engines.get(call.replica) {
            Some(engine) => engine.clone().scan(call.sample),
            None => Box::pin(std::future::ready(Err(ScanError::Stopping))),
        }
    }
}

#[cfg(test)]
mod tests;
