//! Sessions: accepted, bounded, led through the protocol, ended.
//!
//! One task per session. It owns the socket and the machine of [`crate::smtp::transaction`], hands each complete
//! message to the pipeline, and writes the one [`crate::smtp::Reply`] that comes back. Everything a client can make us
//! hold or wait for has a limit in [`Limits`].

mod accept;
mod admission;
mod admit;
mod auth;
pub mod descriptors;
mod peer;
mod proxy;
mod receive;
mod session;
mod tls;
mod trace;
pub mod users;
mod wire;

pub use crate::pipeline::Mode;
pub use accept::{Listener, ListenerError, Prepared, Sessions, Shared};
pub use admit::{Admission, Load};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

/// Settings of one `[[listener]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Unique; in logs, rules, metrics.
    pub name: Arc<str>,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    /// When the sender is answered.
    pub mode: Mode,
    /// Encryption.
    pub tls: Tls,
    /// Certificate chain and key (PEM); both or neither.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Certificates of authorities (PEM) whose client certificates may relay.
    pub client_ca: Option<PathBuf>,
    /// Networks that may relay.
    pub relay_networks: Vec<IpNet>,
    /// File of users who may relay after AUTH (over TLS only), as written by `spillway user add`.
    pub users_file: Option<PathBuf>,
    /// Peers whose XCLIENT is believed.
    pub xclient_from: Vec<IpNet>,
    /// Peers whose XFORWARD is believed.
    pub xforward_from: Vec<IpNet>,
    /// Peers that must begin with a PROXY protocol header (v1 or v2).
    pub proxy_from: Vec<IpNet>,
    /// What happens to a bare CR or LF in content.
    pub line_endings: LineEndings,
}

/// Encryption of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// None.
    Off,
    /// STARTTLS is offered.
    StartTls,
    /// STARTTLS is offered, and MAIL refused without it.
    Required,
    /// TLS from the first octet.
    Implicit,
}

/// What happens to a bare CR or LF in content; either way only CRLF.CRLF ends a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineEndings {
    /// The message is refused with 550 5.6.0... after its true end.
    Refuse,
    /// Each becomes CRLF.
    Normalise,
}

/// Settings of `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at once, on all listeners.
    pub sessions: usize,
    /// Sessions at once of one client address.
    pub sessions_per_client: usize,
    /// Recipients of one transaction (RFC 5321 4.5.3.1.8 asks for 100 at least).
    pub recipients: usize,
    /// Octets of content; announced with SIZE.
    pub message_size: u64,
    /// Commands of one session.
    pub commands: usize,
    /// Error replies in one session before it is closed.
    pub errors: usize,
    /// Octets of a command line, CRLF included.
    pub command_line: usize,
    /// `Received` fields from which a message is in a loop (RFC 5321 6.3 asks for 100 at least).
    pub hops: usize,
    /// Memory of all messages in flight.
    pub in_flight_bytes: u64,
    /// Accepted mail that is not judged yet is bounded by what can be judged in this time, at the best rate of the last
    /// ten minutes.
    pub backlog: Duration,
    /// Wait for the next command.
    pub idle: Duration,
    /// Wait for more octets while content is coming in.
    pub data_idle: Duration,
    /// From DATA (or the first BDAT) to end of data at most.
    pub data_total: Duration,
    /// Octets per second of content at least, averaged since DATA or the first BDAT, judged from 30 seconds on.
    pub data_rate: u64,
    /// A whole session at most.
    pub session_total: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 20_000,
            sessions_per_client: 2_000,
            recipients: 1_000,
            message_size: 50 << 20,
            commands: 100_000,
            errors: 20,
            command_line: 4096,
            hops: 100,
            in_flight_bytes: 512 << 20,
            backlog: Duration::from_secs(600),
            idle: Duration::from_secs(300),
            data_idle: Duration::from_secs(180),
            data_total: Duration::from_secs(1200),
            data_rate: 256,
            session_total: Duration::from_secs(86_400),
        }
    }
}
