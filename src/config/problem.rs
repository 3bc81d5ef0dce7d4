//! What is wrong with a configuration, said so that the administrator can mend it without another page.

use std::fmt;

/// A place in the file; both count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where; `None` when it is about something that is not in the file.
    pub place: Option<Place>,
    /// The full name of the key, `limits.recipients` or `engine.clamd.timeout`; empty when the text is no TOML.
    pub key: String,
    /// What is wrong, and why that is a problem where it is not plain.
    pub what: String,
    /// What to write or do instead.
    pub fix: String,
}

/// Everything that is wrong with one configuration. Shown one problem a line, in the order of the file:
/// `config.toml:12: budget.session: "30" has no unit; write "30s"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// The file as it was named.
    pub file: String,
    /// At least one, in the order of the file; those without a place come last.
    pub problems: Vec<Problem>,
}

impl Problems {
    /// What a program exits with when its configuration is wrong (EX_USAGE of sysexits.h).
    pub const EXIT_CODE: u8 = 64;

    pub(super) fn new(file: String, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.place.is_none(), problem.place));
        Self { file, problems }
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
        // Values are quoted from the file; a control character in one must not reach the terminal.
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

/// The candidate that was probably meant: near enough that it is a slip of the finger.
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

/// Insertions, deletions and replacements that turn one word into the other.
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

    /// A slip of the finger is recognised; a different word is not suggested.
    #[test]
    fn only_near_words_are_suggested() {
        let known = ["recipients", "sessions", "idle"];
        assert_eq!(nearest("recipents", known), Some("recipients"));
        assert_eq!(nearest("idel", known), None);
        assert_eq!(nearest("idl", known), Some("idle"));
        assert_eq!(nearest("colour", known), None);
    }
}
