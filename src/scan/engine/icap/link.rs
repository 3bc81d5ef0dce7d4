//! A connection to an ICAP service. Bodies are sent in chunks, and everything that is read is bounded.

use std::io;

use bytes::{Buf, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;

use super::chunk_size;
use crate::scan::engine::ScanError;
use crate::scan::engine::address::Stream;
use crate::scan::engine::head::Malformed;

/// Octets of a head, to bound the memory of one scan.
const HEAD_OCTETS_MAX: usize = 64 * 1024;
/// Octets of a line between chunks, to bound the memory of one scan.
const LINE_OCTETS_MAX: usize = 1024;
/// Trailer lines after the last chunk. The relay ignores their content; the bound ends an endless answer.
const TRAILER_LINES_MAX: usize = 100;
/// Octets of a chunk that the relay sends: so many that the lines between chunks cost little.
const CHUNK_OCTETS_MAX: usize = 64 * 1024;

/// A connection. Dropping it closes the socket.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) reader: Reader,
    pub(super) writer: WriteHalf<Stream>,
    /// Time of the last use.
    pub(super) since: Instant,
}

/// The reading half of a connection, with a buffer.
#[derive(Debug)]
pub(super) struct Reader {
    from: ReadHalf<Stream>,
    buffer: BytesMut,
}

impl Link {
    pub(super) fn over(stream: Stream) -> Self {
        let (from, writer) = tokio::io::split(stream);
        Self {
            reader: Reader {
                from,
                buffer: BytesMut::new(),
            },
            writer,
            since: Instant::now(),
        }
    }

    /// Whether the service has neither closed the connection nor sent octets without a request.
    pub(super) fn is_silent(&mut self) -> bool {
        let Reader { from, buffer } = &mut self.reader;
        buffer.is_empty() && from.read_buf(buffer).now_or_never().is_none()
    }

    /// Sends octets without chunking.
    pub(super) async fn send(&mut self, octets: &[u8]) -> io::Result<()> {
        self.writer.write_all(octets).await?;
        self.writer.flush().await
    }

    /// Sends octets as chunks, without the last chunk that ends a body.
    pub(super) async fn send_chunks(&mut self, octets: impl Buf) -> io::Result<()> {
        send_chunks(&mut self.writer, octets).await
    }
}

async fn send_chunks(writer: &mut WriteHalf<Stream>, mut octets: impl Buf) -> io::Result<()> {
    while octets.has_remaining() {
        let chunk = octets.chunk();
        let chunk = &chunk[..chunk.len().min(CHUNK_OCTETS_MAX)];
        let size = format!("{:x}\r\n", chunk.len());
        writer.write_all(size.as_bytes()).await?;
        writer.write_all(chunk).await?;
        writer.write_all(b"\r\n").await?;
        let sent = chunk.len();
        octets.advance(sent);
    }
    Ok(())
}

/// Sends the rest of a body as chunks, with the last chunk.
pub(super) async fn send_rest(writer: &mut WriteHalf<Stream>, octets: impl Buf) -> io::Result<()> {
    send_chunks(writer, octets).await?;
    writer.write_all(b"0\r\n\r\n").await?;
    writer.flush().await
}

impl Reader {
    /// Whether the buffer is empty: the service has sent nothing without a request.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Reads a head, up to and including its empty line.
    pub(super) async fn head(&mut self) -> Result<Vec<u8>, ScanError> {
        self.until(b"\r\n\r\n", HEAD_OCTETS_MAX).await
    }

    /// Reads a chunked body (RFC 9112 section 7.1) of at most `most` octets, and gives each piece to `take`.
    pub(super) async fn body(
        &mut self,
        most: usize,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), ScanError> {
        let mut total = 0_usize;
        loop {
            let line = self.until(b"\r\n", LINE_OCTETS_MAX).await?;
            let mut left = chunk_size(&line)?;
            if left == 0 {
                return self.trailers().await;
            }
            total = total.saturating_add(left);
            if total > most {
                let what = format!("an answer of more than {most} octets");
                return Err(ScanError::Garbage(what));
            }
            while left > 0 {
                if self.buffer.is_empty() {
                    self.more().await?;
                }
                let here = left.min(self.buffer.len());
                take(&self.buffer[..here]);
                self.buffer.advance(here);
                left -= here;
            }
            let end = self.until(b"\r\n", LINE_OCTETS_MAX).await?;
            if end != b"\r\n" {
                return Err(Malformed::garbage(&end).into());
            }
        }
    }

    async fn trailers(&mut self) -> Result<(), ScanError> {
        for _ in 0..TRAILER_LINES_MAX {
            if self.until(b"\r\n", LINE_OCTETS_MAX).await? == b"\r\n" {
                return Ok(());
            }
        }
        Err(ScanError::Garbage("too many trailer lines".to_owned()))
    }

    /// Reads up to and including `end`. Fails after more than `most` octets without `end`.
    async fn until(&mut self, end: &[u8], most: usize) -> Result<Vec<u8>, ScanError> {
        let mut searched = 0;
        loop {
            let from = usize::saturating_sub(searched, end.len());
            if let Some(at) = memchr::memmem::find(&self.buffer[from..], end) {
                return Ok(self.buffer.split_to(from + at + end.len()).to_vec());
            }
            searched = self.buffer.len();
            if searched > most {
                return Err(Malformed::garbage(&self.buffer).into());
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<(), ScanError> {
        match self.from.read_buf(&mut self.buffer).await {
            Ok(0) => Err(Malformed::CutOff.into()),
            Ok(_) => Ok(()),
            Err(cause) => Err(ScanError::Disconnected(cause.to_string())),
        }
    }
}
