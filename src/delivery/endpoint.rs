//! Where a next hop's servers are: names resolved for each new connection, and which of them failed just now.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustls_pki_types::ServerName;

use crate::deadline::Deadline;

/// Addresses of one name at most; the rest are not tried.
const MAX_RESOLVED: usize = 16;
/// An address that failed is tried after the others for so long, so that not each message pays its connect timeout.
const AVOIDED_FOR: Duration = Duration::from_secs(10);
/// Failed addresses remembered.
const MAX_AVOIDED: usize = 32;

/// One configured address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A name or IP address, and a port.
    Tcp(String, u16),
    /// A unix socket.
    Unix(PathBuf),
}

impl Target {
    /// Reads `host:port`, `[IPv6]:port` or `unix:/path`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Path::new(path);
            return path.is_absolute().then(|| Self::Unix(path.to_owned()));
        }
        let (host, port) = text.rsplit_once(':')?;
        let host = match host.strip_prefix('[') {
            Some(literal) => literal.strip_suffix(']')?,
            None if host.contains(':') => return None,
            None => host,
        };
        let port = port.parse().ok().filter(|port| *port != 0)?;
        (!host.is_empty()).then(|| Self::Tcp(host.to_owned(), port))
    }

    /// The name that a certificate is checked against; none for a unix socket.
    pub fn server_name(&self) -> Option<ServerName<'static>> {
        match self {
            Self::Tcp(host, _) => ServerName::try_from(host.clone()).ok(),
            Self::Unix(_) => None,
        }
    }

    /// All places it stands for now. A name is looked up, an address is itself.
    ///
    /// Cancel safety: safe; the look-up goes on in its thread and its result is dropped.
    pub async fn resolve(&self) -> std::io::Result<Vec<Endpoint>> {
        match self {
            Self::Unix(path) => Ok(vec![Endpoint::Unix(path.clone())]),
            Self::Tcp(host, port) => {
                if let Ok(address) = host.parse::<IpAddr>() {
                    return Ok(vec![Endpoint::Tcp(SocketAddr::new(address, *port))]);
                }
                let found = tokio::net::lookup_host((host.as_str(), *port)).await?;
                Ok(found.take(MAX_RESOLVED).map(Endpoint::Tcp).collect())
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One place to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// The address, unless a unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Whether the peer is this machine, so that what is sent cannot be overheard.
    pub fn is_local(&self) -> bool {
        self.address()
            .is_none_or(|address| address.ip().to_canonical().is_loopback())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Endpoints that failed a moment ago.
#[derive(Debug, Default)]
pub struct Avoided {
    failed: Mutex<Vec<(Endpoint, Deadline)>>,
}

impl Avoided {
    /// Notes a failure.
    pub fn add(&self, endpoint: &Endpoint) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|(at, until)| at != endpoint && !until.passed());
        if failed.len() < MAX_AVOIDED {
            failed.push((endpoint.clone(), Deadline::after(AVOIDED_FOR)));
        }
    }

    /// Whether it failed a moment ago. Such an address is tried after the others, never given up.
    pub fn contains(&self, endpoint: &Endpoint) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failed = failed.iter();
        failed.any(|(at, until)| at == endpoint && !until.passed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The forms that the configuration documents, and nothing that would be guessed at.
    #[test]
    fn addresses_are_read() {
        for (text, shown) in [
            ("mail.example.com:25", Some("mail.example.com:25")),
            ("192.0.2.1:2525", Some("192.0.2.1:2525")),
            ("[2001:db8::1]:25", Some("[2001:db8::1]:25")),
            ("unix:/run/lmtp", Some("unix:/run/lmtp")),
            ("unix:run/lmtp", None),
            ("mail.example.com", None),
            ("2001:db8::1:25", None),
            ("[2001:db8::1:25", None),
            (":25", None),
            ("a:0", None),
            ("a:70000", None),
        ] {
            let target = Target::parse(text).map(|target| target.to_string());
            assert_eq!(target.as_deref(), shown, "{text}");
        }
    }

    /// A failed address is avoided for a while, and then in its old place again.
    #[tokio::test(start_paused = true)]
    async fn failed_addresses_are_avoided_for_a_while() {
        let tcp = |port| Endpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
        let avoided = Avoided::default();
        avoided.add(&tcp(1));
        assert!(avoided.contains(&tcp(1)) && !avoided.contains(&tcp(2)));
        tokio::time::advance(AVOIDED_FOR).await;
        assert!(!avoided.contains(&tcp(1)));
    }
}
