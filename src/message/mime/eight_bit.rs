//! Finds octets above 127 in header sections, as SMTPUTF8 mail may have them (RFC 6532 3.2).

use super::Limits;
use super::section::{self, Fields};

/// Whether the header section of `content`, or of a part inside it, has an octet above 127. Octets of bodies do not count,
/// and neither does what a transfer encoding hides: no server on the way sees those.
///
/// Where the walk cannot be sure, the result is `true`: beyond a limit of [`Limits`], below a part that declares its type
/// twice, and in a multipart without a boundary. Pure computation, linear in `content` for each level of nesting. The walk
/// does not enter parts that are all ASCII.
pub fn has_eight_bit_headers(content: &[u8], limits: Limits) -> bool {
    let mut pending = vec![Entity {
        octets: content,
        depth: 0,
        default_type: "text/plain",
    }];
    let mut entered = 0;
    while let Some(this) = pending.pop() {
        if this.octets.is_ascii() {
            continue;
        }
        entered += 1;
        let room = limits.parts.saturating_sub(entered + pending.len());
        match this.parts(&limits, room) {
            Some(parts) => pending.extend(parts),
            None => return true,
        }
    }
    false
}

/// A message or part: header section and body.
struct Entity<'a> {
    octets: &'a [u8],
    depth: usize,
    /// The type if none is declared.
    default_type: &'static str,
}

impl<'a> Entity<'a> {
    /// The parts inside this one; `None` if its header section has an octet above 127, or if the walk cannot be sure. The
    /// declared transfer encoding does not matter: what has octets above 127 is not encoded.
    fn parts(&self, limits: &Limits, room: usize) -> Option<Vec<Self>> {
        let section = section::read(self.octets, limits);
        let (head, body) = self.octets.split_at(section.body);
        if section.exceeded || !head.is_ascii() {
            return None;
        }
        let fields = Fields::decode(&section, self.default_type);
        let ranges = match (&fields.boundary, fields.is_message()) {
            _ if fields.is_ambiguous => return None,
            // One part more than allowed, so that the limit is noticed.
            (Some(boundary), _) => section::split(body, boundary, room + 1),
            (None, true) => std::iter::once(0..body.len()).collect(),
            (None, false) if fields.media_type.starts_with("multipart/") => return None,
            (None, false) => return Some(Vec::new()),
        };
        if ranges.len() > room || (self.depth >= limits.depth && !ranges.is_empty()) {
            return None;
        }
        let default_type = fields.default_type_of_parts();
        let part = |range| Self {
            octets: &body[range],
            depth: self.depth + 1,
            default_type,
        };
        Some(ranges.into_iter().map(part).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(content: &str) -> bool {
        has_eight_bit_headers(content.replace('\n', "\r\n").as_bytes(), Limits::default())
    }

    fn nested(levels: usize, inner: &str) -> String {
        let outer = (0..levels)
            .map(|n| format!("Content-Type: multipart/mixed; boundary=b{n}x\n\n--b{n}x\n"));
        let mut content: String = outer.collect();
        content.push_str(inner);
        content
    }

    /// RFC 6532 3.2: the header section of every part counts, at each depth; bodies, preambles and encoded parts do not. In
    /// doubt, the result is that a header section may have such octets.
    #[test]
    fn header_sections_of_parts_count_and_bodies_do_not() {
        let multipart = "Content-Type: multipart/mixed; boundary=b\n\n";
        for (content, expected) in [
            ("Subject: a\n\nä\n", false),
            ("Subject: ä\n\na\n", true),
            (&format!("{multipart}--b\n\nä\n--b--\n"), false),
            (&format!("{multipart}ä\n--b\n\na\n--b--\nä\n"), false),
            (
                &format!(
                    "{multipart}--b\nContent-Disposition: attachment; filename=\"ä\"\n\na\n--b--\n"
                ),
                true,
            ),
            (&format!("{multipart}--b\n\na\n--b\nX: ä\n\na\n"), true),
            (
                &format!(
                    "{multipart}--b\nContent-Type: message/global\n\nSubject: ä\n\na\n--b--\n"
                ),
                true,
            ),
            (
                &format!(
                    "{multipart}--b\nContent-Type: message/rfc822\n\nSubject: a\n\nä\n--b--\n"
                ),
                false,
            ),
            (
                "Content-Type: multipart/digest; boundary=b\n\n--b\n\nSubject: ä\n\na\n--b--\n",
                true,
            ),
            (
                &format!("Content-Transfer-Encoding: base64\n{multipart}--b\nX: ä\n\na\n--b--\n"),
                true,
            ),
            (
                &format!(
                    "{multipart}--b\nContent-Type: message/global\nContent-Transfer-Encoding: base64\n\nU3ViamVjdDogw6QK\n--b\n\nä\n--b--\n"
                ),
                false,
            ),
            ("Content-Type: multipart/mixed\n\n--b\n\nä\n", true),
            (
                "Content-Type: text/plain\nContent-Type: multipart/mixed; boundary=b\n\nä\n",
                true,
            ),
        ] {
            assert_eq!(found(content), expected, "{content}");
        }
    }

    /// At the limits of depth and of the number of parts, 8-bit octets count as octets of a header section: the sender
    /// declared SMTPUTF8, and nothing shows that the declaration was needless.
    #[test]
    fn beyond_a_limit_octets_count_as_header() {
        let limits = Limits::default();
        assert!(!found(&nested(limits.depth, "\nä\n")));
        assert!(found(&nested(limits.depth + 1, "\nä\n")));
        let many = |parts| {
            let parts = "--b\n\nä\n".repeat(parts);
            format!("Content-Type: multipart/mixed; boundary=b\n\n{parts}")
        };
        assert!(!found(&many(limits.parts - 1)));
        assert!(found(&many(limits.parts)));
        let long = format!("X: {}\n\nä\n", "a".repeat(limits.header_octets));
        assert!(found(&long));
    }
}
