//! URLs of services: a scheme, a host, an optional port, and a path.

use std::fmt;

use super::Address;

/// `http://host:port/path`, without user, password or fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    host: String,
    port: u16,
    /// Host and port, without a port that is the scheme's default.
    authority: String,
    path: String,
}

/// A scheme: its name, whether it uses TLS, and its default port.
pub type Scheme = (&'static str, bool, u16);
/// The schemes of a protocol: in the clear, and over TLS.
pub type Schemes = [Scheme; 2];

/// HTTP in the clear and over TLS (RFC 9110 4.2).
pub const HTTP: Schemes = [("http", false, 80), ("https", true, 443)];

/// ICAP in the clear and over TLS (RFC 3507 4.2; the port of icaps is custom).
pub const ICAP: Schemes = [("icap", false, 1344), ("icaps", true, 11344)];

/// The text is not a URL with one of the schemes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a URL")]
pub struct NotAUrl;

impl Url {
    /// Reads a URL with one of these schemes.
    pub fn parse(text: &str, schemes: &Schemes) -> Result<Self, NotAUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(NotAUrl)?;
        let known = schemes.iter().find(|(name, ..)| *name == scheme);
        let (_, _, usual) = known.ok_or(NotAUrl)?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        // A request line holds no other characters, and a fragment is not sent in a request.
        if !path.bytes().all(|b| b.is_ascii_graphic()) || path.contains('#') {
            return Err(NotAUrl);
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| NotAUrl)?)
            }
            _ => (authority, *usual),
        };
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let is_host = match bare {
            Some(literal) => literal.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
                !host.is_empty() && host.len() <= 253 && host.bytes().all(allowed)
            }
        };
        if !is_host || port == 0 {
            return Err(NotAUrl);
        }
        let authority = match port == *usual {
            true => host.to_owned(),
            false => format!("{host}:{port}"),
        };
        Ok(Self {
            scheme: scheme.to_owned(),
            host: host.to_owned(),
            port,
            authority,
            path: path.to_owned(),
        })
    }

    /// Address of the server.
    pub fn address(&self) -> Address {
        let text = format!("{}:{}", self.host, self.port);
        match text.parse() {
            Ok(address) => Address::Socket(address),
            Err(_) => Address::Tcp(text),
        }
    }

    /// Whether the scheme is the one of `schemes` that uses TLS.
    pub fn is_tls(&self, schemes: &Schemes) -> bool {
        schemes
            .iter()
            .any(|(name, tls, _)| *tls && *name == self.scheme)
    }

    /// Whether the host is this machine for certain. Names are not looked up; of names, only `localhost` counts.
    pub fn is_loopback(&self) -> bool {
        match self.address() {
            Address::Socket(address) => address.ip().to_canonical().is_loopback(),
            _ => self.host == "localhost",
        }
    }

    /// Host and port as in a Host field (RFC 9110 section 7.2), without a default port.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Path and query, at least `/`.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A URL that is read has one meaning. A text that could have another meaning is refused.
    #[test]
    fn a_url_means_one_place() {
        for (text, address, authority, path) in [
            ("http://h.example", "h.example:80", "h.example", "/"),
            (
                "https://h.example:443/a/b?c=d",
                "h.example:443",
                "h.example",
                "/a/b?c=d",
            ),
            (
                "http://h.example:443/",
                "h.example:443",
                "h.example:443",
                "/",
            ),
            (
                "http://127.0.0.1:11333/",
                "127.0.0.1:11333",
                "127.0.0.1:11333",
                "/",
            ),
            ("http://[::1]:8080/x", "[::1]:8080", "[::1]:8080", "/x"),
            (
                "https://[2001:db8::1]",
                "[2001:db8::1]:443",
                "[2001:db8::1]",
                "/",
            ),
        ] {
            let url = Url::parse(text, &HTTP).expect(text);
            assert_eq!(url.address().to_string(), address);
            assert_eq!((url.path(), url.authority()), (path, authority));
        }
        for text in [
            "h.example:80",
            "ftp://h.example",
            "http://",
            "http:///x",
            "http://user@h.example/",
            "http://h.example:0/",
            "http://h.example:70000/",
            "http://h.example/a b",
            "http://h.example/a\r\nX: y",
            "http://h.example/#x",
            "http://[::g]/",
        ] {
            assert_eq!(Url::parse(text, &HTTP), Err(NotAUrl), "{text:?}");
        }
    }
}
