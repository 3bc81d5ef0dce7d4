//! One attempt: the one call that the engine sees.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tower::ServiceExt;

use super::Call;
use super::layer::{Next, Outcome};
use crate::deadline::Deadline;
use crate::scan::engine::ScanError;

/// Calls the engine, for as long as the engine itself may take: callers have gone long before (RESILIENCE M1, T2). Only
/// then is the future dropped, and with it the connection.
pub(super) async fn once(limit: Duration, mut call: Call, next: impl Next) -> Outcome {
    call.progress.attempts.fetch_add(1, Ordering::Relaxed);
    let deadline = Deadline::after(limit);
    call.sample = call.sample.until(deadline);
    deadline
        .run(next.oneshot(call))
        .await
        .unwrap_or(Err(ScanError::NoAnswer(limit)))
}
