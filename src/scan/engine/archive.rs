//! Examination of zip archives within bounds on nesting depth, files, octets, and the ratio of unpacked to packed octets.
//!
//! The walk unpacks each member, shows the member to the visitor, and frees it before the next one. Only the archives that
//! enclose the member stay in memory. The walk reports everything that it does not examine as a [`Trouble`], so that no
//! caller can take unexamined content for clean (promise P4).

use std::io::{Cursor, Read};
use std::mem::discriminant;

use memchr::memmem;
use zip::{CompressionMethod, ZipArchive};

use crate::deadline::Deadline;

/// Signature of an end of central directory record.
const END_RECORD_SIGNATURE: &[u8] = b"PK\x05\x06";
/// Signature of an entry of the central directory.
const DIRECTORY_ENTRY_SIGNATURE: &[u8] = b"PK\x01\x02";

/// Bounds of a walk.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Nesting depth of archives. With 1, the walk opens no archive inside an archive.
    pub depth: usize,
    /// Files in all archives of one message together.
    pub files: usize,
    /// Largest ratio of unpacked to packed octets of one file.
    pub ratio: u64,
    /// Octets of each file that the visitor needs. The walk always reads nested archives and programs whole.
    pub wanted: u64,
}

impl Limits {
    /// Upper bound for `depth`, whatever the settings say: the walk needs one stack frame for each nested archive.
    const DEPTH_MAX: usize = 16;
    /// Upper bound for the unpacked octets of one file, 64 MiB: a file is unpacked in memory.
    const FILE_OCTETS_MAX: u64 = 64 << 20;
    /// Upper bound for the unpacked octets of one message, 256 MiB: this bounds the time for one message.
    const MESSAGE_OCTETS_MAX: u64 = 256 << 20;
    /// The walk accepts a file of up to 1 MiB unpacked octets at any ratio: for example, an empty page packs very well.
    const BOMB_OCTETS_MIN: u64 = 1 << 20;
    /// Upper bound for the number of end records times the number of zip64 records. The zip reader may try each zip64 record for
    /// each end record, so archives beyond this bound could keep it busy for hours. End records alone are not bounded: a
    /// valid archive of many archives has many.
    const RECORD_PAIRS_MAX: usize = 1 << 22;
}

/// Why the walk did not examine a file or an archive. The text of a variant is shown to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The file needs a password.
    Encrypted(String),
    /// The archive is nested more deeply than [`Limits::depth`].
    Depth(String),
    /// The archives of the message hold more than [`Limits::files`] files.
    Files(String),
    /// The file exceeds the bounds on unpacked octets or on the ratio of unpacked to packed octets.
    Bomb(String),
    /// The archive could not be opened, so not even the names in it are known.
    Unopened(String),
    /// The file is damaged, or packed with an unknown method. Its name is known.
    Unreadable(String),
    /// The archive holds two files with the same name, and the zip reader shows only one of them.
    Twice(String),
    /// The deadline passed.
    Deadline,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Encrypted(path) => write!(f, "{path} is encrypted"),
            Self::Depth(path) => write!(f, "{path} is nested too deeply"),
            Self::Files(path) => write!(f, "{path} holds too many files"),
            Self::Bomb(path) => write!(f, "{path} unpacks to too many octets"),
            Self::Unopened(path) => write!(f, "{path} cannot be opened as an archive"),
            Self::Unreadable(path) => write!(f, "{path} cannot be unpacked"),
            Self::Twice(path) => write!(f, "{path} holds two files with the same name"),
            Self::Deadline => write!(f, "the deadline passed"),
        }
    }
}

/// A file in an archive.
#[derive(Debug)]
pub struct Member<'a> {
    /// Place in the message: `1.2/outer.zip/inner.zip/a.exe`.
    pub path: &'a str,
    /// Name of the file, as the archive has it.
    pub name: &'a str,
    /// The unpacked octets, or only the first ones (see [`Limits::wanted`]). Empty if the walk could not read the file.
    pub bytes: &'a [u8],
}

/// Whether the octets are a zip archive, or end with one, as in a self-extracting program.
pub fn is_zip(bytes: &[u8]) -> bool {
    begins_like_zip(bytes) || ends(bytes).next().is_some()
}

fn begins_like_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(END_RECORD_SIGNATURE)
}

/// Whether a member may be a nested archive: it begins like an archive, or it is a program, which may be self-extracting. Most
/// other files with an archive at their end are documents that store the archive in pieces.
fn may_be_zip(bytes: &[u8]) -> bool {
    let is_program = [b"MZ".as_slice(), b"\x7fELF", b"#!"]
        .iter()
        .any(|magic| bytes.starts_with(magic));
    begins_like_zip(bytes) || is_program
}

/// Positions of the end records that a reader may use. An end record has 22 octets, and a comment of up to 65,535 octets may
/// follow. 64 octets more are searched, because readers differ in how far back they search.
fn ends(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let start = bytes.len().saturating_sub(22 + 65_535 + 64);
    memmem::find_iter(&bytes[start..], END_RECORD_SIGNATURE).map(move |at| start + at)
}

