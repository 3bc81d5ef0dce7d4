//! Tests of the walk through archives: nested, damaged, joined, and too large ones.

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
