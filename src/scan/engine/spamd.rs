//! SpamAssassin's spamd over SPAMC 1.5. Each scan has its own connection: spamd closes it after the answer.
//!
//! spamd gets the message with the trace fields that a mail server would have put on top (Return-Path and Received):
//! SpamAssassin takes the client's address, its HELO and the reverse-path from them, for SPF and block lists. Limits of the
//! protocol: spamd cannot report the version of its rules, and its answer does not name the message, so a connection is never
//! used twice.

mod answer;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::address::{Dial, Stream};
use super::head::read_all;
use super::{Address, BuildError, Engine, EngineAnswer, Probes, Sample, ScanError, Tls};
use crate::message::{Envelope, MessageId, header};

pub use answer::{SpamdAnswer, parse};

/// Octets of an answer, to bound the memory of one scan. An answer has the names of some hundreds of rules at most.
const ANSWER_OCTETS_MAX: usize = 256 * 1024;

/// Settings that all replicas of a spamd share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpamdSettings {
    /// User whose preferences spamd uses; `None`: spamd's own user.
    pub user: Option<String>,
    /// TLS settings; `None`: the connection is not encrypted.
    pub tls: Option<Tls>,
    /// Timeout of one connection attempt.
    pub connect_timeout: Duration,
}

/// One replica of a spamd.
#[derive(Debug)]
pub(super) struct Spamd {
    dial: Dial,
    user: Option<String>,
    /// Host name after `by` in the Received field.
    hostname: String,
}

impl Engine for Spamd {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        Box::pin(async move { self.ask(&sample).await })
    }

    fn replica(&self) -> Option<&str> {
        Some(self.dial.name())
    }

    fn probes(&self) -> Option<Probes> {
        Some(Probes::spam())
    }
}

impl Spamd {
    /// Makes the replica at `address`, without connecting.
    pub(super) fn new(address: &Address, settings: &SpamdSettings) -> Result<Self, BuildError> {
        let system = rustix::system::uname();
        Ok(Self {
            dial: Dial::new(address, settings.tls.as_ref(), settings.connect_timeout)?,
            user: settings.user.clone(),
            hostname: plain(&system.nodename().to_string_lossy()),
        })
    }

    async fn ask(&self, sample: &Sample) -> Result<EngineAnswer, ScanError> {
        let began = Instant::now();
        let mut stream = self.dial.connect(sample.deadline()).await?;
        // A failed write is not an error yet: spamd may have sent an answer before it closed the connection.
        let unsent = self.send(&mut stream, sample).await.err();
        let answer = match (read_all(&mut stream, ANSWER_OCTETS_MAX).await, &unsent) {
            (Err(error), _) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Err(ScanError::Garbage(error.to_string()));
            }
            (Ok(answer), Some(error)) if answer.is_empty() => return Err(disconnected(error)),
            (Err(error), _) => return Err(disconnected(&error)),
            (Ok(answer), _) => answer,
        };
        let said = parse(&answer)?;
        // spamd may call a message spam after it has seen only the beginning, but it cannot call such a message clean.
        if let (SpamdAnswer::Judged { spam: false, .. }, Some(error)) = (&said, &unsent) {
            return Err(disconnected(error));
        }
        Ok(EngineAnswer::new(said.judged(began.elapsed())?))
    }

    async fn send(&self, stream: &mut Stream, sample: &Sample) -> std::io::Result<()> {
        let request = sample.request();
        let mut trace = trace(&self.hostname, request.id, &request.envelope);
        trace.push_str(header::fence(request.content.bytes()));
        let length = trace.len() + request.content.len();
        let mut head = format!("SYMBOLS SPAMC/1.5\r\nContent-length: {length}\r\n");
        if let Some(user) = &self.user {
            let _ = write!(head, "User: {user}\r\n");
        }
        head.push_str("\r\n");
        head.push_str(&trace);
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(request.content.bytes()).await?;
        stream.flush().await?;
        // Ends the relay's side of the connection, as spamc does. spamd knows the length, so it may have closed the
        // connection before; such an error does not matter.
        let _ = stream.shutdown().await;
        Ok(())
    }
}

fn disconnected(error: &std::io::Error) -> ScanError {
    ScanError::Disconnected(error.to_string())
}

/// The trace fields that a mail server puts on top (RFC 5321 section 4.4), in the form that SpamAssassin reads. A message
/// that the relay itself made has no client, so it gets no Received field.
fn trace(hostname: &str, id: MessageId, envelope: &Envelope) -> String {
    let mut fields = format!("Return-Path: {}\r\n", envelope.reverse_path);
    let origin = &envelope.origin;
    if origin.protocol == "local" {
        return fields;
    }
    let at = match origin.client.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("IPv6:{v6}"),
    };
    let name = origin
        .client_name
        .as_deref()
        .map_or("unknown".into(), plain);
    let _ = write!(
        fields,
        "Received: from {} ({name} [{at}])\r\n\tby {hostname} (Spillway) with {} id {id};\r\n\t{}\r\n",
        plain(&origin.helo),
        plain(&origin.protocol),
        id.received_at().strftime("%a, %d %b %Y %H:%M:%S +0000"),
    );
    fields
}

/// A name with only such characters as cannot change the meaning of a Received field.
fn plain(text: &str) -> String {
    let keep = |c: char| match c {
        '.' | '-' | '_' | ':' | '[' | ']' => c,
        c if c.is_ascii_alphanumeric() => c,
        _ => '_',
    };
    match text.is_empty() {
        true => "unknown".to_owned(),
        false => text.chars().take(255).map(keep).collect(),
    }
}
