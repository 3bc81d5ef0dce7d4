//! Reads files that an administrator names, while the relay runs.
//!
//! The name may lead to anything: a FIFO without a writer, a device without end, or a mount whose server is gone.
//! [`open_regular`] refuses the first two at once. Nothing can refuse the third, so read these files only where no mail waits
//! for the read: on a thread that may block, and never under a lock that mail needs.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

/// Maximum size of a certificate, key, password or token file. Real ones have a few KiB, a bundle of all authorities less than
/// 1 MiB.
pub const CREDENTIAL_FILE_OCTETS_MAX: u64 = 1 << 20;

/// Opens a path without waiting for the writer of a FIFO.
pub fn open(path: &Path) -> io::Result<File> {
    let at_once = OFlags::NONBLOCK | OFlags::NOCTTY;
    OpenOptions::new()
        .read(true)
        .custom_flags(at_once.bits().cast_signed())
        .open(path)
}

/// Opens a regular file; anything else is an error.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("not a regular file")),
    }
}

/// Reads a regular file of at most `most` octets; a larger file is an error. Blocks on the disk.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    let file = open_regular(path)?;
    file.take(most.saturating_add(1)).read_to_end(&mut octets)?;
    match octets.len() as u64 > most {
        true => Err(io::Error::other(format!("larger than {most} octets"))),
        false => Ok(octets),
    }
}

/// Reads such a file as text; text that is not UTF-8 is an error. Blocks on the disk.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use rustix::fs::Mode;

    use super::*;

    /// Reads of a FIFO, a folder or an endless device fail at once.
    #[test]
    fn only_small_regular_files_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let (fifo, file) = (folder.path().join("fifo"), folder.path().join("file"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR).expect("a FIFO");
        std::fs::write(&file, "four").expect("written");
        let told = |path: &Path, most| read_text(path, most).map_err(|error| error.to_string());
        let no_file = Err("not a regular file".to_owned());
        assert_eq!(told(&fifo, 9), no_file);
        assert_eq!(told(folder.path(), 9), no_file);
        assert_eq!(told(Path::new("/dev/zero"), 9), no_file);
        assert_eq!(told(&file, 4), Ok("four".to_owned()));
        assert_eq!(told(&file, 3), Err("larger than 3 octets".to_owned()));
    }
}
