//! Whether the store accepts new mail. The code that uses the disk updates this, and each caller reads it for the price of one
//! atomic.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::store::{Capacity, StoreError};

/// The parts of the store that can fail separately. Success of one part tells nothing about the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Free space of the file system. The trouble is that it is below `store.disk_reserve`.
    Reserve,
    /// Commits. The trouble is that the last one failed.
    Database,
    /// Body files. The trouble is that the last write of one failed.
    Files,
    /// Whether the open files are those that the next start will find ([`super::open_files`]).
    OpenFiles,
    /// The pages of the database. The trouble is corruption. It stays until a restart: reads and writes that used the pages
    /// cannot be trusted.
    Pages,
}

/// Number of variants of [`Part`].
const PART_COUNT: usize = 5;
/// One quarter of the reserve must be free outside the database, for the log and for body files, which cannot use free pages
/// of the database.
const RESERVE_PER_LOG_ROOM: u64 = 4;

/// The space of the file system at the last measurement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Disk {
    /// Size of the file system in octets.
    pub(super) size: u64,
    /// Octets that quarantine may still take. Quarantine leaves twice the reserve free: the reserve itself, and as much again
    /// for all other mail.
    pub(super) spare: u64,
}

impl Disk {
    /// The limit of quarantine, where `held` octets are in use.
    pub(super) fn limit(&self, capacity: Capacity, held: u64) -> u64 {
        let capacity = match capacity {
            Capacity::Octets(octets) => octets,
            Capacity::Percent(percent) => self.size / 100 * u64::from(percent),
        };
        capacity.min(held.saturating_add(self.spare))
    }
}

/// The present troubles, by [`Part`].
#[derive(Debug)]
pub(super) struct Health {
    folder: PathBuf,
    reserve: u64,
    /// Octets written since the last measurement of free space.
    unmeasured: AtomicU64,
    /// Octets inside the database that are free for new content.
    reusable: AtomicU64,
    fine: AtomicBool,
    troubles: Mutex<[Option<StoreError>; PART_COUNT]>,
    disk: Mutex<Disk>,
}

impl Health {
    /// Measures the free space at once.
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

    fn troubles(&self) -> MutexGuard<'_, [Option<StoreError>; PART_COUNT]> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the outcome of the last operation of a part, and logs each change. Corruption found by another part is stored
    /// for [`Part::Pages`], and stays.
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
                tracing::error!(?part, %error, "store trouble: the relay refuses new mail until it ends");
            }
            (Ok(()), Some(_)) => tracing::info!(?part, "store trouble ended"),
            _ => {}
        }
        *slot = outcome.err();
        let fine = troubles.iter().all(Option::is_none);
        self.fine.store(fine, Ordering::Release);
    }

    /// Counts written octets, and measures again from an eighth of the reserve on: a burst must not use up the reserve between
    /// two regular measurements.
    pub(super) fn wrote(&self, octets: usize) {
        let octets = octets as u64;
        if self.unmeasured.fetch_add(octets, Ordering::Relaxed) + octets >= self.reserve / 8 {
            self.measure();
        }
    }

    /// Sets how many octets inside the database are free. New content in the database can use them; the log and body files
    /// cannot.
    pub(super) fn set_reusable(&self, octets: u64) {
        self.reusable.store(octets, Ordering::Relaxed);
    }

    /// The space of the file system, less the octets written since the last measurement.
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
                // The database file does not shrink, so its free pages count as room for new mail. The log needs room outside
                // of them.
                let is_full = free.saturating_add(reusable) < self.reserve
                    || free < self.reserve / RESERVE_PER_LOG_ROOM;
                if is_full {
                    Err(StoreError::Full(format!(
                        "{free} octets are free for {}, and {reusable} in the database, but store.disk_reserve \
                         is {}: free some disk space",
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

    /// The most serious trouble; a lack of room is the least serious.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        if self.fine.load(Ordering::Acquire) {
            return Ok(());
        }
        let troubles = self.troubles();
        let most_serious = troubles
            .iter()
            .flatten()
            .max_by_key(|trouble| match trouble {
                StoreError::Full(_) => 0,
                StoreError::Corrupt(_) => 2,
                _ => 1,
            });
        most_serious.cloned().map_or(Ok(()), Err)
    }

    /// Stores corruption that a read found.
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
