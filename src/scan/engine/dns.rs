//! Block lists in the DNS (RFC 5782).
//!
//! One engine is one list. So each list has its own slots, breaker, probes, drain and reports: the guard takes out a list that
//! is dead, or that lists every address, like any other engine, and the answers of other lists remain. The engine asks about
//! all names of a message at the same time. An answer is a listing only if it is in 127.0.0.0/8 and is not an error code of
//! the list. A question without an answer never counts as "not listed" (P4).

mod names;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use futures_util::future::{BoxFuture, join_all};
use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::{Name, RData};
use ipnet::Ipv4Net;

use super::name_server::{NameServers, failed, is_no};
use super::{
    BuildError, Engine, EngineAnswer, Probe, Probes, Sample, ScanError, compute, is_short,
};
use crate::message::Mailbox;
use crate::verdict::{Answer, Finding, FindingKind, Reason};

pub(super) use names::is_public;
pub use names::{Domains, in_text};

/// The subject of a question to a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// The address of the client.
    Client,
    /// The registered domain of the reverse-path.
    Sender,
    /// The registered domains of the URLs in the text.
    Url,
}

/// A set of answers of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// All addresses in this network.
    In(Ipv4Net),
    /// All addresses whose last octet has at least one of these bits.
    Bits(u8),
}

impl Listed {
    fn matches(self, address: Ipv4Addr) -> bool {
        match self {
            Self::In(network) => network.contains(&address),
            Self::Bits(bits) => address.octets()[3] & bits != 0,
        }
    }
}

/// The meaning of a set of answers.
#[derive(Debug, Clone, PartialEq)]
pub struct DnsAnswer {
    /// The answers with this meaning.
    pub listed: Listed,
    /// The kind of the finding.
    pub kind: FindingKind,
    /// The score of the finding, which counts once for each message.
    pub score: f64,
    /// The name of the finding.
    pub name: String,
}

/// Settings of one list.
#[derive(Debug, Clone, PartialEq)]
pub struct DnsList {
    /// The zone of the list: `zen.spamhaus.org`.
    pub zone: String,
    /// The subjects that the engine asks about.
    pub ask: Vec<Question>,
    /// Meanings of answers. Every meaning that matches an answer becomes a finding.
    pub answers: Vec<DnsAnswer>,
    /// Error codes: answers with which the list refuses to answer.
    pub errors: Vec<Ipv4Net>,
    /// Most domains of URLs that the engine asks about for one message.
    pub max_names: usize,
    /// An address or a domain that the list must contain; `None`: the test point of RFC 5782.
    pub test_listed: Option<String>,
    /// An address or a domain that the list must not contain; `None`: the test point of RFC 5782.
    pub test_unlisted: Option<String>,
    /// The name servers to ask.
    pub servers: NameServers,
}

/// The engine for one list.
#[derive(Debug)]
pub(super) struct Dns {
    list: DnsList,
    zone: Name,
    /// Keeps answers for their TTL.
    resolver: TokioResolver,
    /// Asks each time: for probes.
    fresh: TokioResolver,
}

impl Engine for Dns {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        Box::pin(async move {
            Ok(EngineAnswer::new(match sample.probe() {
                Some(probe) => Answer::Answered(self.test(probe).await?),
                None => self.look(&sample).await?,
            }))
        })
    }

    fn replica(&self) -> Option<&str> {
        Some(&self.list.zone)
    }

    fn probes(&self) -> Option<Probes> {
        Some(Probes::of_nothing())
    }
}

impl Dns {
    /// Blocks while it reads the configuration of the system, if the settings name no name servers.
    ///
    /// # Errors
    /// [`BuildError::Zone`] for an invalid zone, and [`BuildError::Resolver`] if the system's configuration cannot be used.
    pub(super) fn new(list: &DnsList) -> Result<Self, BuildError> {
        let zone = Name::from_ascii(format!("{}.", list.zone.trim_end_matches('.')));
        let zone = zone.ok().filter(|zone| !zone.is_root());
        Ok(Self {
            list: list.clone(),
            zone: zone.ok_or_else(|| BuildError::Zone(list.zone.clone()))?,
            resolver: list.servers.caching()?,
            fresh: list.servers.forgetful()?,
        })
    }

