//! Engines: one file per protocol.
//!
//! A new kind of engine needs: a file here, with a type for one address that implements [`Engine`]; a variant of [`Kind`]; an
//! arm in [`build`]; its keys in `config/sections/engine`; a section in docs/ENGINES.md; and, if the engine is reached over a
//! connection, a line in the table of faults (`tests/subjects.rs`). An engine examines one sample, once. The guard does
//! everything else: waiting, further attempts, limits and reports.

mod address;
pub mod archive;
mod attachment;
pub mod auth;
pub mod clamd;
pub mod command;
pub mod dns;
mod encrypted;
mod error;
pub mod head;
pub mod http;
mod http_client;
pub mod icap;
mod json;
pub mod milter;
mod name;
mod name_server;
mod preface;
mod replicas;
pub mod rspamd;
mod rules;
pub mod spamd;
mod url;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::deadline::Deadline;
use crate::message::mime::{self, Inspection};
use crate::message::{Content, Wanted};
use crate::scan::{FairnessKey, ScanRequest, Settings};
use crate::verdict::Answer;

pub use address::{Address, Tls};
pub use auth::{AuthSettings, Scores};
pub use command::{
    CommandSettings, Exit, FILE_PLACEHOLDER, Limits, Lines, NOT_RUN_EXIT_CODES, Saying, runnable,
};
pub use dns::{DnsAnswer, DnsList, Listed, Question};
pub use error::{BuildError, Class, ScanError};
pub use http::{HttpSettings, Posted, ProbeWith, Reading};
pub use http_client::{HttpClient, retry_after};
pub use icap::{IcapSettings, Method};
pub use milter::{MilterSettings, TempFail};
pub use name_server::NameServers;
pub use rspamd::{NotAKey, PublicKey, RspamdSettings};
pub use spamd::SpamdSettings;
pub use url::{HTTP, ICAP, NotAUrl, Schemes, Url};

/// The protocol of an engine, with the settings that only this protocol needs.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// clamd over INSTREAM.
    Clamd {
        /// The addresses of the replicas.
        addresses: Vec<Address>,
        /// Limit for one connection attempt.
        connect_timeout: Duration,
    },
    /// SpamAssassin's spamd.
    Spamd {
        /// The addresses of the replicas.
        addresses: Vec<Address>,
        /// Settings of all replicas.
        settings: SpamdSettings,
    },
    /// rspamd over HTTP.
    Rspamd {
        /// The addresses of the replicas.
        addresses: Vec<Url>,
        /// Settings of all replicas.
        settings: RspamdSettings,
    },
    /// A service over HTTP that answers in JSON.
    Http {
        /// The addresses of the replicas.
        addresses: Vec<Url>,
        /// Settings of all replicas.
        settings: HttpSettings,
    },
    /// An ICAP service.
    Icap {
        /// The addresses of the replicas.
        addresses: Vec<Url>,
        /// Settings of all replicas.
        settings: IcapSettings,
    },
    /// A program on this machine.
    Command(CommandSettings),
    /// A mail filter that speaks the milter protocol.
    Milter {
        /// The addresses of the replicas.
        addresses: Vec<Address>,
        /// Settings of all replicas.
        settings: MilterSettings,
    },
    /// YARA rules in process.
    Rules {
        /// Whether the built-in set is used.
        builtin: bool,
        /// Files or folders of `.yar` and `.yara` files.
        paths: Vec<PathBuf>,
    },
    /// The structure of the message: names and types of its files.
    Attachment(AttachmentSettings),
    /// A block list in the DNS.
    Dns(DnsList),
    /// SPF, DKIM, ARC and DMARC.
    Auth(AuthSettings),
}

impl Kind {
    /// Whether such an engine gets only the content as received, every octet of it, so that its answer depends on nothing else.
    /// Other engines also get the envelope, or trace fields before the content, and their answer may be about those.
    pub fn sees_content_alone(&self) -> bool {
        match self {
            Self::Clamd { .. } | Self::Icap { .. } | Self::Rules { .. } | Self::Attachment(_) => {
                true
            }
            Self::Spamd { .. }
            | Self::Rspamd { .. }
            | Self::Http { .. }
            | Self::Command(_)
            | Self::Milter { .. }
            | Self::Dns(_)
            | Self::Auth(_) => false,
        }
    }

