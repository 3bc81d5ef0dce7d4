//! Any service that takes a message, or facts about it, over HTTP and answers in JSON.
//!
//! JSON pointers (RFC 6901) in the configuration say where the values stand in an answer. An answer counts only if its
//! verdict is on one of the two configured lists. Every other answer is garbage, never clean (P4).

mod answer;
mod metadata;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};

use super::http_client::{HttpClient, facts, garbage};
use super::{BuildError, Engine, EngineAnswer, Probes, Sample, ScanError, Url, compute, is_short};
use crate::file;
use crate::verdict::{Answer, FindingKind, Reason};

pub(super) use answer::objections;
pub use answer::{HttpAnswer, read};

/// Settings that all replicas of a service share.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpSettings {
    /// Host name of the relay. It completes addresses that have no domain.
    pub hostname: String,
    /// Body of a request to the service.
    pub send: Posted,
    /// File that contains a token for `Authorization: Bearer`, and nothing else.
    pub token_file: Option<PathBuf>,
    /// File of certificate authorities for https; `None`: those of the system.
    pub tls_ca: Option<PathBuf>,
    /// Timeout of one connection attempt.
    pub connect_timeout: Duration,
    /// Where the values stand in an answer, and which verdicts count.
    pub reading: Reading,
    /// Test message that the service must object to in a probe.
    pub probe_with: ProbeWith,
}

/// The body of a request to the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// The message itself as `message/rfc822`, with the envelope in fields of the request.
    Message,
    /// A JSON document with envelope, sizes, hashes, names and types, without content.
    Metadata,
}

/// How to read an answer. Members whose name ends with `_at` are JSON pointers (RFC 6901).
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The verdict: a string, a number or a boolean.
    pub verdict_at: String,
    /// Verdicts by which the service objects to the message.
    pub bad: Vec<String>,
    /// Verdicts by which the service does not object.
    pub clean: Vec<String>,
    /// Kind of the finding for an objection.
    pub bad_kind: FindingKind,
    /// Score of an objection, unless the answer has a score.
    pub bad_score: f64,
    /// Names of what the service found: a string or an array of strings.
    pub name_at: Option<String>,
    /// The score, a number. If this pointer is configured, an answer without a score is garbage.
    pub score_at: Option<String>,
    /// Version of the service's signatures. The relay uses an answer again only while the version is the same.
    pub signatures_at: Option<String>,
    /// The message id. An answer with another id is garbage.
    pub id_at: Option<String>,
}

/// Test message that a service must object to in a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeWith {
    /// The relay does not probe the service.
    Nothing,
    /// The EICAR test file.
    Eicar,
    /// GTUBE.
    Gtube,
}

impl ProbeWith {
    /// The messages of a probe pair; `None` if the relay does not probe the service.
    pub(super) fn probes(self) -> Option<Probes> {
        match self {
            Self::Nothing => None,
            Self::Eicar => Some(Probes::malware()),
            Self::Gtube => Some(Probes::spam()),
        }
    }
}

/// One replica of a service.
#[derive(Debug)]
pub(super) struct Http {
    client: HttpClient,
    path: String,
    hostname: String,
    send: Posted,
    reading: Reading,
    probe_with: ProbeWith,
    token: Option<HeaderValue>,
}

impl Engine for Http {
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
        self.probe_with.probes()
    }
}

impl Http {
    /// Makes the replica at `url`, without connecting. Reads files, so it blocks.
    pub(super) fn new(url: &Url, settings: &HttpSettings) -> Result<Self, BuildError> {
        let ca = settings.tls_ca.as_deref();
        Ok(Self {
            client: HttpClient::new(url, ca, settings.connect_timeout)?,
            path: url.path().to_owned(),
            hostname: settings.hostname.clone(),
            send: settings.send,
            reading: settings.reading.clone(),
            probe_with: settings.probe_with,
            token: settings.token_file.as_deref().map(token).transpose()?,
        })
    }

    async fn ask(&self, sample: &Sample) -> Result<EngineAnswer, ScanError> {
        let request = sample.request();
        let mut fields = facts("x-spillway-", &self.hostname, request.id, &request.envelope);
        fields.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(token) = &self.token {
            fields.insert(AUTHORIZATION, token.clone());
        }
        let (kind, body, told_all) = match self.send {
            Posted::Message => ("message/rfc822", request.content.bytes().clone(), true),
            Posted::Metadata => {
                let (body, told_all) = metadata_of(&self.hostname, sample).await?;
                ("application/json", body, told_all)
            }
        };
        fields.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        let answer = self
            .client
            .post(&self.path, fields, body, sample.deadline());
        let said = read(&answer.await?, &self.reading).map_err(|why| garbage(&why))?;
        if said.id.is_some_and(|id| id != request.id.to_string()) {
            return Err(garbage("an answer about another message"));
        }
        Ok(EngineAnswer {
            signatures: said.signatures,
            ..EngineAnswer::new(judged(said.findings, told_all))
        })
    }
}

/// The engine's answer. If the service saw only part of the message and does not object, the message is not clean (P4).
fn judged(findings: Vec<crate::verdict::Finding>, told_all: bool) -> Answer {
    if told_all || findings.iter().any(|f| f.kind.is_objection()) {
        return Answer::Answered(findings);
    }
    Answer::None {
        reason: Reason::LimitsReached,
        detail: "a MIME limit was reached: the service got only part of the metadata".to_owned(),
        findings,
    }
}

async fn metadata_of(hostname: &str, sample: &Sample) -> Result<(Bytes, bool), ScanError> {
    let inspection = sample.inspection().await;
    let request = sample.request();
    let (id, envelope) = (request.id, request.envelope.clone());
    let hostname = hostname.to_owned();
    let content = request.content.clone();
    let told_all = inspection.exceeded.is_empty();
    let short = is_short(&content, &inspection);
    let write = move || metadata::write(&hostname, id, &envelope, &content, &inspection);
    Ok((compute(short, write).await?, told_all))
}

/// Reads a token from a file that contains nothing else.
fn token(path: &Path) -> Result<HeaderValue, BuildError> {
    let broken = |cause: String| BuildError::Token {
        path: path.to_owned(),
        cause,
    };
    let read = file::read_text(path, file::CREDENTIAL_FILE_OCTETS_MAX);
    let text = read.map_err(|error| broken(error.to_string()))?;
    let text = text.trim_end_matches(['\r', '\n']);
    let visible = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    let value = HeaderValue::from_str(&format!("Bearer {text}")).ok();
    let value = value.filter(|_| visible && text.len() <= 8192);
    let mut value = value.ok_or_else(|| {
        broken(
            "it must contain one line: the token, at most 8192 visible ASCII characters".to_owned(),
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}
