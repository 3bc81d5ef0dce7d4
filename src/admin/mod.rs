//! The surfaces of a running relay for its administrators.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Settings of `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where `/live`, `/ready` and `/metrics` are answered; `None` for nowhere.
    pub http: Option<SocketAddr>,
    /// The socket that commands reach the running relay through.
    pub socket: PathBuf,
}
