//! Escapes characters that must not reach a terminal or a log file unchanged.
//!
//! The sender of a message chooses its addresses, subject and file names. Control characters in them move a terminal's cursor
//! and forge log lines; bidirectional overrides make `exe.fdp` look like `pdf.exe` (CVE-2021-42574).

use std::fmt::{self, Write};

/// Whether `c` acts on a terminal instead of being visible: C0, DEL and C1 controls, line and paragraph separators,
/// bidirectional marks, embeddings, overrides and isolates, and characters without width that hide in words.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{061C}'
                | '\u{180E}'
                | '\u{200B}'..='\u{200F}'
                | '\u{2028}'..='\u{202E}'
                | '\u{2060}'..='\u{206F}'
                | '\u{FEFF}'
                | '\u{FFF9}'..='\u{FFFB}'
                | '\u{E0000}'..='\u{E007F}'
        )
}

/// Displays a value with every unsafe character as a visible escape: `\n`, `\t`, `\u{1b}`.
///
/// A backslash is not doubled: the text is for people, and no program parses it.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<T>(pub T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

/// Escapes every unsafe character in JSON, which itself escapes only C0. Unsafe characters occur only inside strings, so the
/// value stays the same. Line feeds between values stay.
pub fn json(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A writer that escapes the text that is written through it.
pub(super) struct Escaping<'a, W: ?Sized>(pub(super) &'a mut W);

impl<W: Write + ?Sized> Write for Escaping<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(is_unsafe) {
            let (safe, tail) = rest.split_at(at);
            self.0.write_str(safe)?;
            let mut chars = tail.chars();
            for c in chars.next().into_iter().flat_map(char::escape_default) {
                self.0.write_char(c)?;
            }
            rest = chars.as_str();
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Characters that act on a terminal become escapes; visible characters stay.
    #[test]
    fn unsafe_characters_become_visible() {
        for (text, shown) in [
            ("plain Grüße 你好 👍", "plain Grüße 你好 👍"),
            ("a\r\nb\tc", "a\\r\\nb\\tc"),
            ("\x1b[31mred\x07", "\\u{1b}[31mred\\u{7}"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\u{7f}"),
            ("\u{202e}fdp.exe\u{2069}", "\\u{202e}fdp.exe\\u{2069}"),
            ("pay\u{200b}pal\u{2028}", "pay\\u{200b}pal\\u{2028}"),
            ("back\\slash", "back\\slash"),
        ] {
            assert_eq!(Escaped(text).to_string(), shown);
        }
    }
}
