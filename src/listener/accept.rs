//! The accept loop: one socket, bounded sessions, a snapshot of the settings for each.

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

/// Everything a session needs to know of its listener; replaced as a whole by a reload, kept by running sessions.
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
        /// The listener.
        name: Arc<str>,
        /// Its address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Its certificates cannot be used.
    #[error("listener {0}: {1}")]
    Tls(Arc<str>, tls::TlsError),
    /// Its users file cannot be used.
    #[error("listener {0}: {1}")]
    Users(Arc<str>, UsersError),
}

/// Sessions of the whole relay, or those of them that do something costly: the limit on all, and on each client.
#[derive(Debug)]
pub struct Sessions {
    all: Arc<Semaphore>,
    limit: usize,
    by_client: Mutex<HashMap<IpAddr, usize>>,
}

impl Sessions {
    /// At most `limit` at once.
    pub fn new(limit: usize) -> Arc<Self> {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            all: Arc::new(Semaphore::new(limit)),
            limit,
            by_client: Mutex::new(HashMap::new()),
        })
    }

    /// Sessions at this moment.
    pub fn open(&self) -> usize {
        self.limit - self.all.available_permits()
    }

    /// Sessions that one client may have, as a multiple of those that are free: alone it is refused from 80 % on, and
    /// leaves room for others (the rule of [`super::admission`]).
    const CLIENT: usize = 4;

    /// A place for one more session of `client`, unless it or everybody together has too many.
    pub(super) fn admit(self: &Arc<Self>, client: IpAddr, per_client: usize) -> Option<Place> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        self.enter(client, per_client).then(|| Place {
            sessions: self.clone(),
            client,
            _permit: permit,
        })
    }

    /// For a session that has its permit, which is one of the free ones for this purpose.
    fn enter(&self, client: IpAddr, per_client: usize) -> bool {
        let free = self.all.available_permits() + 1;
        let per_client = per_client.min(free.saturating_mul(Self::CLIENT));
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

/// The place of one session, given back on drop.
pub(super) struct Place {
    sessions: Arc<Sessions>,
    client: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// The peer speaks for this client, which has the session from now on; false if it has too many already.
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

/// One listener: its sockets, and the settings that a reload replaces.
pub struct Listener {
    context: Arc<ArcSwap<Context>>,
    addresses: Vec<SocketAddr>,
}

/// What all listeners of a relay share.
#[derive(Clone)]
pub struct Shared {
    /// Where complete messages go.
    pub pipeline: Arc<Pipeline>,
    /// Session limits.
    pub sessions: Arc<Sessions>,
    /// Who may bring more mail.
    pub admission: Arc<Admission>,
    /// Running sessions and accept loops; empty when all have ended.
    pub tasks: TaskTracker,
    /// Cancelled: accept nothing new, end idle sessions.
    pub closing: CancellationToken,
}

impl Listener {
    /// Binds all addresses, then accepts on them until `shared.closing` is cancelled.
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

    /// The addresses it really listens on (port 0 resolved).
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Reads what settings name, without using it yet: a reload must not fail halfway. Blocks on the disk.
    pub fn prepare(
        settings: Settings,
        limits: Arc<Limits>,
        hostname: Arc<str>,
    ) -> Result<Prepared, ListenerError> {
        context(settings, limits, hostname).map(Prepared)
    }

    /// Uses prepared settings for sessions that start from now on; addresses stay as they are.
    pub fn apply(&self, prepared: Prepared) {
        self.context.store(Arc::new(prepared.0));
    }
}

/// New settings of a listener, read and checked.
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
        // Otherwise [::] also takes 0.0.0.0, and a second listener there cannot start.
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
                // Out of descriptors, most likely. Sessions that end free some; spinning does not.
                tracing::error!(%error, "cannot accept");
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
        // A courtesy: if the socket does not take it at once, closing says the same.
        let _ = stream.try_write(&reply);
        return;
    };
    // Replies are small and awaited.
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

    /// A client that opens all it can leaves a fifth of the sessions to others; the next greedy one leaves some again.
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

    /// The same counts for the client that a proxy speaks for.
    #[test]
    fn a_session_that_is_passed_on_is_counted_with_its_client() {
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
