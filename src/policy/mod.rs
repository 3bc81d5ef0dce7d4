//! Rules and thresholds: a pure function from facts to a decision.

use std::sync::Arc;

use crate::message::Envelope;
use crate::verdict::{Decision, Report};

/// What policy may look at, for one recipient of a message.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The envelope.
    pub envelope: &'a Envelope,
    /// Octets of content.
    pub size: u64,
    /// The header section as received.
    pub header_section: &'a [u8],
    /// One report per engine.
    pub reports: &'a [Report],
}

/// A decision and the recipients (indexes into the envelope) that it governs.
pub type Group = (Decision, Vec<usize>);

/// The administrator's rules and thresholds, compiled.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Shown in every decision.
    pub config: Arc<str>,
}

impl Policy {
    /// Judges every recipient and groups those with the same decision, in order of their first recipient.
    pub fn decide(&self, facts: Facts<'_>) -> Vec<Group> {
        unimplemented!("{facts:?}")
    }
}
