//! The value of ORCPT: `addr-type;address` (RFC 3461 4.2, RFC 6533 3).
//!
//! Only the server that reads the address knows what it means, so every type is legal: the relay stores the value and gives
//! the next hop the same one.

use std::fmt::Write as _;

use super::xtext;
use crate::message::Mailbox;

/// The type of an address outside ASCII, which has an encoding of its own, as stored before the address.
pub const TYPE: &str = "utf-8;";
/// Longest address in octets, in the encoding in which it is passed on (RFC 3461 4.2).
pub const ORCPT_OCTETS_MAX: usize = 500;
/// Longest type in octets: far more than any registered one (IANA: "Mail Address Types").
const TYPE_OCTETS_MAX: usize = 64;

/// Decodes the value to `addr-type;address`: the address is printable ASCII, decoded from xtext, or after `utf-8;` the
/// encoding as received, of a mailbox. `None` if the value is malformed, or longer than its limit.
pub(super) fn parse(value: &[u8]) -> Option<String> {
    let at = memchr::memchr(b';', value)?;
    let kind = std::str::from_utf8(&value[..at]).ok()?;
    let address = &value[at + 1..];
    if address.is_empty() || !is_type(kind) {
        return None;
    }
    if kind.len() + 1 == TYPE.len() && TYPE[..kind.len()].eq_ignore_ascii_case(kind) {
        let address = std::str::from_utf8(address).ok()?;
        Mailbox::parse(&decoded(address)?).ok()?;
        return (ascii_octets(address) <= ORCPT_OCTETS_MAX).then(|| format!("{TYPE}{address}"));
    }
    let address = xtext::printable(address, ORCPT_OCTETS_MAX)?;
    Some(format!("{kind};{address}"))
}

/// Whether this is a type, an atom of RFC 3461 4.2.
pub fn is_type(kind: &str) -> bool {
    let atext = |b: u8| b.is_ascii_graphic() && !b"()<>@,;:\\\".[]".contains(&b);
    (1..=TYPE_OCTETS_MAX).contains(&kind.len()) && kind.bytes().all(atext)
}

/// Decodes `utf-8-addr-xtext` and `utf-8-addr-unitext`, in which `\x{XX}` is the character with this number.
fn decoded(address: &str) -> Option<String> {
    let (mut out, mut rest) = (String::new(), address);
    while let Some(c) = rest.chars().next() {
        if let Some(embedded) = rest.strip_prefix("\\x{") {
            let (number, after) = embedded.split_once('}')?;
            let is_number = (2..=6).contains(&number.len())
                && number.bytes().all(|octet| octet.is_ascii_hexdigit());
            let number = is_number.then(|| u32::from_str_radix(number, 16).ok())??;
            out.push(char::from_u32(number)?);
            rest = after;
        } else if c.is_control() || matches!(c, '+' | '=' | '\\') {
            return None;
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    Some(out)
}

/// Encodes the value for a server that accepts only ASCII.
pub fn in_ascii(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        match c.is_ascii() {
            true => out.push(c),
            false => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\x{{{:02X}}}", u32::from(c));
            }
        }
    }
    out
}

/// Octets of [`in_ascii`], at most.
fn ascii_octets(value: &str) -> usize {
    let octets = |c: char| match c.is_ascii() {
        true => 1,
        false => "\\x{}".len() + (u32::BITS - u32::from(c).leading_zeros()).div_ceil(4) as usize,
    };
    value.chars().map(octets).sum()
}
