//! One attempt, in its own time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tower::ServiceExt;

use super::Call;
use super::layer::{Next, Outcome};
use crate::scan::engine::ScanError;

/// Calls the engine; its future is dropped after `timeout`. The engine is told the same time as its deadline.
pub(super) async fn once(timeout: Duration, mut call: Call, next: impl Next) -> Outcome {
    call.progress.attempts.fetch_add(1, Ordering::Relaxed);
    call.sample = call.sample.within(timeout);
    let deadline = call.sample.deadline();
    deadline
        .run(next.oneshot(call))
        .await
        .unwrap_or(Err(ScanError::NoAnswer(timeout)))
}
