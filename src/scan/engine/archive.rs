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
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use zip::write::SimpleFileOptions;

    use super::*;

    const LIMITS: Limits = Limits {
        depth: 3,
        files: 10,
        ratio: 200,
        wanted: u64::MAX,
    };

    fn zipped(files: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default().compression_method(method);
        for (name, bytes) in files {
            zip.start_file(*name, options).expect("start");
            zip.write_all(bytes).expect("write");
        }
        zip.finish().expect("finish").into_inner()
    }

    fn walk(bytes: &[u8], limits: Limits) -> (Vec<(String, Vec<u8>)>, Vec<Trouble>) {
        let mut seen = Vec::new();
        let mut visit =
            |member: &Member<'_>| seen.push((member.path.to_owned(), member.bytes.to_vec()));
        let mut walk = Walk::new(limits, Deadline::after(Duration::from_secs(60)), &mut visit);
        walk.archive("a.zip", bytes);
        let troubles = walk.troubles;
        (seen, troubles)
    }

    /// The walk shows each file with its path and octets: packed or not, in nested archives, and in an archive behind a program.
    #[tokio::test]
    async fn files_are_shown_wherever_they_are() {
        let inner = zipped(&[("x/c.txt", b"deep")], CompressionMethod::Deflated);
        let files: [(&str, &[u8]); 2] = [("b.txt", b"flat"), ("inner.zip", &inner)];
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let zip = zipped(&files, method);
            for bytes in [zip.clone(), [b"MZ program".as_slice(), &zip].concat()] {
                let (seen, troubles) = walk(&bytes, LIMITS);
                assert_eq!(troubles, []);
                assert_eq!(seen.len(), 3);
                assert_eq!(seen[0], ("a.zip/b.txt".to_owned(), b"flat".to_vec()));
                assert_eq!(
                    seen[2],
                    ("a.zip/inner.zip/x/c.txt".to_owned(), b"deep".to_vec())
                );
            }
        }
    }

    /// The last end record of an archive: numbers of disks and entries, and size and place of the directory.
    fn end(zip: &mut [u8]) -> &mut [u8] {
        let at = memmem::rfind(zip, END_RECORD_SIGNATURE).expect("an end record");
        &mut zip[at..]
    }

    fn paths(bytes: &[u8]) -> (Vec<String>, Vec<Trouble>) {
        let (seen, troubles) = walk(bytes, LIMITS);
        (seen.into_iter().map(|(path, _)| path).collect(), troubles)
    }

    /// A valid archive of many archives has many end records, and the walk opens it.
    #[tokio::test]
    async fn archives_of_archives_are_opened() {
        let inner = zipped(&[("a.txt", b"x")], CompressionMethod::Stored);
        let names: Vec<String> = (0..40).map(|i| format!("{i}.zip")).collect();
        let files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &*inner)).collect();
        let limits = Limits {
            files: 100,
            ..LIMITS
        };
        let (seen, troubles) = walk(&zipped(&files, CompressionMethod::Stored), limits);
        assert_eq!((seen.len(), troubles), (80, Vec::new()));
    }

    /// If two archives follow each other, some readers show the first one, and others the last one. The walk examines both,
    /// even if the last one is empty, or counts its positions from the beginning of the first one.
    #[tokio::test]
    async fn archives_behind_each_other_are_all_opened() {
        let first = zipped(&[("a.txt", b"x")], CompressionMethod::Deflated);
        let second = zipped(&[("b.txt", b"x")], CompressionMethod::Deflated);
        let (seen, troubles) = paths(&[first.clone(), second].concat());
        assert_eq!((seen.len(), troubles), (2, Vec::new()));
        let mut both = Cursor::new(first.clone());
        both.set_position(first.len() as u64);
        let mut zip = zip::ZipWriter::new(both);
        zip.start_file("b.txt", SimpleFileOptions::default())
            .expect("start");
        let both = zip.finish().expect("finish").into_inner();
        let (seen, troubles) = paths(&both);
        assert_eq!((seen.len(), troubles), (2, Vec::new()));
        // The first file is removed in its place: the rest is one archive.
        let cut = memmem::find(&first, DIRECTORY_ENTRY_SIGNATURE).expect("a directory");
        let removed = [&first[..cut], &both[first.len()..]].concat();
        let mut removed = removed;
        let back = u32::try_from(first.len() - cut).expect("small");
        let entry = memmem::find(&removed, DIRECTORY_ENTRY_SIGNATURE).expect("a directory");
        for at in [entry + 42, removed.len() - 6] {
            let place = u32::from_le_bytes(*removed[at..].first_chunk().expect("a place"));
            removed[at..at + 4].copy_from_slice(&(place - back).to_le_bytes());
        }
        assert_eq!(
            paths(&removed),
            (vec!["a.zip/b.txt".to_owned()], Vec::new())
        );
        let mut empty = zipped(&[], CompressionMethod::Stored);
        for place in [0, first.len()] {
            let place = u32::try_from(place).expect("small");
            end(&mut empty)[16..20].copy_from_slice(&place.to_le_bytes());
            let (seen, troubles) = paths(&[first.clone(), empty.clone()].concat());
            assert_eq!((seen.len(), troubles), (1, Vec::new()));
        }
    }

    /// The walk reports an archive that it cannot open, wherever the archive begins. A signature alone is not an archive.
    #[tokio::test]
    async fn archives_that_cannot_be_opened_are_reported() {
        let zip = zipped(&[("a.txt", b"x")], CompressionMethod::Stored);
        let mut disks = zip.clone();
        end(&mut disks)[4] = 1;
        let mut zip64 = zip.clone();
        let at = zip64.len() - 22;
        // A zip64 record that points nowhere, and so many zip64 records that trying them all would take hours.
        zip64.splice(at..at, [b"PK\x06\x07".as_slice(), &[0xff; 16]].concat());
        end(&mut zip64)[8..20].fill(0xff);
        let tries = b"PK\x06\x06".repeat(Limits::RECORD_PAIRS_MAX);
        let cut = zip[..zip.len() - 22].to_vec();
        let unopened = vec![Trouble::Unopened("a.zip".to_owned())];
        for (bytes, told_behind) in [(disks, true), (zip64, true), (cut, false)] {
            assert_eq!(paths(&bytes).1, unopened);
            let behind = [b"x".as_slice(), &bytes].concat();
            assert_eq!(!paths(&behind).1.is_empty(), told_behind);
        }
        let costly = [tries.as_slice(), END_RECORD_SIGNATURE, &zip].concat();
        assert_eq!(paths(&costly), (Vec::new(), unopened));
        let program = [b"MZ".as_slice(), END_RECORD_SIGNATURE, &[0; 40]].concat();
        let program = [program.as_slice(), END_RECORD_SIGNATURE, &[1; 40]].concat();
        assert_eq!(paths(&program), (Vec::new(), Vec::new()));
    }

    /// The walk opens a self-extracting program in an archive, even if the visitor needs few octets of each file.
    #[tokio::test]
    async fn programs_in_archives_are_opened() {
        let inner = zipped(&[("b.txt", b"x")], CompressionMethod::Deflated);
        let setup = [b"MZ".as_slice(), &[b'x'; 9000], &inner].concat();
        let limits = Limits {
            wanted: 4096,
            ..LIMITS
        };
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let zip = zipped(&[("setup.exe", &setup)], method);
            let (seen, troubles) = walk(&zip, limits);
            let paths: Vec<&str> = seen.iter().map(|(path, _)| path.as_str()).collect();
            assert_eq!(paths, ["a.zip/setup.exe", "a.zip/setup.exe/b.txt"]);
            assert_eq!(troubles, []);
        }
    }

    /// The walk shows the name of a file even if the octets cannot be read.
    #[tokio::test]
    async fn names_of_unreadable_files_are_shown() {
        let mut zip = zipped(&[("a.exe", b"x")], CompressionMethod::Stored);
        zip[3] = b'x';
        let (seen, troubles) = paths(&[b"MZ".as_slice(), &zip].concat());
        assert_eq!(seen, ["a.zip/a.exe"]);
        assert_eq!(troubles, [Trouble::Unreadable("a.zip/a.exe".to_owned())]);
    }

    /// Many entries that point to the same octets count each time that the walk reads them.
    #[tokio::test]
    async fn shared_octets_count_each_time() {
        let big = vec![b'x'; 60 << 20];
        let mut visited = 0;
        let mut visit = |_: &Member<'_>| visited += 1;
        let mut walk = Walk::new(LIMITS, Deadline::after(Duration::from_secs(60)), &mut visit);
        for _ in 0..10 {
            let read = walk.spend("x", Some(&big));
            assert_eq!(read.is_err(), walk.octets > Limits::MESSAGE_OCTETS_MAX);
        }
        assert!(
            walk.octets > Limits::MESSAGE_OCTETS_MAX,
            "the walk refused the last ones"
        );
    }

    /// Even if many members need a password, the walk also reports members that it did not examine for another reason.
    #[tokio::test]
    async fn no_kind_of_trouble_hides_behind_another() {
        let names: Vec<String> = (0..20).map(|i| format!("{i}.txt")).collect();
        let inner = zipped(&[("evil.exe", b"x")], CompressionMethod::Stored);
        let mut files: Vec<(&str, &[u8])> = names
            .iter()
            .map(|n| (n.as_str(), b"x".as_slice()))
            .collect();
        files.push(("inner.zip", &inner));
        let mut zip = zipped(&files, CompressionMethod::Deflated);
        let central: Vec<usize> = memmem::find_iter(&zip, b"PK\x01\x02").collect();
        for at in &central[..names.len()] {
            zip[at + 8] |= 1;
        }
        let limits = Limits {
            depth: 1,
            files: 100,
            ..LIMITS
        };
        let (_, troubles) = walk(&zip, limits);
        assert!(matches!(troubles[0], Trouble::Encrypted(_)));
        assert_eq!(
            troubles.last(),
            Some(&Trouble::Depth("a.zip/inner.zip".to_owned()))
        );
    }

    /// After the deadline, the walk opens nothing and reports that.
    #[tokio::test(start_paused = true)]
    async fn a_passed_deadline_is_reported() {
        let zip = zipped(&[("a", b"x")], CompressionMethod::Stored);
        let mut visit = |_: &Member<'_>| panic!("no member may be shown");
        let mut walk = Walk::new(LIMITS, Deadline::after(Duration::ZERO), &mut visit);
        walk.archive("a.zip", &zip);
        assert_eq!(walk.troubles, [Trouble::Deadline]);
    }

    proptest::proptest! {
        /// A walk through a damaged archive ends within its limits and without a panic.
        #[test]
        fn a_walk_through_a_damaged_archive_ends(changes in proptest::collection::vec((0_usize..400, 0_u8..), 1..12)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
            let _context = runtime.enter();
            let inner = zipped(&[("c", b"deep deep deep")], CompressionMethod::Deflated);
            let mut zip = zipped(&[("b", b"flat flat flat"), ("inner.zip", &inner)], CompressionMethod::Stored);
            let length = zip.len();
            for (at, value) in changes {
                zip[at % length] = value;
            }
            let (seen, _) = walk(&zip, LIMITS);
            proptest::prop_assert!(seen.len() <= 2 * LIMITS.files);
        }
    }

    /// Two files with the same name are reported: readers show only one of the two, and not all show the same one.
    #[test]
    fn files_with_the_same_name_are_reported() {
        let mut bytes = zipped(
            &[("a.exe", b"bad"), ("b.txt", b"good")],
            CompressionMethod::Stored,
        );
        assert_eq!(walk(&bytes, LIMITS).1, []);
        for at in memmem::find_iter(&bytes.clone(), b"a.exe") {
            bytes[at..at + 5].copy_from_slice(b"b.txt");
        }
        assert_eq!(walk(&bytes, LIMITS).1, [Trouble::Twice("a.zip".to_owned())]);
    }
}
