//! A connection to a filter. Outgoing packets are collected and sent together; incoming octets are bounded.

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::packet::{self, NegotiatedTerms};
use crate::scan::engine::ScanError;
use crate::scan::engine::address::Stream;
use crate::scan::engine::head::Malformed;

/// Outgoing octets that are collected before they are sent, to save writes. The relay sends them earlier if it waits for an
/// answer.
const SEND_BUFFER_OCTETS: usize = 64 * 1024;

/// A connection. Dropping it closes the socket.
#[derive(Debug)]
pub(super) struct Link {
    stream: Stream,
    inbox: BytesMut,
    outbox: Vec<u8>,
    /// Octets that the filter may still send about this message.
    left: usize,
    /// The negotiated terms.
    pub(super) terms: NegotiatedTerms,
}

impl Link {
    pub(super) fn over(stream: Stream) -> Self {
        Self {
            stream,
            inbox: BytesMut::new(),
            outbox: Vec::new(),
            left: packet::PACKET_OCTETS_MAX,
            terms: NegotiatedTerms::default(),
        }
    }

    /// Sends SMFIC_QUIT if the socket takes it at once. The scan does not wait until the filter reads it.
    pub(super) fn quit(&mut self) {
        packet::append(&mut self.outbox, b'Q', &[]);
        let _ = self.flush().now_or_never();
    }

    /// Sets the number of octets that the filter may send from now on.
    pub(super) fn allow(&mut self, octets: usize) {
        self.left = octets;
    }

    /// Adds a packet to the send buffer, and sends the buffer if it is full.
    pub(super) async fn queue(&mut self, command: u8, data: &[&[u8]]) -> Result<(), ScanError> {
        packet::append(&mut self.outbox, command, data);
        match self.outbox.len() < SEND_BUFFER_OCTETS {
            true => Ok(()),
            false => self.flush().await,
        }
    }

    /// Sends the buffered packets.
    pub(super) async fn flush(&mut self) -> Result<(), ScanError> {
        let sent = async {
            self.stream.write_all(&self.outbox).await?;
            self.stream.flush().await
        };
        let sent = sent.await;
        self.outbox.clear();
        sent.map_err(|cause| ScanError::Disconnected(cause.to_string()))
    }

    /// Waits for the next packet, and returns its command and data.
    pub(super) async fn packet(&mut self) -> Result<(u8, Bytes), ScanError> {
        if !self.outbox.is_empty() {
            self.flush().await?;
        }
        loop {
            if let Some(packet) = packet::split(&self.inbox)? {
                let (command, octets) = (packet.command, packet.octets);
                self.left = self.left.checked_sub(octets).ok_or_else(|| {
                    ScanError::Garbage(
                        "more octets than an answer about one message can have".to_owned(),
                    )
                })?;
                let mut data = self.inbox.split_to(octets).freeze();
                data.advance(5);
                return Ok((command, data));
            }
            match self.stream.read_buf(&mut self.inbox).await {
                Ok(0) => return Err(Malformed::CutOff.into()),
                Ok(_) => {}
                Err(cause) => return Err(ScanError::Disconnected(cause.to_string())),
            }
        }
    }
}
