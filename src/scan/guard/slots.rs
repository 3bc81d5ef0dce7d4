//! Slots: no more calls at once than the engine has workers. Waiting for one is bounded by the deadline, above.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tower::ServiceExt;

use super::Call;
use super::layer::{Next, Outcome};
use crate::scan::engine::ScanError;

/// Passes the call on while it holds a slot; first come, first served.
pub(super) async fn enter(slots: Arc<Semaphore>, call: Call, next: impl Next) -> Outcome {
    let Ok(_slot) = slots.acquire_owned().await else {
        return Err(ScanError::Stopping);
    };
    next.oneshot(call).await
}
