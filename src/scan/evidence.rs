//! What the guard saw of scans: the evidence from which the room above decides whose fault it is (RESILIENCE M5, M6).

use std::sync::Arc;

use tokio::time::Instant;

use crate::message::{Fingerprint, MessageId, Standing};

/// Why a message is scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScanReason {
    /// It has just come in.
    Fresh,
    /// It was deferred, or an attempt failed: fresh mail goes first.
    Again,
    /// It was held for a cause that may be gone, and is scanned to find out.
    Redrive,
}

/// One observation of one scan in one engine.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// The message.
    pub message: MessageId,
    /// What it is the same as.
    pub fingerprint: Arc<Fingerprint>,
    /// Whether its sender was known.
    pub standing: Standing,
    /// Why it was scanned.
    pub scan_reason: ScanReason,
    /// When it asked for its first scan.
    pub arrived: Instant,
    /// When this scan began.
    pub started: Instant,
    /// When this was seen.
    pub at: Instant,
    /// What was seen.
    pub what: Observed,
}

/// What was seen. Of one scan: at most one [`Slow`](Self::Slow), then at most one [`TimedOut`](Self::TimedOut), then one
/// of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// It runs for longer than such scans usually take.
    Slow,
    /// It runs for longer than its timeout.
    TimedOut,
    /// It was answered before it was slow.
    Fast {
        /// Whether something was found.
        found: bool,
    },
    /// It was answered, slowly, but before its timeout.
    Ended {
        /// Whether something was found.
        found: bool,
    },
    /// It was answered after its timeout.
    Late {
        /// Whether something was found.
        found: bool,
    },
    /// The engine could not be asked, or answered with an error.
    Failed,
    /// The engine went away while it looked at it: it may have crashed on it.
    Broken,
    /// It never ended within the engine's own limit.
    Lost,
}
