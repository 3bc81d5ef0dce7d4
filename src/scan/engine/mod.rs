//! One file per protocol.
//!
//! The next kind of engine is: its file here with a type that implements [`Engine`], its variant in [`Kind`], and its
//! arm in [`build`]. Everything about waiting, retrying, limiting and reporting is the guard's business; an engine
//! looks at one sample, once.

mod archive;
mod attachment;
mod clamd;
mod encrypted;
mod error;
mod name;
mod rules;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::deadline::Deadline;
use crate::message::Content;
use crate::message::mime::{self, Inspection};
use crate::scan::ScanRequest;
use crate::verdict::Answer;

pub use error::{BuildError, Class, ScanError};

/// The protocol of an engine, with what only this protocol needs.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// clamd over INSTREAM.
    Clamd {
        /// Replicas, tried in turn.
        addresses: Vec<ClamdAddress>,
        /// One connection attempt.
        connect_timeout: Duration,
    },
    /// YARA rules in process.
    Rules {
        /// Whether the built-in set is used.
        builtin: bool,
        /// Files or folders of `.yar` and `.yara` files.
        paths: Vec<PathBuf>,
    },
    /// What the message is made of.
    Attachment(AttachmentSettings),
}

/// Where a clamd listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClamdAddress {
    /// `host:port`, resolved at each connection.
    Tcp(String),
    /// Path of the socket.
    Unix(PathBuf),
    /// Already resolved.
    Socket(SocketAddr),
}

/// What the attachment engine objects to.
#[derive(Debug, Clone, PartialEq)]
pub struct AttachmentSettings {
    /// Forbidden file name extensions, lower case, without dot; in archives too.
    pub block_extensions: Vec<String>,
    /// Forbidden media types, declared or sniffed: `application/x-msdownload`, `image/*`.
    pub block_types: Vec<String>,
    /// Whether archives and documents that cannot be opened without a password are a finding.
    pub block_encrypted: bool,
    /// Nesting of multiparts and messages, and of archives within.
    pub max_depth: usize,
    /// Parts of a message.
    pub max_parts: usize,
    /// Files in an archive.
    pub max_archive_files: usize,
    /// Unpacked octets by compressed octets from which an archive is a bomb.
    pub max_ratio: u64,
}

/// What an engine looks at: a message, and its MIME facts once somebody has asked for them.
#[derive(Debug, Clone)]
pub struct Sample {
    request: ScanRequest,
    inspection: mime::Shared,
}

impl Sample {
    /// A sample whose inspection is shared with all other holders of `inspection`.
    pub fn new(request: ScanRequest, inspection: mime::Shared) -> Self {
        Self {
            request,
            inspection,
        }
    }

    /// The message and its deadline.
    pub fn request(&self) -> &ScanRequest {
        &self.request
    }

    /// What to scan.
    pub fn content(&self) -> &Content {
        &self.request.content
    }

    /// When the answer is of no use any more.
    pub fn deadline(&self) -> Deadline {
        self.request.deadline
    }

    /// The same sample with less time.
    #[must_use]
    pub fn within(mut self, allowance: Duration) -> Self {
        self.request.deadline = self.request.deadline.within(allowance);
        self
    }

    /// The MIME facts; found out by whoever asks first.
    ///
    /// Cancel safety: safe.
    pub async fn inspection(&self) -> Arc<Inspection> {
        self.inspection.get(&self.request.content).await
    }
}

/// What an engine that was reached says.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineAnswer {
    /// Its answer, or why it could not look at everything.
    pub answer: Answer,
    /// Which replica it was, where there are several.
    pub replica: Option<String>,
    /// Version of its signatures, where it tells.
    pub signatures: Option<String>,
}

impl EngineAnswer {
    /// The answer of an engine that is here in the process.
    pub fn local(answer: Answer) -> Self {
        Self {
            answer,
            replica: None,
            signatures: None,
        }
    }
}

/// An engine.
pub trait Engine: fmt::Debug + Send + Sync {
    /// Looks at one sample, once: no retries, no waiting for anything but the engine itself.
    ///
    /// Cancel safety: the future is dropped when the attempt's time or the deadline runs out. Dropping it must close
    /// the connection it used; nothing half-read may ever be used again.
    fn scan(self: Arc<Self>, sample: Sample)
    -> BoxFuture<'static, Result<EngineAnswer, ScanError>>;
}

/// Makes the engine of a [`Kind`]; reads and compiles what it needs. Blocks on files: call it at start and reload, away
/// from sessions.
pub fn build(kind: &Kind) -> Result<Arc<dyn Engine>, BuildError> {
    Ok(match kind {
        Kind::Clamd {
            addresses,
            connect_timeout,
        } => Arc::new(clamd::Clamd::new(addresses, *connect_timeout)?),
        Kind::Rules { builtin, paths } => Arc::new(rules::Rules::compile(*builtin, paths)?),
        Kind::Attachment(settings) => Arc::new(attachment::Attachments::new(settings.clone())),
    })
}

/// Whether an engine in process has so little to do that a change of threads would cost more. Parts are counted too,
/// as each costs some microseconds however small it is, and archives may hold any amount of work.
fn is_short(content: &Content, inspection: &Inspection) -> bool {
    const PARTS: usize = 16;
    content.len() <= mime::INLINE
        && inspection.parts.len() <= PARTS
        && !inspection.parts.iter().any(|p| archive::is_zip(&p.bytes))
}

/// Runs the work of an engine in process: here if it [`is_short`], else where it blocks nobody. Work that is abandoned at its deadline ends by its own bounds.
async fn compute<T: Send + 'static>(
    short: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ScanError> {
    if short {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(ScanError::from_task)
}
