//! Room for the last acts on a full disk.
//!
//! Removing a message from the database needs room before it makes any: the change is first written to the log. So a disk
//! that somebody else fills up to the last octet would stop delivery from being recorded, and what was passed on would be
//! passed on again after a restart. Against that a file of no use is kept, and thrown overboard when it comes to that.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

/// Enough for the log between two checkpoints.
const MOST: u64 = 16 << 20;
/// Enough to start.
pub(super) const LEAST: u64 = 1 << 20;

/// The file, and how large it should be.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    octets: u64,
}

impl Ballast {
    /// A quarter of the reserve that the administrator granted, at most 16 MiB. Makes nothing yet.
    pub(super) fn new(store: &Path, reserve: u64) -> Self {
        Self {
            path: store.join("ballast"),
            octets: MOST.min(reserve / 4),
        }
    }

    /// Pages of 4 KiB that the log may have between two checkpoints, so that the ballast makes room for one: 4,000, or
    /// fewer where the reserve is small.
    pub(super) fn log_pages(&self) -> i32 {
        i32::try_from(self.octets / 4096)
            .unwrap_or(4000)
            .clamp(64, 4000)
    }

    /// Gives the room free; false if there was none to give.
    pub(super) fn release(&self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }

    /// Gives the room free if the disk has less than this: opening the store and the logs beside it needs some.
    pub(super) fn release_below(&self, least: u64) {
        let folder = self.path.parent().unwrap_or(&self.path);
        let free = rustix::fs::statvfs(folder).map(|disk| disk.f_bavail * disk.f_frsize);
        if free.is_ok_and(|free| free < least) && self.release() {
            tracing::error!(
                "the disk is full: the room kept for this is used to start with the mail that is here"
            );
        }
    }

    /// Takes the room again if it was given away.
    pub(super) fn restore(&self) {
        if self.octets == 0 || self.path.exists() {
            return;
        }
        if let Err(error) = self.make() {
            // Half a ballast would look like a whole one.
            self.release();
            tracing::warn!(path = %self.path.display(), %error, "no room kept for a full disk");
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

    /// A disk that is full at the start is what the ballast is for; one that is not leaves it alone.
    #[test]
    fn a_full_disk_is_started_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let ballast = Ballast::new(folder.path(), 1 << 20);
        ballast.restore();
        for (least, is_kept) in [(0, true), (u64::MAX, false)] {
            ballast.release_below(least);
            assert_eq!(ballast.path.exists(), is_kept, "{least}");
        }
    }
}
