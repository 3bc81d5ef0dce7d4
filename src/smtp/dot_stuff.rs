//! Encodes content for the wire: doubles dots at line starts and adds `<CRLF>.<CRLF>` (RFC 5321 4.5.2).
//!
//! The encoder copies nothing. Two pieces overlap by the one dot that is doubled: a piece ends with the dot at the start of
//! a line, and the next piece begins with the same dot. A message of 50 MiB without such a line is one piece.

use memchr::{memchr2, memmem};

/// The pieces of `content` with doubled dots at line starts. `content` begins at a line start, and all its line ends are
/// CRLF ([`has_bare_line_end`]). The end of data is not included: see [`end_of_data`].
pub fn pieces(content: &[u8]) -> Pieces<'_> {
    Pieces {
        rest: content,
        doubled: false,
    }
}

/// Iterator made by [`pieces`].
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    rest: &'a [u8],
    /// The dot at the beginning of `rest` was already sent once.
    doubled: bool,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let piece = if self.rest.starts_with(b".") && !self.doubled {
            self.doubled = true;
            return Some(&self.rest[..1]);
        } else if let Some(at) = memmem::find(self.rest, b"\r\n.") {
            let (piece, _) = self.rest.split_at(at + 3);
            self.rest = &self.rest[at + 2..];
            self.doubled = true;
            return Some(piece);
        } else {
            self.rest
        };
        self.rest = &[];
        Some(piece)
    }
}

/// The end of data: a line with a dot alone, after a CRLF if the last line has none.
pub fn end_of_data(content: &[u8]) -> &'static [u8] {
    if content.is_empty() || content.ends_with(b"\r\n") {
        b".\r\n"
    } else {
        b"\r\n.\r\n"
    }
}

/// Whether the content has a bare CR or LF. Such content must not be sent: the next hop could find an end of data where
/// this relay found none (CVE-2023-51764 and similar).
pub fn has_bare_line_end(content: &[u8]) -> bool {
    let mut rest = content;
    while let Some(at) = memchr2(b'\r', b'\n', rest) {
        if !rest[at..].starts_with(b"\r\n") {
            return true;
        }
        rest = &rest[at + 2..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(content: &[u8]) -> Vec<u8> {
        let mut wire: Vec<u8> = pieces(content).flatten().copied().collect();
        wire.extend(end_of_data(content));
        wire
    }

    /// A line that begins with a dot gets a second dot, every other octet is unchanged, and the end of data follows a line end.
    #[test]
    fn dots_at_line_starts_are_doubled() {
        for (content, expected) in [
            ("", ".\r\n"),
            ("a", "a\r\n.\r\n"),
            ("a\r\n", "a\r\n.\r\n"),
            (".", "..\r\n.\r\n"),
            (".\r\n", "..\r\n.\r\n"),
            ("..\r\n", "...\r\n.\r\n"),
            ("a.b\r\n.c\r\n\r\n.\r\n", "a.b\r\n..c\r\n\r\n..\r\n.\r\n"),
            ("\r\n.\r\n.\r\nx", "\r\n..\r\n..\r\nx\r\n.\r\n"),
        ] {
            assert_eq!(wire(content.as_bytes()), expected.as_bytes(), "{content:?}");
        }
    }

    /// Content without a line that begins with a dot is one piece.
    #[test]
    fn plain_content_is_one_piece() {
        let content = b"a\r\nb. c\r\n";
        assert_eq!(pieces(content).collect::<Vec<_>>(), [&content[..]]);
    }

    /// Every form of a bare CR or LF is detected.
    #[test]
    fn bare_line_ends_are_detected() {
        for clean in ["", "a", "a\r\n", "\r\n\r\n.\r\n"] {
            assert!(!has_bare_line_end(clean.as_bytes()), "{clean:?}");
        }
        for bare in ["\n", "a\r", "a\n.\r\n", "\r\r\n", "\r\n\n", "a\rb\r\n"] {
            assert!(has_bare_line_end(bare.as_bytes()), "{bare:?}");
        }
    }

    proptest::proptest! {
        /// The decoder of the listener restores the stuffed content exactly, so a relay in a chain changes nothing.
        #[test]
        fn decoding_undoes_stuffing(lines in proptest::collection::vec("[.a]{0,4}", 0..8)) {
            let content: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            let mut decoded = Vec::new();
            let wire = wire(content.as_bytes());
            let (used, ended) = crate::smtp::content::Decoder::data(false)
                .decode(&wire, |piece| decoded.extend_from_slice(piece));
            proptest::prop_assert!(ended);
            proptest::prop_assert_eq!(used, wire.len());
            proptest::prop_assert_eq!(decoded, content.into_bytes());
        }
    }
}