    /// Edits that such an engine asks for in every message, even without an answer about the message.
    pub fn always(&self) -> Vec<Wanted> {
        match self {
            Self::Auth(settings) => vec![settings.no_forged_results()],
            _ => Vec::new(),
        }
    }
}

/// Settings of the attachment engine.
#[derive(Debug, Clone, PartialEq)]
pub struct AttachmentSettings {
    /// Forbidden file name extensions, in lower case and without the dot. They also apply to files in archives.
    pub block_extensions: Vec<String>,
    /// Forbidden media types, declared or sniffed: `application/x-msdownload`, `image/*`.
    pub block_types: Vec<String>,
    /// Whether archives and documents that need a password are forbidden.
    pub block_encrypted: bool,
    /// Nesting depth of multiparts and messages, and of archives.
    pub max_depth: usize,
    /// Most parts of a message.
    pub max_parts: usize,
    /// Most files in all archives of a message together.
    pub max_archive_files: usize,
    /// Largest ratio of unpacked to packed octets of a file in an archive. The engine does not unpack a file beyond the ratio.
    pub max_ratio: u64,
}

/// The input of an engine: a message, and its MIME facts, which the first engine that needs them computes.
#[derive(Debug, Clone)]
pub struct Sample {
    request: ScanRequest,
    /// The fairness key, computed once for all engines.
    fairness_key: FairnessKey,
    inspection: mime::SharedInspection,
    probe: Option<Probe>,
}

/// The halves of a probe pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Known bad content, which the engine must find.
    Bad,
    /// Known clean content, which the engine must let pass.
    Clean,
}

impl Sample {
    /// A sample that shares its inspection with all other holders of `inspection`.
    pub fn new(request: ScanRequest, inspection: mime::SharedInspection) -> Self {
        Self {
            fairness_key: request.fairness_key(),
            request,
            inspection,
            probe: None,
        }
    }

    /// The same sample, marked as a half of a probe pair, for engines that do not judge by the content.
    #[must_use]
    pub fn as_probe(mut self, probe: Probe) -> Self {
        self.probe = Some(probe);
        self
    }

    /// The half of a probe pair, or `None` for mail.
    pub fn probe(&self) -> Option<Probe> {
        self.probe
    }

    /// The message and its deadline.
    pub fn request(&self) -> &ScanRequest {
        &self.request
    }

    /// The fairness key, by which the sample takes its turn.
    pub(in crate::scan) fn fairness_key(&self) -> FairnessKey {
        self.fairness_key
    }

    /// The content to scan.
    pub fn content(&self) -> &Content {
        &self.request.content
    }

    /// The deadline: the relay does not use an answer after it.
    pub fn deadline(&self) -> Deadline {
        self.request.deadline
    }

    /// The same sample with another deadline: that of the scan itself, which is later than the timeout of the caller.
    #[must_use]
    pub fn until(mut self, deadline: Deadline) -> Self {
        self.request.deadline = deadline;
        self
    }

    /// The MIME facts. The first caller computes them for all.
    ///
    /// Cancel safety: safe.
    pub async fn inspection(&self) -> Arc<Inspection> {
        self.inspection.get(&self.request.content).await
    }
}

/// The answer of an engine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineAnswer {
    /// The findings, or the reason why the engine could not examine everything.
    pub answer: Answer,
    /// Name of the replica, which the guard fills in; `None` for an engine without replicas.
    pub replica: Option<String>,
    /// Version of the signatures, if the engine has one.
    pub signatures: Option<String>,
    /// Requested edits, in the order of the engine. [`crate::message::edit::grant`] decides about them.
    pub wanted: Vec<Wanted>,
}

