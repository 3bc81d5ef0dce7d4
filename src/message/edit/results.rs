//! The authserv-id of an Authentication-Results field (RFC 8601 2.2).

/// Whether the body of an Authentication-Results field has this authserv-id, or an authserv-id that cannot be read: readers
/// could then read the field differently, and one of them could find this authserv-id.
pub(super) fn may_be_of(body: &[u8], authserv_id: &str) -> bool {
    let Some(id) = authserv_id_of(body) else {
        return true;
    };
    // The same name in the DNS, although not the same text.
    let id = id.strip_suffix(b".").unwrap_or(&id);
    let ours = authserv_id.strip_suffix('.').unwrap_or(authserv_id);
    id.eq_ignore_ascii_case(ours.as_bytes())
}

/// Reads `[CFWS] value`; the value is a token or a quoted string (RFC 2045 5.1, RFC 5322 3.2.4).
fn authserv_id_of(body: &[u8]) -> Option<Vec<u8>> {
    let rest = after_comments(body)?;
    let Some(quoted) = rest.strip_prefix(b"\"") else {
        let ends = |octet: &u8| octet.is_ascii_whitespace() || matches!(octet, b';' | b'(');
        let end = rest.iter().position(ends).unwrap_or(rest.len());
        return (end > 0).then(|| rest[..end].to_vec());
    };
    let mut id = Vec::new();
    let mut octets = quoted.iter();
    loop {
        match octets.next()? {
            b'"' => return Some(id),
            b'\\' => id.push(*octets.next()?),
            // Line ends from folding are not part of a quoted string.
            b'\r' | b'\n' => {}
            octet => id.push(*octet),
        }
    }
}

/// The text after white space and comments, which may be nested; `None` if a comment has no end.
fn after_comments(body: &[u8]) -> Option<&[u8]> {
    let mut depth = 0_usize;
    let mut at = 0;
    loop {
        match (body.get(at), depth) {
            (None, 0) => return Some(&[]),
            (None, _) => return None,
            (Some(b'('), _) => depth += 1,
            (Some(b')'), 1..) => depth -= 1,
            (Some(b'\\'), 1..) => at += 1,
            (Some(octet), 0) if !octet.is_ascii_whitespace() => return body.get(at..),
            _ => {}
        }
        at += 1;
    }
}
