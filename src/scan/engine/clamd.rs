//! clamd over INSTREAM, one connection per scan, by clamav-client.
//!
//! What the crate leaves to us, read in its source (2.3): it has no timeouts, so the guard drops the future, which
//! closes the socket; it has no connection to use again, and none is kept here. It reads the answer without bound, and
//! it loses an answer that clamd gives before all content is sent (that is how clamd refuses what is too large), because
//! the write that fails then ends the call. [`Wire`] mends both. Content is handed over as it lies in memory.
//!
//! **OK does not always mean clean.** A clamd that meets one of its own limits (MaxScanSize, MaxFileSize, MaxRecursion,
//! MaxFiles, MaxScanTime) says plain `OK` unless `AlertExceedsMax yes` is in its configuration; then it says
//! `Heuristics.Limits.Exceeded…`, which is reported as `limits-reached` here. The protocol has no way to ask for these
//! limits, so: set `AlertExceedsMax yes`, and keep this engine's `max_size` at or below clamd's StreamMaxLength,
//! MaxScanSize and MaxFileSize. Likewise `AlertEncrypted yes` makes encrypted archives known as such.
//!
//! What clamd gets begins with [`PREFACE`], or the sender would choose what clamd takes it for.

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
use super::head::Malformed;
use super::preface::PREFACE;
use super::{Address, BuildError, Engine, EngineAnswer, Probes, Sample, ScanError};
use crate::deadline::Deadline;
use crate::verdict::{Answer, Finding, FindingKind, Reason};
use wire::Wire;

pub use answer::{ClamdAnswer, parse};

/// Octets of one chunk: a size field goes before each.
const CHUNK: usize = 64 * 1024;
/// How long a version is believed; signatures change a few times a day.
const VERSION_AGE: Duration = Duration::from_secs(60);

/// One clamd.
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

    /// `ClamAV 1.4.3/27812/Fri Nov  7 09:46:55 2025`; clamd prints the local time of the database, taken for UTC here:
    /// what is asked is whether it is days old.
    fn signed(&self, version: &str) -> Option<jiff::Timestamp> {
        let date = version.splitn(3, '/').nth(2)?;
        let made = jiff::civil::DateTime::strptime("%a %b %e %H:%M:%S %Y", date).ok()?;
        Some(made.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    }
}

impl Clamd {
    /// The clamd at that address; nothing is connected yet.
    pub(super) fn new(address: &Address, connect_timeout: Duration) -> Result<Self, BuildError> {
        Ok(Self {
            dial: Dial::new(address, None, connect_timeout)?,
            connect_timeout,
            version: Mutex::default(),
        })
    }

    fn name(&self) -> String {
        self.dial.name().to_owned()
    }

    async fn ask(&self, sample: &Sample) -> Result<EngineAnswer, ScanError> {
        let wire = Wire::over(self.dial.connect(sample.deadline()).await?);
        let closed = wire.closed();
        let preface = Bytes::from_static(PREFACE.as_bytes());
        let content = sample.content().bytes().clone();
        let stream = tokio_stream::iter([preface, content].map(Ok::<Bytes, io::Error>));
        let answer = clamav_client::tokio::scan_stream(stream, wire.ready(), Some(CHUNK)).await;
        let answer = answer.map_err(|cause| self.broken(&cause))?;
        let answer = self.judge(&answer, closed.load(Ordering::Relaxed))?;
        // Half of what is left, so that the verdict we have is never lost to the version.
        let deadline = sample.deadline().within(sample.deadline().remaining() / 2);
        Ok(EngineAnswer {
            answer,
            replica: Some(self.name()),
            signatures: self.version(deadline.within(self.connect_timeout)).await,
            wanted: Vec::new(),
        })
    }

    fn broken(&self, cause: &io::Error) -> ScanError {
        if cause.kind() == io::ErrorKind::InvalidData {
            return Malformed::Garbage(cause.to_string()).of(self.dial.name());
        }
        ScanError::Disconnected {
            replica: self.name(),
            cause: cause.to_string(),
        }
    }

    /// What an answer to INSTREAM means; whether clamd had closed before it had got everything.
    fn judge(&self, answer: &[u8], closed: bool) -> Result<Answer, ScanError> {
        match parse(answer) {
            // It may well have found something in the beginning, but nobody has looked at the rest.
            Ok(ClamdAnswer::Ok) if closed => Err(ScanError::Disconnected {
                replica: self.name(),
                cause: "it had not got everything when it said OK".to_owned(),
            }),
            Ok(ClamdAnswer::Ok) => Ok(Answer::Answered(Vec::new())),
            Ok(ClamdAnswer::Found(name)) => Ok(found(name)),
            Ok(ClamdAnswer::Failed(message)) => Err(self.refusal(message)),
            Err(malformed) => Err(malformed.of(self.dial.name())),
        }
    }

    fn refusal(&self, message: &str) -> ScanError {
        let (replica, message) = (self.name(), message.to_owned());
        if message.contains("size limit exceeded") {
            ScanError::Refused { replica, message }
        } else {
            ScanError::Engine { replica, message }
        }
    }

    /// The version of the signatures, at most [`VERSION_AGE`] old. One caller asks for all; if clamd does not tell in
    /// time the last known one holds: a version is never worth a verdict.
    async fn version(&self, deadline: Deadline) -> Option<String> {
        let now = Instant::now();
        {
            let mut version = self.version.lock().unwrap_or_else(PoisonError::into_inner);
            if version.asked.is_some_and(|at| now < at + VERSION_AGE) {
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

/// `ClamAV 1.4.3/27812/Fri Nov  7 09:46:55 2025`: engine, number and date of the signatures; the engine alone if it has
/// none of the official ones.
fn signatures(version: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(version.strip_suffix(b"\0")?).ok()?;
    let is_plain = text.starts_with("ClamAV ") && !text.contains(char::is_control);
    is_plain.then(|| text.chars().take(200).collect())
}

/// What a signature's name says about the sort of thing.
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
        return unseen(Reason::Encrypted, "clamd cannot look into it");
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
