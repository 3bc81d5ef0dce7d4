//! The parameters of MAIL and RCPT (RFC 5321 4.1.1.11) of the extensions that the server offers.
//!
//! A parameter may be given once, so their number is bounded by that of the known ones. Every value has a limit.

use super::path::is_white;
use super::{orcpt, xtext};
use crate::message::{BodyKind, Notify, Ret};

/// Longest SIZE in digits (RFC 1870 5).
const SIZE_DIGITS_MAX: usize = 20;
/// Longest ENVID in octets (RFC 3461 4.4).
pub const ENVID_OCTETS_MAX: usize = 100;
/// Longest AUTH in octets (RFC 4954 3).
const AUTH_OCTETS_MAX: usize = 500;

/// The parameters of MAIL; a default for each that was not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MailParameters {
    /// SIZE (RFC 1870), at most [`u64::MAX`].
    pub size: Option<u64>,
    /// BODY (RFC 6152).
    pub body: Option<BodyKind>,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// RET (RFC 3461 4.3).
    pub ret: Option<Ret>,
    /// ENVID (RFC 3461 4.4), decoded: printable ASCII.
    pub envid: Option<String>,
    /// There is an AUTH (RFC 4954 5), which the relay does not use.
    pub auth: bool,
}

/// The parameters of RCPT.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RcptParameters {
    /// NOTIFY (RFC 3461 4.1).
    pub notify: Option<Notify>,
    /// ORCPT: `addr-type;address`, the address in printable ASCII or, after `utf-8;`, as received (RFC 3461 4.2, RFC 6533 3).
    pub orcpt: Option<String>,
}

/// Why parameters are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterError<'a> {
    /// A word is not of the form `keyword[=value]`.
    Malformed,
    /// The relay does not offer the extension of this parameter.
    Unknown(&'a str),
    /// The parameter is given twice, and readers differ about which one counts.
    Repeated(&'static str),
    /// The parameter has a value that it cannot have.
    Value(&'static str),
}

/// Parses the parameters of MAIL.
pub fn mail(parameters: &[u8]) -> Result<MailParameters, ParameterError<'_>> {
    let mut all = MailParameters::default();
    for word in words(parameters) {
        let (keyword, value) = keyword_and_value(word)?;
        let is = |name: &str| keyword.eq_ignore_ascii_case(name);
        if is("SIZE") {
            once("SIZE", &mut all.size, size(value))?;
        } else if is("BODY") {
            if value.is_some_and(|value| value.eq_ignore_ascii_case(b"BINARYMIME")) {
                return Err(ParameterError::Unknown("BODY=BINARYMIME"));
            }
            once("BODY", &mut all.body, body(value))?;
        } else if is("SMTPUTF8") {
            flag("SMTPUTF8", &mut all.smtputf8, value.is_none())?;
        } else if is("RET") {
            once("RET", &mut all.ret, ret(value))?;
        } else if is("ENVID") {
            once("ENVID", &mut all.envid, value.and_then(envid))?;
        } else if is("AUTH") {
            flag("AUTH", &mut all.auth, value.is_some_and(is_auth))?;
        } else {
            return Err(ParameterError::Unknown(keyword));
        }
    }
    Ok(all)
}

/// Parses the parameters of RCPT.
pub fn rcpt(parameters: &[u8]) -> Result<RcptParameters, ParameterError<'_>> {
    let mut all = RcptParameters::default();
    for word in words(parameters) {
        let (keyword, value) = keyword_and_value(word)?;
        if keyword.eq_ignore_ascii_case("NOTIFY") {
            once("NOTIFY", &mut all.notify, value.and_then(notify))?;
        } else if keyword.eq_ignore_ascii_case("ORCPT") {
            once("ORCPT", &mut all.orcpt, value.and_then(orcpt::parse))?;
        } else {
            return Err(ParameterError::Unknown(keyword));
        }
    }
    Ok(all)
}

/// The words of an argument list.
pub(super) fn words(arguments: &[u8]) -> impl Iterator<Item = &[u8]> {
    arguments
        .split(|octet| is_white(*octet))
        .filter(|word| !word.is_empty())
}

/// Splits `keyword[=value]` (RFC 5321 4.1.2). A value may contain further `=`, which nobody reads as a separator.
fn keyword_and_value(word: &[u8]) -> Result<(&str, Option<&[u8]>), ParameterError<'_>> {
    let mut parts = word.splitn(2, |octet| *octet == b'=');
    let keyword = parts.next().unwrap_or_default();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-';
    let sound = keyword.first().is_some_and(u8::is_ascii_alphanumeric) && keyword.iter().all(inner);
    match std::str::from_utf8(keyword) {
        Ok(keyword) if sound => Ok((keyword, parts.next())),
        _ => Err(ParameterError::Malformed),
    }
}

fn once<T>(
    name: &'static str,
    place: &mut Option<T>,
    value: Option<T>,
) -> Result<(), ParameterError<'static>> {
    if place.is_some() {
        return Err(ParameterError::Repeated(name));
    }
    *place = Some(value.ok_or(ParameterError::Value(name))?);
    Ok(())
}

fn flag(name: &'static str, place: &mut bool, sound: bool) -> Result<(), ParameterError<'static>> {
    if *place {
        return Err(ParameterError::Repeated(name));
    }
    *place = true;
    sound.then_some(()).ok_or(ParameterError::Value(name))
}

fn size(value: Option<&[u8]>) -> Option<u64> {
    let digits = std::str::from_utf8(value?).ok()?;
    let sound = (1..=SIZE_DIGITS_MAX).contains(&digits.len())
        && digits.bytes().all(|octet| octet.is_ascii_digit());
    // More than any limit that can be configured, in any case.
    sound.then(|| digits.parse().unwrap_or(u64::MAX))
}

fn body(value: Option<&[u8]>) -> Option<BodyKind> {
    match value? {
        value if value.eq_ignore_ascii_case(b"7BIT") => Some(BodyKind::SevenBit),
        value if value.eq_ignore_ascii_case(b"8BITMIME") => Some(BodyKind::EightBitMime),
        _ => None,
    }
}

fn ret(value: Option<&[u8]>) -> Option<Ret> {
    match value? {
        value if value.eq_ignore_ascii_case(b"FULL") => Some(Ret::Full),
        value if value.eq_ignore_ascii_case(b"HDRS") => Some(Ret::Headers),
        _ => None,
    }
}

/// NEVER alone, or any of the other words.
fn notify(value: &[u8]) -> Option<Notify> {
    let mut notify = Notify::default();
    if value.eq_ignore_ascii_case(b"NEVER") {
        return Some(notify);
    }
    for word in value.split(|octet| *octet == b',') {
        match word {
            word if word.eq_ignore_ascii_case(b"SUCCESS") => notify.success = true,
            word if word.eq_ignore_ascii_case(b"FAILURE") => notify.failure = true,
            word if word.eq_ignore_ascii_case(b"DELAY") => notify.delay = true,
            _ => return None,
        }
    }
    Some(notify)
}

fn envid(value: &[u8]) -> Option<String> {
    let value = Some(value).filter(|value| !value.is_empty())?;
    xtext::printable(value, ENVID_OCTETS_MAX)
}

/// A mailbox in xtext, or `<>`; the relay checks no more than that it can be decoded.
fn is_auth(value: &[u8]) -> bool {
    (1..=AUTH_OCTETS_MAX).contains(&value.len()) && xtext::text(value, AUTH_OCTETS_MAX).is_some()
}

#[cfg(test)]
mod tests;
