//! ICAP (RFC 3507): a message as the body of an HTTP response (RESPMOD) or request (REQMOD), for scanners made for web
//! proxies.
//!
//! The relay asks the service for its OPTIONS first, and again when they expire or the service's ISTag changes. The service
//! gets a preview of the size that it wants, and the rest if it answers 100. The same octets precede every message
//! (`preface.rs`). The relay does not use the content that the service returns. 204, or unchanged content, means that the
//! service found nothing. Findings stand in header fields of the answer. Every other change of the content is a finding too.

mod answer;
mod link;
mod shown;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Buf;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::address::Dial;
use super::url::ICAP;
use super::{BuildError, Engine, EngineAnswer, Probes, Sample, ScanError, Tls, Url};
use crate::deadline::Deadline;
use crate::message::MessageId;
use crate::verdict::{Answer, Finding, FindingKind, Reason};
use link::{Link, Reader};
use shown::{Echo, Fate, shown};

pub use answer::{Head, Options, chunk_size, encapsulated_status, head, options};

/// Idle connections that are kept for later requests.
const IDLE_CONNECTIONS_MAX: usize = 8;
/// Servers usually keep an idle connection for longer than 4 s, so few of them close a connection that the relay keeps.
const IDLE_CONNECTION_AGE_MAX: Duration = Duration::from_secs(4);
/// The relay relies on OPTIONS for one hour at most, even if their Options-TTL is longer, so that it notices a change of the
/// service.
const OPTIONS_AGE_MAX: Duration = Duration::from_secs(3600);
/// Octets that an answer may have beyond those of the message: a service may send a page about a finding.
const BLOCK_PAGE_OCTETS_MAX: usize = 1 << 20;

/// How the relay presents a message to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// As a download: the body of an HTTP response.
    Respmod,
    /// As an upload: the body of an HTTP request.
    Reqmod,
}

/// Settings that all replicas of a service share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IcapSettings {
    /// How the relay presents a message.
    pub method: Method,
    /// File of certificate authorities for icaps; `None`: those of the system.
    pub tls_ca: Option<PathBuf>,
    /// Timeout of one connection attempt.
    pub connect_timeout: Duration,
}

/// One replica of a service.
#[derive(Debug)]
pub(super) struct Icap {
    dial: Dial,
    url: Url,
    method: Method,
    idle: Mutex<Vec<Link>>,
    known: Mutex<Option<Known>>,
    in_use: AtomicUsize,
}

/// An answer to OPTIONS, and when it expires.
#[derive(Debug, Clone)]
struct Known {
    options: Arc<Options>,
    until: Instant,
}

/// The answer of a service about one message.
struct IcapAnswer {
    answer: Answer,
    signatures: Option<String>,
    /// Whether the relay has read the whole answer, and the service keeps the connection open.
    keep: bool,
}

impl IcapAnswer {
    /// Restricts the answer of a service that did not see the whole message: its findings count, but no findings do not mean
    /// clean.
    fn about(mut self, whole: bool) -> Self {
        if !whole && self.answer == Answer::Answered(Vec::new()) {
            self.answer = Answer::None {
                reason: Reason::LimitsReached,
                detail: "the service answered before it had seen the whole message".to_owned(),
                findings: Vec::new(),
            };
        }
        self
    }
}

/// Counts one connection to the service until it is dropped.
struct InUse<'a>(&'a AtomicUsize);

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Engine for Icap {
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
        Some(Probes::malware())
    }
}

impl Icap {
    /// Makes the replica at `url`, without connecting.
    pub(super) fn new(url: &Url, settings: &IcapSettings) -> Result<Self, BuildError> {
        let tls = url.is_tls(&ICAP).then(|| Tls {
            ca: settings.tls_ca.clone(),
        });
        Ok(Self {
            dial: Dial::new(&url.address(), tls.as_ref(), settings.connect_timeout)?,
            url: url.clone(),
            method: settings.method,
            idle: Mutex::default(),
            known: Mutex::default(),
            in_use: AtomicUsize::new(0),
        })
    }

    async fn ask(&self, sample: &Sample) -> Result<EngineAnswer, ScanError> {
        let _in_use = self.enter()?;
        let mut link = self.link(sample.deadline()).await?;
        let options = match self.known() {
            Some(options) => options,
            None => {
                let (options, keep) = self.options(&mut link).await?;
                if !keep {
                    // The relay closes this connection before it opens the next: the service may accept only one.
                    drop(link);
                    link = self.link(sample.deadline()).await?;
                }
                options
            }
        };
        if !options.methods.iter().any(|m| m == self.method.as_str()) {
            return Err(ScanError::Declined(format!(
                "the service does not support {}: set method to one that it supports",
                self.method.as_str()
            )));
        }
        let said = self.show(&mut link, &options, sample).await?;
        if said.keep {
            self.keep(link);
        }
        if said.signatures.is_some() && said.signatures != options.istag {
            // The service has changed, and its OPTIONS may have changed too (RFC 3507 section 4.7).
            self.forget();
        }
        Ok(EngineAnswer {
            signatures: said.signatures,
            ..EngineAnswer::new(said.answer)
        })
    }

