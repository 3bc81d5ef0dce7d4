//! SpamAssassin's spamd over SPAMC 1.5, one connection for each scan: spamd closes it after the answer.
//!
//! spamd gets the message with the trace fields that a mail server would have put on top (Return-Path and Received):
//! SpamAssassin takes the client's address, its HELO and the reverse-path from them, for SPF and block lists. What the
//! protocol cannot say: spamd has no version of its rules to tell, and no name for the message it answers about, so a
//! connection is never used twice.

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
use super::head::{Malformed, read_all};
use super::{Address, BuildError, Engine, EngineAnswer, Probes, Sample, ScanError, Tls};
use crate::message::{Envelope, MessageId, header};

pub use answer::{SpamdAnswer, parse};

/// Octets of an answer: names of rules, some hundreds at most.
const ANSWER: usize = 256 * 1024;

/// What all replicas of a spamd have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpamdSettings {
    /// Whose preferences spamd uses; none: its own.
    pub user: Option<String>,
    /// Whether the connection is encrypted.
    pub tls: Option<Tls>,
    /// One connection attempt.
    pub connect_timeout: Duration,
}

/// One spamd.
#[derive(Debug)]
pub(super) struct Spamd {
    dial: Dial,
    user: Option<String>,
    /// What the Received field says that it was added by.
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
    /// The spamd at that address; nothing is connected yet.
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
        // A write that fails is no failure yet: spamd may have said why before it closed.
        let unsent = self.send(&mut stream, sample).await.err();
        let answer = match (read_all(&mut stream, ANSWER).await, &unsent) {
            (Err(error), _) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Err(self.failed(Malformed::Garbage(error.to_string())));
            }
            (Ok(answer), Some(error)) if answer.is_empty() => {
                return Err(self.disconnected(error));
            }
            (Err(error), _) => return Err(self.disconnected(&error)),
            (Ok(answer), _) => answer,
        };
        let said = parse(&answer).map_err(|malformed| self.failed(malformed))?;
        // It may well call spam what it has seen the beginning of; nobody has looked at the rest.
        if let (SpamdAnswer::Judged { spam: false, .. }, Some(error)) = (&said, &unsent) {
            return Err(self.disconnected(error));
        }
        Ok(EngineAnswer {
            answer: said.judged(self.dial.name(), began.elapsed())?,
            replica: Some(self.dial.name().to_owned()),
            signatures: None,
            wanted: Vec::new(),
        })
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
        // The end of what we send, as spamc says it too; spamd, which knows how much it is, may have closed before that.
        let _ = stream.shutdown().await;
        Ok(())
    }

    fn failed(&self, malformed: Malformed) -> ScanError {
        malformed.of(self.dial.name())
    }

    fn disconnected(&self, error: &std::io::Error) -> ScanError {
        ScanError::Disconnected {
            replica: self.dial.name().to_owned(),
            cause: error.to_string(),
        }
    }
}

/// The fields that a mail server puts on top (RFC 5321 4.4), in the form that SpamAssassin reads. A message that the
/// relay has made itself came from nobody.
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

/// A name that cannot be taken for anything else in a Received field.
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
