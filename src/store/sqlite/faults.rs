//! A hook for tests: makes the Nth disk operation of a store fail.
//!
//! The law for these tests: if any single operation fails, all acknowledged mail is there after the next start, and mail that
//! was not acknowledged is there completely or not at all. A test increases N until a run meets no failure.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A countdown over the disk operations of one store. By default, no operation fails.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    left: Option<Arc<AtomicI64>>,
    full: bool,
}

impl Faults {
    /// Makes the `nth` operation from now on fail (the first is 1), and only that one.
    pub fn nth(nth: u32) -> Self {
        Self {
            left: Some(Arc::new(AtomicI64::new(i64::from(nth)))),
            full: false,
        }
    }

    /// Like [`Faults::nth`], with the error of a full disk.
    pub fn nth_full(nth: u32) -> Self {
        Self {
            full: true,
            ..Self::nth(nth)
        }
    }

    /// Whether the failure has happened.
    pub fn fired(&self) -> bool {
        self.left
            .as_ref()
            .is_some_and(|left| left.load(Ordering::Acquire) <= 0)
    }

    /// Called before each disk operation.
    pub(super) fn step(&self, operation: &str) -> io::Result<()> {
        match &self.left {
            Some(left) if left.fetch_sub(1, Ordering::AcqRel) == 1 => {
                let kind = if self.full {
                    io::ErrorKind::StorageFull
                } else {
                    io::ErrorKind::Other
                };
                Err(io::Error::new(
                    kind,
                    format!("injected failure of {operation}"),
                ))
            }
            _ => Ok(()),
        }
    }
}
