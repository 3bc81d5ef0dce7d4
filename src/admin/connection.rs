//! Connections of the admin surfaces, bounded in number and in time.
//!
//! An administrator's monitoring must not be able to use up the relay's descriptors: so many connections at once, each
//! closed after so long, whatever it is doing. The rest is axum.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::deadline::Deadline;

/// Connections at once of one surface; the next one waits in the kernel's queue.
const CONNECTIONS: usize = 64;
/// A connection's life.
const LIFE: Duration = Duration::from_secs(30);

/// Serves until `closing`, then lets open requests finish; `held` is dropped last.
pub(super) async fn serve<L, T>(listener: L, routes: Router, closing: CancellationToken, held: T)
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let bounded = Bounded {
        listener,
        places: Arc::new(Semaphore::new(CONNECTIONS)),
    };
    let served = axum::serve(bounded, routes)
        .with_graceful_shutdown(closing.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "admin surface ended");
    }
    drop(held);
}

struct Bounded<L> {
    listener: L,
    places: Arc<Semaphore>,
}

impl<L: Listener> Listener for Bounded<L> {
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // The semaphore is never closed, so there is always a permit in the end.
        let place = self.places.clone().acquire_owned().await.ok();
        let (io, address) = self.listener.accept().await;
        let connection = Connection {
            io,
            end: Box::pin(Deadline::after(LIFE).wait()),
            _place: place,
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
    _place: Option<OwnedSemaphorePermit>,
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
