//! What the guards of the engines and the interceptors say to each other: evidence about scans in one direction, diversions in
//! the other. The interceptors decide from the evidence whether an engine or a message is at fault (M5, M6; RESILIENCE section
//! 1, "Whose fault is it?", and section 2, "Strikes, interceptors, learner"); the gates apply the diversions.

use std::sync::Arc;

use tokio::time::Instant;

use crate::measure::SizeClass;
use crate::message::{Fingerprint, MessageId, SenderReputation, Trait};

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
    /// Size class of the content.
    pub size: SizeClass,
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

impl Evidence {
    /// Whether this was the first scan of the message. A later scan is no evidence of what mail is like now.
    pub fn is_fresh(&self) -> bool {
        self.scan_reason == ScanReason::Fresh
    }
}

impl Observed {
    /// Whether the engine answered and objected to something.
    pub fn found(self) -> bool {
        match self {
            Self::Fast { found } | Self::Ended { found } | Self::Late { found } => found,
            Self::Slow | Self::TimedOut | Self::Failed | Self::Broken | Self::Lost => false,
        }
    }
}

/// The action that one interceptor requests for matching messages at the gate of one engine. A message matches by its
/// fingerprint (`traits` and `near`) or by its id (`messages`).
#[derive(Debug, Clone, PartialEq)]
pub struct Diversion {
    /// The id of the interceptor, or the reason if there is no interceptor; both are shown in reports.
    pub id: Arc<str>,
    /// A message matches only if its fingerprint has all of these traits.
    pub traits: Box<[Trait]>,
    /// If not empty, the content of the message must also be nearly the same as the content with these bands.
    pub near: Box<[Trait]>,
    /// These messages match independently of their fingerprint.
    pub messages: Box<[MessageId]>,
    /// The action for mail of unknown senders, and for held mail that is scanned again as a test ([`ScanReason::Redrive`]).
    pub act: DiversionAct,
    /// The action for other mail of known senders.
    pub known: DiversionAct,
}

/// The action for a matching message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiversionAct {
    /// Scan one matching message at a time, and refuse the others as parked: they come again later.
    Park,
    /// Scan no matching message, except held mail that is scanned again as a test.
    Hold,
    /// Do not ask the engine, and blame the engine, so that other engines can make up for the missing answer. A sample of the
    /// messages is still scanned, to detect that the engine has recovered.
    Bypass,
    /// Refuse all matching messages as parked for now: each is scanned when its turn comes.
    Wait,
    /// Scan no matching message, not even held mail as a test.
    Bar,
}
