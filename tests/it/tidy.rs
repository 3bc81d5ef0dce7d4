//! Rules about the source that a test keeps, so that they do not depend on the reviewer's mood.

use std::path::{Path, PathBuf};

/// The rooms from the bottom up (DESIGN section 4). A room may use those on lower floors, and itself; rooms on one floor
/// never use each other. The nouns are one floor that knows itself.
const FLOORS: &[(&str, u8)] = &[
    ("message", 0),
    ("verdict", 0),
    ("deadline", 0),
    ("chance", 0),
    ("ablation", 0),
    ("incident", 0),
    ("telemetry", 1),
    ("trust", 1),
    ("smtp", 2),
    ("store", 2),
    ("scan", 3),
    ("intercept", 3),
    ("policy", 3),
    ("quarantine", 3),
    ("delivery", 3),
    ("pipeline", 4),
    ("listener", 5),
    ("admin", 5),
    ("config", 6),
    ("app", 7),
    ("cli", 8),
];

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("src") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("source");
                found.push((
                    path.strip_prefix(&root).expect("below src").to_owned(),
                    text,
                ));
            }
        }
    }
    found
}

fn room(path: &Path) -> String {
    let first = path
        .components()
        .next()
        .expect("a component")
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    first.trim_end_matches(".rs").to_owned()
}

fn floor(room: &str) -> u8 {
    let found = FLOORS.iter().find(|(name, _)| *name == room);
    found
        .unwrap_or_else(|| {
            panic!("{room} is on no floor: add it to FLOORS and to docs/ARCHITECTURE.md")
        })
        .1
}

/// Everything goes downhill: no room uses one on its own floor or above, in any way of writing it.
#[test]
fn rooms_only_use_rooms_below_them() {
    let mut offences = Vec::new();
    for (path, text) in sources() {
        let from = room(&path);
        if from == "main" || from == "lib" {
            continue;
        }
        // What tests use is their own affair.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        if path.to_string_lossy().contains("tests") {
            continue;
        }
        for line in code.lines().filter(|l| !l.trim_start().starts_with("//")) {
            for piece in line.split("crate::").skip(1) {
                let names: Vec<&str> = match piece.strip_prefix('{') {
                    Some(list) => list.split(',').collect(),
                    None => vec![piece],
                };
                for name in names {
                    let used: String = name
                        .trim()
                        .chars()
                        .take_while(|c| c.is_alphanumeric() || *c == '_')
                        .collect();
                    if used.is_empty() || used == from || !used.starts_with(char::is_lowercase) {
                        continue;
                    }
                    let nouns = floor(&used) == 0 && floor(&from) == 0;
                    if !nouns && floor(&used) >= floor(&from) {
                        offences.push(format!(
                            "{}: {from} uses {used}: {}",
                            path.display(),
                            line.trim()
                        ));
                    }
                }
            }
        }
    }
    assert!(offences.is_empty(), "\n{}", offences.join("\n"));
}

/// Timeouts are made in one place, so that no part can invent an allowance of its own.
#[test]
fn only_deadline_calls_a_timeout() {
    let offences: Vec<_> = sources()
        .into_iter()
        .filter(|(path, _)| room(path) != "deadline")
        .filter(|(_, text)| {
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            ["time::timeout", "time::sleep", "thread::sleep"]
                .iter()
                .any(|call| code.contains(call))
        })
        .map(|(path, _)| path)
        .filter(|path| !path.to_string_lossy().contains("tests"))
        .collect();
    assert!(offences.is_empty(), "{offences:?}");
}

/// Nothing unbounded, nothing unfinished.
#[test]
fn nothing_unbounded_or_unfinished() {
    let words = [
        "unbounded_channel(",
        "mpsc::channel()",
        "todo!(",
        "unimplemented!(",
        "dbg!(",
        "TODO",
        "FIXME",
    ];
    for (path, text) in sources() {
        if path.to_string_lossy().contains("tests") {
            continue;
        }
        for word in words {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}

/// A file that no screen can hold is split by meaning.
#[test]
fn files_are_short() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        let limit = if path.to_string_lossy().contains("tests") {
            1000
        } else {
            700
        };
        assert!(lines <= limit, "{}: {lines} lines", path.display());
    }
}
