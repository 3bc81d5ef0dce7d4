//! Scans that lasted longer than `timeout`: how long each really took, so that `what-if` knows what another timeout would have
//! brought.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::Measures;
use crate::message::MessageId;

/// Most late scans between two writes: 4,096 in a minute. Further ones are not kept, but count in the series.
const LATE_SCANS_PENDING_MAX: usize = 4096;

/// One scan that ended after `timeout`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateScan {
    /// The scanned message. Callers with the same content may have waited for the same scan.
    pub message: MessageId,
    /// The engine.
    pub engine: Arc<str>,
    /// The end of the scan.
    pub at: Timestamp,
    /// The time from the start of the scan to its end.
    pub took: Duration,
    /// Whether the engine objected to something; none if the scan ended without an answer.
    pub found: Option<bool>,
}

impl Measures {
    /// Keeps a late scan until the next write.
    pub fn add_late(&self, scan: LateScan) {
        let mut late = self.late();
        if late.len() < LATE_SCANS_PENDING_MAX {
            late.push(scan);
        }
    }

    /// Takes the late scans since the last call.
    pub fn take_late(&self) -> Vec<LateScan> {
        std::mem::take(&mut *self.late())
    }

    /// Puts back late scans that could not be written. The oldest are kept.
    pub fn put_late_back(&self, mut taken: Vec<LateScan>) {
        let mut late = self.late();
        taken.append(&mut late);
        taken.truncate(LATE_SCANS_PENDING_MAX);
        *late = taken;
    }

    fn late(&self) -> MutexGuard<'_, Vec<LateScan>> {
        self.late_scans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
