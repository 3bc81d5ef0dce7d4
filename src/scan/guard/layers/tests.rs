//! Further attempts, with a function as the engine.

use std::future::Future;
use std::sync::Mutex;

use tower::service_fn;

use super::*;
use crate::scan::engine::{Engine, EngineAnswer, Sample, ScanError};
use crate::scan::guard::retry_budget::RetryBudget;
use crate::scan::tests::{request, sampled, settings};
use crate::scan::{ScanRequest, Settings};
use crate::verdict::Answer;

/// A placeholder engine that is never called: the test's function stands in front.
#[derive(Debug)]
struct Nobody;

impl Engine for Nobody {
    fn scan(
        self: Arc<Self>,
        _: Sample,
    ) -> futures_util::future::BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        Box::pin(async { Err(ScanError::Stopping) })
    }
}

/// A transient error.
fn transient() -> ScanError {
    ScanError::Unreachable("refused".to_owned())
}

fn guarded(attempts: u32) -> Arc<GuardState> {
    let settings = Settings {
        attempts,
        ..settings("one")
    };
    GuardState::new(Arc::new(settings), vec![Arc::new(Nobody)])
}

/// An attempt that reached the engine.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    at: Instant,
    scan_reason: ScanReason,
}

/// Scans a fresh message through the layer; each attempt fails with the error of `fails`. Returns the outcome and the attempts.
async fn attempts<F, Fut>(
    state: &Arc<GuardState>,
    allowance: Duration,
    fails: F,
) -> (Outcome, Vec<Attempt>)
where
    F: Fn(Arc<GuardState>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ScanError> + Send + 'static,
{
    let made: Arc<Mutex<Vec<Attempt>>> = Arc::default();
    let (noted, of) = (made.clone(), state.clone());
    let engine = service_fn(move |call: Call| {
        let attempt = Attempt {
            at: Instant::now(),
            scan_reason: call.scan_reason,
        };
        noted.lock().expect("attempts").push(attempt);
        let failing = fails(of.clone());
        async move { Err(failing.await) }
    });
    let asked = ScanRequest {
        scan_reason: ScanReason::Fresh,
        ..request("x", allowance)
    };
    let outcome = retry(state.clone(), Call::new(sampled(asked)), engine).await;
    let made = made.lock().expect("attempts").clone();
    (outcome, made)
}

const MINUTES: Duration = Duration::from_secs(600);

/// A permanent error is not retried: a retry would load the engine and delay the sender for the same answer.
#[tokio::test(start_paused = true)]
async fn what_would_be_said_again_is_not_asked_again() {
    let declined = ScanError::Refused("too large for me".to_owned());
    for (error, count) in [(transient(), 3), (declined, 1)] {
        let fails = error.clone();
        let failing = move |_| std::future::ready(fails.clone());
        let (outcome, made) = attempts(&guarded(3), MINUTES, failing).await;
        assert_eq!(outcome, Err(error));
        assert_eq!(made.len(), count, "{outcome:?}");
    }
}

/// There is no retry past the message's deadline: its answer would be of no use.
#[tokio::test(start_paused = true)]
async fn nothing_is_tried_past_the_deadline() {
    let second = Duration::from_secs(1);
    for (takes, count) in [(second, 1), (Duration::ZERO, 2)] {
        let failing = move |_| async move {
            Deadline::after(takes).wait().await;
            transient()
        };
        let (_, made) = attempts(&guarded(2), second, failing).await;
        assert_eq!(made.len(), count, "{takes:?} of a second");
    }
}

/// There is no retry while the breaker is open: the failure itself is the better reason, and the caller gets it at once.
#[tokio::test(start_paused = true)]
async fn an_engine_that_is_out_is_not_tried_again() {
    let failing = |state: Arc<GuardState>| {
        // Two consecutive failed probes open the breaker.
        for _ in 0..2 {
            state.work(|gate, now| gate.probed(now, 0, false));
        }
        std::future::ready(transient())
    };
    let state = guarded(5);
    let (outcome, made) = attempts(&state, MINUTES, failing).await;
    assert!(state.look(|gate| gate.is_out(0)));
    assert_eq!(outcome, Err(transient()));
    assert_eq!(made.len(), 1);
}

/// Fresh mail goes before further attempts.
#[tokio::test(start_paused = true)]
async fn further_attempts_stand_behind_fresh_mail() {
    let failing = |_| std::future::ready(transient());
    let (_, made) = attempts(&guarded(3), MINUTES, failing).await;
    let scan_reasons: Vec<ScanReason> = made.iter().map(|attempt| attempt.scan_reason).collect();
    assert_eq!(
        scan_reasons,
        [ScanReason::Fresh, ScanReason::Again, ScanReason::Again]
    );
}

/// I5: a further attempt costs the duration of the failed one, which may be much longer than the caller waited. The minimum cost
/// is `timeout`, because an attempt that failed at once may keep a worker busy for that time.
#[tokio::test(start_paused = true)]
async fn an_attempt_costs_the_time_that_the_engine_had() {
    for (takes, costs) in [(20, 20.0), (0, 5.0)] {
        let failing = move |_| async move {
            Deadline::after(Duration::from_secs(takes)).wait().await;
            transient()
        };
        let state = guarded(2);
        let (_, made) = attempts(&state, MINUTES, failing).await;
        assert_eq!(made.len(), 2);
        let left = state.records().retries.seconds;
        assert!(
            (RetryBudget::SECONDS_MAX - costs - left).abs() < 0.1,
            "{takes} s: {left} left"
        );
    }
}

/// I5: an engine earns further attempts with the duration of the scans that it has answered.
#[tokio::test(start_paused = true)]
async fn answers_pay_for_further_attempts() {
    let state = guarded(2);
    state.records().retries.seconds = 0.0;
    let engine = service_fn(|_: Call| async {
        Deadline::after(Duration::from_secs(20)).wait().await;
        Ok(EngineAnswer::new(Answer::Answered(Vec::new())))
    });
    let call = Call::new(sampled(request("x", MINUTES)));
    assert!(retry(state.clone(), call, engine).await.is_ok());
    let earned = state.records().retries.seconds;
    assert!((earned - 2.0).abs() < 0.1, "{earned}");
}

/// Callers that failed together do not retry together: each pause is random, up to a bound that doubles up to one second.
#[tokio::test(start_paused = true)]
async fn pauses_are_at_random() {
    let failing = |_| std::future::ready(transient());
    let mut shares = Vec::new();
    for _ in 0..20 {
        let (_, made) = attempts(&guarded(8), MINUTES, failing).await;
        for (at, two) in made.windows(2).enumerate() {
            let longest = RETRY_PAUSE_FIRST
                .saturating_mul(1 << at)
                .min(RETRY_PAUSE_MAX);
            // A timer fires at most one millisecond late.
            let pause = (two[1].at - two[0].at).saturating_sub(Duration::from_millis(1));
            assert!(pause <= longest, "{pause:?} of {longest:?}");
            shares.push(pause.div_duration_f64(longest));
        }
    }
    assert_eq!(shares.len(), 20 * 7);
    let few = |wanted: fn(&f64) -> bool| shares.iter().copied().filter(wanted).count() < 20;
    assert!(!few(|share| *share < 0.5), "{shares:?}");
    assert!(!few(|share| *share > 0.5), "{shares:?}");
}
