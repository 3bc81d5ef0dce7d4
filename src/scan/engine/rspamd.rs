//! rspamd over HTTP: `/checkv2` of its normal worker, with the facts of the envelope as header fields.
//!
//! rspamd's action is what its own thresholds make of its score. Here policy decides, so the action is a finding that a
//! rule may ask for, and nothing is done because rspamd says so. Header fields that it proposes are
//! what the engine wants, and `edits` decides. With a key, requests and answers are encrypted ([`crypt`]). Not done: compression.

mod answer;
mod crypt;
mod inner;
mod requested_edits;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::http_client::{HttpClient, facts, told};
use super::{BuildError, Engine, EngineAnswer, Probes, Sample, ScanError, Url, compute};
use crate::message::mime;
use crypt::{Exchange, NoExchange};

pub use answer::{Reply, parse};
pub use crypt::{NotAKey, PublicKey};

/// Where sealed requests go; the path that is meant is inside.
const SEALED_PATH: &str = "/post";
/// The field of a sealed request that says to which key it is sealed.
const KEY: HeaderName = HeaderName::from_static("key");

/// What all replicas of an rspamd have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RspamdSettings {
    /// What we call ourselves.
    pub hostname: String,
    /// Authorities for https; none: the system's.
    pub tls_ca: Option<PathBuf>,
    /// The workers' public key, to which requests are encrypted; none: they are not.
    pub key: Option<PublicKey>,
    /// One connection attempt.
    pub connect_timeout: Duration,
}

/// One rspamd.
#[derive(Debug)]
pub(super) struct Rspamd {
    client: HttpClient,
    path: String,
    hostname: String,
    key: Option<PublicKey>,
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
            hostname: settings.hostname.clone(),
            key: settings.key,
        })
    }

    async fn ask(&self, sample: &Sample) -> Result<EngineAnswer, ScanError> {
        let request = sample.request();
        let fields = facts("", &self.hostname, request.id, &request.envelope);
        let answer = match self.key {
            Some(key) => self.ask_sealed(key, fields, sample).await?,
            None => {
                let content = request.content.bytes().clone();
                let answer = self
                    .client
                    .post(&self.path, fields, content, sample.deadline());
                answer.await?
            }
        };
        let reply = parse(&answer).map_err(|why| self.client.garbage(&why))?;
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

    /// The same, encrypted to the holder of `key`. What is not encrypted by that holder is nobody's answer, whatever its
    /// status is: whoever can send that could send anything.
    async fn ask_sealed(
        &self,
        key: PublicKey,
        fields: HeaderMap,
        sample: &Sample,
    ) -> Result<Bytes, ScanError> {
        let content = sample.content().bytes().clone();
        let head = inner::request(&self.path, &fields, content.len());
        let short = content.len() <= mime::INLINE;
        let seal = move || -> Result<_, NoExchange> {
            let exchange = Exchange::with(&key)?;
            let sealed = exchange.seal(&head, &content)?;
            Ok((exchange, sealed))
        };
        let (exchange, sealed) = compute(short, seal)
            .await?
            .map_err(|why| ScanError::Unreachable(format!("{}: {why}", self.client.name())))?;
        let mut fields = HeaderMap::new();
        let field = HeaderValue::from_str(exchange.field());
        fields.insert(KEY, field.map_err(|_| self.client.garbage("our own key"))?);
        let kind = HeaderValue::from_static("application/octet-stream");
        fields.insert(CONTENT_TYPE, kind);
        let answer = self
            .client
            .exchange(SEALED_PATH, fields, sealed.into(), sample.deadline());
        let answer = answer.await.map_err(asking)?;
        let body = answer.body().clone();
        let short = body.len() <= mime::INLINE;
        let opened = compute(short, move || exchange.open(&body)).await?;
        let Some(opened) = opened else {
            let what = format!("not encrypted by the holder of key ({WRONG_KEY})");
            return Err(self.client.garbage(&format!("{what}: {}", told(&answer))));
        };
        let answer = inner::answer(opened);
        let answer =
            answer.ok_or_else(|| self.client.garbage("what is encrypted is no HTTP answer"))?;
        self.client.accept(answer)
    }
}

/// What to look at first where there is no answer to a sealed request.
const WRONG_KEY: &str = "is it this worker's public key?";

/// rspamd closes the connection without a word when it is asked with another key than its own.
fn asking(error: ScanError) -> ScanError {
    match error {
        ScanError::Disconnected { replica, cause } => ScanError::Disconnected {
            replica,
            cause: format!("{cause} (key: {WRONG_KEY})"),
        },
        other => other,
    }
}
