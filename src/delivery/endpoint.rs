//! Addresses of a next hop's servers. Names are resolved for each new connection, and addresses that failed recently
//! are tried last.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustls_pki_types::ServerName;

use crate::deadline::Deadline;

/// Largest number of addresses used of one host name; further addresses are not tried. This bounds the time that one
/// message spends on connection attempts.
const MAX_HOST_ADDRESSES: usize = 16;
/// Time for which an address that failed is tried after the others: 10 s, so that not every message pays its connect
/// timeout.
const ENDPOINT_AVOIDANCE: Duration = Duration::from_secs(10);
/// Largest number of failed addresses in memory.
const MAX_AVOIDED_ENDPOINTS: usize = 32;

/// One configured address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A host name or IP address, and a port.
    Tcp(String, u16),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl Target {
    /// Parses `host:port`, `[IPv6]:port` or `unix:/path`; `None` for any other form.
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

    /// The name that the certificate must match; `None` for a unix socket.
    pub fn server_name(&self) -> Option<ServerName<'static>> {
        match self {
            Self::Tcp(host, _) => ServerName::try_from(host.clone()).ok(),
            Self::Unix(_) => None,
        }
    }

    /// All current endpoints of this address. A host name is looked up; an IP address and a unix socket are used as
    /// they are.
    ///
    /// Cancel safety: safe; the look-up continues in its thread and its result is dropped.
    pub async fn resolve(&self) -> std::io::Result<Vec<Endpoint>> {
        match self {
            Self::Unix(path) => Ok(vec![Endpoint::Unix(path.clone())]),
            Self::Tcp(host, port) => {
                if let Ok(address) = host.parse::<IpAddr>() {
                    return Ok(vec![Endpoint::Tcp(SocketAddr::new(address, *port))]);
                }
                let found = tokio::net::lookup_host((host.as_str(), *port)).await?;
                Ok(found.take(MAX_HOST_ADDRESSES).map(Endpoint::Tcp).collect())
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

/// One endpoint to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// The IP address and port; `None` for a unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Whether the peer is on this machine, so that the connection cannot be intercepted on a network.
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

/// Endpoints that failed recently.
#[derive(Debug, Default)]
pub struct Avoided {
    failed: Mutex<Vec<(Endpoint, Deadline)>>,
}

impl Avoided {
    /// Records a failure.
    pub fn add(&self, endpoint: &Endpoint) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|(at, until)| at != endpoint && !until.passed());
        if failed.len() < MAX_AVOIDED_ENDPOINTS {
            failed.push((endpoint.clone(), Deadline::after(ENDPOINT_AVOIDANCE)));
        }
    }

    /// Whether the endpoint failed recently. Such an endpoint is tried after the others and is never given up.
    pub fn contains(&self, endpoint: &Endpoint) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failed = failed.iter();
        failed.any(|(at, until)| at == endpoint && !until.passed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documented forms are accepted, and ambiguous forms are rejected.
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

    /// A failed address is avoided for a limited time and then returns to its configured place.
    #[tokio::test(start_paused = true)]
    async fn failed_addresses_are_avoided_for_a_while() {
        let tcp = |port| Endpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
        let avoided = Avoided::default();
        avoided.add(&tcp(1));
        assert!(avoided.contains(&tcp(1)) && !avoided.contains(&tcp(2)));
        tokio::time::advance(ENDPOINT_AVOIDANCE).await;
        assert!(!avoided.contains(&tcp(1)));
    }
}
