//! Why a delivery to a server ended with recipients that are still open.

use super::connection::ConnectionError;
use super::endpoint::Endpoint;
use super::login::{ends_logins, is_refused_login};
use super::next_hop::HopSignal;
use super::throttle;
use crate::smtp::RemoteReply;

/// The last server contacted and the failure there.
pub type Failed = (Option<Endpoint>, ConnectionFailure);

/// Keeps the failure to report: the last one, but a telling one rather than any after it.
pub fn remember(last: &mut Option<Failed>, failure: Failed) {
    if !last.as_ref().is_some_and(|(_, why)| why.is_telling()) {
        *last = Some(failure);
    }
}

/// Why recipients are still open.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionFailure {
    /// No connection became free in time.
    #[error("all connections to this next hop were in use for too long")]
    Busy,
    /// No address to connect to.
    #[error("{0}")]
    Text(String),
    /// The connection failed before the end of data.
    #[error("{0}: {1}")]
    Connection(Endpoint, #[source] ConnectionError),
    /// The connection failed when the server may have had the message.
    #[error("{0}: failed after the end of data, so the message may have been taken: {1}")]
    Late(Endpoint, #[source] ConnectionError),
    /// The message needs an extension, and HELO opened the session: the need with its transient status code, and the reply to
    /// EHLO.
    #[error("{0}, and the next hop refused EHLO, so that it offered no extension: {1}")]
    NeedsEhlo(&'static str, RemoteReply),
}

impl ConnectionFailure {
    /// The server's reply, if a reply ended the attempt.
    pub fn reply(&self) -> Option<&RemoteReply> {
        match self {
            Self::Busy | Self::Text(_) | Self::NeedsEhlo(..) => None,
            Self::Connection(_, error) | Self::Late(_, error) => error.reply(),
        }
    }

    /// What the failure says about the hop.
    pub fn signal(&self, content_begun: bool) -> HopSignal {
        match self {
            Self::Busy => HopSignal::Busy,
            Self::Text(_) => HopSignal::Unreachable,
            // A server that accepts HELO works.
            Self::NeedsEhlo(..) => HopSignal::Fine,
            Self::Connection(_, error) | Self::Late(_, error) => {
                throttle::of_error(error, content_begun)
            }
        }
    }

    /// Whether the failure says more about the hop than that another of its addresses cannot be reached.
    pub fn is_telling(&self) -> bool {
        match self {
            Self::NeedsEhlo(..) => true,
            Self::Connection(_, error) => is_refused_login(error),
            _ => false,
        }
    }

    /// Whether no other address may be tried: the server may have taken the message, or it refuses our login.
    pub fn forbids_another_address(&self) -> bool {
        match self {
            Self::Late(..) => true,
            Self::Connection(_, error) => ends_logins(error),
            Self::Busy | Self::Text(_) | Self::NeedsEhlo(..) => false,
        }
    }
}
