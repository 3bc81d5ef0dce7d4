//! A view of the header section: finds, counts and cuts fields, without changing them.
//!
//! The path itself needs these functions (loop detection, the subject for the quarantine index). Everything that needs MIME
//! uses [`super::mime`].

use std::borrow::Cow;

use mail_parser::HeaderValue;
use mail_parser::parsers::MessageStream;
use memchr::memmem;

/// Octets of a subject that are decoded: 8 KiB. That is enough for [`SUBJECT_CHARACTERS_MAX`] characters, each in an encoded
/// word of its own, and a field may be as large as the message.
const SUBJECT_OCTETS_MAX: usize = 8 << 10;
/// Characters of a subject that are kept: 300, more than a person reads in a list.
const SUBJECT_CHARACTERS_MAX: usize = 300;

/// The header section of `content`: everything before the first empty line (RFC 5322 2.1), with the last field's CRLF.
pub fn section(content: &[u8]) -> &[u8] {
    if content.starts_with(b"\r\n") {
        return &[];
    }
    match memmem::find(content, b"\r\n\r\n") {
        Some(end) => &content[..end + 2],
        None => content,
    }
}

/// A field of the relay between its own fields and a message whose first line begins with white space; empty for other
/// messages. Without it, that line would continue the relay's last field (RFC 5322 2.2.3), and any sender could write into
/// that field. No program reads the field.
pub fn fence(content: &[u8]) -> &'static str {
    match is_folding(content) {
        true => "X-Spillway-Break: the next line came with the message\r\n",
        false => "",
    }
}

/// One header field as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// The name, without the colon.
    pub name: &'a [u8],
    /// Everything after the colon, including folding, without the final CRLF.
    pub body: &'a [u8],
}

impl Field<'_> {
    /// Compares the name without regard to case.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }

    /// The body unfolded and trimmed, for display and matching. RFC 2047 words are not decoded.
    pub fn unfolded(&self) -> String {
        let text = String::from_utf8_lossy(self.body);
        text.replace("\r\n", "").trim().to_owned()
    }
}

/// The fields of a header section in order, without lines that are not fields.
pub fn fields(section: &[u8]) -> impl Iterator<Item = Field<'_>> {
    pieces(section).filter_map(|(_, field)| field)
}

/// All octets of a header section in order, as pieces: a field with its folding and CRLF, or `None` for a piece that is not a
/// field, for example if the first line is folding without a field.
pub fn pieces(section: &[u8]) -> impl Iterator<Item = (&[u8], Option<Field<'_>>)> {
    let mut rest = section;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = 0;
        // A field continues while the next line starts with white space (RFC 5322 2.2.3).
        loop {
            match memmem::find(&rest[end..], b"\r\n") {
                Some(at) => end += at + 2,
                None => end = rest.len(),
            }
            if !is_folding(&rest[end..]) {
                break;
            }
        }
        let (piece, tail) = rest.split_at(end);
        rest = tail;
        let line = piece.strip_suffix(b"\r\n").unwrap_or(piece);
        let colon = memchr::memchr(b':', line).filter(|_| !is_folding(line));
        let field = colon.map(|colon| Field {
            name: line[..colon].trim_ascii_end(),
            body: &line[colon + 1..],
        });
        Some((piece, field))
    })
}

/// Whether a line continues the field before it.
pub(super) fn is_folding(line: &[u8]) -> bool {
    line.starts_with(b" ") || line.starts_with(b"\t")
}

/// The subject of a message as text for people and for search: unfolded, decoded (RFC 2047), at most 300 characters; empty if
/// the section has no subject.
pub fn subject(section: &[u8]) -> String {
    let Some(field) = first(section, "Subject") else {
        return String::new();
    };
    let start = Field {
        body: &field.body[..field.body.len().min(SUBJECT_OCTETS_MAX)],
        ..field
    };
    let text = start.unfolded();
    decoded(&text)
        .chars()
        .take(SUBJECT_CHARACTERS_MAX)
        .collect()
}

/// Unfolded text with its encoded words (RFC 2047) decoded, and with spaces for tabs, which folding leaves behind. Text without
/// both is returned as it is.
pub fn decoded(text: &str) -> Cow<'_, str> {
    let is_plain = memmem::find(text.as_bytes(), b"=?").is_none() && !text.contains('\t');
    if is_plain {
        return Cow::Borrowed(text);
    }
    // The parser reads up to a line end.
    let line = [text.replace('\t', " ").as_bytes(), b"\n"].concat();
    match MessageStream::new(&line).parse_unstructured() {
        HeaderValue::Text(decoded) => Cow::Owned(decoded.into_owned()),
        _ => Cow::Borrowed(text),
    }
}

/// The first field of that name.
pub fn first<'a>(section: &'a [u8], name: &str) -> Option<Field<'a>> {
    fields(section).find(|field| field.is(name))
}

/// The number of fields of that name. The number of `Received` fields is the number of hops (RFC 5321 6.3).
pub fn count(section: &[u8], name: &str) -> usize {
    fields(section).filter(|field| field.is(name)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folded field is one field. A line without a colon ends no section and is not counted.
    #[test]
    fn folded_fields_are_one_field_and_garbage_is_skipped() {
        let content =
            b"Received: a\r\n\tb\r\nnonsense\r\nSubject: one\r\n two\r\nreceived : c\r\n\r\nReceived: body";
        let head = section(content);
        assert_eq!(count(head, "Received"), 2);
        assert_eq!(
            first(head, "subject").expect("subject").unfolded(),
            "one two"
        );
    }

    /// A subject is shown and searched as its reader sees it: encoded words are decoded (RFC 2047), however they are folded and
    /// in whichever charset; what is no encoded word stays as it is; the length is bounded.
    #[test]
    fn subjects_are_decoded_and_bounded() {
        for (field, text) in [
            (
                "=?UTF-8?B?w7xiZXI=?= in a held message",
                "über in a held message",
            ),
            ("=?iso-8859-1?Q?=FCber?=", "über"),
            ("=?utf-8?q?a?=\r\n =?utf-8?q?b?=", "ab"),
            ("plain\r\n\ttext", "plain text"),
            ("1 =? 2", "1 =? 2"),
            ("=?utf-8?q?open", "=?utf-8?q?open"),
            ("=?utf-8?q?=1B[2J=E2=80=AE?=", "\u{1b}[2J\u{202e}"),
            ("", ""),
        ] {
            let content = format!("Subject: {field}\r\nTo: x\r\n\r\n");
            assert_eq!(subject(section(content.as_bytes())), text, "{field:?}");
        }
        assert_eq!(subject(b"To: x\r\n"), "");
        let long = "=?utf-8?q?=C3=BC?= ".repeat(100_000);
        let content = format!("Subject: {long}\r\n\r\n");
        assert_eq!(subject(section(content.as_bytes())), "ü".repeat(300));
    }

    /// Content without a header section, without a body, and without octets.
    #[test]
    fn incomplete_content_has_a_section() {
        assert_eq!(section(b"\r\nbody"), b"");
        assert_eq!(section(b"A: b\r\n"), b"A: b\r\n");
        assert_eq!(section(b""), b"");
        assert_eq!(fields(b" a: b\r\n\tc: d\r\n").count(), 0);
        assert_eq!(fields(b"").count(), 0);
    }
}
