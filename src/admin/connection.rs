//! Connections of the admin surfaces, bounded in number and in time.
//!
//! Connections must not use up the relay's descriptors, and no client may keep other clients from their answers. So each
//! surface has [`CONNECTIONS_MAX`] places for local clients (of this machine), and as many for remote clients, which take no
//! places of local ones. A connection ends at the age of [`IDLE_CONNECTION_TIMEOUT`], or once its present answer is written.
//!
//! If a new connection finds no place, it takes the place of a connection of its kind that waits for its client: for the rest
//! of a request, for the next request, or for the client to read an answer. The connection that ends belongs to the client
//! with the most such connections, and is the oldest of them. A connection whose request is being answered does not end; it
//! may end once its answer is written. A new local connection waits for that. A new remote connection is closed at once
//! instead, so that no other client waits behind it. The rest is axum.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use futures_util::poll;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::deadline::Deadline;

/// Maximum number of concurrent connections of one surface, for local and for remote clients each: far more than
/// administrators and monitoring need, and few of the relay's descriptors.
const CONNECTIONS_MAX: usize = 64;
/// Maximum age of a connection: 30 s, enough for slow clients. If a request is being answered then, the connection ends when
/// the answer is written.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves until `closing`, and then lets open requests finish. Drops `held` last.
pub(super) async fn serve<L, T>(listener: L, routes: Router, closing: CancellationToken, held: T)
where
    L: Listener,
    L::Addr: Caller + std::fmt::Debug,
{
    let bounded = Bounded {
        listener,
        callers: Callers::default(),
    };
    let routes = routes.layer(middleware::from_fn(answer));
    let served = axum::serve(
        bounded,
        routes.into_make_service_with_connect_info::<ConnectionPlace>(),
    )
    .with_graceful_shutdown(closing.cancelled_owned())
    .await;
    if let Err(error) = served {
        tracing::error!(%error, "admin surface ended");
    }
    drop(held);
}

/// The address of a client.
pub(super) trait Caller {
    /// The remote host by which connections are counted: an IPv4 address, or an IPv6 network of 64 bits. None for a local
    /// client.
    fn remote_host(&self) -> Option<IpAddr>;
}

impl Caller for SocketAddr {
    fn remote_host(&self) -> Option<IpAddr> {
        let address = self.ip().to_canonical();
        (!address.is_loopback()).then(|| match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        })
    }
}

impl Caller for unix::SocketAddr {
    fn remote_host(&self) -> Option<IpAddr> {
        None
    }
}

/// The place of a connection, as new connections see it that need a place.
#[derive(Debug, Clone)]
struct ConnectionPlace(Arc<PlaceState>);

#[derive(Debug, Default)]
struct PlaceState {
    remote_host: Option<IpAddr>,
    state: AtomicU8,
    /// Cancelled when another connection needs the place: this connection must end.
    wanted: CancellationToken,
}

/// The connection waits for its client.
const STATE_WAITS: u8 = 0;
/// A request is being answered.
const STATE_ANSWERING: u8 = 1;
/// An answer exists, but is not written yet.
const STATE_ANSWERED: u8 = 2;

impl PlaceState {
    fn is(&self, state: u8) -> bool {
        self.state.load(Ordering::Relaxed) == state
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Relaxed);
    }
}

impl<L: Listener> Connected<IncomingStream<'_, Bounded<L>>> for ConnectionPlace
where
    L::Addr: Caller,
{
    fn connect_info(stream: IncomingStream<'_, Bounded<L>>) -> Self {
        stream.io().place.clone()
    }
}

/// Answers a request. Meanwhile the connection keeps its place.
async fn answer(
    ConnectInfo(place): ConnectInfo<ConnectionPlace>,
    request: Request,
    next: Next,
) -> Response {
    place.0.set(STATE_ANSWERING);
    let response = next.run(request).await;
    place.0.set(STATE_ANSWERED);
    response
}

