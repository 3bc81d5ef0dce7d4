//! Mailboxes and the null reverse-path.

mod grammar;

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use grammar::{MAILBOX_OCTETS_MAX, is_domain};

/// A mailbox as given in MAIL or RCPT, without angle brackets: `local-part@domain`, or the bare `postmaster` of RFC 5321
/// 4.5.1.
///
/// Stored as received, because only its own domain may interpret the local-part (RFC 5321 2.4). A mailbox of [`Mailbox::parse`]
/// follows the grammar of `address/grammar.rs`: at most [`MAILBOX_OCTETS_MAX`] octets, no control characters, and `<`, `>`, white
/// space, `,` and a further `@` only in a quoted local-part.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mailbox(Box<str>);

/// Why a text is not a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAMailbox {
    /// The mailbox has more than [`MAILBOX_OCTETS_MAX`] octets, or its domain more than 255 (RFC 5321 4.5.3.1.2).
    #[error("the address has more than {MAILBOX_OCTETS_MAX} octets, or its domain more than 255")]
    TooLong,
    /// The local-part or the domain is missing or malformed, or readers differ about what it is.
    #[error("the address is not of the form local-part@domain")]
    Syntax,
}

impl Mailbox {
    /// Checks the text against the grammar. No text of a mailbox can end a command, a header field or a log line.
    pub fn parse(text: &str) -> Result<Self, NotAMailbox> {
        if !text.eq_ignore_ascii_case("postmaster") {
            grammar::check(text)?;
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

    /// An address is part of commands, headers and log lines: what could end one of those, or is read differently by different
    /// readers, is no mailbox.
    #[test]
    fn what_could_end_a_line_or_be_read_differently_is_no_mailbox() {
        for (text, why) in [
            ("", "empty"),
            ("a", "no domain"),
            ("@b.example", "no local-part"),
            ("a@", "empty domain"),
            ("a\r\nRCPT TO:<x@y>@b.example", "line break"),
            ("\"a\r\nb\"@b.example", "line break in quotes"),
            ("\"a\tb\"@b.example", "control in quotes"),
            ("a\u{7f}@b.example", "control"),
            ("\"a\u{7f}\"@b.example", "control in quotes"),
            ("a b@c.example", "space outside quotes"),
            ("a@b@c.example", "readers differ about its domain"),
            ("\"a\".b@c.example", "readers differ about the quotes"),
            ("a\"b\"@c.example", "readers differ about the quotes"),
            ("\"a@b.example", "an open quote"),
            ("\"a\\\"@b.example", "an open quote"),
            ("\"a\\\u{fc}\"@b.example", "a quoted pair outside ASCII"),
            ("a\\@b.example", "backslash outside quotes"),
            ("(a)@b.example", "comment"),
            ("a@b(c)", "comment in the domain"),
            ("a@b c.example", "space in the domain"),
            ("a>@b.example", "closing bracket"),
            ("a@b|c", "no domain"),
            ("a@-b", "no label"),
            ("a@b-.c", "no label"),
            ("a@%41", "no domain"),
            ("a@b..c", "empty label"),
            ("a@.b", "empty label"),
            ("a@.", "empty label"),
            ("a@b..", "empty label"),
            (
                &format!("a@{}", "b".repeat(64)),
                "a label of no name server",
            ),
            (
                &format!("a@{}.example", "é".repeat(60)),
                "a label of no name server, as A-label",
            ),
            ("a@192.0.2.1", "an address without brackets"),
            ("a@1", "no top-level domain"),
            ("a@[1.2.3.4", "open literal"),
            ("a@[1.2.3.4]x", "text after the literal"),
            ("a@[1.2.3]", "no IPv4 address"),
            ("a@[01.2.3.4]", "octal or decimal"),
            ("a@[IPv6:zz]", "no IPv6 address"),
            ("a@[IPv6:fe80::1%eth0]", "a zone of this machine"),
            ("a@[::1]", "no tag"),
            ("a@[x-tag:y]", "no registered tag"),
            ("a\u{85}@b.example", "control outside ASCII"),
            ("a\u{2028}@b.example", "line separator"),
            ("\"a\u{3000}b\"@c.example", "white space outside ASCII"),
            ("a\u{202e}@b.example", "order of display"),
            ("a@b\u{3002}example", "a dot for readers that map"),
            ("a@b\u{ad}.example", "nothing for readers that map"),
        ] {
            assert_eq!(
                Mailbox::parse(text),
                Err(NotAMailbox::Syntax),
                "{text:?}: {why}"
            );
        }
    }

    /// The limit is that of the whole mailbox, which must fit into a command of 512 octets (RFC 5321 4.5.3.1.4); local-parts over
    /// 64 octets are in use, and a domain has its own limit.
    #[test]
    fn a_mailbox_fits_into_a_command() {
        let of = |local: usize, domain: usize| {
            let domain = "d.".repeat(domain / 2) + &"d".repeat(domain % 2);
            let text = format!("{}@{domain}", "l".repeat(local));
            Mailbox::parse(&text).map(|mailbox| format!("MAIL FROM:<{mailbox}>\r\n").len())
        };
        assert_eq!(of(70, 3), Ok(88));
        assert_eq!(of(494, 3), Ok(512));
        assert_eq!(of(495, 3), Err(NotAMailbox::TooLong));
        assert_eq!(of(1, 255), Ok(271));
        assert_eq!(of(1, 256), Err(NotAMailbox::TooLong));
    }

    /// A mailbox that every reader reads in the same way is stored letter by letter.
    #[test]
    fn unambiguous_addresses_are_kept_as_received() {
        for text in [
            "Joe.Bloggs+tag@Example.ORG",
            "!#$%&'*+-/=?^_`{|}~@example.org",
            "a..b@example.org",
            ".a.@example.org",
            "\"john doe\"@example.org",
            "\"\"@example.org",
            "\"<a>@,;:()[]\"@example.org",
            "\"a\\\"b\\\\\"@example.org",
            "\"\u{fc} \u{fc}\"@example.org",
            "postmaster",
            "user@[192.0.2.1]",
            "user@[IPv6:2001:db8::1]",
            "user@[ipv6:::ffff:192.0.2.1]",
            "user@_dmarc.example.org",
            &format!("user@{}.example.org", "b".repeat(63)),
            &format!("user@{}.example.org", "\u{fc}".repeat(40)),
            "user@example.org.",
            "user@host",
            "пример@пример.example",
            "a@\u{915}\u{94d}\u{200d}\u{937}.example",
        ] {
            let mailbox = Mailbox::parse(text).expect(text);
            assert_eq!(mailbox.as_str(), text);
            let whole = format!("{}@{}", mailbox.local_part(), mailbox.domain());
            assert!(text == "postmaster" || whole == text, "{text}: {whole}");
        }
    }
}
