//! The size layer: content larger than an engine's `max_size` is not sent to the engine.

use tower::ServiceExt;

use super::Call;
use super::layer::{Next, Outcome};
use crate::scan::engine::ScanError;

/// Passes content of at most `max` octets to the next layer; larger content is [`ScanError::TooLarge`].
pub(super) async fn gate(max: u64, call: Call, next: impl Next) -> Outcome {
    let size = call.sample.content().len() as u64;
    if size > max {
        return Err(ScanError::TooLarge { size, max });
    }
    next.oneshot(call).await
}
