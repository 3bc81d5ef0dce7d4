//! One file per protocol.
//!
//! The next kind of engine is: its file here with a type for one address that implements [`Engine`], its variant in
//! [`Kind`], its arm in [`build`], its keys in `config/sections/engine`, its section in docs/ENGINES.md, and, if it is
//! reached over a connection, its line in the table of faults (`tests/subjects.rs`). Everything about waiting, retrying,
//! limiting and reporting is the guard's business; an engine looks at one sample, once.

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
use crate::scan::{ScanRequest, Settings, Turn};
use crate::verdict::Answer;

pub use address::{Address, Tls};
pub use auth::{AuthSettings, Scores};
pub use command::{CommandSettings, Exit, FILE, Limits, Lines, NOT_RUN, Saying, runnable};
pub use dns::{DnsAnswer, DnsList, Listed, Question};
pub use error::{BuildError, Class, ScanError};
pub use http::{HttpSettings, Posted, ProbeWith, Reading};
pub use http_client::retry_after;
pub use icap::{IcapSettings, Method};
pub use milter::{MilterSettings, TempFail};
pub use name_server::NameServers;
pub use rspamd::{NotAKey, PublicKey, RspamdSettings};
pub use spamd::SpamdSettings;
pub use url::{HTTP, ICAP, NotAUrl, Schemes, Url};

/// The protocol of an engine, with what only this protocol needs.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// clamd over INSTREAM.
    Clamd {
        /// Replicas.
        addresses: Vec<Address>,
        /// One connection attempt.
        connect_timeout: Duration,
    },
    /// SpamAssassin's spamd.
    Spamd {
        /// Replicas.
        addresses: Vec<Address>,
        /// What they have in common.
        settings: SpamdSettings,
    },
    /// rspamd over HTTP.
    Rspamd {
        /// Replicas.
        addresses: Vec<Url>,
        /// What they have in common.
        settings: RspamdSettings,
    },
    /// Any service over HTTP that answers in JSON.
    Http {
        /// Replicas.
        addresses: Vec<Url>,
        /// What they have in common.
        settings: HttpSettings,
    },
    /// An ICAP service.
    Icap {
        /// Replicas.
        addresses: Vec<Url>,
        /// What they have in common.
        settings: IcapSettings,
    },
    /// Any program of this machine.
    Command(CommandSettings),
    /// A mail filter that speaks the milter protocol.
    Milter {
        /// Replicas.
        addresses: Vec<Address>,
        /// What they have in common.
        settings: MilterSettings,
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
    /// A block list in the DNS.
    Dns(DnsList),
    /// SPF, DKIM, ARC and DMARC.
    Auth(AuthSettings),
}

impl Kind {
    /// Whether such an engine gets nothing but the content as it came, every octet of it. Others are told who sends what to
    /// whom, or put trace fields before it, and nobody can tell what their answer is about.
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

    /// What such an engine wants done to every message, whether it has an answer about it or not.
    pub fn always(&self) -> Vec<Wanted> {
        match self {
            Self::Auth(settings) => vec![settings.no_forged_results()],
            _ => Vec::new(),
        }
    }
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
    /// Computed once for all engines.
    turn: Turn,
    inspection: mime::Shared,
    probe: Option<Probe>,
}

/// Which half of a pair of probes a sample is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// What must be found.
    Bad,
    /// What must pass.
    Clean,
}

impl Sample {
    /// A sample whose inspection is shared with all other holders of `inspection`.
    pub fn new(request: ScanRequest, inspection: mime::Shared) -> Self {
        Self {
            turn: request.turn(),
            request,
            inspection,
            probe: None,
        }
    }

    /// The same as one of a pair of probes, for engines that judge by something else than the content.
    #[must_use]
    pub fn as_probe(mut self, probe: Probe) -> Self {
        self.probe = Some(probe);
        self
    }

    /// Whether it is a probe, and which.
    pub fn probe(&self) -> Option<Probe> {
        self.probe
    }

