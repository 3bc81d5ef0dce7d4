//! Retry: few, after a random pause, only where it can help, never past the deadline.

use std::sync::Arc;
use std::time::Duration;

use tower::ServiceExt;

use super::Call;
use super::layer::{Next, Outcome};
use crate::deadline::Deadline;
use crate::scan::engine::Class;

/// The longest first pause; doubled for each further one.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest pause of all.
const LONGEST: Duration = Duration::from_secs(1);

/// Calls up to `attempts` times.
pub(super) async fn again(engine: Arc<str>, attempts: u32, call: Call, next: impl Next) -> Outcome {
    let mut made = 1;
    loop {
        let error = match next.clone().oneshot(call.clone()).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        // Full jitter: callers that failed together must not come back together.
        let longest = PAUSE.saturating_mul(1 << (made - 1).min(10)).min(LONGEST);
        let pause = longest.mul_f64(rand::random());
        let fits = call.sample.deadline().remaining() > pause;
        if error.class() == Class::Permanent || made >= attempts || !fits {
            return Err(error);
        }
        tracing::debug!(%engine, id = %call.sample.request().id, attempt = made, %error, "scan is tried again");
        metrics::counter!("spillway_scan_retries_total", "engine" => engine.to_string())
            .increment(1);
        Deadline::after(pause).wait().await;
        made += 1;
    }
}
