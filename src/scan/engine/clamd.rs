//! clamd over INSTREAM, with one connection per scan, through the crate clamav-client.
//!
//! According to its source (2.3), the crate leaves these tasks to the relay. It has no timeouts, so the guard drops the future,
//! which closes the socket. It does not reuse connections, and this engine keeps none. It reads an answer of any length, and it
//! loses an answer that clamd sends before all content is sent, because the failing write ends the call. clamd answers so if
//! the content is too large. [`Wire`] solves both problems. The content is sent from memory, without a copy.
//!
//! **OK does not always mean clean.** If clamd reaches one of its own limits (MaxScanSize, MaxFileSize, MaxRecursion, MaxFiles,
//! MaxScanTime), it answers plain `OK`, unless its configuration has `AlertExceedsMax yes`. Then clamd answers
//! `Heuristics.Limits.Exceeded…`, which this engine reports as `limits-reached`. The protocol cannot ask for these limits. So
//! the administrator should set `AlertExceedsMax yes`, and keep `max_size` of this engine below StreamMaxLength, MaxScanSize
//! and MaxFileSize of clamd by at least the size of the preface. With `AlertEncrypted yes`, clamd also reports encrypted
//! archives as such.
//!
//! The stream begins with [`PREFACE`]. Otherwise the sender could choose the file type that clamd recognises.

mod answer;
pub(super) mod conf;
mod wire;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::address::Dial;
use super::preface::PREFACE;
use super::{Address, BuildError, Engine, EngineAnswer, Probes, Sample, ScanError};
use crate::deadline::Deadline;
use crate::verdict::{Answer, Finding, FindingKind, Reason};
use wire::Wire;

pub use answer::{ClamdAnswer, parse};

/// Octets of one chunk. A size field precedes each chunk, so larger chunks mean fewer size fields.
const CHUNK_OCTETS: usize = 64 * 1024;
/// Largest age of a known version of the signatures. Signatures change a few times a day, so one minute is recent enough.
const VERSION_AGE_MAX: Duration = Duration::from_secs(60);

/// One replica: the clamd at one address.
#[derive(Debug)]
pub(super) struct Clamd {
    dial: Dial,
    connect_timeout: Duration,
    version: Mutex<Version>,
}

#[derive(Debug, Default)]
struct Version {
    asked: Option<Instant>,
    text: Option<String>,
}

impl Engine for Clamd {
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

    fn ask_signatures(self: Arc<Self>) -> Option<BoxFuture<'static, Option<String>>> {
        let deadline = Deadline::after(self.connect_timeout);
        Some(Box::pin(async move { self.version(deadline).await }))
    }

    /// The date in `ClamAV 1.4.3/27812/Fri Nov  7 09:46:55 2025`. clamd prints the local time of the database, and this function
    /// reads it as UTC: the caller only checks whether the signatures are days old.
    fn signed(&self, version: &str) -> Option<jiff::Timestamp> {
        let date = version.splitn(3, '/').nth(2)?;
        let made = jiff::civil::DateTime::strptime("%a %b %e %H:%M:%S %Y", date).ok()?;
        Some(made.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    }
}

impl Clamd {
    /// The clamd at this address. Opens no connection.
    ///
    /// # Errors
    /// See [`Dial::new`].
    pub(super) fn new(address: &Address, connect_timeout: Duration) -> Result<Self, BuildError> {
        Ok(Self {
            dial: Dial::new(address, None, connect_timeout)?,
            connect_timeout,
            version: Mutex::default(),
        })
    }

    async fn ask(&self, sample: &Sample) -> Result<EngineAnswer, ScanError> {
        let wire = Wire::over(self.dial.connect(sample.deadline()).await?);
        let closed = wire.closed();
        let preface = Bytes::from_static(PREFACE.as_bytes());
        let content = sample.content().bytes().clone();
        let stream = tokio_stream::iter([preface, content].map(Ok::<Bytes, io::Error>));
        let answer =
            clamav_client::tokio::scan_stream(stream, wire.ready(), Some(CHUNK_OCTETS)).await;
        let answer = answer.map_err(|cause| broken(&cause))?;
        let answer = judge(&answer, closed.load(Ordering::Relaxed))?;
        // Half of the remaining time, so that asking for the version never costs the answer.
        let deadline = sample.deadline().within(sample.deadline().remaining() / 2);
        Ok(EngineAnswer {
            signatures: self.version(deadline.within(self.connect_timeout)).await,
            ..EngineAnswer::new(answer)
        })
    }

