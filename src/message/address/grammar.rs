//! The grammar of a mailbox: what the relay takes, because every reader takes it for the same mailbox.
//!
//! It is `Mailbox` of RFC 5321 4.1.2 with the extension of RFC 6531 3.3, and with what other servers take without doubt
//! about its meaning: a local-part of any length within the limit of the whole, dots that stand anywhere in it, an underscore
//! in a domain, and a dot after the last label. A quoted part next to an unquoted one (`"a".b@c`, obsolete in RFC 5322 4.4) is
//! not taken: servers differ in whether they remove the quotes.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::NotAMailbox;
use crate::message::canonical;

/// Longest mailbox in octets, without the brackets. `MAIL FROM:<` and `>` with CRLF make a command of 512 octets of it, which
/// every next hop must take (RFC 5321 4.5.3.1.4); it also fits into one line of a header field (998 octets, RFC 5322 2.1.1),
/// as in `for <…>`. The 64 octets of RFC 5321 4.5.3.1.1 are what a server must take at the least: VERP, SRS and list addresses
/// are longer.
pub const MAILBOX_OCTETS_MAX: usize = 498;
/// Longest domain in octets (RFC 5321 4.5.3.1.2).
const DOMAIN_OCTETS_MAX: usize = 255;
/// Longest label of a domain in octets (RFC 1035 2.3.4), as name servers see it: a label outside ASCII has another length there.
const LABEL_OCTETS_MAX: usize = 63;

/// Checks the text of a mailbox other than the bare `postmaster`.
pub(super) fn check(text: &str) -> Result<(), NotAMailbox> {
    if text.len() > MAILBOX_OCTETS_MAX {
        return Err(NotAMailbox::TooLong);
    }
    let local = local_part(text.as_bytes()).ok_or(NotAMailbox::Syntax)?;
    let domain = text[local..].strip_prefix('@').ok_or(NotAMailbox::Syntax)?;
    if domain.len() > DOMAIN_OCTETS_MAX {
        return Err(NotAMailbox::TooLong);
    }
    if !is_domain(domain) || (!text.is_ascii() && text.chars().any(is_deceptive)) {
        return Err(NotAMailbox::Syntax);
    }
    Ok(())
}

/// Whether the text is a domain or an address literal.
pub fn is_domain(text: &str) -> bool {
    if let Some(literal) = text.strip_prefix('[') {
        return literal.strip_suffix(']').is_some_and(is_literal);
    }
    if !text.is_ascii() && text.chars().any(|c| is_deceptive(c) || is_mapped(c)) {
        return false;
    }
    let labels = text.strip_suffix('.').unwrap_or(text);
    // No top-level domain is a number (RFC 3696 2), and `a@192.0.2.1` without brackets is refused by most servers, so that no
    // bounce could reach it.
    let top = labels.rsplit('.').next().unwrap_or_default();
    if top.bytes().all(|b| b.is_ascii_digit()) {
        return false;
    }
    labels.split('.').all(|label| {
        let octets = label.as_bytes();
        let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | 0x80..);
        let hyphen = |end: Option<&u8>| end == Some(&b'-');
        !octets.is_empty()
            && label_octets(label) <= LABEL_OCTETS_MAX
            && octets.iter().all(inner)
            && !hyphen(octets.first())
            && !hyphen(octets.last())
    })
}

/// Octets of the label as DNS has it: of its A-label, for a label outside ASCII.
fn label_octets(label: &str) -> usize {
    match label.is_ascii() {
        true => label.len(),
        false => canonical::ascii(label).len(),
    }
}

/// Whether this stands between the brackets of an address literal: an IPv4 address, or an IPv6 address after its tag (RFC 5321
/// 4.1.3).
fn is_literal(text: &str) -> bool {
    const IPV6_TAG: &str = "IPv6:";
    match text.split_at_checked(IPV6_TAG.len()) {
        Some((tag, address)) if tag.eq_ignore_ascii_case(IPV6_TAG) => {
            address.parse::<Ipv6Addr>().is_ok()
        }
        _ => text.parse::<Ipv4Addr>().is_ok(),
    }
}

/// Octets of the local-part at the beginning of the text, which ends at its `@`; `None` if there is none.
fn local_part(text: &[u8]) -> Option<usize> {
    if text.first() == Some(&b'"') {
        return quoted_string(text);
    }
    let end = text.iter().position(|b| !is_dot_or_atext(*b))?;
    (end > 0).then_some(end)
}

/// Octets of the quoted string at the beginning of the text; `None` if it does not end, or contains a control character.
fn quoted_string(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    for (at, octet) in text.iter().enumerate().skip(1) {
        match octet {
            0..=31 | 127 => return None,
            // RFC 5321 4.1.2: a quoted pair is of ASCII.
            0x80.. if escaped => return None,
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// A dot, atext (RFC 5322 3.2.3), or an octet of a character outside ASCII (RFC 6531 3.3).
fn is_dot_or_atext(octet: u8) -> bool {
    octet.is_ascii_alphanumeric()
        || matches!(
            octet,
            b'.' | b'!'
                | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'/'
                | b'='
                | b'?'
                | b'^'
                | b'_'
                | b'`'
                | b'{'
                | b'|'
                | b'}'
                | b'~'
                | 0x80..
        )
}

/// Controls, white space and format characters outside ASCII: some readers end a line at them, show the address in another
/// order, or leave them out. The joiners U+200C and U+200D are letters of some scripts (RFC 5892 A.1).
fn is_deceptive(c: char) -> bool {
    let format = matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'
            | '\u{200e}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    );
    format || (!c.is_ascii() && (c.is_control() || c.is_whitespace()))
}

/// What IDNA mapping (UTS 46) turns into ASCII punctuation or leaves out, so that a domain has other labels for a reader that
/// maps than for one that does not.
fn is_mapped(c: char) -> bool {
    matches!(
        c,
        '\u{2024}'..='\u{2026}'
            | '\u{3002}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{fe50}'..='\u{fe6f}'
            | '\u{ff01}'..='\u{ff61}'
    )
}
