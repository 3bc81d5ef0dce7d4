//! Which messages a diversion is for, and what the gate does with them.

use super::GateRequest;
use crate::message::{Fingerprint, SenderReputation};
use crate::observation::{Diversion, DiversionAct, ScanReason};

impl Diversion {
    pub(super) fn matches(&self, request: &GateRequest) -> bool {
        let is_like = |fingerprint: &Fingerprint| {
            (!self.traits.is_empty() || !self.near.is_empty())
                && self.traits.iter().all(|t| fingerprint.has(*t))
                && (self.near.is_empty() || fingerprint.is_near(&self.near))
        };
        let fingerprint = request.fingerprint.as_deref();
        self.messages.contains(&request.id) || fingerprint.is_some_and(is_like)
    }

    pub(super) fn act(&self, request: &GateRequest) -> DiversionAct {
        match (request.reputation, request.scan_reason) {
            (SenderReputation::Known, ScanReason::Fresh | ScanReason::Again) => self.known,
            _ => self.act,
        }
    }
}
