//! Patterns of rules and interceptors: `*` stands for any run of characters, `?` for one, everything else for itself without regard to
//! case.
//!
//! Patterns meet untrusted text, so matching must not be able to explode: only the last `*` is ever tried again, which
//! bounds the work by the product of both lengths, and both are bounded (a pattern by [`Glob::LONGEST`], a text by
//! whoever parsed it).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A compiled pattern. As text, and in JSON, as it was written.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Glob {
    written: String,
    folded: Vec<char>,
}

impl Glob {
    /// Characters of a pattern at most.
    pub const LONGEST: usize = 500;

    /// Compiles a pattern; `None` when it is empty or longer than [`Glob::LONGEST`].
    pub fn new(pattern: &str) -> Option<Self> {
        let mut folded: Vec<char> = Vec::new();
        for c in fold(pattern) {
            // A run of stars says no more than one.
            if c != '*' || folded.last() != Some(&'*') {
                folded.push(c);
            }
        }
        let fits = (1..=Self::LONGEST).contains(&pattern.chars().count());
        fits.then(|| Self {
            written: pattern.to_owned(),
            folded,
        })
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// Whether the whole text matches.
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = fold(text).collect();
        let (mut at, mut read) = (0, 0);
        // Where to go on when the rest does not fit: behind the last star, with one more character given to it.
        let mut retry: Option<(usize, usize)> = None;
        while let Some(&c) = text.get(read) {
            match self.folded.get(at) {
                Some('*') => {
                    at += 1;
                    retry = Some((at, read));
                }
                Some(&p) if p == '?' || p == c => {
                    at += 1;
                    read += 1;
                }
                _ => match &mut retry {
                    Some((star, given)) => {
                        *given += 1;
                        (at, read) = (*star, *given);
                    }
                    None => return false,
                },
            }
        }
        self.folded[at..].iter().all(|&p| p == '*')
    }
}

/// Lower case, character by character; a text and a pattern that differ in case alone fold to the same.
fn fold(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_lowercase)
}

/// The text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pattern has 1 to {longest} characters", longest = Glob::LONGEST)]
pub struct NotAGlob;

impl FromStr for Glob {
    type Err = NotAGlob;

    fn from_str(text: &str) -> Result<Self, NotAGlob> {
        Self::new(text).ok_or(NotAGlob)
    }
}

impl TryFrom<String> for Glob {
    type Error = NotAGlob;

    fn try_from(text: String) -> Result<Self, NotAGlob> {
        text.parse()
    }
}

impl From<Glob> for String {
    fn from(glob: Glob) -> Self {
        glob.written
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Glob::new(pattern).expect(pattern).matches(text)
    }

    /// A pattern covers the whole text, without regard to case, and nothing in it but `*` and `?` is special.
    #[test]
    fn stars_and_question_marks_are_all_there_is() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("?", "", false),
            ("*@example.com", "Boss@EXAMPLE.com", true),
            ("*@example.com", "boss@example.com.evil.test", false),
            ("*@*.example", "a@b@c.example", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[ab].exe", "a.exe", false),
            ("*.tar.*", "x.tar.tar.gz", true),
            ("*ab*ab", "abxab", true),
            ("*ab*abc", "abxab", false),
            ("**a**", "a", true),
            ("МАРИЯ@*", "мария@пример.example", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} on {text}");
        }
    }

    /// The pattern that makes a backtracking matcher take longer than the age of the universe is answered at once.
    #[test]
    fn hostile_text_cannot_make_matching_explode() {
        let pattern = "*a".repeat(240) + "b";
        assert!(!matches(&pattern, &"a".repeat(20_000)));
    }

    /// Empty and endless patterns are refused where they are written, not where they are used.
    #[test]
    fn empty_and_endless_patterns_are_refused() {
        assert_eq!(Glob::new(""), None);
        assert_eq!(Glob::new(&"x".repeat(Glob::LONGEST + 1)), None);
    }
}
