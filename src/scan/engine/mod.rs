//! One file per protocol.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The protocol of an engine, with what only this protocol needs.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// clamd over INSTREAM.
    Clamd {
        /// Replicas, tried in turn.
        addresses: Vec<ClamdAddress>,
        /// One connection attempt.
        connect_timeout: Duration,
    },
    /// YARA rules in process.
    Rules {
        /// Whether the built-in set is used.
        builtin: bool,
        /// Files or folders of `.yar` and `.yara` files.
        paths: Vec<PathBuf>,
    },
    /// What the message is made of.
    Attachment(AttachmentSettings),
}

/// Where a clamd listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClamdAddress {
    /// `host:port`, resolved at each connection.
    Tcp(String),
    /// Path of the socket.
    Unix(PathBuf),
    /// Already resolved.
    Socket(SocketAddr),
}

/// What the attachment engine objects to.
#[derive(Debug, Clone, PartialEq)]
pub struct AttachmentSettings {
    /// Forbidden file name extensions, lower case, without dot; in archives too.
    pub block_extensions: Vec<String>,
    /// Forbidden media types, declared or sniffed: `application/x-msdownload`, `image/*`.
    pub block_types: Vec<String>,
    /// Whether archives and documents that cannot be opened without a password are a finding.
    pub block_encrypted: bool,
    /// Nesting of multiparts and messages, and of archives within.
    pub max_depth: usize,
    /// Parts of a message.
    pub max_parts: usize,
    /// Files in an archive.
    pub max_archive_files: usize,
    /// Unpacked octets by compressed octets from which an archive is a bomb.
    pub max_ratio: u64,
}
