//! Diversions: what the interceptors want done with some messages at an engine's gate.

use std::sync::Arc;

use super::GateRequest;
use crate::message::{Fingerprint, MessageId, Standing, Trait};
use crate::scan::ScanReason;

/// What the interceptors want done with some messages, here.
#[derive(Debug, Clone, PartialEq)]
pub struct Diversion {
    /// The interceptor's id, for reports.
    pub id: Arc<str>,
    /// All of these traits make a match.
    pub traits: Box<[Trait]>,
    /// And content that is nearly the same as the one with these bands, if there are any.
    pub near: Box<[Trait]>,
    /// Or it is one of these messages.
    pub messages: Box<[MessageId]>,
    /// What is done.
    pub act: DiversionAct,
    /// What is done with mail of known senders, unless it was held before and is scanned to find out.
    pub known: DiversionAct,
}

/// What is done with a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiversionAct {
    /// One of them at a time, the others are told to come later.
    Park,
    /// None of them.
    Hold,
    /// The engine is not asked, and it is the engine's fault.
    Bypass,
    /// None of them for now.
    Wait,
    /// None of them, not even to find out.
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
        match (entrant.standing, entrant.scan_reason) {
            (Standing::Known, ScanReason::Fresh | ScanReason::Again) => self.known,
            _ => self.act,
        }
    }
}
