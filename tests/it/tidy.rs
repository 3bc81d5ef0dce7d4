//! Rules about the source that a test keeps, so that they do not depend on the reviewer's mood.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The rooms from the bottom up (docs/ARCHITECTURE.md, "Rooms"). A room may use those on lower floors, and itself; rooms on one floor
/// never use each other. The nouns are one floor that knows itself.
const FLOORS: &[(&str, u8)] = &[
    ("message", 0),
    ("verdict", 0),
    ("deadline", 0),
    ("chance", 0),
    ("ablation", 0),
    ("file", 0),
    ("incident", 0),
    ("measure", 0),
    ("observation", 0),
    ("process", 0),
    ("telemetry", 1),
    ("trust", 1),
    ("smtp", 2),
    ("store", 2),
    ("scan", 3),
    ("intercept", 3),
    ("policy", 3),
    ("quarantine", 3),
    ("delivery", 3),
    ("whatif", 4),
    ("pipeline", 5),
    ("notify", 5),
    ("listener", 6),
    ("admin", 6),
    ("config", 7),
    ("app", 8),
    ("cli", 9),
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
pub fn product() -> Vec<(PathBuf, String)> {
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

/// Lines of a function, and parameters, that a reader can keep in mind.
const FUNCTION_LINES_MAX: usize = 60;
const PARAMETERS_MAX: usize = 6;
/// Functions that may be longer: file, name, and why.
const LONG_FUNCTIONS: &[(&str, &str, &str)] = &[
    (
        "config/sections/engine/mod.rs",
        "defaults",
        "a table: one entry for each engine kind",
    ),
    (
        "store/sqlite/mod.rs",
        "open_blocking",
        "a list: the parts of a store, in the order in which they are opened",
    ),
];

/// A function as it is written, without its body.
#[derive(Debug, PartialEq)]
struct Function {
    name: String,
    lines: usize,
    parameters: usize,
}

/// The functions in a file that rustfmt has formatted: each ends with the first `}` as far from the margin as its `fn`.
fn functions(code: &str) -> Vec<Function> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let margin = line.len() - line.trim_start().len();
        let words = line.trim_start().split(['(', '<', ' ']);
        let is_before_fn = |word: &&str| {
            word.starts_with("pub")
                || word.ends_with(')')
                || ["const", "async", "in"].contains(word)
        };
        let mut words = words.skip_while(is_before_fn);
        let (Some("fn"), Some(name)) = (words.next(), words.next()) else {
            continue;
        };
        let opens =
            |line: &&&str| line.ends_with('{') || line.ends_with(';') || line.ends_with('}');
        let Some(head) = lines[at..].iter().position(|line| opens(&line)) else {
            continue;
        };
        let end = format!("{}}}", " ".repeat(margin));
        let length = match lines[at + head].ends_with('{') {
            true => lines[at..]
                .iter()
                .position(|line| *line == end)
                .map_or(0, |last| last + 1),
            false => head + 1,
        };
        let signature = lines[at..=at + head].join(" ");
        found.push(Function {
            name: name.to_owned(),
            lines: length,
            parameters: parameters(&signature),
        });
    }
    found
}

/// Parameters in a signature, `self` included.
fn parameters(signature: &str) -> usize {
    let after_name = signature.split_once("fn ").map_or("", |(_, rest)| rest);
    // Bounds of generic parameters have parentheses as well.
    let (mut angles, mut begin) = (0_i32, None);
    for (at, c) in after_name.char_indices() {
        match c {
            '<' => angles += 1,
            '>' if !after_name[..at].ends_with('-') => angles -= 1,
            '(' if angles == 0 => {
                begin = Some(at + 1);
                break;
            }
            _ => {}
        }
    }
    let Some(begin) = begin else {
        return 0;
    };
    let (mut depth, mut count, mut is_empty) = (0_i32, 0, true);
    for (at, c) in after_name[begin..].char_indices() {
        match c {
            ')' if depth == 0 => break,
            '(' | '[' | '{' | '<' => depth += 1,
            '>' if after_name[..begin + at].ends_with('-') => {}
            ')' | ']' | '}' | '>' => depth -= 1,
            ',' if depth == 0 => {
                count += usize::from(!is_empty);
                is_empty = true;
                continue;
            }
            _ => {}
        }
        is_empty &= c == ' ';
    }
    count + usize::from(!is_empty)
}

