//! Large contents as files: `bodies/X/ID`. X is the last character of the id (one of 32, evenly spread).
//!
//! The order of the steps is essential. A write creates the file under a temporary name, calls fsync, renames it, calls fsync
//! on the folder, and only then adds the row. A removal removes the row first and then the file. So at every moment each row
//! has its file, and a file without a row is garbage that the next start removes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::faults::Faults;
use crate::message::{Content, MessageId};
use crate::store::StoreError;

/// The alphabet of ids (Crockford's base 32), which gives the names of the folders.
const FOLDER_NAMES: &str = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The folder of body files.
#[derive(Debug)]
pub(super) struct Bodies {
    root: PathBuf,
    faults: Faults,
}

impl Bodies {
    /// Creates all folders durably, so that a put does not need to create one.
    pub(super) fn open(store: &Path, faults: Faults) -> io::Result<Self> {
        let root = store.join("bodies");
        let mut maker = DirBuilder::new();
        maker.recursive(true).mode(0o700);
        for name in FOLDER_NAMES.chars() {
            maker.create(root.join(name.to_string()))?;
        }
        sync_folder(&root)?;
        sync_folder(store)?;
        Ok(Self { root, faults })
    }

    /// Path of the content of a record.
    pub(super) fn path(&self, id: MessageId) -> PathBuf {
        let name = id.to_string();
        let folder = name.get(name.len() - 1..).unwrap_or_default();
        self.root.join(folder).join(name)
    }

    /// The folders, for recovery.
    pub(super) fn folders(&self) -> impl Iterator<Item = PathBuf> + '_ {
        FOLDER_NAMES
            .chars()
            .map(|name| self.root.join(name.to_string()))
    }

    /// Makes one file durable. After an error, no file has the final name, so no row can refer to it.
    fn write(&self, id: MessageId, content: &[u8]) -> io::Result<()> {
        let path = self.path(id);
        // A second put with the same id must not change the content of the first.
        if path.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let draft = path.with_extension("tmp");
        let file = self.create(&draft)?;
        let written = self
            .fill(file, content)
            .and_then(|()| self.publish(&draft, &path));
        if written.is_err() {
            // Recovery would remove the draft too, but a full disk needs the room at once.
            let _ = fs::remove_file(&draft);
        }
        written
    }

    fn create(&self, draft: &Path) -> io::Result<File> {
        self.faults.step("creating a body file")?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(draft)
    }

    fn fill(&self, mut file: File, content: &[u8]) -> io::Result<()> {
        let (first, second) = content.split_at(content.len() / 2);
        file.write_all(first)?;
        self.faults.step("writing a body file")?;
        file.write_all(second)?;
        self.faults.step("fsync of a body file")?;
        file.sync_all()
    }

    fn publish(&self, draft: &Path, path: &Path) -> io::Result<()> {
        self.faults.step("renaming a body file")?;
        fs::rename(draft, path)?;
        let synced = self
            .faults
            .step("fsync of a body folder")
            .and_then(|()| sync_folder(path.parent().unwrap_or(&self.root)));
        if synced.is_err() {
            let _ = fs::remove_file(path);
        }
        synced
    }

    /// Tests whether the disk works: writes and removes a few octets.
    pub(super) fn probe(&self) -> Result<(), StoreError> {
        let draft = self.root.join("probe.tmp");
        let probe = || {
            if draft.try_exists()? {
                fs::remove_file(&draft)?;
            }
            self.fill(self.create(&draft)?, b"probe")?;
            fs::remove_file(&draft)
        };
        probe().map_err(|error| failed(&draft, &error))
    }

    /// Removes the file of a record that was removed. If this fails, the next start removes the file.
    pub(super) fn remove(&self, id: MessageId) {
        let path = self.path(id);
        let removed = self
            .faults
            .step("removing a body file")
            .and_then(|()| fs::remove_file(&path));
        if let Err(error) = removed {
            tracing::warn!(%id, path = %path.display(), %error, "body file not removed; the next start removes it");
        }
    }
}

/// Body files that are durable and have no row yet. If this is dropped without [`Written::keep`], the files are removed, so
/// neither a refused put nor a caller that left leaves files behind.
#[derive(Debug)]
pub(super) struct Written {
    bodies: Arc<Bodies>,
    ids: Vec<MessageId>,
    /// A lock that tools hold, so that a relay that starts now does not remove these files as orphans.
    _guard: Option<File>,
}

impl Written {
    /// Writes one file for each content. Blocks on the disk. The error names the file. [`io::ErrorKind::AlreadyExists`] means
    /// that the id is in use; every other error means that the disk failed.
    pub(super) fn write(
        bodies: Arc<Bodies>,
        contents: Vec<(MessageId, Content)>,
        guard: Option<File>,
    ) -> Result<Self, (PathBuf, io::Error)> {
        let mut written = Self {
            bodies,
            ids: Vec::with_capacity(contents.len()),
            _guard: guard,
        };
        for (id, content) in contents {
            written
                .bodies
                .write(id, content.bytes())
                .map_err(|error| (written.bodies.path(id), error))?;
            written.ids.push(id);
        }
        Ok(written)
    }

    /// Checks that the files are still where they were written.
    pub(super) fn check_in_place(&self) -> Result<(), StoreError> {
        let paths = self.ids.iter().map(|id| self.bodies.path(*id));
        for path in paths {
            fs::metadata(&path).map_err(|error| failed(&path, &error))?;
        }
        Ok(())
    }

    /// Keeps the files, because their rows are committed.
    pub(super) fn keep(mut self) {
        self.ids.clear();
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            self.bodies.remove(id);
        }
    }
}

/// The meaning of a failed file operation.
pub(super) fn failed(path: &Path, error: &io::Error) -> StoreError {
    let what = format!("{}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full(what),
        _ => StoreError::Broken(what),
    }
}

/// Makes the names in a folder durable.
pub(in crate::store) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
