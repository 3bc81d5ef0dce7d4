//! ORCPT of the type `utf-8` (RFC 6533 3), which smtp-proto does not know.

use std::fmt::Write as _;

use super::transaction::brackets;
use crate::message::Mailbox;

/// Name and type of the parameter.
const PARAMETER_PREFIX: &str = "ORCPT=utf-8;";
/// The type, as stored before the address.
pub const TYPE: &str = "utf-8;";

/// Splits a RCPT command into the command without this parameter and the value of the parameter. `None` if the command has
/// no such parameter, or if its value is not an address.
pub(super) fn take(line: &[u8]) -> Option<(Vec<u8>, String)> {
    line.get(..5)
        .filter(|verb| verb.eq_ignore_ascii_case(b"RCPT "))?;
    let (path, parameters) = line.split_at_checked(brackets(line)?.end + 1)?;
    let mut words: Vec<&str> = std::str::from_utf8(parameters)
        .ok()?
        .split_ascii_whitespace()
        .collect();
    let is_it = |word: &&str| {
        let name = word.get(..PARAMETER_PREFIX.len());
        name.is_some_and(|name| name.eq_ignore_ascii_case(PARAMETER_PREFIX))
    };
    let at = words.iter().position(is_it)?;
    let address = &words.remove(at)[PARAMETER_PREFIX.len()..];
    Mailbox::parse(&decoded(address)?).ok()?;
    let mut rest = path.to_vec();
    for word in words {
        rest.push(b' ');
        rest.extend_from_slice(word.as_bytes());
    }
    Some((rest, format!("{TYPE}{address}")))
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
