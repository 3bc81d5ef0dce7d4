//! Any service that takes a message, or facts about it, over HTTP and answers in JSON.
//!
//! Which part of the answer means what is configured as JSON pointers (RFC 6901). Only a verdict that is on one of the two
//! lists counts; whatever else comes is garbage, never clean.

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

use super::http_client::{HttpClient, facts};
use super::{BuildError, Engine, EngineAnswer, Probes, Sample, ScanError, Url, compute, is_short};
use crate::file;
use crate::verdict::{Answer, FindingKind, Reason};

pub(super) use answer::objections;
pub use answer::{HttpAnswer, read};

/// What all replicas of a service have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpSettings {
    /// What we call ourselves.
    pub hostname: String,
    /// What is posted.
    pub send: Posted,
    /// Holds a token for `Authorization: Bearer`, alone.
    pub token_file: Option<PathBuf>,
    /// Authorities for https; none: the system's.
    pub tls_ca: Option<PathBuf>,
    /// One connection attempt.
    pub connect_timeout: Duration,
    /// How an answer is read.
    pub reading: Reading,
    /// What it must find to prove that it works.
    pub probe_with: ProbeWith,
}

/// What is posted to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// The message itself, `message/rfc822`; the envelope in fields of the request.
    Message,
    /// Envelope, sizes, hashes, names and types as a JSON document; none of the content.
    Metadata,
}

/// Where in an answer is what: JSON pointers.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The verdict: a text, a number, true or false.
    pub verdict_at: String,
    /// Verdicts that are an objection.
    pub bad: Vec<String>,
    /// Verdicts that are none.
    pub clean: Vec<String>,
    /// What an objection is.
    pub bad_kind: FindingKind,
    /// Its score, unless the answer has one.
    pub bad_score: f64,
    /// What was found: a text, or a list of texts.
    pub name_at: Option<String>,
    /// A score; it must be there then.
    pub score_at: Option<String>,
    /// A version of what the service knows; answers are used again only while it is the same.
    pub signatures_at: Option<String>,
    /// The id of the message; it must be the one that was sent.
    pub id_at: Option<String>,
}

/// What a service must find to prove that it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeWith {
    /// It is not probed.
    Nothing,
    /// The EICAR test file.
    Eicar,
    /// GTUBE.
    Gtube,
}

impl ProbeWith {
    /// The messages for it.
    pub(super) fn probes(self) -> Option<Probes> {
        match self {
            Self::Nothing => None,
            Self::Eicar => Some(Probes::malware()),
            Self::Gtube => Some(Probes::spam()),
        }
    }
}

/// One service.
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
    /// The service at that address; nothing is connected yet. Reads files: blocks.
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
        let said = read(&answer.await?, &self.reading).map_err(|why| self.client.garbage(&why))?;
        if said.id.is_some_and(|id| id != request.id.to_string()) {
            return Err(self.client.garbage("an answer about another message"));
        }
        Ok(EngineAnswer {
            answer: judged(said.findings, told_all),
            replica: Some(self.client.name().to_owned()),
            signatures: said.signatures,
            wanted: Vec::new(),
        })
    }
}

/// A service that was told only part of what there is cannot say that it is clean (P4).
fn judged(findings: Vec<crate::verdict::Finding>, told_all: bool) -> Answer {
    if told_all || findings.iter().any(|f| f.kind.is_objection()) {
        return Answer::Answered(findings);
    }
    Answer::None {
        reason: Reason::LimitsReached,
        detail: "only part of the message's structure was followed".to_owned(),
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

/// A file that holds a token, alone.
fn token(path: &Path) -> Result<HeaderValue, BuildError> {
    let broken = |cause: String| BuildError::Token {
        path: path.to_owned(),
        cause,
    };
    let read = file::read_text(path, file::LARGEST);
    let text = read.map_err(|error| broken(error.to_string()))?;
    let text = text.trim_end_matches(['\r', '\n']);
    let visible = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    let value = HeaderValue::from_str(&format!("Bearer {text}")).ok();
    let value = value.filter(|_| visible && text.len() <= 8192);
    let mut value = value.ok_or_else(|| broken("it must hold one line, the token".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}