impl EngineAnswer {
    /// An answer without signatures and requested edits.
    pub fn new(answer: Answer) -> Self {
        Self {
            answer,
            replica: None,
            signatures: None,
            wanted: Vec::new(),
        }
    }
}

/// One replica of an engine: one daemon at one address, or the engine in process.
pub trait Engine: fmt::Debug + Send + Sync {
    /// Examines one sample, once. An implementation does not retry, and waits for nothing but the engine itself.
    ///
    /// # Errors
    /// The reason why there is no answer.
    ///
    /// Cancel safety: the guard drops the future at the deadline of the sample, which is the engine's own limit (`limit`) and
    /// not the timeout of the caller. Dropping the future must close its connection: a connection with unread octets must not
    /// be used again.
    fn scan(self: Arc<Self>, sample: Sample)
    -> BoxFuture<'static, Result<EngineAnswer, ScanError>>;

    /// The address of the replica, for reports; `None` for an engine in this process.
    fn replica(&self) -> Option<&str> {
        None
    }

    /// The probe pair that shows whether the engine works; `None` if the engine has no useful probes.
    fn probes(&self) -> Option<Probes> {
        None
    }

    /// Starts work that the engine does without mail. The work ends when the engine is dropped. The guard calls this on the
    /// runtime, possibly more than once.
    fn watch(self: Arc<Self>) {}

    /// The present version of the signatures, if it is known without a question: for an engine in this process.
    fn signatures(&self) -> Option<String> {
        None
    }

    /// Asks only for the version of the signatures, within a timeout of its own; `None` if the protocol has no such question.
    ///
    /// Cancel safety: safe.
    fn ask_signatures(self: Arc<Self>) -> Option<BoxFuture<'static, Option<String>>> {
        None
    }

    /// The date of the signatures with this version, if the version contains a date.
    fn signed(&self, _version: &str) -> Option<jiff::Timestamp> {
        None
    }
}

/// A probe pair: content that an engine must find, and content that an engine must let pass.
#[derive(Debug, Clone)]
pub struct Probes {
    /// Known bad and harmless content: the EICAR test file, or GTUBE.
    pub bad: Content,
    /// Known clean content.
    pub clean: Content,
}

impl Probes {
    /// For engines that look for malware: the EICAR test file, as an attachment.
    pub fn malware() -> Self {
        // In two pieces, so that a scanner does not report this program.
        let eicar = [
            r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-STANDARD",
            "-ANTIVIRUS-TEST-FILE!$H+H*",
        ];
        let attachment = format!(
            "Content-Type: application/octet-stream; name=\"eicar.com\"\r\n\
             Content-Disposition: attachment; filename=\"eicar.com\"\r\n\r\n{}\r\n",
            eicar.concat()
        );
        Self::with(&attachment)
    }

    /// For engines that look for spam: GTUBE.
    pub fn spam() -> Self {
        let gtube = [
            "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-",
            "ANTI-UBE-TEST-EMAIL*C.34X",
        ];
        let text = format!(
            "Content-Type: text/plain; charset=us-ascii\r\n\r\n{}\r\n",
            gtube.concat()
        );
        Self::with(&text)
    }

    /// For engines that ignore the content and use [`Sample::probe`].
    pub fn of_nothing() -> Self {
        Self::with("\r\nprobe\r\n")
    }

    /// Content that every engine must let pass.
    pub fn clean() -> Content {
        message(
            "Content-Type: text/plain; charset=us-ascii\r\n\r\n\
             This message is how the relay asks whether its engines work.\r\n",
        )
    }

    fn with(bad: &str) -> Self {
        Self {
            bad: message(bad),
            clean: Self::clean(),
        }
    }
}

fn message(part: &str) -> Content {
    Content::uncharged(format!(
        "From: Spillway <probe@spillway.invalid>\r\nTo: probe@spillway.invalid\r\n\
         Subject: probe\r\nDate: Thu, 01 Jan 2026 00:00:00 +0000\r\n\
         Message-ID: <probe@spillway.invalid>\r\nMIME-Version: 1.0\r\n{part}"
    ))
}

