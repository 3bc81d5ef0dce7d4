//! The octet stream of a session, with or without TLS, and the buffers for input and output.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A socket, with or without TLS.
pub(super) enum Stream {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS. Boxed, because most sessions have no TLS, and an idle session should use little memory.
    Tls(Box<TlsStream<TcpStream>>),
    /// No socket, while the TLS handshake owns it.
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

/// The stream with its buffers. An idle session holds an input buffer of [`Wire::IDLE_INPUT_OCTETS`] and no output buffer.
pub(super) struct Wire {
    stream: Stream,
    input: BytesMut,
    output: Vec<u8>,
    /// Octets of the output that are already sent.
    sent: usize,
}

impl Wire {
    /// Size in octets of the input buffer while the session waits for a command: 1 KiB holds most command lines.
    const IDLE_INPUT_OCTETS: usize = 1024;
    /// Size in octets of the input buffer while content arrives. A larger buffer means fewer reads.
    const CONTENT_INPUT_OCTETS: usize = 32 * 1024;
    /// Octets of replies that may wait for the next flush. A pipelining client has to read these replies before its next
    /// command is answered.
    const PENDING_REPLY_OCTETS_MAX: usize = 16 * 1024;
    /// Octets that [`Wire::discard`] reads at most: 64 KiB, more than a browser's request without its body.
    const DISCARDED_OCTETS_MAX: usize = 64 * 1024;

    /// Wraps a socket from which nothing was read yet.
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: Vec::new(),
            sent: 0,
        }
    }

    /// Input that was read and not yet used.
    pub(super) fn input(&self) -> &[u8] {
        &self.input
    }

    /// Removes the first `octets` octets of the input.
    pub(super) fn consume(&mut self, octets: usize) {
        self.input.advance(octets);
    }

    /// The buffer for replies that are not yet sent.
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Whether the output must be sent before a further reply is added.
    pub(super) fn is_full(&self) -> bool {
        self.output.len() > Self::PENDING_REPLY_OCTETS_MAX
    }

    /// Sends the output.
    ///
    /// Cancel safety: safe; the next flush continues where this one stopped.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
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

    /// Reads more input while the session waits for a command. Returns the number of octets; 0 is the end of the stream.
    ///
    /// Cancel safety: safe; the octets that were read are in the input.
    pub(super) async fn read_command(&mut self) -> io::Result<usize> {
        if self.input.is_empty() && self.input.capacity() != Self::IDLE_INPUT_OCTETS {
            self.input = BytesMut::with_capacity(Self::IDLE_INPUT_OCTETS);
        }
        self.input.reserve(Self::IDLE_INPUT_OCTETS / 2);
        self.stream.read_buf(&mut self.input).await
    }

    /// Reads at most `octets` octets more, so that later octets stay in the socket. 0 is the end of the stream.
    ///
    /// Cancel safety: safe; the octets that were read are in the input.
    pub(super) async fn read_at_most(&mut self, octets: usize) -> io::Result<usize> {
        let mut limited = (&mut self.stream).take(octets as u64);
        limited.read_buf(&mut self.input).await
    }

    /// Reads more input while content arrives. Returns the number of octets; 0 is the end of the stream.
    ///
    /// Cancel safety: safe; the octets that were read are in the input.
    pub(super) async fn read_content(&mut self) -> io::Result<usize> {
        if self.input.is_empty() && self.input.capacity() < Self::CONTENT_INPUT_OCTETS {
            self.input = BytesMut::with_capacity(Self::CONTENT_INPUT_OCTETS);
        }
        self.input.reserve(Self::CONTENT_INPUT_OCTETS / 4);
        self.stream.read_buf(&mut self.input).await
    }

    /// Drops the buffered input, which arrived before the TLS handshake, and returns the socket for the handshake.
    pub(super) fn take_plain(&mut self) -> Option<TcpStream> {
        self.input.clear();
        match std::mem::replace(&mut self.stream, Stream::Closed) {
            Stream::Plain(stream) => Some(stream),
            Stream::Tls(_) | Stream::Closed => None,
        }
    }

    /// Continues with an encrypted stream.
    pub(super) fn set_tls(&mut self, stream: TlsStream<TcpStream>) {
        self.stream = Stream::Tls(Box::new(stream));
    }

    /// Reads and drops what the client still sends, so that its system does not drop the last reply: input that nobody reads
    /// resets the connection (RFC 1122 4.2.2.13). Ends at the end of the stream, at an error, or after
    /// [`Wire::DISCARDED_OCTETS_MAX`].
    pub(super) async fn discard(&mut self) {
        let mut left = Self::DISCARDED_OCTETS_MAX;
        loop {
            self.input.clear();
            match self.read_command().await {
                Ok(octets @ 1..) if octets < left => left -= octets,
                _ => return,
            }
        }
    }

    /// Closes the transport. Errors are ignored, because the session has ended.
    pub(super) async fn shutdown(&mut self) {
        let _ = self.stream.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::net::TcpListener;

    use super::*;

    /// A flush after a cancelled one continues where the first stopped: octets sent twice would look like replies to other
    /// commands.
    #[tokio::test]
    async fn an_interrupted_flush_repeats_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let mut peer = TcpStream::connect(address).await.expect("connect");
        let (socket, _) = listener.accept().await.expect("accept");
        let mut wire = Wire::new(Stream::Plain(socket));
        // More octets than the buffers of a socket hold.
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
