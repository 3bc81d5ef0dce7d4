//! The accept loop of each socket. It limits the sessions, and gives each session a snapshot of the settings.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admit::Admission;
use super::session::Session;
use super::users::{Users, UsersError};
use super::wire::{Stream, Wire};
use super::{Limits, Settings, tls};
use crate::deadline::Deadline;
use crate::pipeline::Pipeline;
use crate::smtp::Reply;

/// Settings and loaded files of a listener. A reload replaces them as a whole; running sessions keep the old ones.
pub(super) struct Context {
    pub(super) settings: Settings,
    pub(super) limits: Arc<Limits>,
    pub(super) hostname: Arc<str>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) users: Option<Arc<Users>>,
}

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

/// Counts sessions, or the sessions that do something expensive. Limits their number in total and for each client.
#[derive(Debug)]
pub struct Sessions {
    all: Arc<Semaphore>,
    limit: usize,
    by_client: Mutex<HashMap<IpAddr, usize>>,
}

impl Sessions {
    /// Allows at most `limit` sessions at a time.
    pub fn new(limit: usize) -> Arc<Self> {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            all: Arc::new(Semaphore::new(limit)),
            limit,
            by_client: Mutex::new(HashMap::new()),
        })
    }

    /// Current number of sessions.
    pub fn open(&self) -> usize {
        self.limit - self.all.available_permits()
    }

    /// Sessions that one client may have, as a multiple of the free sessions: 4, so that a client alone gets 80 % and
    /// leaves room for others (the rule of [`super::admission`]).
    const CLIENT_SHARE_MULTIPLE: usize = 4;

    /// A place for one more session of `client`; `None` if this client or all clients together have too many.
    pub(super) fn admit(self: &Arc<Self>, client: IpAddr, per_client: usize) -> Option<Place> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        self.enter(client, per_client).then(|| Place {
            sessions: self.clone(),
            client,
            _permit: permit,
        })
    }

    /// Counts a session that already has its permit. The rule counts that permit as free.
    fn enter(&self, client: IpAddr, per_client: usize) -> bool {
        let free = self.all.available_permits() + 1;
        let per_client = per_client.min(free.saturating_mul(Self::CLIENT_SHARE_MULTIPLE));
        let mut clients = self.clients();
        let count = clients.get(&client).copied().unwrap_or_default();
        let admitted = count < per_client;
        if admitted {
            clients.insert(client, count + 1);
        }
        admitted
    }

    fn leave(&self, client: IpAddr) {
        let mut clients = self.clients();
        match clients.get_mut(&client) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                clients.remove(&client);
            }
        }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.by_client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one session, freed on drop.
pub(super) struct Place {
    sessions: Arc<Sessions>,
    client: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// Counts the session for the client that the peer has named; false if that client already has too many sessions.
    pub(super) fn pass_to(&mut self, client: IpAddr, per_client: usize) -> bool {
        let admitted = client == self.client || self.sessions.enter(client, per_client);
        if admitted && client != self.client {
            self.sessions.leave(self.client);
            self.client = client;
        }
        admitted
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sessions.leave(self.client);
    }
}

/// One listener: the addresses of its sockets, and the settings, which a reload replaces.
pub struct Listener {
    context: Arc<ArcSwap<Context>>,
    addresses: Vec<SocketAddr>,
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
        context(settings, limits, hostname).map(Prepared)
    }

    /// Uses the prepared settings for new sessions. The addresses do not change.
    pub fn apply(&self, prepared: Prepared) {
        self.context.store(Arc::new(prepared.0));
    }
}

/// Settings of a listener whose files have been read and checked.
pub struct Prepared(Context);

fn context(
    settings: Settings,
    limits: Arc<Limits>,
    hostname: Arc<str>,
) -> Result<Context, ListenerError> {
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
    Ok(Context {
        settings,
        limits,
        hostname,
        tls,
        users,
    })
}

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
        tracing::warn!(%client, %listener, "too many sessions");
        let mut reply = Vec::new();
        Reply::too_many_sessions().write_to(&mut reply);
        // Not awaited: if the socket cannot take the reply at once, the closed connection must do.
        let _ = stream.try_write(&reply);
        return;
    };
    // Replies are small and the client waits for them, so Nagle's algorithm would only add delay.
    let _ = stream.set_nodelay(true);
    let session = Session::new(
        Wire::new(Stream::Plain(stream)),
        client,
        place,
        context,
        shared,
    );
    shared.tasks.spawn(async move {
        let ending = session.run().await;
        tracing::debug!(%client, %listener, %ending, "session ended");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that opens as many sessions as it can leaves a fifth of them to others, and so does each further client.
    #[test]
    fn no_client_takes_all_sessions() {
        let sessions = Sessions::new(100);
        let open = |number: u8, wanted: usize| -> Vec<Place> {
            let client = IpAddr::from([192, 0, 2, number]);
            let places = (0..wanted).map_while(|_| sessions.admit(client, 1000));
            places.collect()
        };
        let (first, second) = (open(1, 1000), open(2, 1000));
        assert_eq!((first.len(), second.len()), (80, 16));
        assert_eq!(open(3, 1).len(), 1);
        drop(first);
        assert_eq!(open(3, 50).len(), 50);
    }

    /// A session that a proxy passes on counts for the client behind the proxy.
    #[test]
    fn a_proxied_session_counts_for_its_client() {
        let sessions = Sessions::new(10);
        let (proxy, client) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let passed = || {
            let mut place = sessions.admit(proxy, 1000)?;
            place.pass_to(client, 1000).then_some(place)
        };
        let places: Vec<Place> = (0..20).map_while(|_| passed()).collect();
        assert_eq!(places.len(), 8);
    }
}
