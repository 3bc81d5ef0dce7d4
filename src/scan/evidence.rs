//! Evidence about scans. The pipeline and `intercept` decide from it whether an engine or a message is at fault (M5, M6;
//! RESILIENCE section 1, "Whose fault is it?", and section 2, "Strikes, interceptors, learner").

use std::sync::Arc;

use tokio::time::Instant;

use crate::message::{Fingerprint, MessageId, SenderReputation};

/// Reason for a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScanReason {
    /// The message has just arrived.
    Fresh,
    /// The message was deferred, or an attempt failed. Fresh mail goes first.
    Again,
    /// The message was held for a cause that may be gone; the scan finds out.
    Redrive,
}

/// One observation of one scan in one engine.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// The message.
    pub message: MessageId,
    /// Fingerprint of the message.
    pub fingerprint: Arc<Fingerprint>,
    /// Reputation of the sender.
    pub reputation: SenderReputation,
    /// Reason for the scan.
    pub scan_reason: ScanReason,
    /// Time at which the message asked the engine's guard for a scan; further attempts keep it.
    pub arrived: Instant,
    /// Start of this scan.
    pub started: Instant,
    /// Time of the observation.
    pub at: Instant,
    /// The observation.
    pub what: Observed,
}

/// An observation. One scan gives at most one [`Slow`](Self::Slow), then at most one [`TimedOut`](Self::TimedOut), then at most
/// one of the others. A scan that the engine declined with a request for a pause gives none of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// The scan has run for `slow` or longer (ten times that for content from 1 MiB), and still runs.
    Slow,
    /// The scan has run for `timeout` or longer, and still runs.
    TimedOut,
    /// The scan was answered before it was slow.
    Fast {
        /// Whether the engine objected to something.
        found: bool,
    },
    /// The scan was slow, and answered before `timeout`.
    Ended {
        /// Whether the engine objected to something.
        found: bool,
    },
    /// The scan was answered after `timeout`.
    Late {
        /// Whether the engine objected to something.
        found: bool,
    },
    /// The engine was unreachable, or answered with an error.
    Failed,
    /// The engine closed the connection during the scan: the message may have crashed it.
    Broken,
    /// The engine did not end the scan within `limit`.
    Lost,
}
