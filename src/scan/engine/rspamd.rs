//! rspamd over HTTP: `/checkv2` of its normal worker, with the facts of the envelope as header fields.
//!
//! rspamd's action is what its own thresholds make of its score. Here policy decides, so the action is a finding that a
//! rule may ask for, and nothing is done because rspamd says so. Header fields that it proposes are
//! what the engine wants, and `edits` decides. Not done: HTTPCrypt (use https or the loopback interface), compression.

mod answer;
#[cfg(test)]
mod tests;
mod wishes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::http_client::{HttpClient, facts};
use super::{BuildError, Engine, EngineAnswer, Probes, Sample, ScanError, Url};

pub use answer::{Reply, parse};

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
        let fields = facts("", request.id, &request.envelope);
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
            wanted: reply.wanted(request.content.header_section()),
        })
    }
}
