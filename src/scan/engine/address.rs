//! Addresses of engines, and connections to them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::{BuildError, ScanError};
use crate::deadline::Deadline;
use crate::trust;

/// A connection that has been idle for this long is checked with keepalive.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// Interval between keepalive packets that get no answer.
const KEEPALIVE_PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Keepalive packets without an answer after which the host counts as vanished: 25 s after it did.
const KEEPALIVE_PROBES: u32 = 3;
/// Age of sent data that the host has not acknowledged, after which the host counts as vanished. Keepalive does not run while
/// data is on its way (RFC 5482).
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// The address at which an engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `host:port`. Each connection resolves the name again.
    Tcp(String),
    /// Path of a unix socket.
    Unix(PathBuf),
    /// IP address and port.
    Socket(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Socket(address) => address.fmt(f),
        }
    }
}

/// TLS for connections to an engine. The relay always verifies the certificate: scanned mail is confidential, and without
/// verification a man in the middle could read the mail.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// File with certificate authorities in PEM; `None`: the authorities of the system.
    pub ca: Option<PathBuf>,
}

/// A connection over TCP or a unix socket, with or without TLS.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl fmt::Debug for dyn Duplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a connection")
    }
}

/// A new connection. Dropping the value closes the socket.
pub(super) type Stream = Box<dyn Duplex>;

/// Opens connections to one replica.
pub(super) struct Dial {
    address: Address,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// Limit for one connection attempt, including the TLS handshake.
    timeout: Duration,
    /// The address as text, for reports.
    name: String,
}

impl Dial {
    /// Opens no connection. Blocks while it reads certificate files, so only the start and a reload may call it.
    ///
    /// # Errors
    /// [`BuildError::NoPort`] for an address without a port; with TLS, [`BuildError::NoNameToVerify`] for an address without
    /// a usable host name, and [`BuildError::Trust`] if the certificate authorities cannot be loaded.
    pub(super) fn new(
        address: &Address,
        tls: Option<&Tls>,
        timeout: Duration,
    ) -> Result<Self, BuildError> {
        let host = host(address)?;
        let tls = match tls {
            None => None,
            Some(tls) => {
                let name = host.and_then(|host| ServerName::try_from(host).ok());
                let name = name.ok_or_else(|| BuildError::NoNameToVerify(address.to_string()))?;
                Some((trust::verified(tls.ca.as_deref())?, name))
            }
        };
        Ok(Self {
            address: address.clone(),
            tls,
            timeout,
            name: address.to_string(),
        })
    }

    /// The name of the replica in reports: its address.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Opens a connection within the connection timeout, and at the latest until the deadline.
    ///
    /// # Errors
    /// [`ScanError::Unreachable`], with the address and the cause.
    ///
    /// Cancel safety: safe; dropping the future closes a socket that is being connected.
    pub(super) async fn connect(&self, deadline: Deadline) -> Result<Stream, ScanError> {
        let why = match deadline.within(self.timeout).run(self.open()).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(cause)) => cause.to_string(),
            Err(_) => format!("no connection within {} ms", self.timeout.as_millis()),
        };
        Err(ScanError::Unreachable(format!("{}: {why}", self.name)))
    }

    async fn open(&self) -> io::Result<Stream> {
        let plain: Stream = match &self.address {
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Address::Tcp(name) => Box::new(tuned(TcpStream::connect(name).await?)?),
            Address::Socket(at) => Box::new(tuned(TcpStream::connect(at).await?)?),
        };
        match &self.tls {
            None => Ok(plain),
            Some((connector, name)) => Ok(Box::new(connector.connect(name.clone(), plain).await?)),
        }
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dial").field(&self.name).finish()
    }
}

/// The host of an address; `None` for a unix socket.
fn host(address: &Address) -> Result<Option<String>, BuildError> {
    match address {
        Address::Unix(_) => Ok(None),
        Address::Socket(address) => Ok(Some(address.ip().to_string())),
        Address::Tcp(text) => match text.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() => Ok(Some(host.to_owned())),
            _ => Err(BuildError::NoPort(text.clone())),
        },
    }
}

/// Sets the options of a connection. Disables Nagle's algorithm: requests are written whole, so waiting for more octets only
/// adds delay. Keepalive ends the connection to a host that has vanished: without it, each scan that was on that host would keep
/// its slot until the engine's limit. A host that runs answers keepalive whatever its engine does, so a hanging engine keeps its
/// connections.
fn tuned(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_PROBE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// M1: the scans on a host that has vanished end long before the engine's limit of 150 s, so their slots are free again.
    #[tokio::test]
    async fn a_connection_notices_a_vanished_host() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let stream = TcpStream::connect(address).await.expect("a connection");
        let stream = tuned(stream).expect("options");
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().expect("keepalive"));
        assert_eq!(socket.tcp_keepalive_time().expect("time"), KEEPALIVE_IDLE);
        let interval = socket.tcp_keepalive_interval().expect("interval");
        let noticed = KEEPALIVE_IDLE + interval * socket.tcp_keepalive_retries().expect("retries");
        assert_eq!(noticed, Duration::from_secs(25));
        let unacknowledged = socket.tcp_user_timeout().expect("user timeout");
        assert_eq!(unacknowledged, Some(UNACKNOWLEDGED_MAX));
    }
}
