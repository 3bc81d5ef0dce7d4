//! The kept corpus of the fuzz targets, on stable Rust: what was found once is not forgotten.

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Octets of all kept inputs.
const CORPUS: u64 = 300 << 10;

fn folder(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(of)
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let stem = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().expect("a name");
        stem.to_string_lossy().into_owned()
    };
    entries.map(stem).collect()
}

/// Every target keeps its law on every input of its corpus; the laws bound what is shown, counted and worked.
#[test]
fn the_kept_corpus_does_no_harm() {
    let mut octets = 0;
    for (name, target) in targets::TARGETS {
        let corpus = folder("corpus").join(name);
        let mut inputs = 0;
        for entry in std::fs::read_dir(&corpus).unwrap_or_else(|e| panic!("{name}: {e}")) {
            let path = entry.expect("an entry").path();
            let input = std::fs::read(&path).expect("an input");
            println!("{}", path.display());
            target(&input);
            inputs += 1;
            octets += input.len() as u64;
        }
        assert!(inputs > 0, "{name} has no input");
    }
    assert!(octets <= CORPUS, "{octets} octets: cargo fuzz cmin");
}

/// A target that is not replayed, or a corpus that belongs to none, would look like a test and be none.
#[test]
fn every_target_has_a_corpus_and_is_replayed() {
    let known: BTreeSet<String> = targets::TARGETS.map(|(name, _)| name.to_owned()).into();
    assert_eq!(names(&folder("fuzz_targets")), known);
    assert_eq!(names(&folder("corpus")), known);
}
