//! What the administrator wrote under `[intercept]`.

use std::time::Duration;

/// Settings of `[intercept]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What the learner may do.
    pub mode: Mode,
    /// How long an interceptor of the learner is in force; twice as long each time that it has to be made again.
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
    /// Make interceptors that only count.
    Shadow,
    /// Nothing.
    Off,
}
