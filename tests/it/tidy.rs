//! Rules about the source that a test keeps, so that they do not depend on the reviewer's mood.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The rooms from the bottom up (DESIGN section 4). A room may use those on lower floors, and itself; rooms on one floor
/// never use each other. The nouns are one floor that knows itself.
const FLOORS: &[(&str, u8)] = &[
    ("message", 0),
    ("verdict", 0),
    ("deadline", 0),
    ("chance", 0),
    ("ablation", 0),
    ("file", 0),
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

/// A file or folder of tests, whose imports and waits are their own affair.
fn is_test(path: &Path) -> bool {
    path.iter()
        .any(|part| part == OsStr::new("tests") || part == OsStr::new("tests.rs"))
}

/// A file without its inline test module, which a line `mod tests {` begins and the next `}` at the margin ends. Any other
/// `#[cfg(test)]`, as before a `mod tests;`, hides nothing of what follows it.
fn without_inline_tests(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" && lines.peek() == Some(&"mod tests {") {
            lines.find(|line| *line == "}");
        } else {
            code += line;
            code.push('\n');
        }
    }
    code
}

/// What becomes part of the product: every source but tests.
fn product() -> Vec<(PathBuf, String)> {
    let sources = sources().into_iter();
    sources
        .filter(|(path, _)| !is_test(path))
        .map(|(path, text)| {
            let code = without_inline_tests(&text);
            (path, code)
        })
        .collect()
}

/// Nothing but tests is hidden from the rules: what stands after the declaration of a test module in a file of its own, and
/// after an inline one, is looked at.
#[test]
fn only_tests_are_hidden() {
    let file = "#[cfg(test)]\nmod tests;\nfn a() {}\n#[cfg(test)]\nfn b() {}\n\
                #[cfg(test)]\nmod tests {\n    fn hidden() {}\n}\nfn c() {}\n";
    let code = without_inline_tests(file);
    let seen: Vec<&str> = code.lines().filter(|line| line.contains("fn ")).collect();
    assert_eq!(seen, ["fn a() {}", "fn b() {}", "fn c() {}"]);
    assert!(is_test(Path::new("a/tests.rs")) && is_test(Path::new("a/tests/b.rs")));
    assert!(!is_test(Path::new("contests.rs")));

    let lines = |files: &[(PathBuf, String)]| -> usize {
        files.iter().map(|(_, text)| text.lines().count()).sum()
    };
    let (all, code) = (sources(), product());
    println!(
        "{} of {} lines are checked, the others are tests",
        lines(&code),
        lines(&all)
    );
    for (path, text) in code {
        // However an inline test module is written: one that is not seen would be taken for code.
        assert!(!text.contains("#[test]"), "{}", path.display());
    }
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
    for (path, code) in product() {
        let from = room(&path);
        if from == "main" || from == "lib" {
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
    let offences: Vec<_> = product()
        .into_iter()
        .filter(|(path, _)| room(path) != "deadline")
        .filter(|(_, code)| {
            ["time::timeout", "time::sleep", "thread::sleep"]
                .iter()
                .any(|call| code.contains(call))
        })
        .map(|(path, _)| path)
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
        if is_test(&path) {
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
        let limit = if is_test(&path) { 1000 } else { 700 };
        assert!(lines <= limit, "{}: {lines} lines", path.display());
    }
}
