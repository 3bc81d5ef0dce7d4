//! Room for the last writes on a full disk.
//!
//! To remove a message from the database, SQLite first writes the change to the log, which needs room before any is freed. If
//! another program fills the disk completely, the store could not record deliveries, and the relay would deliver the same mail
//! again after a restart. So the store keeps a file without use, and deletes it when the disk is full.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

/// 16 MiB hold the log between two checkpoints: 4,000 pages of 4 KiB.
const BALLAST_OCTETS_MAX: u64 = 16 << 20;
/// 1 MiB of free space is enough to open the store and its logs.
pub(super) const FREE_OCTETS_AT_START_MIN: u64 = 1 << 20;

/// The ballast file and its intended size.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    octets: u64,
}

impl Ballast {
    /// A ballast of a quarter of the reserve, at most 16 MiB. Does not create the file.
    pub(super) fn new(store: &Path, reserve: u64) -> Self {
        Self {
            path: store.join("ballast"),
            octets: BALLAST_OCTETS_MAX.min(reserve / 4),
        }
    }

    /// The number of pages of 4 KiB that the log may have between two checkpoints, so that the ballast makes room for one
    /// checkpoint interval: 4,000, or fewer if the reserve is small.
    pub(super) fn log_pages(&self) -> i32 {
        i32::try_from(self.octets / 4096)
            .unwrap_or(4000)
            .clamp(64, 4000)
    }

    /// Deletes the file; returns false if there was none.
    pub(super) fn release(&self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }

    /// Deletes the file if the disk has less free space than `least`: opening the store and its logs needs some.
    pub(super) fn release_below(&self, least: u64) {
        let folder = self.path.parent().unwrap_or(&self.path);
        let free = rustix::fs::statvfs(folder).map(|disk| disk.f_bavail * disk.f_frsize);
        if free.is_ok_and(|free| free < least) && self.release() {
            tracing::error!(
                "the disk is full: the relay removed its ballast file to start; free some disk space"
            );
        }
    }

    /// Creates the file if it does not exist.
    pub(super) fn restore(&self) {
        if self.octets == 0 || self.path.exists() {
            return;
        }
        if let Err(error) = self.make() {
            // A ballast of less than its full size must not remain, because the next check would take it for a complete one.
            self.release();
            tracing::warn!(path = %self.path.display(), %error, "the ballast file could not be created");
        }
    }

    fn make(&self) -> io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.path)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.octets)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A start on a full disk deletes the ballast. A start with enough free space keeps the ballast.
    #[test]
    fn a_start_on_a_full_disk_deletes_the_ballast() {
        let folder = tempfile::tempdir().expect("a folder");
        let ballast = Ballast::new(folder.path(), 1 << 20);
        ballast.restore();
        for (least, is_kept) in [(0, true), (u64::MAX, false)] {
            ballast.release_below(least);
            assert_eq!(ballast.path.exists(), is_kept, "{least}");
        }
    }
}
