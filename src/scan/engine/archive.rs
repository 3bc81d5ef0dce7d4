//! Zip archives, looked into within bounds: how deep, how many files, how many octets, how much more than was packed.
//!
//! Each member is unpacked, shown to the visitor and forgotten before the next one; only the archives around it stay.
//! Whatever is not looked at is a [`Trouble`], so that nobody can take it for looked at.

use std::io::{Cursor, Read};
use std::mem::discriminant;

use memchr::memmem;
use zip::{CompressionMethod, ZipArchive};

use crate::deadline::Deadline;

/// The signature of an end record.
const END: &[u8] = b"PK\x05\x06";
/// The signature of an entry of the directory.
const ENTRY: &[u8] = b"PK\x01\x02";

/// How far to go.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Archives within archives; 1 is an archive without another one in it.
    pub depth: usize,
    /// Files, over all archives of one message.
    pub files: usize,
    /// Unpacked octets by packed octets.
    pub ratio: u64,
    /// Octets of each file that are wanted; archives within, and programs, are always read whole.
    pub wanted: u64,
}

impl Limits {
    /// Recursion is one frame per archive within an archive; no setting makes it deeper.
    const DEEPEST: usize = 16;
    /// Unpacked octets of one file.
    const MEMBER: u64 = 64 << 20;
    /// Unpacked octets of one message.
    const TOTAL: u64 = 256 << 20;
    /// A file that unpacks to less is no bomb, whatever its ratio: an empty page packs very well.
    const HARMLESS: u64 = 1 << 20;
    /// End records that the reader tries, times the zip64 records that it may try for each of them.
    const END_RECORDS: usize = 1 << 22;
}

/// Why something was not looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It needs a password.
    Encrypted(String),
    /// Archives nested too deep.
    Depth(String),
    /// Too many files.
    Files(String),
    /// It unpacks to too much, or to much more than was packed.
    Bomb(String),
    /// An archive that could not be opened: not even the names in it were seen.
    Unopened(String),
    /// A file that is broken, or packed in a way that we cannot unpack. Its name was seen.
    Unreadable(String),
    /// Two files of one name, of which the reader shows one.
    Twice(String),
    /// No time left.
    Deadline,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Encrypted(path) => write!(f, "{path} is encrypted"),
            Self::Depth(path) => write!(f, "{path} is nested too deep"),
            Self::Files(path) => write!(f, "{path} holds too many files"),
            Self::Bomb(path) => write!(f, "{path} unpacks to too much"),
            Self::Unopened(path) => write!(f, "{path} cannot be opened"),
            Self::Unreadable(path) => write!(f, "{path} cannot be unpacked"),
            Self::Twice(path) => write!(f, "{path} holds two files of one name"),
            Self::Deadline => write!(f, "the time was up"),
        }
    }
}

/// A file in an archive.
#[derive(Debug)]
pub struct Member<'a> {
    /// Where: `1.2/outer.zip/inner.zip/a.exe`.
    pub path: &'a str,
    /// Its own name, as it stands.
    pub name: &'a str,
    /// Its unpacked octets, or the first of them if no more were wanted; none if it could not be read.
    pub bytes: &'a [u8],
}

/// Whether the octets are a zip archive, or something with one at its end (a self-extracting program).
pub fn is_zip(bytes: &[u8]) -> bool {
    begins_like_zip(bytes) || ends(bytes).next().is_some()
}

fn begins_like_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(END)
}

/// What may be an archive within an archive: one, or a program, which may unpack itself. Other files that have an archive
/// at their ends are mostly documents that keep it in pieces.
fn may_be_zip(bytes: &[u8]) -> bool {
    let is_program = [b"MZ".as_slice(), b"\x7fELF", b"#!"]
        .iter()
        .any(|magic| bytes.starts_with(magic));
    begins_like_zip(bytes) || is_program
}

/// Where the end records are that a reader may use: with the longest comment behind it, and some octets to spare, as
/// readers differ in that.
fn ends(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let start = bytes.len().saturating_sub(22 + 65_535 + 64);
    memmem::find_iter(&bytes[start..], END).map(move |at| start + at)
}