    /// The version of the signatures, at most [`VERSION_AGE_MAX`] old. One caller asks clamd for all callers. If clamd does not
    /// answer in time, the last known version is used: no scan fails because of the version.
    ///
    /// Cancel safety: safe; if the caller that asks is dropped, the next question follows after [`VERSION_AGE_MAX`].
    async fn version(&self, deadline: Deadline) -> Option<String> {
        let now = Instant::now();
        {
            let mut version = self.version.lock().unwrap_or_else(PoisonError::into_inner);
            if version.asked.is_some_and(|at| now < at + VERSION_AGE_MAX) {
                return version.text.clone();
            }
            version.asked = Some(now);
        }
        let asked = deadline.run(async {
            let wire = Wire::over(self.dial.connect(deadline).await.ok()?);
            clamav_client::tokio::get_version(wire.ready()).await.ok()
        });
        let told = asked.await.ok().flatten();
        let mut version = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = told.as_deref().and_then(signatures) {
            version.text = Some(told);
        }
        version.text.clone()
    }
}

/// Reads an answer to VERSION, as in `ClamAV 1.4.3/27812/Fri Nov  7 09:46:55 2025`: engine, number and date of the signatures.
/// Without official signatures, clamd sends the engine alone. Returns `None` for any other answer.
fn signatures(version: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(version.strip_suffix(b"\0")?).ok()?;
    let is_plain = text.starts_with("ClamAV ") && !text.contains(char::is_control);
    is_plain.then(|| text.chars().take(200).collect())
}

fn broken(cause: &io::Error) -> ScanError {
    match cause.kind() {
        io::ErrorKind::InvalidData => ScanError::Garbage(cause.to_string()),
        _ => ScanError::Disconnected(cause.to_string()),
    }
}

/// Interprets an answer to INSTREAM. `closed`: clamd closed the connection before it had received the whole content.
fn judge(answer: &[u8], closed: bool) -> Result<Answer, ScanError> {
    match parse(answer)? {
        // clamd received only the beginning of the content. A finding there counts, but OK says nothing about the rest.
        ClamdAnswer::Ok if closed => Err(ScanError::Disconnected(
            "it answered OK before it had received the whole content".to_owned(),
        )),
        ClamdAnswer::Ok => Ok(Answer::Answered(Vec::new())),
        ClamdAnswer::Found(name) => Ok(found(name)),
        ClamdAnswer::Failed(message) if message.contains("size limit exceeded") => {
            Err(ScanError::Refused(message.to_owned()))
        }
        ClamdAnswer::Failed(message) => Err(ScanError::Engine(message.to_owned())),
    }
}

/// The answer for a found signature. The name of the signature determines the kind of the finding.
fn found(name: &str) -> Answer {
    let known = |kind, score| Finding::new(kind, name, score);
    let unseen = |reason, detail: &str| Answer::None {
        reason,
        detail: detail.to_owned(),
        findings: vec![known(FindingKind::Info, 0.0)],
    };
    if name.starts_with("Heuristics.Limits.Exceeded") {
        return unseen(Reason::LimitsReached, "clamd stopped at a limit of its own");
    }
    if name.starts_with("Heuristics.Encrypted.") {
        return unseen(Reason::Encrypted, "clamd cannot scan encrypted content");
    }
    Answer::Answered(vec![if name.starts_with("Heuristics.Phishing.")
        || name.starts_with("Phishing.")
    {
        known(FindingKind::Phishing, 10.0)
    } else if name.starts_with("PUA.") {
        known(FindingKind::Suspicious, 5.0)
    } else {
        known(FindingKind::Malware, 10.0)
    }])
}

#[cfg(test)]
mod tests;
