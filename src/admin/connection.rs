//! Connections of the admin surfaces, bounded in number and in time.
//!
//! Nobody's connections may use up the relay's descriptors, or keep others from asking: each surface has so many places for
//! callers of this machine, and as many for strangers, who take none of the others. A connection ends when its caller has
//! kept it waiting for so long in all. Where a new one finds no place, one of its kind that waits for its caller (for the
//! rest of a request, for the next one, or until an answer is taken) ends in its favour: one of whoever has most, and of
//! those the one that has been open longest. One whose request is being answered is let alone, and gives way when its answer
//! is written; a stranger does not wait for that but is sent away, so that nobody waits behind him. The rest is axum.

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

/// Connections at once of one surface, of callers of this machine and of strangers each.
const CONNECTIONS_MAX: usize = 64;
/// A connection's life, but for the time in which it is being answered.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves until `closing`, then lets open requests finish; `held` is dropped last.
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
        routes.into_make_service_with_connect_info::<Place>(),
    )
    .with_graceful_shutdown(closing.cancelled_owned())
    .await;
    if let Err(error) = served {
        tracing::error!(%error, "admin surface ended");
    }
    drop(held);
}

/// An address of somebody who asks.
pub(super) trait Caller {
    /// Whose connections are counted together: a host, or an IPv6 network of 64 bits; none for this machine.
    fn stranger(&self) -> Option<IpAddr>;
}

impl Caller for SocketAddr {
    fn stranger(&self) -> Option<IpAddr> {
        let address = self.ip().to_canonical();
        (!address.is_loopback()).then(|| match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        })
    }
}

impl Caller for unix::SocketAddr {
    fn stranger(&self) -> Option<IpAddr> {
        None
    }
}

/// A connection to those who want its place.
#[derive(Debug, Clone)]
struct Place(Arc<SenderReputation>);

#[derive(Debug, Default)]
struct SenderReputation {
    stranger: Option<IpAddr>,
    state: AtomicU8,
    /// Its place is wanted: it is to end.
    wanted: CancellationToken,
}

/// It waits for its caller.
const WAITS: u8 = 0;
/// A request is being answered.
const ANSWERING: u8 = 1;
/// There is an answer, which is not written yet.
const ANSWERED: u8 = 2;

impl SenderReputation {
    fn is(&self, state: u8) -> bool {
        self.state.load(Ordering::Relaxed) == state
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Relaxed);
    }
}

impl<L: Listener> Connected<IncomingStream<'_, Bounded<L>>> for Place
where
    L::Addr: Caller,
{
    fn connect_info(stream: IncomingStream<'_, Bounded<L>>) -> Self {
        stream.io().place.clone()
    }
}

/// Answers a request, and keeps its connection its place meanwhile.
async fn answer(ConnectInfo(place): ConnectInfo<Place>, request: Request, next: Next) -> Response {
    place.0.set(ANSWERING);
    let response = next.run(request).await;
    place.0.set(ANSWERED);
    response
}

/// The open connections of one kind, those longest open first.
#[derive(Debug, Default)]
struct Open {
    places: Mutex<Vec<Place>>,
    /// One waits for its caller again.
    idle: Notify,
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends one that waits for its caller; false if there is none.
    fn make_room(&self) -> bool {
        let open = self.lock();
        let waits = |place: &&Place| place.0.is(WAITS) && !place.0.wanted.is_cancelled();
        let mut of: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for place in open.iter().filter(waits) {
            *of.entry(place.0.stranger).or_default() += 1;
        }
        // The last of equal ones is taken.
        let longest_first = open.iter().rev().filter(waits);
        let ends = longest_first.max_by_key(|place| of.get(&place.0.stranger).copied());
        if let Some(place) = ends {
            place.0.wanted.cancel();
        }
        ends.is_some()
    }
}

/// Callers of one kind.
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
    /// A place as soon as there is one; none if all are being answered and it is not to be waited for.
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

/// All callers.
#[derive(Default)]
struct Callers {
    own: Kind,
    strangers: Kind,
}

impl Callers {
    /// The connection, unless it is sent away.
    async fn admit<I>(&self, io: I, stranger: Option<IpAddr>) -> Option<Connection<I>> {
        let kind = match stranger {
            Some(_) => &self.strangers,
            None => &self.own,
        };
        let permit = kind.place(stranger.is_none()).await?;
        let place = Place(Arc::new(SenderReputation {
            stranger,
            ..SenderReputation::default()
        }));
        kind.open.lock().push(place.clone());
        let wanted = place.0.wanted.clone().cancelled_owned();
        let end = async move {
            // Whichever of the two it is, its time is over.
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
            let admitted = self.callers.admit(io, address.stranger()).await;
            if let Some(connection) = admitted {
                return (connection, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when its time is over, unless it is being answered, and gives its place back when dropped.
struct Connection<I> {
    io: I,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    place: Place,
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
        let reputation = &self.place.0;
        match reputation.is(WAITS) || reputation.wanted.is_cancelled() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(()),
        }
    }

    /// So far the answer is written, or as far as its caller takes it: what is to be waited for now is he.
    fn written(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.place.0.is(ANSWERED) {
            self.place.0.set(WAITS);
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