/// A function that is too long, or wants too much, is split by meaning.
#[test]
fn functions_are_short() {
    let code = "pub(super) async fn a<F: Fn(u8) -> u8>(\n    b: &mut [(u8, u8)],\n    c: F,\n) -> u8 {\n    0\n}\n\
                impl A {\n    fn d(&self);\n    fn e() {\n        fn f() {}\n    }\n}\n";
    let seen = functions(code);
    let seen: Vec<_> = seen
        .iter()
        .map(|f| (&*f.name, f.lines, f.parameters))
        .collect();
    assert_eq!(seen, [("a", 6, 2), ("d", 1, 1), ("e", 3, 0), ("f", 1, 0)]);
    let (mut count, mut offences) = (0, Vec::new());
    for (path, code) in product() {
        let path = path.to_string_lossy().replace('\\', "/");
        // The suite that every store must pass.
        if path.starts_with("store/contract") {
            continue;
        }
        for function in functions(&code) {
            count += 1;
            let is_excused =
                |(file, name, _): &(&str, &str, &str)| *file == path && *name == function.name;
            let is_long =
                function.lines > FUNCTION_LINES_MAX && !LONG_FUNCTIONS.iter().any(is_excused);
            if is_long || function.parameters > PARAMETERS_MAX {
                offences.push(format!("{path}: {function:?}"));
            }
        }
    }
    println!("{count} functions are checked");
    assert!(count > 2000, "{count} functions seen");
    assert!(offences.is_empty(), "\n{}", offences.join("\n"));
}

/// Lines of a file of code without its inline tests, and of a file of tests.
const CODE_LINES_MAX: usize = 500;
const TEST_LINES_MAX: usize = 700;

/// A file that is too long is split by subject.
#[test]
fn files_are_short() {
    let tests = sources().into_iter().filter(|(path, _)| is_test(path));
    let files = product()
        .into_iter()
        .map(|file| (CODE_LINES_MAX, file))
        .chain(tests.map(|file| (TEST_LINES_MAX, file)));
    let offences: Vec<String> = files
        .filter(|(limit, (_, text))| text.lines().count() > *limit)
        .map(|(limit, (path, text))| {
            let lines = text.lines().count();
            format!("{}: {lines} lines, at most {limit}", path.display())
        })
        .collect();
    assert!(offences.is_empty(), "\n{}", offences.join("\n"));
}

/// Names of constants that say neither a subject nor a quantity.
const VAGUE_NAMES: [&str; 20] = [
    "AGAIN", "BUSY", "ENOUGH", "EVERY", "FEW", "FIRST", "LARGEST", "LAST", "LEAST", "LIMIT",
    "LONG", "LONGEST", "MANY", "MARGIN", "MOST", "PATIENCE", "PAUSE", "ROUNDS", "TICK", "WINDOW",
];

/// The name of a constant says its subject and its unit or quantity.
#[test]
fn constants_name_their_subject() {
    let mut offences = Vec::new();
    for (path, text) in sources() {
        for line in text.lines() {
            let declared = line.trim_start().split_once("const ");
            let name = declared.and_then(|(_, rest)| rest.split_once(':'));
            if name.is_some_and(|(name, _)| VAGUE_NAMES.contains(&name)) {
                offences.push(format!("{}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(offences.is_empty(), "\n{}", offences.join("\n"));
}

/// The numbers in a text that stand for a promise (`P6`), an invariant (`I13`), a mechanism (`M1`, `T2`) or a law (`law 4`).
fn cited_numbers(text: &str) -> Vec<String> {
    let words: Vec<&str> = text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let is_number = |digits: &str| {
        digits.parse().is_ok_and(|n: u8| (1..=20).contains(&n)) && !digits.starts_with('0')
    };
    let mut cited = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let digits = word.strip_prefix(['P', 'I', 'M', 'T']);
        if digits.is_some_and(is_number) {
            cited.push((*word).to_owned());
        }
        let is_law = at > 0 && ["law", "Law"].contains(&words[at - 1]);
        if is_law && is_number(word) {
            cited.push(format!("law {word}"));
        }
    }
    cited
}

/// A number that a comment or a document cites stands in the glossary, and the files that the glossary names exist.
#[test]
fn the_glossary_defines_what_is_cited() {
    assert_eq!(
        cited_numbers("(P6, M1) Law 4: P99 I0 T2x"),
        ["P6", "M1", "law 4"]
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let glossary = std::fs::read_to_string(root.join("docs/GLOSSARY.md")).expect("the glossary");
    let comments = sources().into_iter().map(|(path, text)| {
        let comments = text
            .lines()
            .filter(|line| line.trim_start().starts_with("//"));
        (path, comments.collect::<Vec<_>>().join("\n"))
    });
    let documents = ["ARCHITECTURE", "RESILIENCE", "DRILL", "HACKING"].map(|name| {
        let path = root.join("docs").join(name).with_extension("md");
        let text = std::fs::read_to_string(&path).expect("a document");
        (path, text)
    });
    let (mut count, mut offences) = (0, Vec::new());
    for (path, text) in comments.chain(documents) {
        for number in cited_numbers(&text) {
            count += 1;
            if !glossary.contains(&format!("**{number}**")) {
                offences.push(format!("{} cites {number}", path.display()));
            }
        }
    }
    for named in glossary.split('`').filter(|span| span.starts_with("src/")) {
        if !root.join(named).exists() {
            offences.push(format!("the glossary names {named}, which does not exist"));
        }
    }
    println!("{count} citations are checked");
    assert!(count > 100, "{count} citations seen");
    assert!(offences.is_empty(), "\n{}", offences.join("\n"));
}
