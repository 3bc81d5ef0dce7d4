//! Computes the authentication results of one message.

use std::{iter, mem};

use futures_util::future::{join_all, join3};
use mail_auth::arc::{ArcError, Set};
use mail_auth::dkim::DkimError;
use mail_auth::dmarc::Policy;
use mail_auth::dmarc::verify::DmarcParameters;
use mail_auth::spf::verify::SpfParameters;
use mail_auth::{
    AuthenticatedMessage, DkimOutput, DkimResult, DmarcOutput, DmarcResult, DnsError, Error,
    MessageAuthenticator, SpfOutput, SpfResult,
};

use super::AuthSettings;
use super::field::Stated;
use super::key::{self, Unusable};
use crate::deadline::{Deadline, Elapsed};
use crate::message::{Envelope, Mailbox, header};
use crate::scan::engine::Sample;
use crate::verdict::{Finding, FindingKind};

/// Most field names in the `h=` of a signature. mail-auth compares each of them with all fields; real signatures have a few
/// dozen.
const SIGNED_FIELDS_MAX: usize = 200;

/// All results of one message.
pub(super) struct Results {
    pub(super) findings: Vec<Finding>,
    /// The results for the Authentication-Results field.
    pub(super) stated: Vec<Stated>,
    /// At least one question got no answer from the name servers.
    pub(super) in_doubt: bool,
}

/// Asks for all records that the domains of the message publish, and computes the results. The settings bound work and time,
/// whatever the message contains: a question that the name servers have not answered in time is a temporary error.
///
/// Cancel safety: safe.
pub(super) async fn judge(
    authenticator: &MessageAuthenticator,
    settings: &AuthSettings,
    sample: &Sample,
) -> Results {
    let mut results = Results {
        findings: Vec::new(),
        stated: Vec::new(),
        in_doubt: false,
    };
    let envelope = &sample.request().envelope;
    let policies = Deadline::after(settings.timeout * 3 / 4);
    let asking = Asking {
        authenticator,
        settings,
        until: policies.within(settings.timeout / 2),
    };
    let content = sample.content().bytes();
    let (mut message, left_out) = read(content, settings.max_signatures).unwrap_or_default();
    let signatures = apart(&mut message);
    let (spf, dkim, (arc, sealer)) = join3(
        asking.spf(envelope),
        asking.dkim(&message, &signatures),
        asking.arc(&message),
    )
    .await;
    results.spf(&spf, envelope, settings);
    results.dkim(&dkim, left_out, settings);
    match author(content, &message) {
        Err(why) => results.no_author(why, settings),
        Ok(domain) => {
            let asking = Asking {
                until: policies,
                ..asking
            };
            let dmarc = DmarcParameters::new(&message, &dkim, spf_domain(envelope), &spf);
            results.dmarc(&asking.dmarc(domain, dmarc).await, settings);
        }
    }
    results.arc(&arc, sealer);
    results
}

/// The authenticator, and the deadline for its questions. Questions that run at the same time have the same deadline, so that
/// no method can use up the time of another method.
struct Asking<'a> {
    authenticator: &'a MessageAuthenticator,
    settings: &'a AuthSettings,
    until: Deadline,
}

