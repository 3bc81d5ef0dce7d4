//! Paths of a section, and the files that they name.

use std::path::{Path, PathBuf};

use super::Section;
use crate::file;

impl Section<'_> {
    /// Reads an optional path; a relative one starts at the folder of the file.
    pub(in crate::config) fn optional_path(&mut self, key: &'static str) -> Option<PathBuf> {
        let text = self.optional_text(key)?;
        Some(self.resolve(&text))
    }

    /// Reads the optional path of a file that must be readable now.
    pub(in crate::config) fn optional_file(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.optional_path(key)?;
        self.must_be_readable(key, &path);
        Some(path)
    }

    /// The path for a text of the configuration: relative to the folder of the file, unless it is absolute.
    pub(in crate::config) fn resolve(&self, text: &str) -> PathBuf {
        self.log.borrow().base.join(text)
    }

    /// Adds a problem if a file or folder cannot be opened.
    pub(in crate::config) fn must_be_readable(&self, key: &str, path: &Path) {
        if let Err(error) = file::open(path) {
            let shown = path.display();
            let (what, fix) = match error.kind() {
                std::io::ErrorKind::NotFound if key == "users_file" => (
                    format!("{shown} does not exist"),
                    "create it with `spillway user add --file FILE NAME`, or correct the path",
                ),
                std::io::ErrorKind::NotFound => (
                    format!("{shown} does not exist"),
                    "create it, or correct the path",
                ),
                std::io::ErrorKind::PermissionDenied => (
                    format!("{shown} is not readable by this user"),
                    "change its owner or mode, or those of its folders",
                ),
                _ => (
                    format!("{shown} cannot be read: {error}"),
                    "correct the path",
                ),
            };
            self.complain(key, what, fix);
        }
    }

    /// Adds a warning if every user of the machine can read a secret. It is no problem, because the machine may have only one
    /// user.
    pub(in crate::config) fn warn_if_others_may_read(&self, key: &str, path: &Path) {
        use std::os::unix::fs::MetadataExt;
        if std::fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o004 != 0) {
            let what = format!("every user of this machine can read {}", path.display());
            self.warn(key, what, "restrict its mode: chmod 0640 FILE");
        }
    }
}
