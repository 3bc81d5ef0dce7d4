//! Diversions: the actions that interceptors request for matching messages at the gate of an engine.

use std::sync::Arc;

use super::GateRequest;
use crate::message::{Fingerprint, MessageId, SenderReputation, Trait};
use crate::scan::ScanReason;

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

impl Diversion {
    pub(super) fn matches(&self, entrant: &GateRequest) -> bool {
        let is_like = |fingerprint: &Fingerprint| {
            (!self.traits.is_empty() || !self.near.is_empty())
                && self.traits.iter().all(|t| fingerprint.has(*t))
                && (self.near.is_empty() || fingerprint.is_near(&self.near))
        };
        let fingerprint = entrant.fingerprint.as_deref();
        self.messages.contains(&entrant.id) || fingerprint.is_some_and(is_like)
    }

    pub(super) fn act(&self, entrant: &GateRequest) -> DiversionAct {
        match (entrant.reputation, entrant.scan_reason) {
            (SenderReputation::Known, ScanReason::Fresh | ScanReason::Again) => self.known,
            _ => self.act,
        }
    }
}
