//! A mail filter that speaks the milter protocol, as Sendmail and Postfix speak it with libmilter: OpenDKIM, rspamd's proxy,
//! clamav-milter and others. The relay offers version 6, and understands versions 2 to 5 too.
//!
//! A filter tells a mail server what to do. Here policy decides: an objection is a finding, a requested change is a requested
//! edit, and `tempfail` is a missing answer. A filter sees a session with one message, even if the client sent several
//! messages in its session. Each message has its own connection: the protocol could announce another session (SMFIC_QUIT_NC),
//! but libmilter of Sendmail 8.17, with which most filters are built, was seen to leave the next connect event without a
//! reply.
//!
//! **Filters do not form a chain here.** Each filter sees the message as it arrived, without fields that another filter has
//! added or removed. A filter that relies on the Authentication-Results of earlier filters (OpenDMARC, OpenARC) would rely on
//! fields that the sender has forged: docs/ENGINES.md says not to use such a filter. Hiding these fields would not help:
//! signatures may cover them, and OpenDKIM asks to remove the forged fields by their numbers, which it could not do without
//! seeing them.

mod facts;
mod link;
mod packet;
mod results;
mod talk;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::address::Dial;
use super::{Address, BuildError, Engine, EngineAnswer, ProbeWith, Probes, Sample, ScanError};
use crate::deadline::Deadline;
use crate::verdict::{Answer, Finding, FindingKind, Reason};
use link::Link;
use talk::{Outcome, Talk};

pub use packet::{MilterReply, NegotiatedTerms, Packet, parse, split, terms};

/// Characters of a filter's text in a report, to bound its size.
const FILTER_TEXT_CHARACTERS_MAX: usize = 200;

/// Settings that all replicas of a filter share.
#[derive(Debug, Clone, PartialEq)]
pub struct MilterSettings {
    /// Host name of the relay: the macro `j`. It also completes addresses that have no domain.
    pub hostname: String,
    /// Kind of the finding for reject, discard and quarantine.
    pub bad_kind: FindingKind,
    /// Score of that finding.
    pub bad_score: f64,
    /// How the relay treats tempfail.
    pub tempfail: TempFail,
    /// Test message that the filter must object to in a probe.
    pub probe_with: ProbeWith,
    /// Timeout of one connection attempt.
    pub connect_timeout: Duration,
}

/// How the relay treats a filter's request to send the message again later (tempfail).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TempFail {
    /// The filter has no answer: reason `engine-error`.
    NoAnswer,
    /// A finding of kind `info`, which rules can match.
    Info,
}

/// One replica of a filter.
#[derive(Debug)]
pub(super) struct Milter {
    dial: Dial,
    settings: MilterSettings,
}

impl Engine for Milter {
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
        self.settings.probe_with.probes()
    }
}

impl Milter {
    /// Makes the replica at `address`, without connecting.
    pub(super) fn new(address: &Address, settings: &MilterSettings) -> Result<Self, BuildError> {
        Ok(Self {
            dial: Dial::new(address, None, settings.connect_timeout)?,
            settings: settings.clone(),
        })
    }

    async fn ask(&self, sample: &Sample) -> Result<EngineAnswer, ScanError> {
        let mut link = self.link(sample.deadline()).await?;
        let outcome = Talk::about(sample, &self.settings.hostname, &mut link)
            .tell_all()
            .await?;
        link.quit();
        if outcome.failed {
            return Err(ScanError::Engine(
                "the filter reports that it cannot work: see its log".to_owned(),
            ));
        }
        Ok(EngineAnswer {
            wanted: outcome.wanted.clone(),
            ..EngineAnswer::new(self.judged(outcome))
        })
    }

    /// Connects and negotiates the terms (SMFIC_OPTNEG).
    async fn link(&self, deadline: Deadline) -> Result<Link, ScanError> {
        let stream = self.dial.connect(deadline).await?;
        let mut link = Link::over(stream);
        let offer = [
            packet::PROTOCOL_VERSION,
            packet::OFFERED_ACTIONS,
            packet::OFFERED_STEPS,
        ]
        .map(u32::to_be_bytes);
        link.queue(b'O', &[offer.as_flattened()]).await?;
        let (command, data) = link.packet().await?;
        link.terms = terms(command, &data)?;
        Ok(link)
    }

    /// The engine's answer for an outcome.
    fn judged(&self, outcome: Outcome) -> Answer {
        let info = |name: &str| Finding::new(FindingKind::Info, name, 0.0);
        let mut findings = Vec::new();
        for (name, words) in &outcome.against {
            let bad = Finding::new(self.settings.bad_kind, name, self.settings.bad_score);
            findings.push(with(bad, words));
        }
        for words in &outcome.recipients {
            findings.push(with(info("recipient-refused"), words));
        }
        findings.extend(outcome.results.iter().map(|result| info(result)));
        if let Some(what) = outcome.untold {
            return Answer::None {
                reason: Reason::LimitsReached,
                detail: format!("the filter did not see all: libmilter does not accept {what}"),
                findings,
            };
        }
        match (outcome.not_now, self.settings.tempfail) {
            (None, _) => Answer::Answered(findings),
            (Some(words), TempFail::Info) => {
                findings.push(with(info("tempfail"), &words));
                Answer::Answered(findings)
            }
            (Some(words), TempFail::NoAnswer) => Answer::None {
                reason: Reason::EngineError,
                detail: format!(
                    "the filter asks to send the message again later: {}",
                    shown(&words)
                ),
                findings,
            },
        }
    }
}

fn with(finding: Finding, words: &str) -> Finding {
    match words.is_empty() {
        true => finding,
        false => finding.with_detail(shown(words)),
    }
}

fn shown(words: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    words
        .chars()
        .take(FILTER_TEXT_CHARACTERS_MAX)
        .map(clean)
        .collect()
}