/// Whether it is in earnest about the archive at its end: programs and documents have such records for other reasons, but
/// not with a directory in front of them.
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
        begins_at(by_size, ENTRY)
            || begins_at(number(end + 16), ENTRY)
            || begins_at(end.checked_sub(20), b"PK\x06\x07")
    })
}

/// Opens it, if that can be done in reasonable time: the reader keeps all entries in memory (they are counted before), and
/// tries every end record, those of zip64 with every one of the zip64 records.
fn open(bytes: &[u8]) -> Option<ZipArchive<Cursor<&[u8]>>> {
    let zip64 = memmem::find_iter(bytes, b"PK\x06\x06").count();
    if ends(bytes).count().saturating_mul(zip64) > Limits::END_RECORDS {
        return None;
    }
    ZipArchive::new(Cursor::new(bytes)).ok()
}

/// Of archives one behind the other some readers show the first one, others the last one, which is the one that was opened.
/// An archive that merely does not use its first octets (its first file was replaced or taken out) is one archive.
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
    /// What was not looked at: the first few, and the first of each kind.
    pub troubles: Vec<Trouble>,
}

impl<'v> Walk<'v> {
    /// Nothing is walked yet.
    pub fn new(limits: Limits, deadline: Deadline, visit: &'v mut dyn FnMut(&Member<'_>)) -> Self {
        let limits = Limits {
            depth: limits.depth.min(Limits::DEEPEST),
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

    /// Shows the files of an archive, and of the archives in it. Octets that are no archive are passed over.
    pub fn archive(&mut self, path: &str, bytes: &[u8]) {
        if is_zip(bytes) {
            self.enter(path, bytes, 1);
        }
    }

    fn trouble(&mut self, trouble: Trouble) {
        const KEPT: usize = 16;
        // However many of one kind there are: what they mean differs, and a sender can make as many as it likes.
        let is_same = |known: &Trouble| discriminant(known) == discriminant(&trouble);
        let is_first = !self.troubles.iter().any(is_same);
        if is_first || self.troubles.len() < KEPT && !self.troubles.contains(&trouble) {
            self.troubles.push(trouble);
        }
    }

    fn enter(&mut self, path: &str, bytes: &[u8], depth: usize) {
        if depth > self.limits.depth {
            return self.trouble(Trouble::Depth(path.to_owned()));
        }
        // The reader keeps all entries in memory: count them before it does.
        let room = self.limits.files.saturating_sub(self.files);
        if memmem::find_iter(bytes, ENTRY).nth(room).is_some() {
            return self.trouble(Trouble::Files(path.to_owned()));
        }
        let Some(mut archive) = open(bytes) else {
            // What only seemed to have an archive at its end claims nothing.
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

    /// The octets of a member, as far as they are wanted and allowed.
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

    /// Counts a member that is not packed. Many entries may point to the same octets, so they are not free.
    fn spend<'a>(&mut self, path: &str, octets: Option<&'a [u8]>) -> Result<&'a [u8], Trouble> {
        let octets = octets.ok_or_else(|| Trouble::Unreadable(path.to_owned()))?;
        let length = octets.len() as u64;
        self.octets += match may_be_zip(octets) {
            true => length,
            false => length.min(self.limits.wanted),
        };
        if self.octets > Limits::TOTAL {
            return Err(Trouble::Bomb(path.to_owned()));
        }
        Ok(octets)
    }

    /// Unpacks a member as far as it is wanted and allowed.
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
            .clamp(Limits::HARMLESS, Limits::MEMBER)
            .min(Limits::TOTAL - self.octets.min(Limits::TOTAL));
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
        // What came out before an error is no reason to look away, but it is not the whole.
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

/// The octets of a member that is not packed are some of the archive's: no copy.
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

    /// Files are shown with their place and octets, packed or not, in archives in archives, and behind a program.
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

    /// The last end record of an archive with what it says about disks, entries, and the directory's size and place.
    fn end(zip: &mut [u8]) -> &mut [u8] {
        let at = memmem::rfind(zip, END).expect("an end record");
        &mut zip[at..]
    }

    fn paths(bytes: &[u8]) -> (Vec<String>, Vec<Trouble>) {
        let (seen, troubles) = walk(bytes, LIMITS);
        (seen.into_iter().map(|(path, _)| path).collect(), troubles)
    }

    /// An honest archive of archives has as many end records.
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

    /// Of archives one behind the other some readers show the first one, others the last one: both count, also if the last
    /// one says that it is empty, or has its places counted from the beginning of the first one.
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
        // The first file taken out in its place: what is left is one archive.
        let cut = memmem::find(&first, ENTRY).expect("a directory");
        let removed = [&first[..cut], &both[first.len()..]].concat();
        let mut removed = removed;
        let back = u32::try_from(first.len() - cut).expect("small");
        let entry = memmem::find(&removed, ENTRY).expect("a directory");
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

    /// An archive that cannot be opened is told, wherever it begins. A signature is no archive.
    #[tokio::test]
    async fn what_is_not_opened_is_told() {
        let zip = zipped(&[("a.txt", b"x")], CompressionMethod::Stored);
        let mut disks = zip.clone();
        end(&mut disks)[4] = 1;
        let mut zip64 = zip.clone();
        let at = zip64.len() - 22;
        // A record of zip64 that points nowhere, and as much zip64 as would take hours to try.
        zip64.splice(at..at, [b"PK\x06\x07".as_slice(), &[0xff; 16]].concat());
        end(&mut zip64)[8..20].fill(0xff);
        let tries = b"PK\x06\x06".repeat(Limits::END_RECORDS);
        let cut = zip[..zip.len() - 22].to_vec();
        let unopened = vec![Trouble::Unopened("a.zip".to_owned())];
        for (bytes, told_behind) in [(disks, true), (zip64, true), (cut, false)] {
            assert_eq!(paths(&bytes).1, unopened);
            let behind = [b"x".as_slice(), &bytes].concat();
            assert_eq!(!paths(&behind).1.is_empty(), told_behind);
        }
        let costly = [tries.as_slice(), END, &zip].concat();
        assert_eq!(paths(&costly), (Vec::new(), unopened));
        let program = [b"MZ".as_slice(), END, &[0; 40]].concat();
        let program = [program.as_slice(), END, &[1; 40]].concat();
        assert_eq!(paths(&program), (Vec::new(), Vec::new()));
    }

    /// A program in an archive may be one that unpacks itself, however little is wanted of files.
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

    /// The name of a file is shown, whatever became of its octets.
    #[tokio::test]
    async fn names_of_lost_files_are_shown() {
        let mut zip = zipped(&[("a.exe", b"x")], CompressionMethod::Stored);
        zip[3] = b'x';
        let (seen, troubles) = paths(&[b"MZ".as_slice(), &zip].concat());
        assert_eq!(seen, ["a.zip/a.exe"]);
        assert_eq!(troubles, [Trouble::Unreadable("a.zip/a.exe".to_owned())]);
    }

    /// Many entries that point to the same octets are paid for each time they are read.
    #[tokio::test]
    async fn shared_octets_are_not_free() {
        let big = vec![b'x'; 60 << 20];
        let mut visited = 0;
        let mut visit = |_: &Member<'_>| visited += 1;
        let mut walk = Walk::new(LIMITS, Deadline::after(Duration::from_secs(60)), &mut visit);
        for _ in 0..10 {
            let read = walk.spend("x", Some(&big));
            assert_eq!(read.is_err(), walk.octets > Limits::TOTAL);
        }
        assert!(walk.octets > Limits::TOTAL, "the last ones were refused");
    }

    /// However many members need a password, it is said that others were not looked at for another reason.
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

    /// After the deadline nothing is opened, and that is said.
    #[tokio::test(start_paused = true)]
    async fn no_time_is_a_trouble() {
        let zip = zipped(&[("a", b"x")], CompressionMethod::Stored);
        let mut visit = |_: &Member<'_>| panic!("nothing is to be shown");
        let mut walk = Walk::new(LIMITS, Deadline::after(Duration::ZERO), &mut visit);
        walk.archive("a.zip", &zip);
        assert_eq!(walk.troubles, [Trouble::Deadline]);
    }

    proptest::proptest! {
        /// However an archive is damaged, the walk ends, within its limits and without a panic.
        #[test]
        fn damage_does_no_harm(changes in proptest::collection::vec((0_usize..400, 0_u8..), 1..12)) {
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

    /// Of two files of one name readers show one, and not all of them the same.
    #[test]
    fn files_of_one_name_hide_each_other() {
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
