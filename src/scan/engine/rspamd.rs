//! rspamd over HTTP: `/checkv2` of its normal worker, with the facts of the envelope as header fields.
//!
//! rspamd's action is what its own thresholds make of its score. Here policy decides, so the action is a finding that a
//! rule may ask for, and nothing is done because rspamd says so. Not done: header changes that it proposes (content is
//! passed on as it came), HTTPCrypt (use https or the loopback interface), compression.

mod answer;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::header::{HeaderMap, HeaderName};

use super::http_client::{HttpClient, value};
use super::{BuildError, Engine, EngineAnswer, Probes, Sample, ScanError, Url};
use crate::message::{Envelope, MessageId};

pub use answer::{Reply, parse};

/// Octets of recipients that it is told about: more would be more than an HTTP server takes.
const RECIPIENTS: usize = 16 * 1024;

/// What all replicas of an rspamd have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RspamdSettings {
    /// Authorities for https; none: the system's.
    pub tls_ca: Option<PathBuf>,
    /// One connection attempt.
    pub connect_timeout: Duration,
}

/// One rspamd.
#[derive(Debug)]
pub(super) struct Rspamd {
    client: HttpClient,
    path: String,
}

impl Engine for Rspamd {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        Box::pin(async move { self.ask(&sample).await })
    }

    fn replica(&self) -> Option<&str> {
        Some(self.client.name())
    }

    fn probes(&self) -> Option<Probes> {
        Some(Probes::spam())
    }
}

impl Rspamd {
    /// The rspamd at that address; nothing is connected yet.
    pub(super) fn new(url: &Url, settings: &RspamdSettings) -> Result<Self, BuildError> {
        let ca = settings.tls_ca.as_deref();
        let path = match url.path() {
            "/" => "/checkv2",
            path => path,
        };
        Ok(Self {
            client: HttpClient::new(url, ca, settings.connect_timeout)?,
            path: path.to_owned(),
        })
    }

    async fn ask(&self, sample: &Sample) -> Result<EngineAnswer, ScanError> {
        let request = sample.request();
        let fields = facts(request.id, &request.envelope);
        let content = request.content.bytes().clone();
        let answer = self
            .client
            .post(&self.path, fields, content, sample.deadline());
        let reply = parse(&answer.await?).map_err(|why| self.client.garbage(&why))?;
        if !reply.is_about(request.content.header_section()) {
            return Err(self.client.garbage("an answer about another message"));
        }
        Ok(EngineAnswer {
            answer: reply.judged(),
            replica: Some(self.client.name().to_owned()),
            signatures: None,
        })
    }
}

/// The envelope, in the fields that rspamd's protocol has for it. A message that the relay has made itself came from
/// nobody.
fn facts(id: MessageId, envelope: &Envelope) -> HeaderMap {
    let mut fields = HeaderMap::new();
    let mut put = |name: &'static str, text: &str| {
        fields.append(HeaderName::from_static(name), value(text));
    };
    put("queue-id", &id.to_string());
    put("from", envelope.reverse_path.as_str());
    let mut told = 0;
    for recipient in &envelope.recipients {
        let mailbox = recipient.mailbox.as_str();
        told += mailbox.len();
        if told > RECIPIENTS {
            break;
        }
        put("rcpt", mailbox);
    }
    let origin = &envelope.origin;
    if origin.protocol != "local" {
        put("ip", &origin.client.to_canonical().to_string());
        put("helo", &origin.helo);
    }
    if let Some(name) = &origin.client_name {
        put("hostname", name);
    }
    if let Some(user) = &origin.user {
        put("user", user);
    }
    if let Some((version, cipher)) = origin.tls.as_deref().and_then(|tls| tls.split_once(' ')) {
        put("tls-version", version);
        put("tls-cipher", cipher);
    }
    fields
}