impl Asking<'_> {
    async fn spf(&self, envelope: &Envelope) -> SpfOutput {
        let us = &self.settings.authserv_id;
        let (client, helo) = (envelope.origin.client.to_canonical(), &envelope.origin.helo);
        let domain = spf_domain(envelope);
        if domain.starts_with('[') {
            // RFC 7208 4.3: an address literal has no record, and no name server is asked for one.
            return SpfOutput::new(domain.to_owned()).with_result(SpfResult::None);
        }
        let parameters = match envelope.reverse_path.mailbox() {
            Some(from) => SpfParameters::verify_mail_from(client, helo, us, from.as_str()),
            None => SpfParameters::verify_ehlo(client, helo, us),
        };
        let asked = self.until.run(self.authenticator.verify_spf(parameters));
        asked.await.unwrap_or_else(|Elapsed| {
            SpfOutput::new(domain.to_owned()).with_result(SpfResult::TempError)
        })
    }

    /// Verifies all signatures at the same time: a signature whose key record does not arrive must not cost the result of
    /// another signature, because that result may decide DMARC.
    async fn dkim<'x>(
        &self,
        message: &'x AuthenticatedMessage<'x>,
        signatures: &'x [AuthenticatedMessage<'x>],
    ) -> Vec<DkimOutput<'x>> {
        let one = async |message: &'x AuthenticatedMessage<'x>| {
            let asked = self.until.run(async {
                let mut outputs = self.authenticator.verify_dkim(message).await;
                // A message from `apart` has one signature and no errors.
                if let ([signature], [output]) = (&message.dkim_headers[..], &mut outputs[..])
                    && *output.result() == DkimResult::Pass
                    && let Err(why) = key::usable(self.authenticator, &signature.header).await
                {
                    *output = match why {
                        Unusable::Never(why) => DkimOutput::perm_err(why),
                        Unusable::Unknown(why) => DkimOutput::temp_err(why),
                    }
                    .with_signature(&signature.header);
                }
                outputs
            });
            asked.await.unwrap_or_else(|Elapsed| {
                let late = |s| DkimOutput::temp_err(too_late()).with_signature(s);
                let signatures = message.dkim_headers.iter();
                signatures.map(|s| late(&s.header)).collect()
            })
        };
        // The message itself has the signatures that could not be parsed.
        let all = iter::once(message).chain(signatures).map(one);
        join_all(all).await.concat()
    }

    /// The result for the ARC chain, and the domain of the last seal.
    async fn arc(&self, message: &AuthenticatedMessage<'_>) -> (DkimResult, Option<String>) {
        if message.ams_headers.len() > self.settings.max_signatures {
            return (
                DkimResult::PermError(Error::Arc(ArcError::ChainTooLong)),
                None,
            );
        }
        let asked = self.until.run(async {
            let arc = self.authenticator.verify_arc(message).await;
            let sealer = arc.sets().last().map(|set| set.seal.header.d.clone());
            let mut result = arc.result().clone();
            if result == DkimResult::Pass
                && let Err(why) = self.usable_keys(arc.sets()).await
            {
                result = match why {
                    Unusable::Never(why) => DkimResult::Fail(why),
                    Unusable::Unknown(why) => DkimResult::TempError(why),
                };
            }
            (result, sealer)
        });
        match asked.await {
            Ok(judged) => judged,
            Err(Elapsed) => (DkimResult::TempError(too_late()), None),
        }
    }

    /// Checks the keys of all seals, and of the last message signature, which is the one that counts.
    async fn usable_keys(&self, sets: &[Set<'_>]) -> Result<(), Unusable> {
        if let Some(last) = sets.last() {
            key::usable(self.authenticator, last.signature.header).await?;
        }
        for set in sets {
            key::usable(self.authenticator, set.seal.header).await?;
        }
        Ok(())
    }

    async fn dmarc(&self, domain: &str, parameters: DmarcParameters<'_>) -> DmarcOutput {
        let asked = self.until.run(self.authenticator.verify_dmarc(parameters));
        asked.await.unwrap_or_else(|Elapsed| {
            DmarcOutput::new(domain.to_owned()).with_spf_result(DmarcResult::TempError(too_late()))
        })
    }
}

fn too_late() -> Error {
    Error::Dns(DnsError::Resolver("no answer in time".to_owned()))
}

/// The domain that SPF checks and that DMARC aligns: the domain of the reverse-path, or the HELO name for a null reverse-path
/// (RFC 7208 2.4, RFC 7489 3.1.2).
fn spf_domain(envelope: &Envelope) -> &str {
    let sender = envelope.reverse_path.mailbox();
    sender.map_or(&envelope.origin.helo, Mailbox::domain)
}

/// Moves each signature of a message into a message with only this signature.
fn apart<'x>(message: &mut AuthenticatedMessage<'x>) -> Vec<AuthenticatedMessage<'x>> {
    let signatures = mem::take(&mut message.dkim_headers);
    let alone = |signature| AuthenticatedMessage {
        headers: message.headers.clone(),
        body_hashes: message.body_hashes.clone(),
        dkim_headers: vec![signature],
        ..AuthenticatedMessage::default()
    };
    signatures.into_iter().map(alone).collect()
}

/// Parses a message and bounds the work of verifying it. Returns the message and the number of signatures left out, or `None` if
/// the content has no header section.
pub fn read(content: &[u8], max_signatures: usize) -> Option<(AuthenticatedMessage<'_>, usize)> {
    let mut message = AuthenticatedMessage::parse(content)?;
    let left_out = bound(&mut message, max_signatures);
    Some((message, left_out))
}