    /// The message and its deadline.
    pub fn request(&self) -> &ScanRequest {
        &self.request
    }

    /// Whose turn it takes where many wait.
    pub(in crate::scan) fn turn(&self) -> Turn {
        self.turn
    }

    /// What to scan.
    pub fn content(&self) -> &Content {
        &self.request.content
    }

    /// When the answer is of no use any more.
    pub fn deadline(&self) -> Deadline {
        self.request.deadline
    }

    /// The same sample with another deadline: the scan's own, which is nobody's patience.
    #[must_use]
    pub fn until(mut self, deadline: Deadline) -> Self {
        self.request.deadline = deadline;
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
    /// What it wants done to the message, in its order; [`crate::message::edit::grant`] decides about it.
    pub wanted: Vec<Wanted>,
}

impl EngineAnswer {
    /// The answer of an engine that is here in the process.
    pub fn local(answer: Answer) -> Self {
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
    /// Looks at one sample, once: no retries, no waiting for anything but the engine itself.
    ///
    /// Cancel safety: the future is dropped at the sample's deadline, which is the engine's own limit (`limit`) and not
    /// the patience of whoever asked. Dropping it must close the connection it used; nothing half-read may ever be used
    /// again.
    fn scan(self: Arc<Self>, sample: Sample)
    -> BoxFuture<'static, Result<EngineAnswer, ScanError>>;

    /// Its address, for reports; none for an engine in process.
    fn replica(&self) -> Option<&str> {
        None
    }

    /// Messages by which it can be found out whether it sees anything at all; none where that makes no sense.
    fn probes(&self) -> Option<Probes> {
        None
    }

    /// Begins what it does by itself also while there is no mail; it ends when the engine is dropped. Called on the runtime,
    /// perhaps more than once.
    fn watch(self: Arc<Self>) {}

    /// The version of its signatures that is in force, where it is known without asking anybody: of an engine in process.
    fn signatures(&self) -> Option<String> {
        None
    }

    /// Asks for the version of its signatures and for nothing else, within a time of its own; none where one cannot ask.
    ///
    /// Cancel safety: safe.
    fn ask_signatures(self: Arc<Self>) -> Option<BoxFuture<'static, Option<String>>> {
        None
    }

    /// When signatures of that version were made, where the version tells.
    fn signed(&self, _version: &str) -> Option<jiff::Timestamp> {
        None
    }
}

/// What an engine must find, and what it must let pass.
#[derive(Debug, Clone)]
pub struct Probes {
    /// Known bad, harmless in itself: the EICAR test file, GTUBE.
    pub bad: Content,
    /// Known clean.
    pub clean: Content,
}

impl Probes {
    /// For engines that look for malware: the EICAR test file, in an attachment as it would come by mail.
    pub fn malware() -> Self {
        // In two pieces, so that this program is not taken for what it is looking for.
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

    /// For engines that look for unwanted mail: GTUBE.
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

    /// For engines that do not look at the content but at [`Sample::probe`].
    pub fn of_nothing() -> Self {
        Self::with("\r\nprobe\r\n")
    }

    /// What every engine must let pass.
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

/// Makes the replicas of a [`Kind`], one for each address; reads and compiles what they need. Blocks on files: call it
/// at start and reload, away from sessions.
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

/// What the engine itself says about its limits, where it can be learnt, and the settings do not agree with; each with
/// its remedy. Blocks on files.
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

/// One engine for each address; at least one.
fn replicas<A>(
    addresses: &[A],
    make: impl Fn(&A) -> Result<Arc<dyn Engine>, BuildError>,
) -> Result<Vec<Arc<dyn Engine>>, BuildError> {
    if addresses.is_empty() {
        return Err(BuildError::NoAddress);
    }
    addresses.iter().map(make).collect()
}

/// Whether an engine in process has so little to do that a change of threads would cost more, if what it does costs the
/// same for each octet. Parts are counted too, as each costs some microseconds however small it is, and archives may hold
/// any amount of work.
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

#[cfg(test)]
mod tests;
