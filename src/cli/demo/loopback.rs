//! A server on a free loopback port. It runs until its value is dropped.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Maximum number of concurrent sessions, far more than the demo needs. Further connections wait until one ends.
const SESSIONS_MAX: usize = 32;

/// A running server. A drop ends all its sessions and closes its port.
#[derive(Debug)]
pub(super) struct Loopback {
    address: SocketAddr,
    _task: JoinSet<()>,
}

impl Loopback {
    /// Starts a server that runs `session` for each connection.
    pub(super) async fn serve<F>(
        session: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut sessions = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                // The relay at the other end notices how a session ends, so the result is dropped here.
                sessions.spawn(session(stream));
                while sessions.len() >= SESSIONS_MAX && sessions.join_next().await.is_some() {}
                while sessions.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            _task: task,
        })
    }

    /// The address of the server.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}
