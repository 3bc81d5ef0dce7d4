//! rspamd over HTTP: `/checkv2` of its normal worker, with the facts of the envelope as header fields.
//!
//! rspamd derives its action from its score and its own thresholds. Here policy decides: the action is a finding that a rule
//! can match, and the relay does not carry it out. Header fields that rspamd proposes are requested edits, and `edits`
//! decides about them. With a key, requests and answers are encrypted ([`crypt`]). Compression is not supported.

mod answer;
mod crypt;
mod inner;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::http_client::{HttpClient, accept, facts, garbage, told};
use super::{BuildError, Engine, EngineAnswer, Probes, Sample, ScanError, Url, compute};
use crate::message::mime;
use crypt::{Exchange, NoExchange};

pub use answer::{Reply, parse};
pub use crypt::{NotAKey, PublicKey};

/// Path of encrypted requests. The real path is inside the encryption.
const SEALED_PATH: &str = "/post";
/// Field of an encrypted request. The field names the key to which the request is encrypted.
const KEY_FIELD: HeaderName = HeaderName::from_static("key");

/// Settings that all replicas of an rspamd share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RspamdSettings {
    /// Host name of the relay. It completes addresses that have no domain.
    pub hostname: String,
    /// File of certificate authorities for https; `None`: those of the system.
    pub tls_ca: Option<PathBuf>,
    /// Public key of the workers, to which requests are encrypted; `None`: requests are not encrypted.
    pub key: Option<PublicKey>,
    /// Timeout of one connection attempt.
    pub connect_timeout: Duration,
}

/// One replica of an rspamd.
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
    /// Makes the replica at `url`, without connecting.
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
        let reply = parse(&answer).map_err(|why| garbage(&why))?;
        if !reply.is_about(request.content.header_section()) {
            return Err(garbage("an answer about another message"));
        }
        Ok(EngineAnswer {
            wanted: reply.wanted(request.content.header_section()),
            ..EngineAnswer::new(reply.judged())
        })
    }

    /// Sends the request encrypted to the holder of `key`. An answer that this holder did not encrypt is garbage, whatever
    /// its status: an attacker could have sent it.
    async fn ask_sealed(
        &self,
        key: PublicKey,
        fields: HeaderMap,
        sample: &Sample,
    ) -> Result<Bytes, ScanError> {
        let content = sample.content().bytes().clone();
        let head = inner::request(&self.path, &fields, content.len());
        let short = content.len() <= mime::INLINE_OCTETS_MAX;
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
        fields.insert(
            KEY_FIELD,
            field.map_err(|_| garbage("the relay's own key is not valid"))?,
        );
        let kind = HeaderValue::from_static("application/octet-stream");
        fields.insert(CONTENT_TYPE, kind);
        let answer = self
            .client
            .exchange(SEALED_PATH, fields, sealed.into(), sample.deadline());
        let answer = answer.await.map_err(asking)?;
        let body = answer.body().clone();
        let short = body.len() <= mime::INLINE_OCTETS_MAX;
        let opened = compute(short, move || exchange.open(&body)).await?;
        let Some(opened) = opened else {
            let what = format!("not encrypted by the holder of key ({WRONG_KEY})");
            return Err(garbage(&format!("{what}: {}", told(&answer))));
        };
        let answer = inner::answer(opened);
        accept(answer.ok_or_else(|| garbage("the decrypted text is not an HTTP answer"))?)
    }
}

/// The first thing to check if an encrypted request gets no answer.
const WRONG_KEY: &str = "is it this worker's public key?";

/// Adds a hint about the key: rspamd closes the connection without an answer if a request is encrypted to another key.
fn asking(error: ScanError) -> ScanError {
    match error {
        ScanError::Disconnected(cause) => {
            ScanError::Disconnected(format!("{cause} (key: {WRONG_KEY})"))
        }
        other => other,
    }
}
