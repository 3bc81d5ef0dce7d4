//! A small file in the folder of the store that is replaced as a whole: what the relay knows by itself and may forget.
//!
//! It is written under another name, flushed, renamed, and its folder flushed: whatever happens in between, there is the
//! old one or the new one. Only the relay that has the store's lock reads and writes it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::sqlite::sync_folder;

/// One such file.
#[derive(Debug)]
pub struct SnapshotFile {
    path: PathBuf,
    limit: u64,
}

impl SnapshotFile {
    /// The file `name` in the folder of the store, of `limit` octets at most.
    pub fn new(store: &Path, name: &str, limit: usize) -> Self {
        Self {
            path: store.join(name),
            limit: limit as u64,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it; none if there is none. A larger one is not read ([`io::ErrorKind::FileTooLarge`]), nor is what is no
    /// file ([`io::ErrorKind::InvalidInput`]): it could hang. Blocks on the disk.
    pub fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let found = match fs::symlink_metadata(&self.path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !found.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
        }
        if found.len() > self.limit {
            let what = format!("it has {} octets of {} at most", found.len(), self.limit);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
        }
        let mut octets = Vec::new();
        let file = File::open(&self.path)?;
        file.take(self.limit).read_to_end(&mut octets)?;
        Ok(Some(octets))
    }

    /// Replaces it, durably; what fails leaves the old one, and takes no room. Readable by the relay's user alone. Blocks on
    /// the disk; two at a time would write into each other.
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

    /// Everything before the rename. A draft that was left by a process that ended there is written anew.
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

    /// Gives it another name, under which it is not read any more; returns that. One that was set aside before is replaced,
    /// so that they do not grow in number.
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

    /// A process that is killed between the writing and the rename leaves the old one, and the next one writes as ever.
    #[test]
    fn the_old_one_stays_until_the_new_one_is_whole() {
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

    /// What cannot be written leaves the old one.
    #[test]
    fn what_fails_changes_nothing() {
        let (_folder, file) = file();
        file.write(b"old").expect("written");
        fs::create_dir(file.beside("tmp")).expect("a folder in its way");
        assert!(file.write(b"new").is_err());
        assert_eq!(read(&file).as_deref(), Some(&b"old"[..]));
    }

    /// It tells who writes to whom, if only in hashes: it is nobody else's to read, whatever mode the one before had.
    #[test]
    fn only_the_relay_may_read_it() {
        let (_folder, file) = file();
        fs::write(file.path(), b"open").expect("written");
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).expect("a mode");
        file.write(b"new").expect("written");
        let mode = fs::metadata(file.path()).expect("it is there").mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// What is too large, and what is no file, is not read, and can be set aside all the same.
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
