//! A server on a free loopback port that lives as long as its value.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Sessions at once; more wait until one ends.
const SESSIONS: usize = 32;

/// Dropping it ends all its sessions and closes its port.
#[derive(Debug)]
pub(super) struct Loopback {
    address: SocketAddr,
    _task: JoinSet<()>,
}

impl Loopback {
    /// Listens, and leads each connection through `session`.
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
                // How a session ends is seen at its other end, in the relay.
                sessions.spawn(session(stream));
                while sessions.len() >= SESSIONS && sessions.join_next().await.is_some() {}
                while sessions.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            _task: task,
        })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}
