//! The extensions that a server offers.

use crate::smtp::RemoteReply;
use crate::smtp::reply_parser::RawReply;

/// The extensions of an EHLO or LHLO reply that the client uses.
///
/// A line that cannot be parsed is an extension that the client does not use, and never an error. Otherwise a faulty
/// FUTURERELEASE line, for example, would keep all mail from that server. (smtp-proto's parser rejects the whole reply for
/// such a line.)
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// SIZE (RFC 1870); 0 if the server announces no limit.
    pub size: Option<u64>,
    /// 8BITMIME (RFC 6152).
    pub eight_bit_mime: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// DSN (RFC 3461).
    pub dsn: bool,
    /// STARTTLS (RFC 3207).
    pub starttls: bool,
    /// AUTH PLAIN (RFC 4616).
    pub auth_plain: bool,
    /// AUTH LOGIN.
    pub auth_login: bool,
    /// The reply that refused EHLO, if HELO opened the session. Such a session has no extensions, which does not say that the
    /// server has none: a server under stress, or one of several behind a name, may refuse a single EHLO (RFC 5321 3.2).
    pub ehlo_refused: Option<RemoteReply>,
}

impl Capabilities {
    /// Parses the lines after the first.
    pub fn from_ehlo(reply: &RawReply<'_>) -> Self {
        let mut offered = Self::default();
        for line in reply.texts().skip(1) {
            let Ok(line) = std::str::from_utf8(line) else {
                continue;
            };
            // Some old servers write "AUTH=LOGIN".
            let mut words = line.split([' ', '=']).filter(|word| !word.is_empty());
            let Some(keyword) = words.next() else {
                continue;
            };
            match keyword.to_ascii_uppercase().as_str() {
                "PIPELINING" => offered.pipelining = true,
                "SIZE" => offered.size = Some(words.next().map_or(0, |n| n.parse().unwrap_or(0))),
                "8BITMIME" => offered.eight_bit_mime = true,
                "SMTPUTF8" => offered.smtputf8 = true,
                "DSN" => offered.dsn = true,
                "STARTTLS" => offered.starttls = true,
                "AUTH" => {
                    for mechanism in words {
                        offered.auth_plain |= mechanism.eq_ignore_ascii_case("PLAIN");
                        offered.auth_login |= mechanism.eq_ignore_ascii_case("LOGIN");
                    }
                }
                _ => {}
            }
        }
        offered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keywords are parsed in any case and order. Unknown and invalid lines are ignored.
    #[test]
    fn keywords_are_parsed_and_other_lines_ignored() {
        let text = b"250-DSN is my name\r\n250-pipelining\r\n250-SIZE 1000\r\n250-AUTH=LOGIN\r\n250-AUTH gssapi plain\r\n\
            250-FUTURERELEASE later maybe\r\n250-\xff\r\n250-\r\n250 8BITMIME\r\n";
        let reply = RawReply::parse(text).expect("reply").expect("whole");
        assert_eq!(
            Capabilities::from_ehlo(&reply),
            Capabilities {
                pipelining: true,
                size: Some(1000),
                eight_bit_mime: true,
                auth_plain: true,
                auth_login: true,
                ..Capabilities::default()
            },
            "the first line holds a name, not an extension"
        );
    }
}
