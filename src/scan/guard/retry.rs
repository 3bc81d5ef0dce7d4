//! Retry: few further attempts, each after a random pause, only for transient errors, and only within a retry budget per engine.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tokio::time::Instant;
use tower::ServiceExt;

use super::Call;
use super::layer::{Next, Outcome};
use super::state::GuardState;
use crate::ablation::{Mechanism, without};
use crate::chance;
use crate::deadline::Deadline;
use crate::scan::ScanReason;
use crate::scan::engine::Class;

/// Upper bound of the random pause before the first retry; each further retry doubles the bound. 50 ms hardly delays a message.
const RETRY_PAUSE_FIRST: Duration = Duration::from_millis(50);
/// Upper bound of the random pause before any retry: the sender may still wait in its session.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Makes up to `settings.attempts` attempts. Further attempts queue behind fresh mail.
pub(super) async fn again(state: Arc<GuardState>, mut call: Call, next: impl Next) -> Outcome {
    let mut made = 1;
    loop {
        let began = Instant::now();
        let error = match next.clone().oneshot(call.clone()).await {
            Ok(answer) => {
                state.retries().earn(began.elapsed());
                return Ok(answer);
            }
            Err(error) => error,
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
        if over || !state.retries().spend(Instant::now(), cost) {
            return Err(error);
        }
        let engine = &state.settings.name;
        tracing::debug!(%engine, id = %call.sample.request().id, attempt = made, %error, "scan is tried again");
        metrics::counter!("spillway_scan_retries_total", "engine" => engine.to_string())
            .increment(1);
        Deadline::after(pause).wait().await;
        call.scan_reason = ScanReason::Again;
        made += 1;
    }
}

/// The budget for further attempts, in seconds of engine time (I5). A further attempt costs the duration of the failed one, and
/// at least `timeout`, because the failed one may keep a worker busy for that time. A tenth of the duration of each successful
/// scan is earned. Durations include the wait for a slot. A budget in attempts would count a scan that costs as much as ten
/// thousand others as one.
#[derive(Debug)]
pub(super) struct RetryBudget {
    seconds: f64,
    /// Time of the last attempt that was allowed although the budget was spent.
    gift: Instant,
}

impl RetryBudget {
    /// Upper bound of the budget, and its initial value: twelve attempts at the default `timeout` of 5 s.
    const SECONDS_MAX: f64 = 60.0;
    /// Share of a successful scan's duration that the budget earns: retries add at most a tenth to an engine's work.
    const EARNED_SHARE: f64 = 0.1;
    /// Interval after which one attempt is allowed without budget, or an engine with little mail would never get a retry.
    const GIFT_INTERVAL: Duration = Duration::from_secs(60);

    pub(super) fn new(now: Instant) -> Self {
        Self {
            seconds: Self::SECONDS_MAX,
            gift: now,
        }
    }

    fn earn(&mut self, service: Duration) {
        self.seconds =
            (self.seconds + Self::EARNED_SHARE * service.as_secs_f64()).min(Self::SECONDS_MAX);
    }

    fn spend(&mut self, now: Instant, cost: Duration) -> bool {
        if without(Mechanism::RetryBudget) {
            return true;
        }
        if self.seconds >= cost.as_secs_f64() {
            self.seconds -= cost.as_secs_f64();
            return true;
        }
        let given = now >= self.gift + Self::GIFT_INTERVAL;
        if given {
            self.gift = now;
        }
        given
    }
}

#[cfg(test)]
mod tests;
