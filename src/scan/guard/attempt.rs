//! One attempt: one call to the engine.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tower::ServiceExt;

use super::Call;
use super::layer::{Next, Outcome};
use crate::deadline::Deadline;
use crate::scan::engine::ScanError;

/// Calls the engine and waits up to `limit`, the engine's own limit: callers give up at `timeout`, long before (M1, T2;
/// RESILIENCE section 2, "Slots and zombies"). The engine's future is dropped only at `limit`, which closes the connection.
pub(super) async fn once(limit: Duration, mut call: Call, next: impl Next) -> Outcome {
    call.progress.attempts.fetch_add(1, Ordering::Relaxed);
    let deadline = Deadline::after(limit);
    call.sample = call.sample.until(deadline);
    deadline
        .run(next.oneshot(call))
        .await
        .unwrap_or(Err(ScanError::NoAnswer(limit)))
}
