//! The requests to the gate and its answers: what a message asks for, what the gate decides, and how a scan ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{LARGE_LATENCY_FACTOR, Ticket};
use crate::measure::SizeClass;
use crate::message::{Fingerprint, MessageId, SenderReputation};
use crate::observation::ScanReason;
use crate::scan::FairnessKey;

/// A decision of the gate about one ticket.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::scan::guard) enum GateOrder {
    /// Start the scan, on the replica with this index.
    Start(Ticket, usize),
    /// Do not scan the message.
    Refuse(Ticket, GateRefusal),
    /// An interceptor has blocked the fingerprint of this running scan: callers need not wait any longer.
    Blocked(Ticket),
}

/// Why the gate refuses a message. The text of a variant is shown to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::scan::guard) enum GateRefusal {
    /// No slot became free within the wait. Other engines of the class make up for the missing answer.
    Busy,
    /// The breakers of all available replicas are open, or an interceptor bypasses the engine for this message.
    Open(String),
    /// An operator has drained all replicas.
    Drained,
    /// Replicas that could take mail have asked for a pause.
    Resting,
    /// The message is to be scanned later: the same or similar content is being scanned or is slow now, mail from unknown
    /// senders is slow, the message itself timed out before, or the message may be the cause of a crash. Other engines do not
    /// make up for the missing answer.
    Parked(String),
    /// The same or similar content is blocked, or the engine crashed on this message. Other engines do not make up for the
    /// missing answer.
    Suspect(String),
}

/// Configured durations of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::scan::guard) struct Times {
    /// Age from which a scan of small content counts as slow. A slow scan is evidence, not a failure.
    pub(in crate::scan::guard) slow: Duration,
    /// The soft timeout: age from which a scan has failed for its caller. The scan itself continues.
    pub(in crate::scan::guard) timeout: Duration,
    /// How long fresh mail waits for a slot. Mail that is scanned again waits ten times as long.
    pub(in crate::scan::guard) wait: Duration,
}

impl Times {
    /// Age from which a scan counts as slow, by the size of the content; at most `timeout`.
    pub(super) fn slow(&self, large: bool) -> Duration {
        let slow = match large {
            true => self.slow.saturating_mul(LARGE_LATENCY_FACTOR),
            false => self.slow,
        };
        slow.min(self.timeout)
    }
}

/// A message that asks for a scan.
#[derive(Debug, Clone)]
pub(in crate::scan::guard) struct GateRequest {
    pub(in crate::scan::guard) id: MessageId,
    pub(in crate::scan::guard) fingerprint: Option<Arc<Fingerprint>>,
    pub(in crate::scan::guard) reputation: SenderReputation,
    pub(in crate::scan::guard) scan_reason: ScanReason,
    /// The message timed out before, in an engine that took other mail at that time.
    pub(in crate::scan::guard) timed_out_before: bool,
    /// Client and party of the message: they share turns, and limit the scans of one party.
    pub(in crate::scan::guard) fairness_key: FairnessKey,
    pub(in crate::scan::guard) large: bool,
    pub(in crate::scan::guard) size: SizeClass,
    /// When the message asked for its first scan.
    pub(in crate::scan::guard) arrived: Instant,
}

/// How a scan ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::scan::guard) enum ScanEnd {
    /// The engine answered.
    Answered {
        /// Whether the engine found something bad.
        found: bool,
    },
    /// The scan ended with an error.
    Failed,
    /// The engine closed the connection during the scan.
    Broken,
    /// The relay could not reach the engine.
    Unreachable,
    /// The engine did not answer within its own limit.
    Lost,
    /// The engine asks for a pause of this length (RFC 6585 section 4).
    Rests(Duration),
    /// The scan was a probe: [`Gate::probed`] reports the result to the breaker.
    Probe,
}
