//! Parses the attribute lists of XCLIENT and XFORWARD, whose values are xtext (RFC 3461 4).

use std::net::IpAddr;

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
    let text = std::str::from_utf8(list).ok()?;
    let mut attributes = Attributes::default();
    let mut any = false;
    for attribute in text.split_ascii_whitespace() {
        let (name, value) = attribute.split_once('=')?;
        let value = decode(value)?;
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

/// Decodes xtext, in which `+XX` is an octet in hexadecimal. `None` if the text is malformed, not UTF-8, longer than 255
/// octets, or contains control characters.
fn decode(text: &str) -> Option<String> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(octet) = rest.next() {
        if octet == b'+' {
            let high = (rest.next()? as char).to_digit(16)?;
            let low = (rest.next()? as char).to_digit(16)?;
            octets.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            octets.push(octet);
        }
    }
    let value = String::from_utf8(octets).ok()?;
    (value.len() <= 255 && !value.chars().any(char::is_control)).then_some(value)
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
