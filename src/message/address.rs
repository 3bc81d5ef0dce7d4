//! Mailboxes and the null reverse-path.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A mailbox as given in MAIL or RCPT, without angle brackets: `local-part@domain`, or the bare `postmaster` of RFC 5321
/// 4.5.1.
///
/// Stored as received, because only its own domain may interpret the local-part (RFC 5321 2.4). [`Mailbox::parse`] enforces at
/// most 254 octets (RFC 5321 4.5.3.1.3, without the brackets) and no control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mailbox(Box<str>);

/// Why a text is not a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAMailbox {
    /// The local-part has more than 64 octets, or the mailbox more than 254.
    #[error("the address is longer than RFC 5321 allows")]
    TooLong,
    /// The local-part or the domain is missing, or a character is not allowed in addresses.
    #[error("the address is not of the form local-part@domain")]
    Syntax,
}

impl Mailbox {
    /// Checks the length and the characters that could break a header, a log line or an SMTP command.
    pub fn parse(text: &str) -> Result<Self, NotAMailbox> {
        if text.len() > 254 {
            return Err(NotAMailbox::TooLong);
        }
        let forbidden = |c: char| c.is_control() || c == '<' || c == '>';
        if text.is_empty() || text.chars().any(forbidden) {
            return Err(NotAMailbox::Syntax);
        }
        if text.eq_ignore_ascii_case("postmaster") {
            return Ok(Self(text.into()));
        }
        let (local, domain) = text.rsplit_once('@').ok_or(NotAMailbox::Syntax)?;
        let quoted = local.len() >= 2 && local.starts_with('"') && local.ends_with('"');
        let loose = |c: char| matches!(c, ' ' | '"' | ',' | ';' | '@');
        if local.is_empty() || domain.is_empty() || (!quoted && local.chars().any(loose)) {
            return Err(NotAMailbox::Syntax);
        }
        if domain.contains(|c: char| c.is_whitespace() || c == '"' || c == '@' || c == ',') {
            return Err(NotAMailbox::Syntax);
        }
        if local.len() > 64 {
            return Err(NotAMailbox::TooLong);
        }
        Ok(Self(text.into()))
    }

    /// The whole mailbox.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the last `@`.
    pub fn local_part(&self) -> &str {
        self.0.rsplit_once('@').map_or(&*self.0, |(local, _)| local)
    }

    /// The part after the last `@`; empty for the bare `postmaster`.
    pub fn domain(&self) -> &str {
        self.0.rsplit_once('@').map_or("", |(_, domain)| domain)
    }

    /// The mailbox with a domain: the bare `postmaster` gets `hostname`, the name of the server that received it. Some readers
    /// of an address do not accept an address without a domain.
    pub fn qualified(&self, hostname: &str) -> Cow<'_, str> {
        match self.domain() {
            "" => Cow::Owned(format!("{}@{hostname}", self.0)),
            _ => Cow::Borrowed(&self.0),
        }
    }

    /// Whether the address needs SMTPUTF8 (RFC 6531).
    pub fn is_internationalized(&self) -> bool {
        !self.0.is_ascii()
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The argument of MAIL: a mailbox, or `<>`, which must never get a bounce (RFC 5321 4.5.5).
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReversePath(Option<Mailbox>);

impl ReversePath {
    /// The null reverse-path.
    pub const NULL: Self = Self(None);

    /// The mailbox, unless null.
    pub fn mailbox(&self) -> Option<&Mailbox> {
        self.0.as_ref()
    }

    /// Whether this is `<>`.
    pub fn is_null(&self) -> bool {
        self.0.is_none()
    }

    /// Like [`Mailbox::qualified`]; empty for `<>`.
    pub fn qualified(&self, hostname: &str) -> Cow<'_, str> {
        let mailbox = self.0.as_ref();
        mailbox.map_or(Cow::Borrowed(""), |mailbox| mailbox.qualified(hostname))
    }

    /// The mailbox; empty for `<>`.
    pub fn as_str(&self) -> &str {
        self.0.as_ref().map_or("", Mailbox::as_str)
    }
}

impl From<Mailbox> for ReversePath {
    fn from(mailbox: Mailbox) -> Self {
        Self(Some(mailbox))
    }
}

impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.as_str())
    }
}

impl fmt::Debug for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bare postmaster gets a domain, because rspamd would take a message with a bare address for a malformed one. The null
    /// reverse-path does not change.
    #[test]
    fn only_the_bare_postmaster_gets_a_domain() {
        let qualified = |text: &str| {
            let mailbox = Mailbox::parse(text).expect(text);
            mailbox.qualified("relay.test").into_owned()
        };
        assert_eq!(qualified("Postmaster"), "Postmaster@relay.test");
        assert_eq!(qualified("postmaster@b.test"), "postmaster@b.test");
        assert_eq!(ReversePath::NULL.qualified("relay.test"), "");
    }

    /// An address is part of commands, headers and log lines. No address contains a character that could end one of those.
    #[test]
    fn an_address_cannot_end_a_line() {
        for (text, why) in [
            ("", "empty"),
            ("a", "no domain"),
            ("@b.example", "no local-part"),
            ("a@", "empty domain"),
            ("a\r\nRCPT TO:<x@y>@b.example", "line break"),
            ("a b@c.example", "space outside quotes"),
            ("a@b@c.example", "readers differ about its domain"),
            ("a@b c.example", "space in the domain"),
            ("a>@b.example", "closing bracket"),
        ] {
            assert!(Mailbox::parse(text).is_err(), "{text:?}: {why}");
        }
        let long = format!("{}@b.example", "a".repeat(65));
        assert_eq!(Mailbox::parse(&long), Err(NotAMailbox::TooLong));
    }

    /// A mailbox that RFC 5321 allows is stored letter by letter.
    #[test]
    fn allowed_addresses_are_kept_as_received() {
        for text in [
            "Joe.Bloggs+tag@Example.ORG",
            "\"john doe\"@example.org",
            "postmaster",
            "user@[192.0.2.1]",
            "пример@пример.example",
        ] {
            assert_eq!(Mailbox::parse(text).expect(text).as_str(), text);
        }
    }
}
