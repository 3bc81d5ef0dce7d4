//! A connection to clamd that never loses an answer that clamd sends early, and that bounds the answer.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use clamav_client::tokio::TransportProtocol;
use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};

use crate::scan::engine::address::Stream;

/// Largest answer in octets. The longest valid answer contains the name of a signature, so 4 KiB are ample.
const ANSWER_OCTETS_MAX: usize = 4096;

/// A new connection, for one command.
pub(super) struct Wire {
    /// Buffered, so that a command, a size field and a small chunk share one TCP segment.
    socket: BufWriter<Stream>,
    /// Octets of the answer so far.
    read: usize,
    /// The NUL at the end of the answer has arrived, so reading ends.
    ended: bool,
    /// clamd has closed its side. Its answer may say why. Further writes are discarded.
    closed: Arc<AtomicBool>,
}

impl Wire {
    /// Wraps a new connection, for one command.
    pub(super) fn over(socket: Stream) -> Self {
        Self {
            socket: BufWriter::new(socket),
            read: 0,
            ended: false,
            closed: Arc::default(),
        }
    }

    /// The flag that is set as soon as a write does not reach clamd.
    pub(super) fn closed(&self) -> Arc<AtomicBool> {
        self.closed.clone()
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// The connection in the form that the crate needs: a transport that connects once.
    pub(super) fn ready(self) -> Ready {
        Ready(Mutex::new(Some(self)))
    }

    /// Treats a write that fails because clamd has closed as success: the answer of clamd may be ready to read.
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
        if self.read > ANSWER_OCTETS_MAX {
            into.set_filled(before);
            let error = io::Error::new(io::ErrorKind::InvalidData, "the answer is too long");
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

/// A transport that yields its [`Wire`] once.
pub(super) struct Ready(Mutex<Option<Wire>>);

impl TransportProtocol for Ready {
    type Stream = Wire;

    async fn connect(&self) -> io::Result<Wire> {
        let mut wire = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wire.take()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
    }
}
