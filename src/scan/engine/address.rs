//! Where an engine listens, and the way there.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::{BuildError, ScanError};
use crate::deadline::Deadline;
use crate::trust;

/// Where an engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `host:port`, resolved at each connection.
    Tcp(String),
    /// Path of the socket.
    Unix(PathBuf),
    /// Already resolved.
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

/// TLS towards an engine: the certificate is always checked, as scanned mail is worth protecting from listeners in the
/// middle too.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// Authorities in PEM; none: the system's.
    pub ca: Option<PathBuf>,
}

/// A connection: TCP, unix socket, or TLS over one of them.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl fmt::Debug for dyn Duplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a connection")
    }
}

/// A fresh connection. Dropping it closes the socket.
pub(super) type Stream = Box<dyn Duplex>;

/// How one replica is connected to.
pub(super) struct Dial {
    address: Address,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// One connection attempt, TLS handshake included.
    timeout: Duration,
    /// For reports.
    name: String,
}

impl Dial {
    /// Nothing is connected yet. Blocks on the files of certificates: for start and reload.
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

    /// The replica's name in reports.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A fresh connection within the allowance for one, at most until the deadline.
    ///
    /// Cancel safety: safe; a dropped attempt leaves nothing open.
    pub(super) async fn connect(&self, deadline: Deadline) -> Result<Stream, ScanError> {
        let why = match deadline.within(self.timeout).run(self.open()).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(cause)) => cause.to_string(),
            Err(_) => format!("not within {} ms", self.timeout.as_millis()),
        };
        Err(ScanError::Unreachable(format!("{}: {why}", self.name)))
    }

    async fn open(&self) -> io::Result<Stream> {
        let plain: Stream = match &self.address {
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Address::Tcp(name) => Box::new(undelayed(TcpStream::connect(name).await?)?),
            Address::Socket(at) => Box::new(undelayed(TcpStream::connect(at).await?)?),
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

/// The host of an address; none for a unix socket.
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

/// Requests and answers are written whole; there is nothing to wait for.
fn undelayed(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    Ok(stream)
}
