//! Passing messages to next hops.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::deadline::Deadline;
use crate::message::{Content, Envelope, MessageId};
use crate::smtp::RemoteReply;

/// Settings of one `[[next_hop]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Unique; in logs and metrics.
    pub name: Arc<str>,
    /// Recipient domains it takes, lower case: `example.com`, `.example.com` (all below), `*` (all others).
    pub domains: Vec<String>,
    /// How it is spoken to.
    pub kind: Kind,
    /// First wait after a deferral; doubled each time, with jitter.
    pub retry_first: Duration,
    /// Longest wait between attempts.
    pub retry_max: Duration,
    /// Bounced after so long in the queue.
    pub give_up: Duration,
}

/// How a next hop is spoken to.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// SMTP or LMTP.
    Smtp(SmtpSettings),
    /// One Maildir per recipient below a folder.
    Maildir {
        /// `{domain}` and `{local}` stand for the recipient's; anything unsafe in them is replaced.
        path: String,
    },
}

/// A server that is spoken to over a socket.
#[derive(Debug, Clone, PartialEq)]
pub struct SmtpSettings {
    /// LMTP (RFC 2033) rather than SMTP.
    pub lmtp: bool,
    /// Tried in order: `host:port`, or `unix:/path` for LMTP.
    pub addresses: Vec<String>,
    /// Encryption.
    pub tls: TlsMode,
    /// Extra trusted certificates (PEM) for `verified`; the system's when empty.
    pub tls_ca: Option<PathBuf>,
    /// AUTH user.
    pub username: Option<String>,
    /// File that holds the password alone.
    pub password_file: Option<PathBuf>,
    /// Connections at once at most, idle ones included.
    pub connections: usize,
    /// An idle connection is closed after so long.
    pub idle: Duration,
    /// One connection attempt.
    pub connect_timeout: Duration,
    /// The reply to any command but the last.
    pub command_timeout: Duration,
    /// The reply to end of data (RFC 5321 4.5.3.2.6).
    pub data_timeout: Duration,
    /// What we call ourselves in EHLO; from `relay.hostname`.
    pub hostname: String,
}

/// Encryption towards a next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Never.
    Off,
    /// STARTTLS where offered, any certificate.
    Opportunistic,
    /// STARTTLS or nothing, any certificate.
    Required,
    /// STARTTLS or nothing, certificate checked against the host's name.
    Verified,
}

/// What is to be delivered.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// For logs.
    pub id: MessageId,
    /// Reverse-path, parameters, and the recipients of this delivery.
    pub envelope: Arc<Envelope>,
    /// Header fields we put before the content, each with its CRLF.
    pub prefix: Bytes,
    /// The content as received.
    pub content: Content,
}

/// What became of one recipient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The next hop took responsibility.
    Delivered(Answer),
    /// Not now: 4yz, no connection, time ran out.
    Deferred(Answer),
    /// Never: 5yz, no route.
    Failed(Answer),
}

/// Who said what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The next hop's name; empty where there is no route.
    pub next_hop: Arc<str>,
    /// The server we spoke to, if we came so far.
    pub server: Option<SocketAddr>,
    /// What it said.
    pub reply: Option<RemoteReply>,
    /// One line for people: the reply with its stage, or what went wrong without one.
    pub text: String,
}

/// All next hops, with their pools.
#[derive(Debug, Clone)]
pub struct Delivery {}

impl Delivery {
    /// Delivers to all recipients, every next hop at once; one outcome per recipient in their order. At the deadline
    /// what is undecided is [`Outcome::Deferred`].
    pub async fn deliver(&self, mail: &Outbound, deadline: Deadline) -> Vec<Outcome> {
        unimplemented!("{mail:?} {deadline:?}")
    }

    /// The settings of the next hop for a recipient's domain.
    pub fn route(&self, domain: &str) -> Option<&Settings> {
        unimplemented!("{domain}")
    }
}
