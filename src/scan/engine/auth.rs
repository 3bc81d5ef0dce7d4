//! Authentication of the sender: SPF (RFC 7208), DKIM (RFC 6376), ARC (RFC 8617) and DMARC (RFC 9989).
//!
//! Each result is a finding, and the administrator sets its score. If the name servers of a domain do not answer, the result
//! is `temperror`, which never counts against a message. If the relay's own name servers do not answer either, the engine has
//! no answer at all (P4).
//!
//! mail-auth has no bounds of its own. According to its source (0.13.3), it compares the `h=` of each signature with all fields,
//! verifies any number of signatures, and each signature may request reports and records of third parties. So this engine
//! bounds the header section before parsing it, and the signatures before verifying them. ring bounds the keys: 1024 to 8192
//! bits.

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
use crate::message::edit::{Edit, FieldPosition, Wanted};
use crate::message::{header, mime};
use crate::verdict::{Answer, Finding, FindingKind, Reason};

pub use judge::read;

/// Largest header section that the engine examines, in octets: 256 KiB, to bound the work of mail-auth.
const HEADER_OCTETS_MAX: usize = 256 << 10;
/// Most fields of a header section that the engine examines: mail-auth compares each signature with all fields.
const HEADER_FIELDS_MAX: usize = 1000;

/// Settings of the engine: what results count, and how they are reported.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthSettings {
    /// The identifier of the relay in Authentication-Results (RFC 8601 2.5).
    pub authserv_id: String,
    /// Scores of the results.
    pub scores: Scores,
    /// Whether the DMARC policy of a domain (quarantine, reject) becomes a finding of kind `policy` for a message that fails.
    pub obey_dmarc: bool,
    /// Largest number of DKIM signatures, and of sets of an ARC chain, that the engine verifies.
    pub max_signatures: usize,
    /// The timeout of the engine. SPF, signatures and ARC run at the same time and get the first half, and DMARC ends after
    /// three quarters. If the engine waited longer for the name servers of a sender, a sender with silent name servers could
    /// make the engine time out, and the guard would blame the engine.
    pub timeout: Duration,
    /// The name servers to ask.
    pub servers: NameServers,
}

impl AuthSettings {
    /// The edit that removes fields of others with the relay's `authserv_id` (RFC 8601 5). It applies to every message, not
    /// only to those with an answer in time: the name servers of the sender determine how long the answer takes.
    pub(super) fn no_forged_results(&self) -> Wanted {
        Wanted::Field(Edit::RemoveResults {
            authserv_id: self.authserv_id.clone(),
        })
    }
}

/// What each result adds to the score of a message; 0 adds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Scores {
    /// SPF `fail`.
    pub spf_fail: f64,
    /// SPF `softfail`.
    pub spf_softfail: f64,
    /// The message has signatures, and none of them verifies.
    pub dkim_fail: f64,
    /// DMARC `fail`.
    pub dmarc_fail: f64,
}

/// The authentication engine.
pub(super) struct Auth {
    settings: AuthSettings,
    authenticator: MessageAuthenticator,
    /// Asks a control question that shows which name servers do not answer: those of a domain, or those of the relay.
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
                return Ok(EngineAnswer::new(Answer::none(
                    Reason::LimitsReached,
                    why.to_owned(),
                )));
            }
            // Hashing a large body takes long enough to delay other work on the runtime's threads.
            if sample.content().len() <= mime::INLINE_OCTETS_MAX {
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
    /// Blocks while it reads the configuration of the system, if the settings name no name servers.
    ///
    /// # Errors
    /// [`BuildError::Resolver`] if that configuration cannot be used.
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
            let silent = || ScanError::Unreachable("auth: no name server answers".to_owned());
            anything.unwrap_or_else(|Elapsed| Err(silent()))?;
        }
        let ours = Wanted::Field(Edit::Add {
            place: FieldPosition::Top,
            name: "Authentication-Results".to_owned(),
            value: field::value(&self.settings.authserv_id, &results.stated),
        });
        Ok(EngineAnswer {
            // Removal and addition are in one report, so that both apply together, even under a later configuration.
            wanted: vec![self.settings.no_forged_results(), ours],
            ..EngineAnswer::new(Answer::Answered(results.findings))
        })
    }

    /// Asks a question that every name server can answer, and that no sender can influence.
    async fn ask_anything(&self) -> Result<(), ScanError> {
        let root = self.control.lookup(Name::root(), RecordType::NS).await;
        match root {
            Ok(_) => Ok(()),
            Err(error) if super::name_server::is_no(&error) => Ok(()),
            // The guard knows no name for an engine in this process.
            Err(error) => Err(failed(&error, "auth").of("auth")),
        }
    }
}

/// The answer for mail of the relay's own users and of private networks: no domain can name their addresses in its records, so
/// there is nothing to verify.
fn unasked() -> EngineAnswer {
    let finding = Finding::new(FindingKind::Info, "not-asked", 0.0)
        .with_detail("an authenticated user, or a client with a private address");
    EngineAnswer::new(Answer::Answered(vec![finding]))
}

/// The reason why the engine does not examine a header section, or `None` if the section is within the bounds.
pub fn too_much(header_section: &[u8]) -> Option<&'static str> {
    if header_section.len() > HEADER_OCTETS_MAX {
        return Some("the header section has more than 256 KiB");
    }
    let fields = header::fields(header_section)
        .take(HEADER_FIELDS_MAX + 1)
        .count();
    (fields > HEADER_FIELDS_MAX).then_some("the message has more than 1000 header fields")
}
