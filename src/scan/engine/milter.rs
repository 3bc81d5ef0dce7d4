//! A mail filter that speaks the milter protocol, as Sendmail and Postfix speak it with libmilter (version 6; 2 to 5 are
//! understood): OpenDKIM, rspamd's proxy, clamav-milter and the rest.
//!
//! A filter tells a mail server what to do. Here policy decides: what it says against a message is a finding, what it wants
//! changed is a wish, and `tempfail` is no answer. It is told a session with one message, whatever came in over ours. Each has
//! a connection of its own: the protocol could announce another session (SMFIC_QUIT_NC), but libmilter of Sendmail 8.17, with which
//! most filters are built, was seen to leave the next connect event without a reply.
//!
//! **Filters are no chain here.** Each sees the message as it came, and none what another has added or removed. One that goes by
//! Authentication-Results of the filters before it (OpenDMARC, OpenARC) would go by what the sender has forged: docs/ENGINES.md says
//! not to use such a filter. To hide these fields would not do: signatures may cover them, and OpenDKIM asks for the forged ones to be
//! removed by their numbers, which it could not if it did not see them.

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

pub use packet::{MilterReply, Packet, Terms, parse, split, terms};

/// Characters of a filter's words that are shown.
const WORDS: usize = 200;

/// What all replicas of a filter have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct MilterSettings {
    /// Our name, the macro `j`.
    pub hostname: String,
    /// What its reject, discard and quarantine are.
    pub bad_kind: FindingKind,
    /// Their score.
    pub bad_score: f64,
    /// What its tempfail is.
    pub tempfail: TempFail,
    /// What it must find to prove that it works.
    pub probe_with: ProbeWith,
    /// One connection attempt.
    pub connect_timeout: Duration,
}

/// What it means that a filter wants a message to come again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TempFail {
    /// It has no answer about it: `engine-error`.
    NoAnswer,
    /// It is a remark, for rules to ask for.
    Info,
}

/// One filter.
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
    /// The filter at that address; nothing is connected yet.
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
            return Err(ScanError::Engine {
                replica: self.dial.name().to_owned(),
                message: "it says that it cannot work".to_owned(),
            });
        }
        Ok(EngineAnswer {
            wanted: outcome.wanted.clone(),
            answer: self.judged(outcome),
            replica: Some(self.dial.name().to_owned()),
            signatures: None,
        })
    }

    /// A connection on which terms are agreed.
    async fn link(&self, deadline: Deadline) -> Result<Link, ScanError> {
        let stream = self.dial.connect(deadline).await?;
        let mut link = Link::over(stream, self.dial.name());
        let offer = [packet::VERSION, packet::ACTIONS, packet::STEPS].map(u32::to_be_bytes);
        link.queue(b'O', &[offer.as_flattened()]).await?;
        let (command, data) = link.packet().await?;
        link.terms = terms(command, &data).map_err(|malformed| link.failed(malformed))?;
        Ok(link)
    }

    /// What it means.
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
                detail: format!("filters do not take {what}"),
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
                detail: format!("not now, it says: {}", shown(&words)),
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
    words.chars().take(WORDS).map(clean).collect()
}
