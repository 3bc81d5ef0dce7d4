//! Whether new mail can be accepted, kept up to date by whoever touches the disk and read by everybody for the price of
//! one atomic.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::store::StoreError;

/// The parts that can fail on their own; success of one says nothing about the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Free space of the file system against `store.disk_reserve`.
    Reserve,
    /// Commits.
    Database,
    /// Body files.
    Files,
}

/// What is wrong, by [`Part`].
#[derive(Debug)]
pub(super) struct Health {
    folder: PathBuf,
    reserve: u64,
    /// Octets written since free space was measured.
    unmeasured: AtomicU64,
    fine: AtomicBool,
    troubles: Mutex<[Option<StoreError>; 3]>,
}

impl Health {
    /// Looks at the free space at once.
    pub(super) fn new(folder: PathBuf, reserve: u64) -> Self {
        let health = Self {
            folder,
            reserve,
            unmeasured: AtomicU64::new(0),
            fine: AtomicBool::new(true),
            troubles: Mutex::default(),
        };
        health.measure();
        health
    }

    fn troubles(&self) -> MutexGuard<'_, [Option<StoreError>; 3]> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records how the last operation of a part ended; both changes of mind are logged.
    pub(super) fn set(&self, part: Part, outcome: Result<(), StoreError>) {
        if outcome.is_ok() && self.fine.load(Ordering::Acquire) {
            return;
        }
        let mut troubles = self.troubles();
        let slot = &mut troubles[part as usize];
        match (&outcome, &slot) {
            (Err(error), None) => {
                tracing::error!(?part, %error, "store trouble: new mail is refused until it passes");
            }
            (Ok(()), Some(_)) => tracing::info!(?part, "store trouble passed"),
            _ => {}
        }
        *slot = outcome.err();
        let fine = troubles.iter().all(Option::is_none);
        self.fine.store(fine, Ordering::Release);
    }

    /// Notes what was written: a burst must not run through the reserve between two measurements by the clock.
    pub(super) fn wrote(&self, octets: usize) {
        let octets = octets as u64;
        if self.unmeasured.fetch_add(octets, Ordering::Relaxed) + octets >= self.reserve / 8 {
            self.measure();
        }
    }

    /// Compares the free space with the reserve: one system call.
    pub(super) fn measure(&self) {
        self.unmeasured.store(0, Ordering::Relaxed);
        let outcome = match rustix::fs::statvfs(&self.folder) {
            Ok(disk) => {
                let free = disk.f_bavail.saturating_mul(disk.f_frsize);
                if free < self.reserve {
                    Err(StoreError::Full(format!(
                        "{} octets are free for {}, store.disk_reserve keeps {}",
                        free,
                        self.folder.display(),
                        self.reserve
                    )))
                } else {
                    Ok(())
                }
            }
            Err(error) => Err(StoreError::Broken(format!(
                "free space of {}: {error}",
                self.folder.display()
            ))),
        };
        self.set(Part::Reserve, outcome);
    }

    /// The first trouble.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        if self.fine.load(Ordering::Acquire) {
            return Ok(());
        }
        let troubles = self.troubles();
        troubles
            .iter()
            .flatten()
            .next()
            .cloned()
            .map_or(Ok(()), Err)
    }

    /// The trouble of one part.
    pub(super) fn check_part(&self, part: Part) -> Result<(), StoreError> {
        if self.fine.load(Ordering::Acquire) {
            return Ok(());
        }
        self.troubles()[part as usize].clone().map_or(Ok(()), Err)
    }
}