/// Removes what no valid mail needs: signatures beyond `most`, signatures with hundreds of names in `h=`, and everything that
/// makes mail-auth ask for records other than keys. Returns the number of signatures left out.
fn bound(message: &mut AuthenticatedMessage<'_>, most: usize) -> usize {
    let before = message.dkim_headers.len() + message.errors.len();
    message.errors.truncate(most);
    message
        .dkim_headers
        .retain(|s| s.header.h.len() <= SIGNED_FIELDS_MAX);
    message.dkim_headers.truncate(most);
    for signature in &mut message.dkim_headers {
        signature.header.r = false;
        signature.header.atps = None;
    }
    if message
        .ams_headers
        .iter()
        .any(|s| s.header.h.len() > SIGNED_FIELDS_MAX)
    {
        message.has_arc_errors = true;
    }
    before - message.dkim_headers.len() - message.errors.len()
}

/// The domain of the author, or the reason why the author is ambiguous. mail-auth checks the author that it has found itself,
/// and people see the author that their mail program has found. So there must be only one way to read the header section.
fn author<'m>(
    content: &[u8],
    message: &'m AuthenticatedMessage<'_>,
) -> Result<&'m str, &'static str> {
    let fields = || header::fields(header::section(content));
    let same = message.headers.iter().map(|(name, value)| {
        let body = value.strip_suffix(b"\r\n").unwrap_or(value);
        (name.trim_ascii_end(), body)
    });
    if !same.eq(fields().map(|field| (field.name, field.body))) {
        return Err("mail programs may read the header fields differently");
    }
    // Some mail programs ignore white space and control characters in a field name.
    let looks = |name: &[u8]| {
        let seen = name.iter().filter(|octet| octet.is_ascii_graphic());
        seen.map(u8::to_ascii_lowercase).eq(*b"from")
    };
    let froms = fields().filter(|field| looks(field.name));
    if froms.map(|field| field.is("From")).ne([true]) {
        return Err("the message does not have exactly one From field");
    }
    let mut domains = message.from.iter().filter_map(|from| from.rsplit_once('@'));
    let Some((_, domain)) = domains.next() else {
        return Err("From has no address");
    };
    match domains.all(|(_, other)| other == domain) {
        true => Ok(domain),
        false => Err("From has addresses of several domains"),
    }
}

impl Results {
    fn add(&mut self, name: &str, detail: &str) {
        let finding = Finding::new(FindingKind::Info, name, 0.0);
        self.findings.push(finding.with_detail(shown(detail)));
    }

    fn count(&mut self, name: &str, detail: &str, score: f64) {
        match score == 0.0 {
            true => self.add(name, detail),
            false => {
                let finding = Finding::new(FindingKind::Score, name, score);
                self.findings.push(finding.with_detail(shown(detail)));
            }
        }
    }

