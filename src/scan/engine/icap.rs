//! ICAP (RFC 3507): a message as the body of an HTTP response (RESPMOD) or request (REQMOD), for scanners made for web
//! proxies.
//!
//! The service is asked for its OPTIONS first, and again when they expire or its ISTag changes. It gets a preview of the
//! size that it wants, and the rest if it says 100, all of it behind some octets that are the same for every message. What
//! it answers with is not used: 204, or the content as it was, means that nothing was found; findings are told in header
//! fields; anything else it does to the content is a finding too.

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
use super::head::Malformed;
use super::url::ICAP;
use super::{BuildError, Engine, EngineAnswer, Probes, Sample, ScanError, Tls, Url};
use crate::deadline::Deadline;
use crate::message::MessageId;
use crate::verdict::{Answer, Finding, FindingKind, Reason};
use link::{Link, Reader};
use shown::{Echo, Fate, shown};

pub use answer::{Head, Options, chunk_size, encapsulated_status, head, options};

/// Connections kept for later, and for how long: less than servers wait.
const IDLE_CONNECTIONS_MAX: usize = 8;
const IDLE_FOR: Duration = Duration::from_secs(4);
/// OPTIONS are believed for so long at most, whatever they say.
const OPTIONS_FOR: Duration = Duration::from_secs(3600);
/// Octets of an answer beyond those of the message: a page about what was found.
const BLOCK_PAGE_OCTETS_MAX: usize = 1 << 20;

/// How a message is shown to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// As something that is downloaded.
    Respmod,
    /// As something that is uploaded.
    Reqmod,
}

/// What all replicas of a service have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IcapSettings {
    /// How a message is shown.
    pub method: Method,
    /// Authorities for icaps; none: the system's.
    pub tls_ca: Option<PathBuf>,
    /// One connection attempt.
    pub connect_timeout: Duration,
}

/// One service.
#[derive(Debug)]
pub(super) struct Icap {
    dial: Dial,
    url: Url,
    method: Method,
    idle: Mutex<Vec<Link>>,
    known: Mutex<Option<Known>>,
    in_use: AtomicUsize,
}

/// OPTIONS, and how long they hold.
#[derive(Debug, Clone)]
struct Known {
    options: Arc<Options>,
    until: Instant,
}

/// What a service says about one message.
struct IcapAnswer {
    answer: Answer,
    signatures: Option<String>,
    /// The answer was read to its end, and the service goes on listening.
    keep: bool,
}

impl IcapAnswer {
    /// The same, of which it counts what a service says that has not been shown the whole message: nothing but findings.
    fn about(mut self, whole: bool) -> Self {
        if !whole && self.answer == Answer::Answered(Vec::new()) {
            self.answer = Answer::None {
                reason: Reason::LimitsReached,
                detail: "it did not want to see all of it".to_owned(),
                findings: Vec::new(),
            };
        }
        self
    }
}

