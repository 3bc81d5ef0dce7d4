//! Arguments and parameters of commands that smtp-proto parses otherwise than a relay must, or not at all.

use std::ops::Range;

use smtp_proto::Error;

use crate::smtp::reply::Reply;

/// Parses the arguments of BDAT: ` chunk-size [LAST]`. In a number that is too large, smtp-proto begins again with the later
/// digits; if two systems read a size differently, one message can become two.
pub(super) fn chunk(arguments: &[u8]) -> Option<(u64, bool)> {
    let mut words = std::str::from_utf8(arguments)
        .ok()?
        .split_ascii_whitespace();
    let size = words.next()?;
    let octets = size
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| size.parse())?;
    let last = match words.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case("LAST") => true,
        Some(_) => return None,
    };
    words.next().is_none().then_some((octets.ok()?, last))
}

/// The text between the angle brackets, without the source route (RFC 5321 4.1.1.3 asks servers to ignore it).
///
/// The address that smtp-proto returns has no quotes any more, and a relay must pass the address on unchanged.
pub(super) fn path(line: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(&line[brackets(line)?]).ok()?.trim();
    match text.split_once(':') {
        Some((route, rest)) if route.starts_with('@') => Some(rest),
        _ => Some(text),
    }
}

/// The range between the angle brackets.
pub(in crate::smtp) fn brackets(line: &[u8]) -> Option<Range<usize>> {
    let open = memchr::memchr(b'<', line)?;
    let mut quoted = false;
    let mut escaped = false;
    for (at, octet) in line.iter().enumerate().skip(open + 1) {
        match octet {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some(open + 1..at),
            _ => {}
        }
    }
    None
}

pub(super) fn is_printable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

/// The reply to a line that smtp-proto cannot parse.
pub(super) fn syntax_error(error: Error) -> Reply {
    match error {
        Error::UnknownCommand | Error::NeedsMoreData { .. } => Reply::unknown_command(),
        Error::InvalidSenderAddress => Reply::bad_sender("not of the form local-part@domain"),
        Error::InvalidRecipientAddress => Reply::bad_recipient("not of the form local-part@domain"),
        Error::SyntaxError { syntax } => Reply::syntax(syntax),
        Error::InvalidParameter { param } => Reply::bad_parameter(param),
        Error::UnsupportedParameter { param } => Reply::unknown_parameter(&param),
        Error::ResponseTooLong | Error::InvalidResponse { .. } => Reply::unknown_command(),
    }
}
