//! Files that an administrator names, as they are read beside a running relay.
//!
//! The name may lead to anything: a FIFO that nobody writes to, a device without end, a mount whose server is gone. The first
//! two are refused at once. Against the last there is no remedy but to read where nobody waits: on a thread that may
//! block, and never under a lock that mail needs.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

/// Octets of a certificate, key, password or token file at most.
pub const LARGEST: u64 = 1 << 20;

/// Opens what is there without waiting for somebody at the other end of a FIFO.
pub fn open(path: &Path) -> io::Result<File> {
    let at_once = OFlags::NONBLOCK | OFlags::NOCTTY;
    OpenOptions::new()
        .read(true)
        .custom_flags(at_once.bits().cast_signed())
        .open(path)
}

/// Opens a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}

/// The octets of a regular file that has at most `most` of them. Blocks on the disk.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    let file = open_regular(path)?;
    file.take(most.saturating_add(1)).read_to_end(&mut octets)?;
    match octets.len() as u64 > most {
        true => Err(io::Error::other(format!("it has more than {most} octets"))),
        false => Ok(octets),
    }
}

/// The text of such a file.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use rustix::fs::Mode;

    use super::*;

    /// Whatever a name leads to, there is an answer at once.
    #[test]
    fn only_regular_files_of_some_size_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let (fifo, file) = (folder.path().join("fifo"), folder.path().join("file"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR).expect("a FIFO");
        std::fs::write(&file, "four").expect("written");
        let told = |path: &Path, most| read_text(path, most).map_err(|error| error.to_string());
        let no_file = Err("it is no regular file".to_owned());
        assert_eq!(told(&fifo, 9), no_file);
        assert_eq!(told(folder.path(), 9), no_file);
        assert_eq!(told(Path::new("/dev/zero"), 9), no_file);
        assert_eq!(told(&file, 4), Ok("four".to_owned()));
        assert_eq!(told(&file, 3), Err("it has more than 3 octets".to_owned()));
    }
}
