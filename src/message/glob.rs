//! Patterns of rules and interceptors: `*` stands for any run of characters, `?` for one character, and every other character
//! for itself, ignoring case.
//!
//! Patterns are compared with untrusted text, so the time for a match must be bounded. The match goes back only to the last
//! `*`, so the work is at most the product of both lengths. Both are bounded: a pattern by [`Glob::CHARACTERS_MAX`], a text by
//! its parser.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A compiled pattern. As text, and in JSON: the pattern as written.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Glob {
    written: String,
    folded: Vec<char>,
}

impl Glob {
    /// Maximum length of a pattern.
    pub const CHARACTERS_MAX: usize = 500;

    /// Compiles a pattern; `None` if it is empty or longer than [`Glob::CHARACTERS_MAX`].
    pub fn new(pattern: &str) -> Option<Self> {
        let mut folded: Vec<char> = Vec::new();
        for c in fold(pattern) {
            // Consecutive stars mean the same as one.
            if c != '*' || folded.last() != Some(&'*') {
                folded.push(c);
            }
        }
        let fits = (1..=Self::CHARACTERS_MAX).contains(&pattern.chars().count());
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
        // Where the match continues after a mismatch: after the last star, which then covers one more character.
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

/// Lower case, character by character. A text and a pattern that differ only in case become equal.
fn fold(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_lowercase)
}

/// The text is not a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pattern has 1 to {longest} characters", longest = Glob::CHARACTERS_MAX)]
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

    /// A pattern covers the whole text, ignoring case, and only `*` and `?` have a special meaning.
    #[test]
    fn only_stars_and_question_marks_are_special() {
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

    /// A pattern that would take a backtracking matcher almost for ever is matched at once.
    #[test]
    fn hostile_text_cannot_slow_the_match_down() {
        let pattern = "*a".repeat(240) + "b";
        assert!(!matches(&pattern, &"a".repeat(20_000)));
    }

    /// Empty and too long patterns are refused when they are parsed, not when they are used.
    #[test]
    fn empty_and_too_long_patterns_are_refused() {
        assert_eq!(Glob::new(""), None);
        assert_eq!(Glob::new(&"x".repeat(Glob::CHARACTERS_MAX + 1)), None);
    }
}
