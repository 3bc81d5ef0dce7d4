//! The accept loop of each socket. It limits the sessions, and gives each session a snapshot of the settings.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::context::{Context, Shared};
use super::refusals::Refusal;
use super::session::Session;
use super::users::UsersError;
use super::{Limits, Settings, counts, tls};
use crate::deadline::Deadline;
use crate::smtp::Reply;

/// Why a listener cannot start or be reloaded.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// The address cannot be bound.
    #[error("listener {name}: cannot listen on {address}: {source}")]
    Bind {
        /// Name of the listener.
        name: Arc<str>,
        /// The address.
        address: SocketAddr,
        /// Error of the system.
        source: io::Error,
    },
    /// The certificates cannot be used.
    #[error("listener {0}: {1}")]
    Tls(Arc<str>, tls::TlsError),
    /// The users file cannot be used.
    #[error("listener {0}: {1}")]
    Users(Arc<str>, UsersError),
}

/// One listener: the addresses of its sockets, and the settings, which a reload replaces.
pub struct Listener {
    context: Arc<ArcSwap<Context>>,
    addresses: Vec<SocketAddr>,
}

impl Listener {
    /// Binds all addresses and accepts connections on them until `shared.closing` is cancelled.
    pub fn start(Prepared(context): Prepared, shared: &Shared) -> Result<Self, ListenerError> {
        let name = context.settings.name.clone();
        let wanted = context.settings.addresses.clone();
        let context = Arc::new(ArcSwap::from_pointee(context));
        let mut sockets = Vec::new();
        for address in wanted {
            let bind = |source| ListenerError::Bind {
                name: name.clone(),
                address,
                source,
            };
            let socket = bind_socket(address).map_err(bind)?;
            let bound = socket.local_addr().map_err(bind)?;
            sockets.push((bound, socket));
        }
        let addresses = sockets.iter().map(|(address, _)| *address).collect();
        for (address, socket) in sockets {
            tracing::info!(listener = %name, %address, "listening");
            shared
                .tasks
                .spawn(accept_loop(socket, context.clone(), shared.clone()));
        }
        Ok(Self { context, addresses })
    }

    /// The addresses of the sockets, with the port that the system chose instead of port 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Reads the files that the settings name, but does not use them yet, so that a reload does not fail halfway. Blocks on
    /// disk I/O.
    pub fn prepare(
        settings: Settings,
        limits: Arc<Limits>,
        hostname: Arc<str>,
    ) -> Result<Prepared, ListenerError> {
        Context::load(settings, limits, hostname).map(Prepared)
    }

    /// Uses the prepared settings for new sessions. The addresses do not change.
    pub fn apply(&self, prepared: Prepared) {
        self.context.store(Arc::new(prepared.0));
    }
}

/// Settings of a listener whose files have been read and checked.
pub struct Prepared(Context);

fn bind_socket(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Otherwise a socket at [::] also takes 0.0.0.0, and another listener at 0.0.0.0 cannot start.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

async fn accept_loop(socket: TcpListener, context: Arc<ArcSwap<Context>>, shared: Shared) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.closing.cancelled() => return,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => begin(stream, peer, context.load_full(), &shared),
            Err(error) => {
                // The most likely cause: no file descriptor is free. Sessions that end free some, so wait 100 ms.
                tracing::error!(%error, "cannot accept a connection");
                Deadline::after(Duration::from_millis(100)).wait().await;
            }
        }
    }
}

fn begin(stream: TcpStream, peer: SocketAddr, context: Arc<Context>, shared: &Shared) {
    let client = peer.ip().to_canonical();
    let listener = context.settings.name.clone();
    let Some(place) = shared
        .sessions
        .admit(client, context.limits.sessions_per_client)
    else {
        metrics::counter!("spillway_sessions_refused_total", "listener" => listener.to_string())
            .increment(1);
        let (refusal, mut reply) = (Reply::too_many_sessions(), Vec::new());
        Refusal::of_client(client, &listener, &refusal).tell();
        refusal.write_to(&mut reply);
        // Not awaited: if the socket cannot take the reply at once, the closed connection must do.
        let _ = stream.try_write(&reply);
        return;
    };
    // Replies are small and the client waits for them, so Nagle's algorithm would only add delay.
    let _ = stream.set_nodelay(true);
    counts::session_began(&listener);
    let session = Session::new(stream, client, place, context, shared);
    shared.tasks.spawn(async move {
        let ending = session.run().await;
        counts::session_ended(&ending);
        tracing::debug!(%client, %listener, %ending, "session ended");
    });
}
