//! What is known of a message before it is scanned, and what its scans teach: the path's side of the interceptors.

use std::sync::Arc;

use crate::incident::Incident;
use crate::message::mime::Inspection;
use crate::message::{Fingerprint, Message, Standing};
use crate::scan::{Errand, Evidence, Scanner};

/// What is known of a message.
pub(super) struct Looked {
    /// What it is the same as.
    pub(super) fingerprint: Option<Arc<Fingerprint>>,
    /// What speaks for its sender.
    pub(super) standing: Standing,
    /// The interceptor that holds it, and why.
    pub(super) held: Option<(String, String)>,
}

/// The interceptors, shared by all messages.
#[derive(Debug, Default)]
pub(super) struct Suspicion;

impl Suspicion {
    /// Looks at a message that is about to be scanned.
    pub(super) fn look(&self, _: &Message, _: &Inspection, _: Errand) -> Looked {
        Looked {
            fingerprint: None,
            standing: Standing::Known,
            held: None,
        }
    }

    /// It was scanned well by everybody.
    pub(super) fn scanned_well(&self, _: &Message, _: &Looked) {}

    /// Concludes from evidence; what was done.
    pub(super) fn tick(&self, _: &Scanner, _: Vec<(Arc<str>, Evidence)>) -> Vec<Incident> {
        Vec::new()
    }

    /// Interceptors whose mail may be tried again.
    pub(super) fn recoverable(&self) -> Vec<String> {
        Vec::new()
    }
}