/// One of the service's connections, counted.
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
    /// The service at that address; nothing is connected yet.
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
                    // Before the next one: the service may take no second one.
                    drop(link);
                    link = self.link(sample.deadline()).await?;
                }
                options
            }
        };
        if !options.methods.iter().any(|m| m == self.method.as_str()) {
            return Err(ScanError::Declined {
                replica: self.dial.name().to_owned(),
                message: format!("it does not know {}", self.method.as_str()),
            });
        }
        let said = self.show(&mut link, &options, sample).await?;
        if said.keep {
            self.keep(link);
        }
        if said.signatures.is_some() && said.signatures != options.istag {
            // The service has changed, and with it perhaps what it wants (RFC 3507 4.7).
            self.forget();
        }
        Ok(EngineAnswer {
            answer: said.answer,
            replica: Some(self.dial.name().to_owned()),
            signatures: said.signatures,
            wanted: Vec::new(),
        })
    }

    /// Counts a connection, if the service takes one more, or did when it was asked last.
    fn enter(&self) -> Result<InUse<'_>, ScanError> {
        let before = self.in_use.fetch_add(1, Ordering::SeqCst);
        let counted = InUse(&self.in_use);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let most = known.as_ref().and_then(|k| k.options.max_connections);
        match most {
            Some(most) if before >= most => Err(ScanError::Full {
                replica: self.dial.name().to_owned(),
                most,
            }),
            _ => Ok(counted),
        }
    }

    fn known(&self) -> Option<Arc<Options>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.as_ref().filter(|k| Instant::now() < k.until)?;
        Some(known.options.clone())
    }

    /// What is known holds no longer.
    fn forget(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_mut() {
            known.until = Instant::now();
        }
    }

    /// A connection that was used before, or a fresh one.
    async fn link(&self, deadline: Deadline) -> Result<Link, ScanError> {
        let used = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain_mut(|link| link.since.elapsed() < IDLE_FOR && link.is_silent());
            idle.pop()
        };
        match used {
            Some(link) => Ok(link),
            None => {
                let stream = self.dial.connect(deadline).await?;
                Ok(Link::over(stream, self.dial.name()))
            }
        }
    }

    fn keep(&self, mut link: Link) {
        link.since = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(link);
        }
    }

    /// Asks what the service wants, and whether the connection can be used again.
    async fn options(&self, link: &mut Link) -> Result<(Arc<Options>, bool), ScanError> {
        let request = format!("{}\r\n", self.request("OPTIONS"));
        let _ = link.send(request.as_bytes()).await;
        let answer = link.reader.head().await?;
        let head = head(&answer).map_err(|malformed| self.failed(malformed))?;
        if head.status != 200 {
            return Err(self.refusal(&head));
        }
        let options = options(&answer).map_err(|malformed| self.failed(malformed))?;
        // Some services describe themselves in a body, which nobody here would read.
        let keep = head.keep && head.has_no_body() && link.reader.is_empty();
        let ttl = options.ttl.unwrap_or(OPTIONS_FOR).min(OPTIONS_FOR);
        let options = Arc::new(options);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(Known {
            options: options.clone(),
            until: Instant::now() + ttl,
        });
        Ok((options, keep))
    }

    /// The first lines of a request, without the empty one.
    fn request(&self, method: &str) -> String {
        let authority = self.url.authority();
        format!(
            "{method} {} ICAP/1.0\r\nHost: {authority}\r\nUser-Agent: Spillway\r\n",
            self.url
        )
    }

    /// Everything before the body.
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

    /// Shows the message, and reads what the service says.
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
        // A write that fails is no failure yet: the service may have said why before it closed.
        let mut whole = link.send(request.as_bytes()).await.is_ok();
        if let Some(preview) = preview {
            let first = rest.copy_to_bytes(preview);
            let end: &[u8] = match rest.has_remaining() {
                false => b"0; ieof\r\n\r\n",
                true => b"0\r\n\r\n",
            };
            whole &= link.send_chunks(first).await.is_ok() && link.send(end).await.is_ok();
            let first = link.reader.head().await?;
            let status = head(&first)
                .map_err(|malformed| self.failed(malformed))?
                .status;
            if status != 100 || !rest.has_remaining() {
                let mut said = self.answer(&mut link.reader, Some(first), content).await?;
                said.keep &= whole;
                return Ok(said.about(whole && !rest.has_remaining()));
            }
        }
        // Both at once: a service may well send the content back while it comes in.
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

    /// Reads the last answer, of which `first` has come already, if anything.
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
        let head = head(&first).map_err(|malformed| self.failed(malformed))?;
        let signatures = head.istag.clone();
        let said = |answer, keep| IcapAnswer {
            answer,
            signatures: signatures.clone(),
            keep,
        };
        if !matches!(head.status, 200 | 204) {
            return Err(self.refusal(&head));
        }
        if let Some(answer) = head.findings() {
            // What follows is a page for people: not worth the risk of losing the finding to it.
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

    /// The status of the HTTP response that the service has put into its answer; none for a request.
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
            true => {
                let status = encapsulated_status(&http);
                status.map(Some).map_err(|malformed| self.failed(malformed))
            }
        }
    }

    /// RFC 3507 4.3.3.
    fn refusal(&self, head: &Head) -> ScanError {
        let replica = self.dial.name().to_owned();
        let message = head.line.chars().take(200).collect();
        match head.status {
            413 => ScanError::Refused { replica, message },
            100..=399 => ScanError::Garbage {
                replica,
                answer: message,
            },
            408 | 500 | 502..=599 => ScanError::Engine { replica, message },
            _ => ScanError::Declined { replica, message },
        }
    }

    fn failed(&self, malformed: Malformed) -> ScanError {
        malformed.of(self.dial.name())
    }
}

impl Method {
    fn as_str(self) -> &'static str {
        match self {
            Self::Respmod => "RESPMOD",
            Self::Reqmod => "REQMOD",
        }
    }

    /// The message as HTTP, without its body, and the Encapsulated field for it (RFC 3507 4.4.1). The name ends with
    /// `.eml`, as services go by that too.
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