/// The open connections of one kind, the oldest first.
#[derive(Debug, Default)]
struct Open {
    places: Mutex<Vec<ConnectionPlace>>,
    /// Notified when a connection waits for its client again.
    idle: Notify,
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, Vec<ConnectionPlace>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a connection that waits for its client. Returns false if there is none.
    fn make_room(&self) -> bool {
        let open = self.lock();
        let waits =
            |place: &&ConnectionPlace| place.0.is(STATE_WAITS) && !place.0.wanted.is_cancelled();
        let mut of: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for place in open.iter().filter(waits) {
            *of.entry(place.0.remote_host).or_default() += 1;
        }
        // `max_by_key` returns the last of equal elements: here the oldest connection.
        let longest_first = open.iter().rev().filter(waits);
        let ends = longest_first.max_by_key(|place| of.get(&place.0.remote_host).copied());
        if let Some(place) = ends {
            place.0.wanted.cancel();
        }
        ends.is_some()
    }
}

/// The clients of one kind: local or remote.
struct Kind {
    places: Arc<Semaphore>,
    open: Arc<Open>,
}

impl Default for Kind {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            open: Arc::default(),
        }
    }
}

impl Kind {
    /// Waits for a place. Returns none if all connections are being answered and `is_patient` is false.
    async fn place(&self, is_patient: bool) -> Option<OwnedSemaphorePermit> {
        let mut acquired = pin!(self.places.clone().acquire_owned());
        loop {
            if let Poll::Ready(permit) = poll!(&mut acquired) {
                // The semaphore is never closed.
                return permit.ok();
            }
            if self.open.make_room() {
                return acquired.await.ok();
            }
            if !is_patient {
                return None;
            }
            tokio::select! {
                permit = &mut acquired => return permit.ok(),
                () = self.open.idle.notified() => {}
            }
        }
    }
}

/// All clients of a surface.
#[derive(Default)]
struct Callers {
    own: Kind,
    remotes: Kind,
}

impl Callers {
    /// Gives a connection a place; returns none if it must be closed at once.
    async fn admit<I>(&self, io: I, remote_host: Option<IpAddr>) -> Option<Connection<I>> {
        let kind = match remote_host {
            Some(_) => &self.remotes,
            None => &self.own,
        };
        let permit = kind.place(remote_host.is_none()).await?;
        let place = ConnectionPlace(Arc::new(PlaceState {
            remote_host,
            ..PlaceState::default()
        }));
        kind.open.lock().push(place.clone());
        let wanted = place.0.wanted.clone().cancelled_owned();
        let end = async move {
            // The connection ends when its place is wanted or its time is over.
            let _ = Deadline::after(IDLE_CONNECTION_TIMEOUT).run(wanted).await;
        };
        Some(Connection {
            io,
            end: Box::pin(end),
            place,
            open: kind.open.clone(),
            _permit: permit,
        })
    }
}

struct Bounded<L> {
    listener: L,
    callers: Callers,
}

impl<L: Listener> Listener for Bounded<L>
where
    L::Addr: Caller,
{
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (io, address) = self.listener.accept().await;
            let admitted = self.callers.admit(io, address.remote_host()).await;
            if let Some(connection) = admitted {
                return (connection, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when its time is over, unless a request is being answered. Gives its place back when dropped.
struct Connection<I> {
    io: I,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    place: ConnectionPlace,
    open: Arc<Open>,
    _permit: OwnedSemaphorePermit,
}

impl<I> Drop for Connection<I> {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        open.retain(|place| !Arc::ptr_eq(&place.0, &self.place.0));
    }
}

impl<I> Connection<I> {
    fn over(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.end.as_mut().poll(context).is_pending() {
            return Ok(());
        }
        // A future must not be polled again once it is ready; the time stays over.
        self.end = Box::pin(std::future::ready(()));
        let state = &self.place.0;
        match state.is(STATE_WAITS) || state.wanted.is_cancelled() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(()),
        }
    }

    /// The answer is written, or the client reads no more of it for now: in both cases the connection waits for its client.
    fn written(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.place.0.is(STATE_ANSWERED) {
            self.place.0.set(STATE_WAITS);
            self.open.idle.notify_one();
        }
        self.over(context)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Connection<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.over(context)?;
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Connection<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.over(context)?;
        let written = Pin::new(&mut self.io).poll_write(context, octets);
        if written.is_pending() {
            self.written(context)?;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.over(context)?;
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        if flushed.is_ready() {
            self.written(context)?;
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.over(context)?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