    async fn look(&self, sample: &Sample) -> Result<Answer, ScanError> {
        let subjects = self.subjects(sample).await?;
        let asked = subjects.names.iter().map(|name| self.ask(name));
        let mut found = Found::default();
        let mut failure = None;
        for (name, answer) in subjects.names.iter().zip(join_all(asked).await) {
            match answer {
                Ok(addresses) => found.add(&self.list, name, &addresses),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        // A listing counts even if another question has no answer. "Not listed" needs an answer to every question.
        let objection = found.findings.iter().any(|f| f.kind.is_objection());
        match failure {
            Some(error) if !objection => return Err(error),
            _ => {}
        }
        found.findings.extend(subjects.told);
        if subjects.unseen.is_empty() || objection {
            return Ok(Answer::Answered(found.findings));
        }
        Ok(Answer::None {
            reason: Reason::LimitsReached,
            detail: subjects.unseen.join("; "),
            findings: found.findings,
        })
    }

    async fn subjects(&self, sample: &Sample) -> Result<Subjects, ScanError> {
        let envelope = &sample.request().envelope;
        let asks = |question| self.list.ask.contains(&question);
        let mut subjects = Subjects::default();
        if asks(Question::Client) {
            let client = envelope.origin.client.to_canonical();
            // Authenticated users may send from home, although lists of dial-up addresses contain their address.
            let public = envelope.origin.user.is_none() && is_public(client);
            let name = public.then(|| names::reversed(client));
            let why = "an authenticated user, or a client with a private address";
            subjects.add(name, why);
        }
        if asks(Question::Sender) {
            let sender = envelope.reverse_path.mailbox().map(Mailbox::domain);
            let name = sender.and_then(names::registered);
            subjects.add(name, "a sender without a registered domain");
        }
        if asks(Question::Url) {
            let inspection = sample.inspection().await;
            subjects
                .unseen
                .extend(inspection.exceeded.iter().map(|limit| limit.as_str()));
            let short = is_short(sample.content(), &inspection);
            let most = self.list.max_names;
            let urls = compute(short, move || names::in_text(&inspection, most)).await?;
            subjects.urls(urls);
        }
        Ok(subjects)
    }

    /// Asks about a test point that the list must contain, or must not contain.
    async fn test(&self, probe: Probe) -> Result<Vec<Finding>, ScanError> {
        let by_address = self.list.ask.contains(&Question::Client);
        let (said, usual) = match (probe, by_address) {
            // The test points of RFC 5782 section 5.
            (Probe::Bad, true) => (&self.list.test_listed, "127.0.0.2"),
            (Probe::Clean, true) => (&self.list.test_unlisted, "127.0.0.1"),
            (Probe::Bad, false) => (&self.list.test_listed, "test"),
            (Probe::Clean, false) => (&self.list.test_unlisted, "invalid"),
        };
        let point = said.as_deref().unwrap_or(usual);
        let subject = match point.parse::<IpAddr>() {
            Ok(address) => names::reversed(address),
            Err(_) => point.to_owned(),
        };
        let listed = !self.query(&self.fresh, &subject).await?.is_empty();
        let finding = Finding::new(FindingKind::Suspicious, point, 0.0);
        Ok(listed.then_some(finding).into_iter().collect())
    }

    async fn ask(&self, subject: &str) -> Result<Vec<Ipv4Addr>, ScanError> {
        self.query(&self.resolver, subject).await
    }

    /// The answers of the list about a name; empty if the name is not listed.
    async fn query(
        &self,
        resolver: &TokioResolver,
        subject: &str,
    ) -> Result<Vec<Ipv4Addr>, ScanError> {
        let name = Name::from_ascii(subject).and_then(|name| name.append_domain(&self.zone));
        // A name that is too long to precede the zone cannot be on the list.
        let Ok(name) = name else {
            return Ok(Vec::new());
        };
        let lookup = match resolver.ipv4_lookup(name).await {
            Ok(lookup) => lookup,
            Err(error) if is_no(&error) => return Ok(Vec::new()),
            Err(error) => return Err(failed(&error, &self.list.zone)),
        };
        let addresses = lookup
            .answers()
            .iter()
            .filter_map(|record| match record.data {
                RData::A(address) => Some(address.0),
                _ => None,
            });
        let addresses: Vec<Ipv4Addr> = addresses.collect();
        for address in &addresses {
            self.check(*address)?;
        }
        Ok(addresses)
    }

    /// RFC 5782 2.1: listings are in 127.0.0.0/8. Any other address comes from a parked domain, or from a resolver that invents
    /// answers.
    fn check(&self, address: Ipv4Addr) -> Result<(), ScanError> {
        if !address.is_loopback() {
            return Err(ScanError::Garbage(format!(
                "{address}, which is not in 127.0.0.0/8"
            )));
        }
        match self.list.errors.iter().any(|net| net.contains(&address)) {
            true => Err(ScanError::Declined(format!(
                "the answer {address} is an error code; the list may refuse your name servers"
            ))),
            false => Ok(()),
        }
    }
}

/// The subjects of one message.
#[derive(Default)]
struct Subjects {
    /// Names to ask about, each once.
    names: Vec<String>,
    /// Findings about subjects that the engine does not ask about: there is no name, or the settings limit the number of names.
    told: Vec<Finding>,
    /// Reasons why a part of the message was not searched for names.
    unseen: Vec<&'static str>,
}

impl Subjects {
    /// Adds a name, or a finding with the reason why there is no name.
    fn add(&mut self, name: Option<String>, why: &str) {
        match name {
            Some(name) => self.names.push(name),
            None => self.tell("not-asked", why.to_owned()),
        }
    }

    fn urls(&mut self, urls: Domains) {
        for domain in urls.domains {
            if !self.names.contains(&domain) {
                self.names.push(domain);
            }
        }
        if urls.left_out > 0 {
            let detail = format!(
                "{} more domains of URLs were not asked about (max_names)",
                urls.left_out
            );
            self.tell("names-not-asked", detail);
        }
        if urls.cut {
            self.unseen
                .push("only the first 4 MiB of text were searched for URLs");
        }
    }

    fn tell(&mut self, name: &str, detail: String) {
        let finding = Finding::new(FindingKind::Info, name, 0.0);
        self.told.push(finding.with_detail(detail));
    }
}

/// Findings from the answers of a list. Each meaning becomes one finding, whatever the number of names with this meaning.
#[derive(Default)]
struct Found {
    findings: Vec<Finding>,
    /// Indices of the meanings that have a finding.
    meanings: Vec<usize>,
    /// Whether there is a finding for listings without a meaning.
    others: bool,
}

impl Found {
    fn add(&mut self, list: &DnsList, subject: &str, addresses: &[Ipv4Addr]) {
        for address in addresses {
            let detail = format!("{subject}.{}: {address}", list.zone);
            let answers = list.answers.iter().enumerate();
            let mut known = false;
            for (at, answer) in answers.filter(|(_, answer)| answer.listed.matches(*address)) {
                known = true;
                if !self.meanings.contains(&at) {
                    self.meanings.push(at);
                    let finding = Finding::new(answer.kind, &answer.name, answer.score);
                    self.findings.push(finding.with_detail(&*detail));
                }
            }
            if !known && !self.others {
                self.others = true;
                let finding = Finding::new(FindingKind::Info, "listed-otherwise", 0.0);
                self.findings.push(finding.with_detail(detail));
            }
        }
    }
}
