//! Settings of the learner: the section `[intercept]`.

use std::time::Duration;

/// Settings of `[intercept]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What the learner may do.
    pub mode: Mode,
    /// Lifetime of a learned interceptor. It doubles each time the learner makes an interceptor for the same key again, at
    /// most to 16 times this value.
    pub expiry: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::On,
            expiry: Duration::from_secs(600),
        }
    }
}

/// What the learner may do. Interceptors made by people are in force in every mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Make interceptors.
    On,
    /// Make interceptors that only count matches.
    Shadow,
    /// Make no interceptors.
    Off,
}
