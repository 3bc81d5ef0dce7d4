//! What is too large for an engine is not sent to it.

use tower::ServiceExt;

use super::Call;
use super::layer::{Next, Outcome};
use crate::scan::engine::ScanError;

/// Passes on content of at most `max` octets.
pub(super) async fn gate(max: u64, call: Call, next: impl Next) -> Outcome {
    let size = call.sample.content().len() as u64;
    if size > max {
        return Err(ScanError::TooLarge { size, max });
    }
    next.oneshot(call).await
}
