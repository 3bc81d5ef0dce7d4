//! Problems of a configuration. Each names the place, the key and the fix, so that an administrator needs no other page.

use std::fmt;
use std::path::Path;

/// A place in the file. Line and column count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceLocation {
    /// The line.
    pub line: usize,
    /// The column, in octets.
    pub column: usize,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Place in the file; `None` if the problem is about a part that is not in the file.
    pub place: Option<SourceLocation>,
    /// The full name of the key, `limits.recipients` or `engine.clamd.timeout`; empty if the text is not TOML.
    pub key: String,
    /// The problem, and its reason if the reason is not obvious.
    pub what: String,
    /// The fix: what to write or do instead.
    pub fix: String,
}

/// All problems of one configuration. Shown with one problem a line, in the order of the file:
/// `config.toml:12: budget.session: "30" has no unit; write "30s"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// Path of the file as the caller wrote it.
    pub file: String,
    /// At least one problem, in the order of the file; problems without a place come last.
    pub problems: Vec<Problem>,
}

impl Problems {
    /// Exit code of a program whose configuration is wrong (EX_USAGE of sysexits.h).
    pub const EXIT_CODE: u8 = 64;

    pub(super) fn new(file: String, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.place.is_none(), problem.place));
        Self { file, problems }
    }

    /// The problem that a file cannot be read.
    pub(super) fn of_file(path: &Path, what: String) -> Self {
        let problem = Problem {
            place: None,
            key: String::new(),
            what,
            fix: String::new(),
        };
        Self::new(path.display().to_string(), vec![problem])
    }

    /// The lines that [`fmt::Display`] joins.
    pub(super) fn lines(&self) -> Vec<String> {
        self.problems.iter().map(|p| self.line(p)).collect()
    }

    fn line(&self, problem: &Problem) -> String {
        let mut line = self.file.clone();
        if let Some(place) = problem.place {
            line.push_str(&format!(":{}", place.line));
        }
        if !problem.key.is_empty() {
            line.push_str(&format!(": {}", problem.key));
        }
        line.push_str(&format!(": {}", problem.what));
        if !problem.fix.is_empty() {
            line.push_str(&format!("; {}", problem.fix));
        }
        // A problem quotes values from the file. A control character in a value must not reach the terminal.
        line.chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

impl std::error::Error for Problems {}

/// The candidate that the administrator probably meant: at most one edit, or one edit for every three characters of the
/// word. With more differences the word is another word, not a typing error.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance: the insertions, deletions and replacements that turn one word into the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A typing error gets a suggestion; a different word gets none.
    #[test]
    fn only_near_words_are_suggested() {
        let known = ["recipients", "sessions", "idle"];
        assert_eq!(nearest("recipents", known), Some("recipients"));
        assert_eq!(nearest("idel", known), None);
        assert_eq!(nearest("idl", known), Some("idle"));
        assert_eq!(nearest("colour", known), None);
    }
}