    fn state(
        &mut self,
        method: &'static str,
        result: &'static str,
        properties: Vec<(&'static str, String)>,
        detail: &str,
    ) {
        self.add(&format!("{method}.{result}"), detail);
        self.stated.push(Stated {
            method,
            result,
            properties,
        });
    }

    fn spf(&mut self, spf: &SpfOutput, envelope: &Envelope, settings: &AuthSettings) {
        let identity = match envelope.reverse_path.is_null() {
            true => "smtp.helo",
            false => "smtp.mailfrom",
        };
        let (word, score) = match spf.result() {
            SpfResult::Pass => ("pass", 0.0),
            SpfResult::Fail => ("fail", settings.scores.spf_fail),
            SpfResult::SoftFail => ("softfail", settings.scores.spf_softfail),
            SpfResult::Neutral => ("neutral", 0.0),
            SpfResult::TempError => ("temperror", 0.0),
            SpfResult::PermError => ("permerror", 0.0),
            SpfResult::None => ("none", 0.0),
        };
        self.in_doubt |= spf.result() == SpfResult::TempError;
        self.count(&format!("spf.{word}"), spf.domain(), score);
        self.stated.push(Stated {
            method: "spf",
            result: word,
            properties: vec![(identity, spf.domain().to_owned())],
        });
    }

    fn dkim(&mut self, dkim: &[DkimOutput<'_>], left_out: usize, settings: &AuthSettings) {
        if dkim.is_empty() {
            self.state("dkim", "none", Vec::new(), "no signature");
        }
        for output in dkim {
            let (word, why) = of_dkim(output.result());
            self.in_doubt |= word == "temperror";
            let signature = output.signature();
            let (domain, selector) = signature.map_or(("", ""), |s| (&*s.d, &*s.s));
            let properties = vec![
                ("header.d", domain.to_owned()),
                ("header.s", selector.to_owned()),
            ];
            self.state(
                "dkim",
                word,
                properties,
                &format!("{domain} {selector} {why}"),
            );
        }
        if left_out > 0 {
            self.add(
                "dkim.not-verified",
                &format!("{left_out} more signatures (max_signatures)"),
            );
        }
        let is = |wanted: &str| dkim.iter().any(|d| of_dkim(d.result()).0 == wanted);
        // A signature with a temporary error may verify later, so it does not count against the message.
        let in_vain = !dkim.is_empty() && !is("pass") && !is("temperror");
        if in_vain && settings.scores.dkim_fail != 0.0 {
            self.count(
                "dkim.no-pass",
                "no signature verifies",
                settings.scores.dkim_fail,
            );
        }
    }

    /// Reports an ambiguous author. The relay cannot know which domain's policy applies to such a message, but the message is
    /// not exempt from all policies (RFC 9989, "Denial of DMARC Processing Attacks").
    fn no_author(&mut self, why: &str, settings: &AuthSettings) {
        self.state("dmarc", "permerror", Vec::new(), why);
        if settings.obey_dmarc {
            let finding = Finding::new(FindingKind::Policy, "from.malformed", 0.0);
            self.findings.push(finding.with_detail(why));
        }
    }

    fn dmarc(&mut self, dmarc: &DmarcOutput, settings: &AuthSettings) {
        let properties = vec![("header.from", dmarc.domain().to_owned())];
        let word = match dmarc.result() {
            DmarcResult::Pass => "pass",
            DmarcResult::Fail(_) => "fail",
            DmarcResult::TempError(_) => "temperror",
            DmarcResult::PermError(_) => "permerror",
            DmarcResult::None => "none",
        };
        self.in_doubt |= word == "temperror";
        let policy = match dmarc.policy() {
            Policy::Reject => Some("reject"),
            Policy::Quarantine => Some("quarantine"),
            Policy::None | Policy::Unspecified => None,
        };
        let detail = format!("{} p={}", dmarc.domain(), policy.unwrap_or("none"));
        self.state("dmarc", word, properties, &detail);
        if word != "fail" {
            return;
        }
        if settings.scores.dmarc_fail != 0.0 {
            self.count("dmarc.not-aligned", &detail, settings.scores.dmarc_fail);
        }
        if let Some(policy) = policy.filter(|_| settings.obey_dmarc) {
            let finding = Finding::new(FindingKind::Policy, &format!("dmarc.{policy}"), 0.0);
            self.findings.push(finding.with_detail(shown(&detail)));
        }
    }

    fn arc(&mut self, result: &DkimResult, sealer: Option<String>) {
        let (word, why) = of_dkim(result);
        self.in_doubt |= word == "temperror";
        if word == "none" {
            return self.add("arc.none", "no ARC chain");
        }
        let sealer = sealer.unwrap_or_default();
        self.state("arc", word, Vec::new(), &format!("{sealer} {why}"));
    }
}

/// The result word of RFC 8601 2.7.1, and the reason if the word is not `pass`.
fn of_dkim(result: &DkimResult) -> (&'static str, String) {
    match result {
        DkimResult::Pass => ("pass", String::new()),
        // mail-auth calls this result neutral.
        DkimResult::Neutral(
            why @ (Error::Dkim(DkimError::FailedBodyHashMatch)
            | Error::Arc(ArcError::FailedBodyHashMatch)),
        ) => ("fail", why.to_string()),
        DkimResult::Neutral(why) => ("neutral", why.to_string()),
        DkimResult::Fail(why) => ("fail", why.to_string()),
        DkimResult::PermError(why) => ("permerror", why.to_string()),
        DkimResult::TempError(why) => ("temperror", why.to_string()),
        DkimResult::None => ("none", String::new()),
    }
}

/// Prepares a text for people: at most 200 characters, without control characters.
fn shown(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    text.trim().chars().take(200).map(clean).collect()
}