/// Makes the replicas of a [`Kind`], one for each address. Blocks while it reads files and compiles rules, so only the start and
/// a reload call this function, away from sessions.
///
/// # Errors
/// The first setting that cannot be used.
pub fn build(kind: &Kind) -> Result<Vec<Arc<dyn Engine>>, BuildError> {
    let one = |engine: Arc<dyn Engine>| Ok(vec![engine]);
    match kind {
        Kind::Clamd {
            addresses,
            connect_timeout,
        } => replicas(addresses, |address| {
            Ok(Arc::new(clamd::Clamd::new(address, *connect_timeout)?))
        }),
        Kind::Spamd {
            addresses,
            settings,
        } => replicas(addresses, |address| {
            Ok(Arc::new(spamd::Spamd::new(address, settings)?))
        }),
        Kind::Rspamd {
            addresses,
            settings,
        } => replicas(addresses, |address| {
            Ok(Arc::new(rspamd::Rspamd::new(address, settings)?))
        }),
        Kind::Http {
            addresses,
            settings,
        } => replicas(addresses, |address| {
            Ok(Arc::new(http::Http::new(address, settings)?))
        }),
        Kind::Icap {
            addresses,
            settings,
        } => replicas(addresses, |address| {
            Ok(Arc::new(icap::Icap::new(address, settings)?))
        }),
        Kind::Command(settings) => one(Arc::new(command::Command::new(settings)?)),
        Kind::Milter {
            addresses,
            settings,
        } => replicas(addresses, |address| {
            Ok(Arc::new(milter::Milter::new(address, settings)?))
        }),
        Kind::Rules { builtin, paths } => one(Arc::new(rules::Rules::compile(*builtin, paths)?)),
        Kind::Attachment(settings) => one(Arc::new(attachment::Attachments::new(settings.clone()))),
        Kind::Dns(list) => one(Arc::new(dns::Dns::new(list)?)),
        Kind::Auth(settings) => one(Arc::new(auth::Auth::new(settings)?)),
    }
}

/// Contradictions between the settings and the limits of the engine itself, if those are known. Each text names the fix. Blocks
/// while it reads files.
pub fn advice(settings: &Settings) -> Vec<String> {
    match &settings.kind {
        Kind::Clamd { addresses, .. } => clamd::conf::advice(settings, addresses),
        Kind::Spamd { .. }
        | Kind::Rspamd { .. }
        | Kind::Http { .. }
        | Kind::Icap { .. }
        | Kind::Milter { .. }
        | Kind::Command(_)
        | Kind::Rules { .. }
        | Kind::Attachment(_)
        | Kind::Dns(_)
        | Kind::Auth(_) => Vec::new(),
    }
}

/// Makes one engine for each address. No address is an error.
fn replicas<A>(
    addresses: &[A],
    make: impl Fn(&A) -> Result<Arc<dyn Engine>, BuildError>,
) -> Result<Vec<Arc<dyn Engine>>, BuildError> {
    if addresses.is_empty() {
        return Err(BuildError::NoAddress);
    }
    addresses.iter().map(make).collect()
}

/// Whether work on the message in this process is so short that a change of threads would cost more. The work must cost about
/// the same for each octet. The number of parts counts too, because even an empty part costs some microseconds. A message with
/// an archive is never short, because an archive may contain any amount of work.
fn is_short(content: &Content, inspection: &Inspection) -> bool {
    /// Each part costs some microseconds, so 16 parts cost some tens of microseconds, like the largest short content.
    const SHORT_PARTS_MAX: usize = 16;
    content.len() <= mime::INLINE_OCTETS_MAX
        && inspection.parts.len() <= SHORT_PARTS_MAX
        && !inspection.parts.iter().any(|p| archive::is_zip(&p.bytes))
}

/// Runs the work of an engine in this process: on the present thread if the work [`is_short`], otherwise on a blocking thread.
/// If the future is dropped at the deadline, the work on a blocking thread continues until its own bounds end it.
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

#[cfg(test)]
mod tests;
