//! Whether new mail can be accepted, kept up to date by whoever touches the disk and read by everybody for the price of
//! one atomic.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::store::{Capacity, StoreError};

/// The parts that can fail on their own; success of one says nothing about the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Free space of the file system against `store.disk_reserve`.
    Reserve,
    /// Commits.
    Database,
    /// Body files.
    Files,
    /// Whether the files that are open are those that the next start will find ([`super::open_files`]).
    OpenFiles,
    /// The pages of the database. This never passes: what was read or written on their ground cannot be trusted.
    Pages,
}

/// Parts.
const PARTS: usize = 5;
/// Of the reserve this part must be free outside the database, for the log of its changes and for files.
const LOG_PART_OF_RESERVE: u64 = 4;

/// What the file system has, as it was measured last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Disk {
    /// Octets in all.
    pub(super) size: u64,
    /// Octets that quarantine may still take: as much as the reserve stays free above the reserve for all other mail.
    pub(super) spare: u64,
}

impl Disk {
    /// What may be held in all where so much is held already.
    pub(super) fn limit(&self, capacity: Capacity, held: u64) -> u64 {
        let capacity = match capacity {
            Capacity::Octets(octets) => octets,
            Capacity::Percent(percent) => self.size / 100 * u64::from(percent),
        };
        capacity.min(held.saturating_add(self.spare))
    }
}

/// What is wrong, by [`Part`].
#[derive(Debug)]
pub(super) struct Health {
    folder: PathBuf,
    reserve: u64,
    /// Octets written since free space was measured.
    unmeasured: AtomicU64,
    /// Octets inside the database that can be written again.
    reusable: AtomicU64,
    fine: AtomicBool,
    troubles: Mutex<[Option<StoreError>; PARTS]>,
    disk: Mutex<Disk>,
}

impl Health {
    /// Looks at the free space at once.
    pub(super) fn new(folder: PathBuf, reserve: u64) -> Self {
        let health = Self {
            folder,
            reserve,
            unmeasured: AtomicU64::new(0),
            reusable: AtomicU64::new(0),
            disk: Mutex::default(),
            fine: AtomicBool::new(true),
            troubles: Mutex::default(),
        };
        health.measure();
        health
    }

    fn troubles(&self) -> MutexGuard<'_, [Option<StoreError>; PARTS]> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records how the last operation of a part ended; both changes of mind are logged. Pages are told of as what fails
    /// the other parts is, and stay so.
    pub(super) fn set(&self, part: Part, outcome: Result<(), StoreError>) {
        let part = match &outcome {
            Err(StoreError::Corrupt(_)) => Part::Pages,
            _ => part,
        };
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

    /// Notes how much of the database can be written again: what was removed from it is free, but not for others.
    pub(super) fn can_reuse(&self, octets: u64) {
        self.reusable.store(octets, Ordering::Relaxed);
    }

    /// What the file system has, less what was written since.
    pub(super) fn disk(&self) -> Disk {
        let disk = *self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.unmeasured.load(Ordering::Relaxed);
        Disk {
            spare: disk.spare.saturating_sub(written),
            ..disk
        }
    }

    /// Compares the free space with the reserve: one system call.
    pub(super) fn measure(&self) {
        self.unmeasured.store(0, Ordering::Relaxed);
        let outcome = match rustix::fs::statvfs(&self.folder) {
            Ok(disk) => {
                let free = disk.f_bavail.saturating_mul(disk.f_frsize);
                let reusable = self.reusable.load(Ordering::Relaxed);
                *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = Disk {
                    size: disk.f_blocks.saturating_mul(disk.f_frsize),
                    spare: free
                        .saturating_add(reusable)
                        .saturating_sub(self.reserve.saturating_mul(2)),
                };
                // A database does not shrink: what was removed from it is room for what comes. The log of its changes needs
                // room of its own.
                let is_full = free.saturating_add(reusable) < self.reserve
                    || free < self.reserve / LOG_PART_OF_RESERVE;
                if is_full {
                    Err(StoreError::Full(format!(
                        "{free} octets are free for {}, and {reusable} in the database; store.disk_reserve keeps {}",
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

    /// The gravest trouble: that there is no room is the least.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        if self.fine.load(Ordering::Acquire) {
            return Ok(());
        }
        let troubles = self.troubles();
        let gravest = troubles
            .iter()
            .flatten()
            .max_by_key(|trouble| match trouble {
                StoreError::Full(_) => 0,
                StoreError::Corrupt(_) => 2,
                _ => 1,
            });
        gravest.cloned().map_or(Ok(()), Err)
    }

    /// Notes what somebody who reads was told of the pages.
    pub(super) fn heard<T>(&self, outcome: &Result<T, StoreError>) {
        if let Err(error @ StoreError::Corrupt(_)) = outcome {
            self.set(Part::Pages, Err(error.clone()));
        }
    }

    /// The trouble of one part.
    pub(super) fn check_part(&self, part: Part) -> Result<(), StoreError> {
        if self.fine.load(Ordering::Acquire) {
            return Ok(());
        }
        self.troubles()[part as usize].clone().map_or(Ok(()), Err)
    }
}
