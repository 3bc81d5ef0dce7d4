//! Xtext (RFC 3461 4), in which `+XX` is an octet in hexadecimal, and the attribute lists of XCLIENT and XFORWARD, whose values
//! are xtext.

use std::fmt::Write as _;
use std::net::IpAddr;

/// Longest value of an attribute in octets, decoded.
const ATTRIBUTE_OCTETS_MAX: usize = 255;

/// Attributes of XCLIENT or XFORWARD; `None` for an attribute that was not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// ADDR.
    pub addr: Option<Value>,
    /// NAME.
    pub name: Option<Value>,
    /// HELO.
    pub helo: Option<Value>,
    /// PROTO: SMTP or ESMTP.
    pub proto: Option<Value>,
    /// LOGIN.
    pub login: Option<Value>,
}

impl Attributes {
    /// Adds the attributes of a further command, which replace earlier values.
    pub fn add(&mut self, later: Self) {
        self.addr = later.addr.or(self.addr.take());
        self.name = later.name.or(self.name.take());
        self.helo = later.helo.or(self.helo.take());
        self.proto = later.proto.or(self.proto.take());
        self.login = later.login.or(self.login.take());
    }

    /// ADDR as an IP address; an IPv6 address has the tag `IPV6:`. `None` if ADDR is missing, unavailable or invalid.
    pub fn address(&self) -> Option<IpAddr> {
        let text = self.addr.as_ref()?.as_deref()?;
        let bare = match text.split_at_checked(5) {
            Some((tag, bare)) if tag.eq_ignore_ascii_case("IPV6:") => bare,
            _ => text,
        };
        bare.parse().ok()
    }
}

/// The value of an attribute; `None` stands for `[UNAVAILABLE]` and `[TEMPUNAVAIL]`.
pub type Value = Option<String>;

/// Parses ` NAME=value ADDR=value …`; `None` if an attribute is unknown, malformed, or contains control characters.
pub fn attributes(list: &[u8]) -> Option<Attributes> {
    let list = std::str::from_utf8(list).ok()?;
    let mut attributes = Attributes::default();
    let mut any = false;
    for attribute in list.split_ascii_whitespace() {
        let (name, value) = attribute.split_once('=')?;
        let value = text(value.as_bytes(), ATTRIBUTE_OCTETS_MAX)?;
        let unavailable = ["[UNAVAILABLE]", "[TEMPUNAVAIL]"]
            .iter()
            .any(|word| value.eq_ignore_ascii_case(word));
        let value = (!unavailable).then_some(value);
        any = true;
        match name.to_ascii_uppercase().as_str() {
            "ADDR" => attributes.addr = Some(value),
            "NAME" => attributes.name = Some(value),
            "HELO" => attributes.helo = Some(value),
            "PROTO" => attributes.proto = Some(value),
            "LOGIN" => attributes.login = Some(value),
            // Valid attributes that the relay does not use.
            "PORT" | "DESTADDR" | "DESTPORT" | "IDENT" | "SOURCE" => {}
            _ => return None,
        }
    }
    any.then_some(attributes)
}

/// Decodes xtext. `None` if the text is malformed, stands for more than `limit` octets, or stands for something else than
/// UTF-8 without control characters.
pub fn text(xtext: &[u8], limit: usize) -> Option<String> {
    let mut octets = Vec::with_capacity(xtext.len());
    let mut rest = xtext.iter();
    while let Some(octet) = rest.next() {
        octets.push(match octet {
            b'+' => (digit(*rest.next()?)? << 4) | digit(*rest.next()?)?,
            octet => *octet,
        });
    }
    let text = String::from_utf8(octets).ok()?;
    (text.len() <= limit && !text.chars().any(char::is_control)).then_some(text)
}

/// Decodes xtext that may go into a delivery status notification: it stands for printable ASCII (RFC 3461 4.2 and 4.4), and
/// has at most `limit` octets, also as [`encode`] writes it. An `=`, which xtext should encode, is read as itself.
pub fn printable(xtext: &[u8], limit: usize) -> Option<String> {
    if xtext.len() > limit {
        return None;
    }
    let text = text(xtext, limit)?;
    (text.is_ascii() && encoded_octets(&text) <= limit).then_some(text)
}

/// Encodes text as xtext. `None` if the text is empty, outside ASCII or longer than `limit`; the caller then omits the
/// parameter.
pub fn encode(text: &str, limit: usize) -> Option<String> {
    if !text.is_ascii() || text.is_empty() || encoded_octets(text) > limit {
        return None;
    }
    let mut encoded = String::with_capacity(encoded_octets(text));
    for octet in text.bytes() {
        match is_plain(octet) {
            true => encoded.push(octet as char),
            false => {
                // Writing to a String cannot fail.
                let _ = write!(encoded, "+{octet:02X}");
            }
        }
    }
    Some(encoded)
}

fn encoded_octets(text: &str) -> usize {
    let octets = |octet| if is_plain(octet) { 1 } else { "+XX".len() };
    text.bytes().map(octets).sum()
}

/// Whether xtext writes the octet as itself.
fn is_plain(octet: u8) -> bool {
    octet.is_ascii_graphic() && !matches!(octet, b'+' | b'=')
}

fn digit(octet: u8) -> Option<u8> {
    (octet as char)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of Postfix's XCLIENT_README are parsed, and malformed lists are refused.
    #[test]
    fn attribute_lists_are_parsed() {
        let got =
            attributes(b" NAME=spike.porcupine.org ADDR=168.100.189.2 PORT=1").expect("attributes");
        assert_eq!(got.addr, Some(Some("168.100.189.2".to_owned())));
        assert_eq!(got.name, Some(Some("spike.porcupine.org".to_owned())));
        assert_eq!(got.helo, None);
        let got = attributes(b" NAME=[UNAVAILABLE] HELO=a+2Bb").expect("attributes");
        assert_eq!(
            (got.name, got.helo),
            (Some(None), Some(Some("a+b".to_owned())))
        );
        for bad in [
            "",
            " NAME",
            " FROB=1",
            " HELO=a+0D+0Ab",
            " HELO=+4",
            " HELO=+zz",
        ] {
            assert_eq!(attributes(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
