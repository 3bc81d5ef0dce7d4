//! Whether the open files are those that the next start will find.
//!
//! If a person or a program removes, renames or replaces the files of a store while the relay runs, SQLite continues with the
//! files that it has open, and everything that is acknowledged from then on is lost at a restart. So this module compares the
//! names with the open files: every second, and after each commit of new mail before that mail is acknowledged. The check
//! opens no file, because closing it again would end the locks that SQLite has on the file.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::schema::{DATABASE_FILE, broken, open_reader};
use crate::store::StoreError;

/// Size in octets of the header of the log, and of the header of a frame (SQLite, "WAL-mode File Format").
const LOG_HEADER_OCTETS: u64 = 32;
const FRAME_HEADER_OCTETS: u64 = 24;
/// Offset in the index of the log of the page size, which is followed by the number of frames, in the byte order of this
/// machine (SQLite, "WAL-mode File Format", 2.1).
const PAGE_SIZE_OFFSET: u64 = 14;

/// A file by its path, with the identity that it had when it was opened.
#[derive(Debug)]
struct Known {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Known {
    fn find(path: PathBuf) -> io::Result<Self> {
        let found = fs::metadata(&path)?;
        Ok(Self {
            path,
            device: found.dev(),
            inode: found.ino(),
        })
    }

    /// Reads the metadata of the path, which must still name the same file.
    fn metadata_of_same_file(&self) -> Result<Metadata, String> {
        let shown = self.path.display();
        let found = fs::metadata(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("{shown} is gone"),
            _ => format!("{shown}: {error}"),
        })?;
        match (found.dev(), found.ino()) == (self.device, self.inode) {
            true => Ok(found),
            false => Err(format!("{shown} is another file than the one that is open")),
        }
    }
}

/// The files of an open store.
#[derive(Debug)]
pub(super) struct OpenFiles {
    database: Known,
    log: Known,
    index: Known,
    bodies: Known,
    /// The index, which must stay open as long as any connection of this process.
    opened: Arc<File>,
    /// Kept open so that no other folder gets its inode number.
    _bodies: File,
    /// Size of the database file at the last check.
    octets: u64,
}

impl OpenFiles {
    /// The files of a store that has just been opened. The log exists since the first transaction.
    pub(super) fn find(folder: &Path) -> io::Result<Self> {
        let file = |suffix| folder.join(format!("{DATABASE_FILE}{suffix}"));
        let (index, bodies) = (file("-shm"), folder.join("bodies"));
        Ok(Self {
            database: Known::find(file(""))?,
            log: Known::find(file("-wal"))?,
            opened: Arc::new(File::open(&index)?),
            index: Known::find(index)?,
            _bodies: File::open(&bodies)?,
            bodies: Known::find(bodies)?,
            octets: 0,
        })
    }

    /// Checks that the next start will find the last commit: the name of the database leads to the open file, and the log has
    /// every frame. Three system calls. If the file became shorter, its content is checked too.
    pub(super) fn check_last_commit(&mut self) -> Result<(), StoreError> {
        let octets = self.database.metadata_of_same_file().map_err(moved)?.len();
        self.log_is_whole()?;
        if octets < self.octets {
            self.is_sound()?;
        }
        self.octets = octets;
        Ok(())
    }

    /// As [`Self::check_last_commit`], and checks the names of the index and of the folder of body files as well.
    pub(super) fn check_all(&mut self) -> Result<(), StoreError> {
        self.check_last_commit()?;
        for known in [&self.index, &self.bodies] {
            known.metadata_of_same_file().map_err(moved)?;
        }
        Ok(())
    }

    /// Checks that a database whose file became shorter can be read completely: it may have been compacted. The check uses a
    /// new connection, which has no pages in its cache.
    fn is_sound(&self) -> Result<(), StoreError> {
        let folder = self.database.path.parent().unwrap_or(Path::new("."));
        let read = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
        let found = open_reader(folder)?.query_row("PRAGMA quick_check('message')", [], read);
        match found.map_err(|error| broken(&error))?.as_str() {
            "ok" => Ok(()),
            wrong => Err(StoreError::Corrupt(wrong.trim().to_owned())),
        }
    }

    /// The file that must be open as long as any connection.
    pub(super) fn opened(&self) -> Arc<File> {
        self.opened.clone()
    }

    /// Checks that the log has every frame that its index lists: a process that truncates the log changes the index first.
    /// Call this before any write to the log, because a write would fill the gap with zeros.
    pub(super) fn log_is_whole(&self) -> Result<(), StoreError> {
        let mut needed = self.octets_of_log().map_err(moved)?;
        loop {
            let octets = self.log.metadata_of_same_file().map_err(moved)?.len();
            if octets >= needed {
                return Ok(());
            }
            let before = std::mem::replace(&mut needed, self.octets_of_log().map_err(moved)?);
            if needed == before {
                let shown = self.log.path.display();
                let why = format!("{shown} has {octets} octets, but its index lists {needed}");
                return Err(StoreError::Corrupt(why));
            }
        }
    }

    /// The size that the log must have according to its index.
    fn octets_of_log(&self) -> Result<u64, String> {
        let mut facts = [0; 6];
        let [p0, p1, f0, f1, f2, f3] = match self.opened.read_exact_at(&mut facts, PAGE_SIZE_OFFSET)
        {
            Ok(()) => facts,
            Err(error) => return Err(format!("{}: {error}", self.index.path.display())),
        };
        // The largest page size, 65,536, does not fit into its field and is stored as 1.
        let page = match u16::from_ne_bytes([p0, p1]) {
            1 => 65_536,
            page => u64::from(page),
        };
        Ok(match u32::from_ne_bytes([f0, f1, f2, f3]) {
            0 => 0,
            frames => LOG_HEADER_OCTETS + u64::from(frames) * (FRAME_HEADER_OCTETS + page),
        })
    }
}

fn moved(why: String) -> StoreError {
    StoreError::Broken(format!(
        "{why}: mail stored from now on would be lost at a restart; do not stop the relay, \
         and see \"The store was moved away\" in docs/OPERATIONS.md"
    ))
}
