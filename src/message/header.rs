//! A view of the header section: found, counted and cut, never decoded or changed.
//!
//! This is what the path itself needs (loop detection, subject for the quarantine index). Everything that needs MIME
//! goes through [`super::mime`].

use memchr::memmem;

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

/// A field of ours that nobody reads, to stand between our fields and a message whose first line begins with white space: of the
/// last of ours it would be folding (RFC 5322 2.2.3), and anybody could write into that. Nothing for other messages.
pub fn fence(content: &[u8]) -> &'static str {
    match is_folding(content) {
        true => "X-Spillway-Break: the next line came with the message\r\n",
        false => "",
    }
}

/// One header field as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// The name, without the colon.
    pub name: &'a [u8],
    /// All that follows the colon, folding included, without the final CRLF.
    pub body: &'a [u8],
}

impl Field<'_> {
    /// Compares the name without regard to case.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }

    /// The body unfolded and trimmed, for display and matching; not RFC 2047 decoded.
    pub fn unfolded(&self) -> String {
        let text = String::from_utf8_lossy(self.body);
        text.replace("\r\n", "").trim().to_owned()
    }
}

/// The fields of a header section in order; lines that are no field are passed over.
pub fn fields(section: &[u8]) -> impl Iterator<Item = Field<'_>> {
    pieces(section).filter_map(|(_, field)| field)
}

/// All octets of a header section in order, a field with its folding and CRLF at a time; none where it is no field, as where the
/// first line is folding of nothing.
pub fn pieces(section: &[u8]) -> impl Iterator<Item = (&[u8], Option<Field<'_>>)> {
    let mut rest = section;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = 0;
        // A field goes on for as long as the next line starts with white space (RFC 5322 2.2.3).
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

/// Whether a line goes on with the field before it.
pub(super) fn is_folding(line: &[u8]) -> bool {
    line.starts_with(b" ") || line.starts_with(b"\t")
}

/// The first field of that name.
pub fn first<'a>(section: &'a [u8], name: &str) -> Option<Field<'a>> {
    fields(section).find(|field| field.is(name))
}

/// How often a field of that name occurs: `Received` counts hops (RFC 5321 6.3).
pub fn count(section: &[u8], name: &str) -> usize {
    fields(section).filter(|field| field.is(name)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Folded fields are one field; a line without a colon ends nothing and counts for nothing.
    #[test]
    fn folding_and_garbage() {
        let content =
            b"Received: a\r\n\tb\r\nnonsense\r\nSubject: one\r\n two\r\nreceived : c\r\n\r\nReceived: body";
        let head = section(content);
        assert_eq!(count(head, "Received"), 2);
        assert_eq!(
            first(head, "subject").expect("subject").unfolded(),
            "one two"
        );
    }

    /// Content without header section, without body, and without anything.
    #[test]
    fn edges() {
        assert_eq!(section(b"\r\nbody"), b"");
        assert_eq!(section(b"A: b\r\n"), b"A: b\r\n");
        assert_eq!(section(b""), b"");
        assert_eq!(fields(b" a: b\r\n\tc: d\r\n").count(), 0);
        assert_eq!(fields(b"").count(), 0);
    }
}
