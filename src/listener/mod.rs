//! The listeners accept SMTP sessions, limit them, and run the protocol of each.
//!
//! Each session is one task. The task owns the socket and the state machine of [`crate::smtp::transaction`], passes each
//! complete message to the pipeline, and writes the one [`crate::smtp::Reply`] that the pipeline returns. [`Limits`]
//! bounds all memory and all time that a client can use.

mod accept;
mod admission;
mod context;
mod counts;
pub mod descriptors;
mod refusals;
mod session;
mod session_limits;
mod tls;
pub mod users;

pub use crate::pipeline::Mode;
pub use accept::{Listener, ListenerError, Prepared};
pub use admission::{Admission, Load};
pub use context::Shared;
pub use session_limits::Sessions;
pub use tls::{TlsError, check_certificate_files};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

/// Settings of one `[[listener]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Unique name, used in logs, rules and metrics.
    pub name: Arc<str>,
    /// Addresses on which the listener accepts connections.
    pub addresses: Vec<SocketAddr>,
    /// Whether the sender is answered after scan and delivery, or as soon as the message is stored.
    pub mode: Mode,
    /// Encryption mode.
    pub tls: Tls,
    /// Files of the certificate chain and of the key (PEM).
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// File of CA certificates (PEM). A client with a certificate from one of these CAs may relay.
    pub client_ca: Option<PathBuf>,
    /// Networks whose clients may relay.
    pub relay_networks: Vec<IpNet>,
    /// File of users who may relay after AUTH (over TLS only), as written by `spillway user add`.
    pub users_file: Option<PathBuf>,
    /// Peers that may send XCLIENT.
    pub xclient_from: Vec<IpNet>,
    /// Peers that may send XFORWARD.
    pub xforward_from: Vec<IpNet>,
    /// Peers that must send a PROXY protocol header (version 1 or 2) first.
    pub proxy_from: Vec<IpNet>,
    /// Treatment of a bare CR or LF in content.
    pub line_endings: LineEndings,
}

/// Encryption mode of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// No TLS.
    Off,
    /// The listener offers STARTTLS.
    StartTls,
    /// The listener offers STARTTLS, and refuses MAIL without TLS.
    Required,
    /// TLS from the first octet.
    Implicit,
}

/// Treatment of a bare CR or LF in content. In both cases only CRLF.CRLF ends a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineEndings {
    /// The relay refuses the message with 554 5.6.0 after its true end.
    Refuse,
    /// The relay replaces each bare CR or LF by CRLF.
    Normalise,
}

/// Settings of `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest number of concurrent sessions on all listeners together.
    pub sessions: usize,
    /// Largest number of concurrent sessions of one client address.
    pub sessions_per_client: usize,
    /// Largest number of recipients of one transaction (RFC 5321 4.5.3.1.8 asks for at least 100).
    pub recipients: usize,
    /// Largest content in octets, announced with SIZE.
    pub message_size: u64,
    /// Largest number of commands in one session.
    pub commands: usize,
    /// Largest number of error replies (5yz) in one session; a further one closes the session.
    pub errors: usize,
    /// Longest command line in octets, including CRLF.
    pub command_line: usize,
    /// Number of `Received` fields from which a message counts as looping (RFC 5321 6.3 asks for at least 100).
    pub hops: usize,
    /// Largest memory in octets of all messages in flight together.
    pub in_flight_bytes: u64,
    /// Limit of the accepted mail that has no verdict yet: the amount that the relay can judge in this time, at the best
    /// rate of the last ten minutes.
    pub backlog: Duration,
    /// Timeout for the next command.
    pub idle: Duration,
    /// Timeout for further octets while content arrives.
    pub data_idle: Duration,
    /// Longest time from DATA (or the first BDAT) to the end of data.
    pub data_total: Duration,
    /// Lowest rate of content in octets a second, averaged since DATA or the first BDAT, and checked from 30 s on.
    pub data_rate: u64,
    /// Longest duration of a session.
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
