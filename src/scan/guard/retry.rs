//! Retry: few, after a random pause, only where it can help, and only while it costs the engine little.

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

/// The longest first pause; doubled for each further one.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest pause of all.
const LONGEST: Duration = Duration::from_secs(1);

/// Calls up to `settings.attempts` times. Further attempts stand behind fresh mail.
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
        // Full jitter: callers that failed together must not come back together.
        let longest = PAUSE.saturating_mul(1 << (made - 1).min(10)).min(LONGEST);
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

/// The allowance for further attempts, in engine time: one that fails costs as much as it may keep a worker busy, and a
/// tenth of the time of all scans that succeed pays for it (I5). Counting attempts instead would let a scan that costs
/// as much as ten thousand others pass for one.
#[derive(Debug)]
pub(super) struct RetryBudget {
    seconds: f64,
    /// The last one that was allowed although there was nothing left.
    gift: Instant,
}

impl RetryBudget {
    /// What can be saved up at most, and what there is at the start.
    const MOST: f64 = 60.0;
    /// Of each success.
    const SHARE: f64 = 0.1;
    /// One attempt is always allowed after so long, or an engine with little mail would never get a second one.
    const GIFT: Duration = Duration::from_secs(60);

    pub(super) fn new(now: Instant) -> Self {
        Self {
            seconds: Self::MOST,
            gift: now,
        }
    }

    fn earn(&mut self, service: Duration) {
        self.seconds = (self.seconds + Self::SHARE * service.as_secs_f64()).min(Self::MOST);
    }

    fn spend(&mut self, now: Instant, cost: Duration) -> bool {
        if without(Mechanism::RetryBudget) {
            return true;
        }
        if self.seconds >= cost.as_secs_f64() {
            self.seconds -= cost.as_secs_f64();
            return true;
        }
        let given = now >= self.gift + Self::GIFT;
        if given {
            self.gift = now;
        }
        given
    }
}

#[cfg(test)]
mod tests;
