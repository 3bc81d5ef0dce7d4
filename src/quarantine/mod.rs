//! Messages that are held for review.

use std::time::Duration;

/// Settings of `[quarantine]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A held message expires after so long.
    pub retention: Duration,
}
