//! A small file in the folder of the store that is always replaced as a whole. The file contains knowledge that the relay has
//! gained and may lose.
//!
//! A write goes to a file with another name, flushes that file, renames it, and flushes the folder. At every moment, either
//! the old or the new file exists completely. Only the relay that has the store's lock reads and writes the file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::sqlite::sync_folder;

/// A snapshot file.
#[derive(Debug)]
pub struct SnapshotFile {
    path: PathBuf,
    limit: u64,
}

impl SnapshotFile {
    /// The file `name` in the folder of the store, with at most `limit` octets.
    pub fn new(store: &Path, name: &str, limit: usize) -> Self {
        Self {
            path: store.join(name),
            limit: limit as u64,
        }
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file; `None` if it does not exist. A file that is too large is not read ([`io::ErrorKind::FileTooLarge`]). A
    /// path that is not a regular file is not read either, because the read could hang ([`io::ErrorKind::InvalidInput`]).
    /// Blocks on the disk.
    pub fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let found = match fs::symlink_metadata(&self.path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !found.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        if found.len() > self.limit {
            let what = format!(
                "larger than the limit: {} octets of at most {}",
                found.len(),
                self.limit
            );
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
        }
        let mut octets = Vec::new();
        let file = File::open(&self.path)?;
        file.take(self.limit).read_to_end(&mut octets)?;
        Ok(Some(octets))
    }

    /// Replaces the file durably. After an error, the old file is still there, and the draft is removed. Only the relay's user
    /// can read the file. Blocks on the disk. Two writes at the same time would damage each other's draft.
    pub fn write(&self, octets: &[u8]) -> io::Result<()> {
        let draft = self.beside("tmp");
        let written = self
            .draft(&draft, octets)
            .and_then(|()| fs::rename(&draft, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&draft);
            return written;
        }
        sync_folder(self.folder())
    }

    /// The steps before the rename. A draft from a process that ended at this point is written again.
    fn draft(&self, draft: &Path, octets: &[u8]) -> io::Result<()> {
        match fs::remove_file(draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(draft)?;
        file.write_all(octets)?;
        file.sync_all()
    }

    /// Renames the file, so that it is not read again, and returns the new path. An older file that was set aside is replaced,
    /// so that only one exists.
    pub fn set_aside(&self) -> io::Result<PathBuf> {
        let aside = self.beside("set-aside");
        fs::rename(&self.path, &aside)?;
        sync_folder(self.folder())?;
        Ok(aside)
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".");
        name.push(ending);
        name.into()
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn file() -> (tempfile::TempDir, SnapshotFile) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = SnapshotFile::new(folder.path(), "one.snapshot", 8);
        (folder, file)
    }

    fn read(file: &SnapshotFile) -> Option<Vec<u8>> {
        file.read().expect("it can be read")
    }

    /// If the process is killed between the write and the rename, the old file remains, and the next process can write.
    #[test]
    fn the_old_file_stays_until_the_new_file_is_complete() {
        let (_folder, file) = file();
        assert_eq!(read(&file), None);
        file.write(b"old").expect("written");
        let draft = file.beside("tmp");
        file.draft(&draft, b"new, and").expect("written");
        assert_eq!(read(&file).as_deref(), Some(&b"old"[..]));
        fs::write(&draft, b"ne").expect("cut short");
        assert_eq!(read(&file).as_deref(), Some(&b"old"[..]));
        file.write(b"newer").expect("written");
        assert_eq!(read(&file).as_deref(), Some(&b"newer"[..]));
        assert!(!draft.exists());
    }

    /// A write that fails leaves the old file.
    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let (_folder, file) = file();
        file.write(b"old").expect("written");
        fs::create_dir(file.beside("tmp")).expect("a folder in its way");
        assert!(file.write(b"new").is_err());
        assert_eq!(read(&file).as_deref(), Some(&b"old"[..]));
    }

    /// The file shows which sender writes to which recipient, although only as hashes. Only the relay may read it, whatever
    /// the mode of the file before.
    #[test]
    fn only_the_relay_may_read_the_file() {
        let (_folder, file) = file();
        fs::write(file.path(), b"open").expect("written");
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).expect("a mode");
        file.write(b"new").expect("written");
        let mode = fs::metadata(file.path()).expect("it is there").mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// A file that is too large and a path that is not a file are not read, but can be set aside.
    #[test]
    fn only_a_small_file_is_read() {
        let (folder, file) = file();
        let kind = || file.read().expect_err("it is not read").kind();
        fs::write(file.path(), b"123456789").expect("written");
        assert_eq!(kind(), io::ErrorKind::FileTooLarge);
        let aside = file.set_aside().expect("set aside");
        assert_eq!(aside, folder.path().join("one.snapshot.set-aside"));
        assert_eq!(read(&file), None);
        symlink("/dev/zero", file.path()).expect("a link");
        assert_eq!(kind(), io::ErrorKind::InvalidInput);
        file.set_aside().expect("set aside in place of the first");
        fs::write(file.path(), b"12345678").expect("written");
        assert_eq!(read(&file).map(|octets| octets.len()), Some(8));
    }
}
