//! The deadline cap: nothing below goes on after the message's deadline.

use tower::ServiceExt;

use super::Call;
use super::layer::{Next, Outcome};
use crate::scan::engine::ScanError;

/// Drops the rest of the call at the deadline, and does not begin it after.
pub(super) async fn cap(call: Call, next: impl Next) -> Outcome {
    let (deadline, progress) = (call.sample.deadline(), call.progress.clone());
    if deadline.passed() {
        return Err(ScanError::BudgetSpent);
    }
    let outcome = deadline.run(next.oneshot(call)).await;
    outcome.unwrap_or_else(|_| Err(progress.overdue()))
}

impl super::Progress {
    /// What it means that the deadline passes now.
    pub(super) fn overdue(&self) -> ScanError {
        if self.attempts() == 0 {
            ScanError::Busy
        } else {
            ScanError::DeadlinePassed
        }
    }
}