    /// Counts a connection. Fails if the last OPTIONS, even expired ones, allow no further connection.
    fn enter(&self) -> Result<InUse<'_>, ScanError> {
        let before = self.in_use.fetch_add(1, Ordering::SeqCst);
        let counted = InUse(&self.in_use);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let most = known.as_ref().and_then(|k| k.options.max_connections);
        match most {
            Some(most) if before >= most => Err(ScanError::Full(most)),
            _ => Ok(counted),
        }
    }

    fn known(&self) -> Option<Arc<Options>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.as_ref().filter(|k| Instant::now() < k.until)?;
        Some(known.options.clone())
    }

    /// Lets the OPTIONS expire. Their limit of connections holds until the next OPTIONS.
    fn forget(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_mut() {
            known.until = Instant::now();
        }
    }

    /// Takes an idle connection, or makes a new one.
    async fn link(&self, deadline: Deadline) -> Result<Link, ScanError> {
        let used = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain_mut(|link| {
                link.since.elapsed() < IDLE_CONNECTION_AGE_MAX && link.is_silent()
            });
            idle.pop()
        };
        match used {
            Some(link) => Ok(link),
            None => Ok(Link::over(self.dial.connect(deadline).await?)),
        }
    }

    fn keep(&self, mut link: Link) {
        link.since = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(link);
        }
    }

    /// Asks the service for its OPTIONS. The flag says whether the connection can be used again.
    async fn options(&self, link: &mut Link) -> Result<(Arc<Options>, bool), ScanError> {
        let request = format!("{}\r\n", self.request("OPTIONS"));
        let _ = link.send(request.as_bytes()).await;
        let answer = link.reader.head().await?;
        let head = head(&answer)?;
        if head.status != 200 {
            return Err(refusal(&head));
        }
        let options = options(&answer)?;
        // Some services send a description in a body. The relay does not read it, so it cannot use the connection again.
        let keep = head.keep && head.has_no_body() && link.reader.is_empty();
        let ttl = options.ttl.unwrap_or(OPTIONS_AGE_MAX).min(OPTIONS_AGE_MAX);
        let options = Arc::new(options);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(Known {
            options: options.clone(),
            until: Instant::now() + ttl,
        });
        Ok((options, keep))
    }

    /// The first lines of a request, without the empty line that ends the head.
    fn request(&self, method: &str) -> String {
        let authority = self.url.authority();
        format!(
            "{method} {} ICAP/1.0\r\nHost: {authority}\r\nUser-Agent: Spillway\r\n",
            self.url
        )
    }

    /// Everything before the body: the ICAP head and the encapsulated HTTP heads.
    fn heads(&self, id: MessageId, length: usize, preview: Option<usize>) -> String {
        let (http, parts) = self.method.http(id, length);
        let mut request = self.request(self.method.as_str());
        request.push_str("Allow: 204\r\n");
        if let Some(preview) = preview {
            request.push_str(&format!("Preview: {preview}\r\n"));
        }
        request.push_str(&format!("Encapsulated: {parts}\r\n\r\n{http}"));
        request
    }

    /// Sends the message and reads the answer.
    async fn show(
        &self,
        link: &mut Link,
        options: &Options,
        sample: &Sample,
    ) -> Result<IcapAnswer, ScanError> {
        let content: &[u8] = sample.content().bytes();
        let mut rest = shown(content);
        let length = rest.remaining();
        let preview = options.preview.map(|most| most.min(length));
        let request = self.heads(sample.request().id, length, preview);
        // A failed write is not an error yet: the service may have sent an answer before it closed the connection.
        let mut whole = link.send(request.as_bytes()).await.is_ok();
        if let Some(preview) = preview {
            let first = rest.copy_to_bytes(preview);
            let end: &[u8] = match rest.has_remaining() {
                false => b"0; ieof\r\n\r\n",
                true => b"0\r\n\r\n",
            };
            whole &= link.send_chunks(first).await.is_ok() && link.send(end).await.is_ok();
            let first = link.reader.head().await?;
            let status = head(&first)?.status;
            if status != 100 || !rest.has_remaining() {
                let mut said = self.answer(&mut link.reader, Some(first), content).await?;
                said.keep &= whole;
                return Ok(said.about(whole && !rest.has_remaining()));
            }
        }
        // The relay reads and writes at the same time: a service may return the content while it receives it.
        let Link { reader, writer, .. } = link;
        let writing = link::send_rest(writer, rest);
        let reading = self.answer(reader, None, content);
        tokio::pin!(writing, reading);
        let mut written = None;
        loop {
            tokio::select! {
                biased;
                result = &mut writing, if written.is_none() => written = Some(result.is_ok()),
                said = &mut reading => {
                    let mut said = said?;
                    let whole = written == Some(true);
                    said.keep &= whole;
                    return Ok(said.about(whole));
                }
            }
        }
    }

    /// Reads the final answer. `first` is the head of the answer, if it has been read already.
    async fn answer(
        &self,
        reader: &mut Reader,
        first: Option<Vec<u8>>,
        content: &[u8],
    ) -> Result<IcapAnswer, ScanError> {
        let first = match first {
            Some(first) => first,
            None => reader.head().await?,
        };
        let head = head(&first)?;
        let signatures = head.istag.clone();
        let said = |answer, keep| IcapAnswer {
            answer,
            signatures: signatures.clone(),
            keep,
        };
        if !matches!(head.status, 200 | 204) {
            return Err(refusal(&head));
        }
        if let Some(answer) = head.findings() {
            // A page for people follows. The relay does not read it, because an error there would lose the finding.
            return Ok(said(answer, false));
        }
        if head.status == 204 {
            return Ok(said(Answer::Answered(Vec::new()), head.keep));
        }
        let found =
            |name: &str, kind, score| Answer::Answered(vec![Finding::new(kind, name, score)]);
        let blocked = || found("blocked", FindingKind::Malware, 10.0);
        if let Some(status) = self.http_status(reader, &head).await? {
            let unasked = self.method == Method::Reqmod && head.has_part("res-hdr");
            if unasked || !(200..300).contains(&status) {
                return Ok(said(blocked(), false));
            }
        }
        let mut echo = Echo::of(content);
        if !head.has_no_body() {
            let take = |octets: &[u8]| echo.take(octets);
            reader
                .body(content.len() + BLOCK_PAGE_OCTETS_MAX, take)
                .await?;
        }
        let keep = head.keep && reader.is_empty();
        Ok(match echo.fate() {
            Fate::Untouched => said(Answer::Answered(Vec::new()), keep),
            Fate::Modified => said(found("modified", FindingKind::Suspicious, 5.0), keep),
            Fate::Withheld => said(blocked(), keep),
        })
    }

    /// Status of the encapsulated HTTP response; `None` if the answer encapsulates a request, or no head at all.
    async fn http_status(
        &self,
        reader: &mut Reader,
        head: &Head,
    ) -> Result<Option<u16>, ScanError> {
        if !head.has_part("res-hdr") && !head.has_part("req-hdr") {
            return Ok(None);
        }
        let http = reader.head().await?;
        match head.has_part("res-hdr") {
            false => Ok(None),
            true => Ok(Some(encapsulated_status(&http)?)),
        }
    }
}

