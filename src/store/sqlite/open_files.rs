//! Whether the files that are open are those that the next start will find.
//!
//! Whoever removes, renames or replaces the files of a store under a relay that runs does not stop it: SQLite goes on with
//! what it has open, and everything that is acknowledged from then on is gone after a restart. So the names are compared
//! with what is open: every second, and after each commit of new mail before that is acknowledged. Nothing is opened for
//! this, since to close a file again would end the locks that SQLite has on it.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::schema::{DATABASE, broken, open_reader};
use crate::store::StoreError;

/// Octets before the first frame of the log, and of a frame before its page.
const LOG_HEADER: u64 = 32;
const FRAME_HEADER: u64 = 24;
/// Where the index of the log says how large a page is and how many frames the log has, in the order of octets of this
/// machine (SQLite, "WAL-mode File Format", 2.1).
const PAGE_AT: u64 = 14;

/// A file by its name, and what it was when it was opened.
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

    /// The same file, as it is now.
    fn look(&self) -> Result<Metadata, String> {
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
    /// The index, which must stay open for as long as any connection of this process.
    opened: Arc<File>,
    /// Kept open, so that no other folder gets its number.
    _bodies: File,
    /// What the database file had when it was looked at last.
    octets: u64,
}

impl OpenFiles {
    /// Of a store that has just been opened: the log exists from its first transaction on.
    pub(super) fn find(folder: &Path) -> io::Result<Self> {
        let file = |suffix| folder.join(format!("{DATABASE}{suffix}"));
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

    /// Whether what was committed just now will be found: three system calls.
    pub(super) fn hold(&mut self) -> Result<(), StoreError> {
        let octets = self.database.look().map_err(moved)?.len();
        self.log_is_whole()?;
        if octets < self.octets {
            self.is_sound()?;
        }
        self.octets = octets;
        Ok(())
    }

    /// Whether everything is where it was.
    pub(super) fn are_all_there(&mut self) -> Result<(), StoreError> {
        self.hold()?;
        for known in [&self.index, &self.bodies] {
            known.look().map_err(moved)?;
        }
        Ok(())
    }

    /// Whether a database whose file has become shorter can be read through: somebody may have made it compact. By a
    /// connection that remembers no page.
    fn is_sound(&self) -> Result<(), StoreError> {
        let folder = self.database.path.parent().unwrap_or(Path::new("."));
        let read = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
        let found = open_reader(folder)?.query_row("PRAGMA quick_check('message')", [], read);
        match found.map_err(|error| broken(&error))?.as_str() {
            "ok" => Ok(()),
            wrong => Err(StoreError::Corrupt(wrong.trim().to_owned())),
        }
    }

    /// What has to be open for as long as any connection.
    pub(super) fn opened(&self) -> Arc<File> {
        self.opened.clone()
    }

    /// Whether the log has every frame that its index knows: who makes it shorter says so in the index first. To be asked
    /// before anything is written to it, which fills the gap with nothing.
    pub(super) fn log_is_whole(&self) -> Result<(), StoreError> {
        let mut needed = self.octets_of_log().map_err(moved)?;
        loop {
            let octets = self.log.look().map_err(moved)?.len();
            if octets >= needed {
                return Ok(());
            }
            let before = std::mem::replace(&mut needed, self.octets_of_log().map_err(moved)?);
            if needed == before {
                let shown = self.log.path.display();
                let why = format!("{shown} has {octets} octets of {needed}");
                return Err(StoreError::Corrupt(why));
            }
        }
    }

    /// What the log must have according to its index.
    fn octets_of_log(&self) -> Result<u64, String> {
        let mut facts = [0; 6];
        let [p0, p1, f0, f1, f2, f3] = match self.opened.read_exact_at(&mut facts, PAGE_AT) {
            Ok(()) => facts,
            Err(error) => return Err(format!("{}: {error}", self.index.path.display())),
        };
        // The largest size of a page does not fit its field.
        let page = match u16::from_ne_bytes([p0, p1]) {
            1 => 65_536,
            page => u64::from(page),
        };
        Ok(match u32::from_ne_bytes([f0, f1, f2, f3]) {
            0 => 0,
            frames => LOG_HEADER + u64::from(frames) * (FRAME_HEADER + page),
        })
    }
}

fn moved(why: String) -> StoreError {
    StoreError::Broken(format!(
        "{why}: what is stored from now on would not be found after a restart"
    ))
}