/// Whether an end record has a central directory. Programs and documents contain the signature of an end record for other
/// reasons, but then no directory precedes the signature.
fn has_directory(bytes: &[u8]) -> bool {
    let number = |at: usize| {
        let octets = bytes.get(at..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*octets)).ok()
    };
    let begins_at = |at: Option<usize>, magic: &[u8]| {
        at.and_then(|at| bytes.get(at..))
            .is_some_and(|rest| rest.starts_with(magic))
    };
    ends(bytes).any(|end| {
        let by_size = number(end + 12).and_then(|size| end.checked_sub(size));
        begins_at(by_size, DIRECTORY_ENTRY_SIGNATURE)
            || begins_at(number(end + 16), DIRECTORY_ENTRY_SIGNATURE)
            || begins_at(end.checked_sub(20), b"PK\x06\x07")
    })
}

/// Opens an archive if that takes a reasonable time. The zip reader keeps all entries in memory, which the caller has counted
/// before, and tries each end record, those of zip64 with each zip64 record.
fn open(bytes: &[u8]) -> Option<ZipArchive<Cursor<&[u8]>>> {
    let zip64 = memmem::find_iter(bytes, b"PK\x06\x06").count();
    if ends(bytes).count().saturating_mul(zip64) > Limits::RECORD_PAIRS_MAX {
        return None;
    }
    ZipArchive::new(Cursor::new(bytes)).ok()
}

/// The first of two archives that follow each other in the same file. Some readers show the first archive; other readers, as
/// the zip reader here, show the last one. An archive that does not use its first octets, because its first file was replaced
/// or removed, is one archive.
fn first_of_two<'a>(bytes: &'a [u8], opened: &ZipArchive<Cursor<&[u8]>>) -> Option<&'a [u8]> {
    let headers = (0..opened.len()).filter_map(|index| opened.by_index_data(index).ok());
    let begin = headers.map(|entry| entry.header_start()).min();
    let begin = begin.unwrap_or_else(|| opened.central_directory_start());
    let before = bytes.get(..usize::try_from(begin).ok()?)?;
    let is_archive = opened.is_empty() || opened.offset() > 0 || ends(before).next().is_some();
    (begins_like_zip(before) && is_archive).then_some(before)
}

/// A walk through the archives of one message.
pub struct Walk<'v> {
    limits: Limits,
    deadline: Deadline,
    visit: &'v mut dyn FnMut(&Member<'_>),
    files: usize,
    octets: u64,
    /// Reports of unexamined content: the first 16, and the first one of each kind.
    pub troubles: Vec<Trouble>,
}