/// The error for a status that is not an answer (RFC 3507 section 4.3.3).
fn refusal(head: &Head) -> ScanError {
    let line = head.line.chars().take(200).collect();
    match head.status {
        413 => ScanError::Refused(line),
        100..=399 => ScanError::Garbage(line),
        408 | 500 | 502..=599 => ScanError::Engine(line),
        _ => ScanError::Declined(line),
    }
}

impl Method {
    fn as_str(self) -> &'static str {
        match self {
            Self::Respmod => "RESPMOD",
            Self::Reqmod => "REQMOD",
        }
    }

    /// The HTTP heads for the message, and the Encapsulated field for them (RFC 3507 section 4.4.1). The name in the URL ends
    /// with `.eml`, because some services also judge content by its name.
    fn http(self, id: MessageId, length: usize) -> (String, String) {
        let body = format!("Content-Type: message/rfc822\r\nContent-Length: {length}\r\n\r\n");
        let target =
            format!("http://spillway.invalid/{id}.eml HTTP/1.1\r\nHost: spillway.invalid\r\n");
        match self {
            Self::Respmod => {
                let request = format!("GET {target}\r\n");
                let at = request.len();
                let all = format!("{request}HTTP/1.1 200 OK\r\n{body}");
                let end = all.len();
                (all, format!("req-hdr=0, res-hdr={at}, res-body={end}"))
            }
            Self::Reqmod => {
                let all = format!("POST {target}{body}");
                let end = all.len();
                (all, format!("req-hdr=0, req-body={end}"))
            }
        }
    }
}
