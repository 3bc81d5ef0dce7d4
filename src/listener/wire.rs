//! The octet stream of a session, in the clear or encrypted, with the input that was read but not used.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A socket, with or without TLS.
pub enum Stream {
    /// In the clear.
    Plain(TcpStream),
    /// Encrypted; boxed because most sessions are not and idle ones should be small.
    Tls(Box<TlsStream<TcpStream>>),
    /// Between the two, while the handshake owns the socket.
    Closed,
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Closed => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Closed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Closed => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Closed => Poll::Ready(Ok(())),
        }
    }
}

/// The stream with its buffers. An idle session holds an input buffer of [`Wire::IDLE`] octets and no output buffer.
pub struct Wire {
    stream: Stream,
    input: BytesMut,
    output: Vec<u8>,
    /// So much of the output has been sent already.
    sent: usize,
}

impl Wire {
    /// Input buffer of a session that waits for a command.
    const IDLE: usize = 1024;
    /// Input buffer while content comes in.
    const BUSY: usize = 32 * 1024;
    /// Replies that may wait for the next flush; a pipelining client that asks for more has to read first.
    const REPLIES: usize = 16 * 1024;

    /// Around a socket from which nothing was read yet.
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: Vec::new(),
            sent: 0,
        }
    }

    /// What was read and not used.
    pub fn input(&self) -> &[u8] {
        &self.input
    }

    /// Uses up input.
    pub fn consume(&mut self, octets: usize) {
        self.input.advance(octets);
    }

    /// The buffer for replies not yet sent.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Whether the output is to be sent before more is put into it.
    pub fn is_full(&self) -> bool {
        self.output.len() > Self::REPLIES
    }

    /// Sends what is in the output.
    ///
    /// Cancel safety: safe, the next flush goes on where this one stopped.
    pub async fn flush(&mut self) -> io::Result<()> {
        if !self.output.is_empty() {
            while self.sent < self.output.len() {
                match self.stream.write(&self.output[self.sent..]).await? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    octets => self.sent += octets,
                }
            }
            self.stream.flush().await?;
            self.output = Vec::new();
            self.sent = 0;
        }
        Ok(())
    }

    /// Reads more while a command is awaited; 0 is the end.
    ///
    /// Cancel safety: safe, what was read is in the input.
    pub async fn read_command(&mut self) -> io::Result<usize> {
        if self.input.is_empty() && self.input.capacity() != Self::IDLE {
            self.input = BytesMut::with_capacity(Self::IDLE);
        }
        self.input.reserve(Self::IDLE / 2);
        self.stream.read_buf(&mut self.input).await
    }

    /// Reads so many octets more at most, so that what follows them stays in the socket; 0 is the end.
    ///
    /// Cancel safety: safe, what was read is in the input.
    pub async fn read_at_most(&mut self, octets: usize) -> io::Result<usize> {
        let mut limited = (&mut self.stream).take(octets as u64);
        limited.read_buf(&mut self.input).await
    }

    /// Reads more while content is awaited; 0 is the end.
    ///
    /// Cancel safety: safe, what was read is in the input.
    pub async fn read_content(&mut self) -> io::Result<usize> {
        if self.input.is_empty() && self.input.capacity() < Self::BUSY {
            self.input = BytesMut::with_capacity(Self::BUSY);
        }
        self.input.reserve(Self::BUSY / 4);
        self.stream.read_buf(&mut self.input).await
    }

    /// Drops buffered input, which came before the handshake, and gives the socket away to TLS.
    pub fn take_plain(&mut self) -> Option<TcpStream> {
        self.input.clear();
        match std::mem::replace(&mut self.stream, Stream::Closed) {
            Stream::Plain(stream) => Some(stream),
            Stream::Tls(_) | Stream::Closed => None,
        }
    }

    /// Goes on with an encrypted stream.
    pub fn set_tls(&mut self, stream: TlsStream<TcpStream>) {
        self.stream = Stream::Tls(Box::new(stream));
    }

    /// Says goodbye at the transport level; errors are of no interest any more.
    pub async fn shutdown(&mut self) {
        let _ = self.stream.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::net::TcpListener;

    use super::*;

    /// A flush that was given up goes on where it stopped: octets sent twice would be replies to other commands.
    #[tokio::test]
    async fn an_interrupted_flush_repeats_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let mut peer = TcpStream::connect(address).await.expect("connect");
        let (socket, _) = listener.accept().await.expect("accept");
        let mut wire = Wire::new(Stream::Plain(socket));
        // More than any socket buffers.
        let replies: Vec<u8> = (0..32 << 20).map(|i| (i % 251) as u8).collect();
        wire.output().extend_from_slice(&replies);
        assert!(wire.is_full());
        assert!(
            wire.flush().now_or_never().is_none(),
            "the peer does not read"
        );
        let mut read = Vec::new();
        let sent = async {
            wire.flush().await.expect("flush");
            wire.shutdown().await;
        };
        let (_, octets) = tokio::join!(sent, peer.read_to_end(&mut read));
        octets.expect("read");
        assert!(read == replies);
        assert!(!wire.is_full());
    }
}
