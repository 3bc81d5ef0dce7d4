//! Settings of the next hops, and the reasons why next hops cannot be set up with them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Settings of one `[[next_hop]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Unique name, used in logs and metrics.
    pub name: Arc<str>,
    /// Recipient domains of this next hop, in lower case: `example.com`, `.example.com` (all subdomains), `*` (all
    /// others).
    pub domains: Vec<String>,
    /// Protocol of this next hop.
    pub kind: Kind,
    /// Wait after the first deferral. The wait doubles with each further deferral and has jitter.
    pub retry_first: Duration,
    /// Longest wait between two attempts.
    pub retry_max: Duration,
    /// Time in the queue after which the message is bounced.
    pub give_up: Duration,
}

/// Protocol of a next hop.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// An SMTP or LMTP server.
    Smtp(SmtpSettings),
    /// One Maildir for each recipient below a folder.
    Maildir {
        /// Template of the Maildir's path. `{domain}` and `{local}` stand for the parts of the recipient's address;
        /// unsafe characters in them are encoded.
        path: String,
    },
}

/// Settings of a server that this relay reaches over a socket.
#[derive(Debug, Clone, PartialEq)]
pub struct SmtpSettings {
    /// Whether the server speaks LMTP (RFC 2033) instead of SMTP.
    pub lmtp: bool,
    /// Addresses, tried in order: `host:port`, or `unix:/path` for LMTP.
    pub addresses: Vec<String>,
    /// Encryption mode.
    pub tls: TlsMode,
    /// File with additional trusted certificates (PEM) for `verified`; the system's certificates if `None`.
    pub tls_ca: Option<PathBuf>,
    /// User name for AUTH.
    pub username: Option<String>,
    /// File that contains only the password.
    pub password_file: Option<PathBuf>,
    /// Largest number of connections at a time, including idle ones.
    pub connections: usize,
    /// Whether mail for this server waits here and goes out at the pace that the server allows, while the server
    /// throttles or does not work.
    pub pace: bool,
    /// Idle time after which a connection is closed.
    pub idle: Duration,
    /// Timeout of one connection attempt.
    pub connect_timeout: Duration,
    /// Timeout of the reply to any command before the end of data.
    pub command_timeout: Duration,
    /// Timeout of the reply to the end of data (RFC 5321 4.5.3.2.6).
    pub data_timeout: Duration,
    /// Host name in EHLO, taken from `relay.hostname`.
    pub hostname: String,
}

/// Encryption of connections to a next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// No TLS.
    Off,
    /// STARTTLS if the server offers it, with any certificate.
    Opportunistic,
    /// STARTTLS is required, with any certificate.
    Required,
    /// STARTTLS is required, and the certificate must match the host name.
    Verified,
}

/// Why the next hops cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Next hop and address: the address has none of the known forms.
    #[error("next hop {0}: {1:?} is not an address (host:port, [IPv6]:port, or unix:/path)")]
    Address(String, String),
    /// The next hop has no address.
    #[error("next hop {0} has no address")]
    NoAddress(String),
    /// `verified` is set, and the address has no host name to check the certificate against.
    #[error("next hop {0}: {1:?} has no host name that a certificate could be checked against")]
    NoNameToVerify(String, String),
    /// The settings contain a user name without a password file, or a password file without a user name.
    #[error("next hop {0}: username and password_file belong together; set both or neither")]
    HalfCredentials(String),
    /// The password file cannot be used; the text says why.
    #[error("password file {path}: {why}", path = .0.display(), why = .1)]
    Password(PathBuf, String),
    /// No trusted certificates are available, or TLS cannot be set up.
    #[error(transparent)]
    Trust(#[from] crate::trust::NoTrust),
    /// Two next hops claim the same domain.
    #[error("the domain {domain:?} is claimed by the next hops {first} and {second}")]
    DomainTwice {
        /// The domain as written in the configuration.
        domain: String,
        /// The next hop that comes first in the configuration.
        first: String,
        /// The other next hop.
        second: String,
    },
    /// The Maildir template has no placeholder for the recipient.
    #[error(
        "next hop {0}: the path {1:?} does not contain {{local}}, so all recipients would share one mailbox"
    )]
    SharedMaildir(String, String),
}
