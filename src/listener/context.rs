//! The context of sessions: the settings of their listener with the loaded files, and the parts that all listeners share.

use std::sync::Arc;

use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accept::ListenerError;
use super::admission::Admission;
use super::session_limits::Sessions;
use super::users::Users;
use super::{Limits, Settings, tls};
use crate::pipeline::Pipeline;

/// Settings and loaded files of a listener. A reload replaces them as a whole; running sessions keep the old ones.
pub(super) struct Context {
    pub(super) settings: Settings,
    pub(super) limits: Arc<Limits>,
    pub(super) hostname: Arc<str>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) users: Option<Arc<Users>>,
}

impl Context {
    /// Reads the files that the settings name. Blocks on disk I/O.
    pub(super) fn load(
        settings: Settings,
        limits: Arc<Limits>,
        hostname: Arc<str>,
    ) -> Result<Self, ListenerError> {
        let tls = match &settings.certificate {
            Some((certificate, key)) => Some(
                tls::server_config(certificate, key, settings.client_ca.as_deref())
                    .map_err(|e| ListenerError::Tls(settings.name.clone(), e))?,
            ),
            None => None,
        };
        let users = match &settings.users_file {
            Some(path) => {
                Some(Arc::new(Users::load(path).map_err(|e| {
                    ListenerError::Users(settings.name.clone(), e)
                })?))
            }
            None => None,
        };
        Ok(Self {
            settings,
            limits,
            hostname,
            tls,
            users,
        })
    }
}

/// State that all listeners share.
#[derive(Clone)]
pub struct Shared {
    /// Receives complete messages.
    pub pipeline: Arc<Pipeline>,
    /// Limits the sessions.
    pub sessions: Arc<Sessions>,
    /// Decides which party may bring more mail.
    pub admission: Arc<Admission>,
    /// The running sessions and accept loops.
    pub tasks: TaskTracker,
    /// When cancelled, accept loops and idle sessions end.
    pub closing: CancellationToken,
}
