//! The arguments of MAIL and RCPT up to the parameters: `FROM:<reverse-path>` and `TO:<forward-path>` (RFC 5321 4.1.1.2 and
//! 4.1.1.3).
//!
//! A path is passed on as it came, so the parser takes none that it would have to change: the mailbox is the octets between
//! the brackets, without the source route, which RFC 5321 4.1.1.3 asks servers to ignore. Spaces around the colon and a path
//! without brackets are read as all servers read them; devices send both.

use crate::message::address::{NotAMailbox, is_domain};
use crate::message::{Mailbox, ReversePath};

/// Why the arguments have no path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathError {
    /// There is no path, its brackets or quotes do not close, or something else than a space follows it.
    Malformed,
    /// The path is no mailbox.
    Mailbox(NotAMailbox),
}

/// Parses the arguments of MAIL: `FROM:<reverse-path>`. Returns the path and the octets after it, which are empty or begin
/// with white space.
pub fn reverse(arguments: &[u8]) -> Result<(ReversePath, &[u8]), PathError> {
    match split(arguments, b"FROM")? {
        (b"<>", rest) => Ok((ReversePath::NULL, rest)),
        (path, rest) => Ok((mailbox(path)?.into(), rest)),
    }
}

/// Parses the arguments of RCPT: `TO:<forward-path>`. Returns the mailbox and the octets after the path, which are empty or
/// begin with white space.
pub fn forward(arguments: &[u8]) -> Result<(Mailbox, &[u8]), PathError> {
    let (path, rest) = split(arguments, b"TO")?;
    Ok((mailbox(path)?, rest))
}

/// Whether the octet separates arguments. RFC 5321 knows only the space; servers read a tab in the same way.
pub(super) fn is_white(octet: u8) -> bool {
    matches!(octet, b' ' | b'\t')
}

/// The octets after leading white space.
pub(super) fn trimmed(octets: &[u8]) -> &[u8] {
    let start = octets.iter().position(|octet| !is_white(*octet));
    &octets[start.unwrap_or(octets.len())..]
}

/// Splits `keyword:path rest` into path and rest.
fn split<'a>(arguments: &'a [u8], keyword: &[u8]) -> Result<(&'a [u8], &'a [u8]), PathError> {
    let (word, rest) = trimmed(arguments)
        .split_at_checked(keyword.len())
        .ok_or(PathError::Malformed)?;
    let rest = trimmed(rest).strip_prefix(b":");
    let rest = rest.filter(|_| word.eq_ignore_ascii_case(keyword));
    let text = trimmed(rest.ok_or(PathError::Malformed)?);
    let end = end(text).ok_or(PathError::Malformed)?;
    match text.get(end) {
        Some(octet) if !is_white(*octet) => Err(PathError::Malformed),
        _ => Ok(text.split_at(end)),
    }
}

/// Where the path ends: after its closing bracket, or at white space if it has no brackets. `None` if it is empty, or if
/// brackets or quotes do not close.
fn end(text: &[u8]) -> Option<usize> {
    let bracketed = *text.first()? == b'<';
    let (mut quoted, mut escaped) = (false, false);
    for (at, octet) in text.iter().enumerate() {
        match octet {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if bracketed && !quoted => return Some(at + 1),
            octet if !bracketed && !quoted && is_white(*octet) => return Some(at),
            _ => {}
        }
    }
    (!bracketed && !quoted).then_some(text.len())
}

/// The mailbox of a path, with or without brackets.
fn mailbox(path: &[u8]) -> Result<Mailbox, PathError> {
    const SYNTAX: PathError = PathError::Mailbox(NotAMailbox::Syntax);
    let text = std::str::from_utf8(path).map_err(|_| SYNTAX)?;
    // Devices write spaces inside the brackets, and no reader takes them for a part of the address.
    let inner = text
        .strip_prefix('<')
        .and_then(|text| text.strip_suffix('>'))
        .map(|inner| inner.trim_matches([' ', '\t']));
    let text = match inner {
        Some(inner) if inner.starts_with('@') => after_route(inner).ok_or(SYNTAX)?,
        Some(inner) => inner,
        None => text,
    };
    Mailbox::parse(text).map_err(PathError::Mailbox)
}

/// The text after a source route, `@one,@two:`; `None` if the route is malformed.
fn after_route(text: &str) -> Option<&str> {
    let mut rest = text;
    loop {
        rest = rest.strip_prefix('@')?;
        let end = match rest.starts_with('[') {
            true => rest.find(']')? + 1,
            false => rest.find([',', ':'])?,
        };
        let (domain, after) = rest.split_at(end);
        if !is_domain(domain) {
            return None;
        }
        if let Some(mailbox) = after.strip_prefix(':') {
            return Some(mailbox);
        }
        rest = after.strip_prefix(',')?;
    }
}

#[cfg(test)]
mod tests;