impl<'v> Walk<'v> {
    /// A walk that has examined nothing yet. `visit` gets each member.
    pub fn new(limits: Limits, deadline: Deadline, visit: &'v mut dyn FnMut(&Member<'_>)) -> Self {
        let limits = Limits {
            depth: limits.depth.min(Limits::DEPTH_MAX),
            ..limits
        };
        Self {
            limits,
            deadline,
            visit,
            files: 0,
            octets: 0,
            troubles: Vec::new(),
        }
    }

    /// Shows the files of an archive, and of its nested archives, to the visitor. Ignores octets that are not an archive.
    pub fn archive(&mut self, path: &str, bytes: &[u8]) {
        if is_zip(bytes) {
            self.enter(path, bytes, 1);
        }
    }

    fn trouble(&mut self, trouble: Trouble) {
        /// Bounds the memory for reports and the text for the reader.
        const TROUBLES_KEPT_MAX: usize = 16;
        // A sender can cause any number of reports of one kind. Keep the first report of each kind anyway, because the
        // kinds have different consequences.
        let is_same = |known: &Trouble| discriminant(known) == discriminant(&trouble);
        let is_first = !self.troubles.iter().any(is_same);
        if is_first || self.troubles.len() < TROUBLES_KEPT_MAX && !self.troubles.contains(&trouble)
        {
            self.troubles.push(trouble);
        }
    }

    fn enter(&mut self, path: &str, bytes: &[u8], depth: usize) {
        if depth > self.limits.depth {
            return self.trouble(Trouble::Depth(path.to_owned()));
        }
        // The zip reader keeps all entries in memory: count the entries before the reader loads them.
        let room = self.limits.files.saturating_sub(self.files);
        if memmem::find_iter(bytes, DIRECTORY_ENTRY_SIGNATURE)
            .nth(room)
            .is_some()
        {
            return self.trouble(Trouble::Files(path.to_owned()));
        }
        let Some(mut archive) = open(bytes) else {
            // A file that merely contains the signature of an end record does not claim to be an archive.
            if begins_like_zip(bytes) || has_directory(bytes) {
                self.trouble(Trouble::Unopened(path.to_owned()));
            }
            return;
        };
        if archive.has_duplicate_names() {
            self.trouble(Trouble::Twice(path.to_owned()));
        }
        if let Some(first) = first_of_two(bytes, &archive) {
            self.enter(path, first, depth + 1);
        }
        for index in 0..archive.len() {
            if self.deadline.passed() {
                return self.trouble(Trouble::Deadline);
            }
            self.member(path, bytes, &mut archive, index, depth);
        }
    }

    fn member(
        &mut self,
        archive_path: &str,
        bytes: &[u8],
        archive: &mut ZipArchive<Cursor<&[u8]>>,
        index: usize,
        depth: usize,
    ) {
        self.files += 1;
        let Ok(entry) = archive.by_index_data(index) else {
            return self.trouble(Trouble::Unopened(archive_path.to_owned()));
        };
        if entry.is_dir() {
            return;
        }
        let name = entry.name().map_or_else(
            |_| String::from_utf8_lossy(entry.name_raw()).into_owned(),
            |name| name.into_owned(),
        );
        let path = format!("{archive_path}/{name}");
        let read = match entry.encrypted() {
            true => Err(Trouble::Encrypted(path.clone())),
            false => self.read(&path, bytes, archive, index),
        };
        let octets = read.unwrap_or_else(|trouble| {
            self.trouble(trouble);
            Octets::Stored(&[])
        });
        let octets = octets.as_slice();
        (self.visit)(&Member {
            path: &path,
            name: &name,
            bytes: octets,
        });
        if may_be_zip(octets) && is_zip(octets) {
            self.enter(&path, octets, depth + 1);
        }
    }

    /// Reads the octets of a member, up to the needed and allowed number.
    fn read<'a>(
        &mut self,
        path: &str,
        bytes: &'a [u8],
        archive: &mut ZipArchive<Cursor<&[u8]>>,
        index: usize,
    ) -> Result<Octets<'a>, Trouble> {
        let Ok(raw) = archive.by_index_raw(index) else {
            return Err(Trouble::Unreadable(path.to_owned()));
        };
        let (packed, claimed) = (raw.compressed_size(), raw.size());
        if raw.compression() == CompressionMethod::Stored {
            let octets = stored(bytes, raw.data_start(), packed);
            return self.spend(path, octets).map(Octets::Stored);
        }
        drop(raw);
        self.unpack(path, archive, index, packed, claimed)
            .map(Octets::Unpacked)
    }

    /// Counts the octets of a member that is not packed. They count although nothing is copied: many entries may point to the
    /// same octets, and the visitor examines them each time.
    fn spend<'a>(&mut self, path: &str, octets: Option<&'a [u8]>) -> Result<&'a [u8], Trouble> {
        let octets = octets.ok_or_else(|| Trouble::Unreadable(path.to_owned()))?;
        let length = octets.len() as u64;
        self.octets += match may_be_zip(octets) {
            true => length,
            false => length.min(self.limits.wanted),
        };
        if self.octets > Limits::MESSAGE_OCTETS_MAX {
            return Err(Trouble::Bomb(path.to_owned()));
        }
        Ok(octets)
    }

    /// Unpacks a member, up to the needed and allowed number of octets.
    fn unpack(
        &mut self,
        path: &str,
        archive: &mut ZipArchive<Cursor<&[u8]>>,
        index: usize,
        packed: u64,
        claimed: u64,
    ) -> Result<Vec<u8>, Trouble> {
        let most = packed
            .saturating_mul(self.limits.ratio)
            .clamp(Limits::BOMB_OCTETS_MIN, Limits::FILE_OCTETS_MAX)
            .min(Limits::MESSAGE_OCTETS_MAX - self.octets.min(Limits::MESSAGE_OCTETS_MAX));
        if claimed > most {
            return Err(Trouble::Bomb(path.to_owned()));
        }
        let Ok(mut reader) = archive.by_index(index) else {
            return Err(Trouble::Unreadable(path.to_owned()));
        };
        let mut unpacked = Vec::new();
        let mut read = (&mut reader)
            .take(self.limits.wanted.min(most + 1))
            .read_to_end(&mut unpacked);
        if read.is_ok() && may_be_zip(&unpacked) {
            let rest = (most + 1).saturating_sub(unpacked.len() as u64);
            read = reader.take(rest).read_to_end(&mut unpacked);
        }
        self.octets += unpacked.len() as u64;
        if unpacked.len() as u64 > most {
            return Err(Trouble::Bomb(path.to_owned()));
        }
        // Examine the octets before the error too, but report that the rest is missing.
        if read.is_err() {
            self.trouble(Trouble::Unreadable(path.to_owned()));
        }
        Ok(unpacked)
    }
}

enum Octets<'a> {
    Stored(&'a [u8]),
    Unpacked(Vec<u8>),
}

impl Octets<'_> {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Stored(octets) => octets,
            Self::Unpacked(octets) => octets,
        }
    }
}

/// The octets of a member that is not packed, as a part of the archive, without a copy.
fn stored(archive: &[u8], start: Option<u64>, size: u64) -> Option<&[u8]> {
    let start = usize::try_from(start?).ok()?;
    archive.get(start..)?.get(..usize::try_from(size).ok()?)
}

#[cfg(test)]
mod tests;
