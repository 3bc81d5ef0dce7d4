//! Settings of the learner: the section `[intercept]`.

use std::time::Duration;

/// Settings of `[intercept]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What the learner may do.
    pub mode: Mode,
    /// What an interceptor may do with mail that has caused timeouts.
    pub act: Act,
    /// Lifetime of a learned interceptor. It doubles each time the learner makes an interceptor for the same key again, at
    /// most to 16 times this value.
    pub expiry: Duration,
    /// Messages with an expensive failure that block a trait: 2, because one failure may be an accident. One is enough for a key
    /// that was blocked before. As many timeouts turn a park into a hold.
    pub strikes: u32,
    /// Least share of the scans with a key that must be slow: 90 % (precision).
    pub min_precision: f64,
    /// Slow scans that must have a key, if the key is new and mail with it comes in a large burst. One more in a small burst,
    /// three more otherwise. 2, because one slow scan may be an accident.
    pub min_slow_scans: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::On,
            act: Act::Hold,
            expiry: Duration::from_secs(600),
            strikes: 2,
            min_precision: 0.9,
            min_slow_scans: 2,
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

/// What a learned interceptor may do with mail that has caused timeouts. Other mail is parked, or the engine is bypassed for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Hold it.
    Hold,
    /// Park it: it waits, and is scanned one message at a time.
    Park,
}
