//! A connection to clamd that keeps what clamd says, however it says it, and not more than that.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use clamav_client::tokio::TransportProtocol;
use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};

use crate::scan::engine::address::Stream;

/// Octets of an answer; the longest honest one is a signature's name.
const ANSWER: usize = 4096;

/// A fresh connection, for one command.
pub(super) struct Wire {
    // Buffered, so that a command, a chunk's size and a small chunk are one segment.
    socket: BufWriter<Stream>,
    read: usize,
    /// The NUL at the end of the answer was read: there is nothing more to wait for.
    ended: bool,
    /// clamd has closed its side. It may have said why; what is still to be sent goes nowhere.
    closed: Arc<AtomicBool>,
}

impl Wire {
    /// For one command over a connection that was just made.
    pub(super) fn over(socket: Stream) -> Self {
        Self {
            socket: BufWriter::new(socket),
            read: 0,
            ended: false,
            closed: Arc::default(),
        }
    }

    /// Set once not everything that is written reaches clamd.
    pub(super) fn closed(&self) -> Arc<AtomicBool> {
        self.closed.clone()
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// The connection as the crate wants it: something that can be connected, once.
    pub(super) fn ready(self) -> Ready {
        Ready(Mutex::new(Some(self)))
    }

    /// A write that fails because clamd has gone is no failure yet: its answer may be there to be read.
    fn forgive<T>(&mut self, result: io::Result<T>, instead: T) -> io::Result<T> {
        match result {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::ConnectionAborted
                ) =>
            {
                self.closed.store(true, Ordering::Relaxed);
                Ok(instead)
            }
            other => other,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, into))?;
        let fresh = into.filled().get(before..).unwrap_or_default();
        self.read += fresh.len();
        self.ended = memchr::memchr(0, fresh).is_some();
        if self.read > ANSWER {
            into.set_filled(before);
            let error = io::Error::new(io::ErrorKind::InvalidData, "an endless answer");
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_closed() {
            return Poll::Ready(Ok(octets.len()));
        }
        let result = ready!(Pin::new(&mut self.socket).poll_write(cx, octets));
        Poll::Ready(self.forgive(result, octets.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_closed() {
            return Poll::Ready(Ok(()));
        }
        let result = ready!(Pin::new(&mut self.socket).poll_flush(cx));
        Poll::Ready(self.forgive(result, ()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// A [`Wire`] to be taken once.
pub(super) struct Ready(Mutex<Option<Wire>>);

impl TransportProtocol for Ready {
    type Stream = Wire;

    async fn connect(&self) -> io::Result<Wire> {
        let mut wire = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wire.take()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
    }
}
