//! Connections of the admin surfaces, bounded in number and in time.
//!
//! Nobody's connections may use up the relay's descriptors, or keep others from asking: each surface has so many places of
//! its own, and each connection ends after so long, whatever it is doing. Where a new one finds no place, one that waits for
//! its caller (for the rest of a request, for the next one, or until an answer is taken) ends in its favour: a stranger's
//! before one of this machine, one of whoever has most, and of those the one that has been open longest. One whose request is
//! being answered is let alone. The rest is axum.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::deadline::Deadline;

/// Connections at once of one surface.
const CONNECTIONS: usize = 64;
/// A connection's life.
const LIFE: Duration = Duration::from_secs(30);

/// Serves until `closing`, then lets open requests finish; `held` is dropped last.
pub(super) async fn serve<L, T>(listener: L, routes: Router, closing: CancellationToken, held: T)
where
    L: Listener,
    L::Addr: Caller + std::fmt::Debug,
{
    let bounded = Bounded {
        listener,
        places: Arc::new(Semaphore::new(CONNECTIONS)),
        open: Arc::default(),
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
struct Place(Arc<Standing>);

#[derive(Debug, Default)]
struct Standing {
    stranger: Option<IpAddr>,
    /// A request is being answered.
    answering: AtomicBool,
    /// Its place is wanted: it is to end.
    wanted: CancellationToken,
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
    place.0.answering.store(true, Ordering::Relaxed);
    let response = next.run(request).await;
    place.0.answering.store(false, Ordering::Relaxed);
    response
}

/// The open connections, those longest open first.
#[derive(Debug, Default)]
struct Open(Mutex<Vec<Place>>);

impl Open {
    fn lock(&self) -> MutexGuard<'_, Vec<Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends one that waits for its caller, if there is any.
    fn make_room(&self) {
        let open = self.lock();
        let waits = |place: &&Place| {
            let standing = &place.0;
            !standing.answering.load(Ordering::Relaxed) && !standing.wanted.is_cancelled()
        };
        let mut of: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for place in open.iter().filter(waits) {
            *of.entry(place.0.stranger).or_default() += 1;
        }
        // The last of equal ones is taken.
        let longest_first = open.iter().rev().filter(waits);
        let ends = longest_first.max_by_key(|place| {
            let stranger = place.0.stranger;
            (stranger.is_some(), of.get(&stranger).copied())
        });
        if let Some(place) = ends {
            place.0.wanted.cancel();
        }
    }
}

struct Bounded<L> {
    listener: L,
    places: Arc<Semaphore>,
    open: Arc<Open>,
}

impl<L: Listener> Listener for Bounded<L>
where
    L::Addr: Caller,
{
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (io, address) = self.listener.accept().await;
        let permit = match self.places.clone().try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => {
                self.open.make_room();
                // The semaphore is never closed, so there is always a permit in the end.
                self.places.clone().acquire_owned().await.ok()
            }
        };
        let place = Place(Arc::new(Standing {
            stranger: address.stranger(),
            ..Standing::default()
        }));
        self.open.lock().push(place.clone());
        let wanted = place.0.wanted.clone().cancelled_owned();
        let end = async move {
            // Whichever of the two it is, its time is over.
            let _ = Deadline::after(LIFE).run(wanted).await;
        };
        let connection = Connection {
            io,
            end: Box::pin(end),
            place,
            open: self.open.clone(),
            _permit: permit,
        };
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when its time is over, and gives its place back when dropped.
struct Connection<I> {
    io: I,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    place: Place,
    open: Arc<Open>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<I> Drop for Connection<I> {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        open.retain(|place| !Arc::ptr_eq(&place.0, &self.place.0));
    }
}

impl<I> Connection<I> {
    fn over(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => {
                // A future must not be polled again once it is ready; the time stays over.
                self.end = Box::pin(std::future::ready(()));
                Err(io::ErrorKind::TimedOut.into())
            }
        }
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
        Pin::new(&mut self.io).poll_write(context, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.over(context)?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.over(context)?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(strangers: &[Option<&str>]) -> Open {
        let place = |stranger: &Option<&str>| {
            let address = stranger.map(|text| SocketAddr::new(text.parse().expect("address"), 1));
            Place(Arc::new(Standing {
                stranger: address.and_then(|address| address.stranger()),
                ..Standing::default()
            }))
        };
        Open(Mutex::new(strangers.iter().map(place).collect()))
    }

    /// The order in which they would end.
    fn order(open: &Open) -> Vec<usize> {
        let ended = |open: &Open| {
            let ended = |(at, place): (usize, &Place)| place.0.wanted.is_cancelled().then_some(at);
            open.lock()
                .iter()
                .enumerate()
                .filter_map(ended)
                .collect::<Vec<_>>()
        };
        let mut order: Vec<usize> = Vec::new();
        let all = open.lock().len();
        for _ in 0..all {
            open.make_room();
            let now = ended(open);
            order.extend(now.iter().find(|at| !order.contains(at)));
        }
        order
    }

    /// Whoever takes many places loses his own, and this machine's monitoring is the last that must give way.
    #[test]
    fn whoever_has_most_gives_way_and_this_machine_last() {
        let (one, other) = (Some("192.0.2.1"), Some("198.51.100.2"));
        let places = open(&[
            None,
            one,
            other,
            other,
            Some("::ffff:127.0.0.1"),
            other,
            one,
        ]);
        assert_eq!(order(&places), [2, 1, 3, 5, 6, 0, 4]);
        let network = [Some("2001:db8::1"), one, Some("2001:db8::2:1")];
        assert_eq!(order(&open(&network)), [0, 1, 2]);
    }

    /// A command that takes its time is not broken off because others come.
    #[test]
    fn one_that_is_being_answered_keeps_its_place() {
        let places = open(&[Some("192.0.2.1"), None]);
        places.lock()[0].0.answering.store(true, Ordering::Relaxed);
        assert_eq!(order(&places), [1]);
    }
}
