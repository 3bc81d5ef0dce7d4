//! Who really sent it: SPF (RFC 7208), DKIM (RFC 6376), ARC (RFC 8617) and DMARC (RFC 9989).
//!
//! Each result is a finding; what it is worth is the administrator's to say. A domain whose name servers do not answer has
//! `temperror`, which is never held against a message. If our own name servers do not answer either, the engine has no
//! answer at all (P4).
//!
//! mail-auth parses whatever it is given. Its source (0.13.3) says: each signature's `h=` is walked over all
//! fields, there is no limit on signatures, and each may ask for reports and third parties' records. So the header section is
//! bounded before it is parsed, and the signatures before they are verified. Keys are bounded by ring: 1024 to 8192 bits.

mod field;
mod judge;
mod key;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::{Name, RecordType};
use mail_auth::MessageAuthenticator;

use super::dns::is_public;
use super::name_server::{NameServers, failed};
use super::{BuildError, Engine, EngineAnswer, Sample, ScanError};
use crate::deadline::{Deadline, Elapsed};
use crate::message::edit::{Edit, Place, Wanted};
use crate::message::{header, mime};
use crate::verdict::{Answer, Finding, FindingKind, Reason};

pub use judge::read;

/// Octets of a header section that is looked at.
const HEADER: usize = 256 << 10;
/// Its fields.
const FIELDS: usize = 1000;

/// What the results are worth, and who they are told to.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthSettings {
    /// Who we are in Authentication-Results (RFC 8601 2.5).
    pub authserv_id: String,
    /// What results add to the score.
    pub scores: Scores,
    /// Whether a domain's own DMARC policy (quarantine, reject) is a finding of kind `policy` where a message fails.
    pub obey_dmarc: bool,
    /// Signatures, and sets of an ARC chain, that are verified.
    pub max_signatures: usize,
    /// The engine's. Half of it is for SPF, signatures and ARC, all asked at once, and three quarters until DMARC has
    /// ended: if name servers were waited for any longer, anybody's would be a fault of the engine.
    pub timeout: Duration,
    /// Who is asked.
    pub servers: NameServers,
}

impl AuthSettings {
    /// Nobody else speaks in our name (RFC 8601 5). That is so for every message, not only for those that are judged in
    /// time: how long that takes is in the hands of the sender's name servers.
    pub(super) fn no_forged_results(&self) -> Wanted {
        Wanted::Field(Edit::RemoveResults {
            authserv_id: self.authserv_id.clone(),
        })
    }
}

/// What results add to the score; 0 for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Scores {
    /// SPF `fail`.
    pub spf_fail: f64,
    /// SPF `softfail`.
    pub spf_softfail: f64,
    /// Signatures, and none of them verifies.
    pub dkim_fail: f64,
    /// DMARC `fail`.
    pub dmarc_fail: f64,
}

/// The engine.
pub(super) struct Auth {
    settings: AuthSettings,
    authenticator: MessageAuthenticator,
    /// To find out who does not answer: a domain's name servers, or ours.
    control: TokioResolver,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Engine for Auth {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        Box::pin(async move {
            let envelope = &sample.request().envelope;
            let client = envelope.origin.client.to_canonical();
            if envelope.origin.user.is_some() || !is_public(client) {
                return Ok(unasked());
            }
            if let Some(why) = too_much(sample.content().header_section()) {
                return Ok(EngineAnswer::local(Answer::none(
                    Reason::LimitsReached,
                    why.to_owned(),
                )));
            }
            // Hashing a large body takes a while.
            if sample.content().len() <= mime::INLINE {
                return self.look(&sample).await;
            }
            let runtime = tokio::runtime::Handle::current();
            let deadline = sample.deadline();
            let work = move || runtime.block_on(deadline.run(self.look(&sample)));
            let looked = tokio::task::spawn_blocking(work).await;
            looked
                .map_err(ScanError::from_task)?
                .unwrap_or(Err(ScanError::DeadlinePassed))
        })
    }
}

impl Auth {
    /// Reads the system's configuration where no name servers are given: blocks.
    pub(super) fn new(settings: &AuthSettings) -> Result<Self, BuildError> {
        let (config, options) = settings.servers.cached_configuration()?;
        let authenticator = MessageAuthenticator::new(config, options);
        Ok(Self {
            settings: settings.clone(),
            authenticator: authenticator.map_err(|e| BuildError::Resolver(e.to_string()))?,
            control: settings.servers.forgetful()?,
        })
    }

    async fn look(&self, sample: &Sample) -> Result<EngineAnswer, ScanError> {
        let deadline = Deadline::after(self.settings.timeout * 9 / 10);
        let results = judge::judge(&self.authenticator, &self.settings, sample).await;
        if results.in_doubt {
            let anything = deadline.run(self.ask_anything()).await;
            let silent = || ScanError::Unreachable("auth: the name servers are silent".to_owned());
            anything.unwrap_or_else(|Elapsed| Err(silent()))?;
        }
        let ours = Wanted::Field(Edit::Add {
            place: Place::Top,
            name: "Authentication-Results".to_owned(),
            value: field::value(&self.settings.authserv_id, &results.stated),
        });
        Ok(EngineAnswer {
            // With ours in one report: the two go together also under a later configuration.
            wanted: vec![self.settings.no_forged_results(), ours],
            ..EngineAnswer::local(Answer::Answered(results.findings))
        })
    }

    /// A question that every name server can answer, and that no sender has chosen.
    async fn ask_anything(&self) -> Result<(), ScanError> {
        let root = self.control.lookup(Name::root(), RecordType::NS).await;
        match root {
            Ok(_) => Ok(()),
            Err(error) if super::name_server::is_no(&error) => Ok(()),
            Err(error) => Err(failed(&error, "auth")),
        }
    }
}

/// Mail of our own users and neighbours comes from no server that a domain could have named.
fn unasked() -> EngineAnswer {
    let finding = Finding::new(FindingKind::Info, "not-asked", 0.0)
        .with_detail("an authenticated user, or a client with a private address");
    EngineAnswer::local(Answer::Answered(vec![finding]))
}

/// Why a header section is not looked at.
pub fn too_much(header_section: &[u8]) -> Option<&'static str> {
    if header_section.len() > HEADER {
        return Some("a header section of more than 256 KiB");
    }
    let fields = header::fields(header_section).take(FIELDS + 1).count();
    (fields > FIELDS).then_some("more than 1000 header fields")
}
