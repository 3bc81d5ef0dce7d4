//! Rules and thresholds: a pure function from facts to a decision.
//!
//! The order, first to last; what comes earlier is never overruled by what comes later:
//!
//! 1. the administrator's `[[rule]]`s: the first that matches ([`rules`]);
//! 2. what a finding means by its kind: `policy.malware` and the like ([`conclusion`] from here on);
//! 3. the summed weighted score against its thresholds: `policy.score`;
//! 4. coverage: fewer engines of a class answered than must have: `coverage.av` and the like;
//! 5. deliver, marked if the score says so.
//!
//! The verdict is always what steps 2 to 5 conclude, even where an administrator's rule decides what is done: a rule can
//! deliver a message that nobody scanned, but it cannot make it clean (promise P4).

mod conclusion;
mod rules;
mod settings;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::message::{AttachmentFact, Envelope};
use crate::verdict::{Decision, Disposition, EngineClass, Report, Verdict};
use conclusion::Conclusion;

pub use settings::{Rule, Settings};

/// What policy may look at, for one recipient of a message.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The envelope.
    pub envelope: &'a Envelope,
    /// Octets of content.
    pub size: u64,
    /// The header section as received.
    pub header_section: &'a [u8],
    /// What the message carries, as far as MIME inspection came.
    pub attachments: &'a [AttachmentFact],
    /// One report per engine.
    pub reports: &'a [Report],
}

/// A decision and the recipients (indexes into the envelope) that it governs.
pub type Group = (Decision, Vec<usize>);

/// The administrator's rules and thresholds, compiled.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Shown in every decision.
    pub config: Arc<str>,
    settings: Settings,
}

impl Policy {
    /// A policy whose decisions name `config`, the version of the configuration, as their origin.
    pub fn new(settings: Settings, config: Arc<str>) -> Self {
        Self { config, settings }
    }

    /// Whether some rule looks at attachments; if none does, [`Facts::attachments`] may be left empty.
    pub fn looks_at_attachments(&self) -> bool {
        let looks =
            |rule: &Rule| !rule.attachment_name.is_empty() || !rule.attachment_type.is_empty();
        self.settings.rules.iter().any(looks)
    }

    /// Answers of that class that coverage asks for.
    pub fn required(&self, class: EngineClass) -> usize {
        self.settings.coverage.get(&class).copied().unwrap_or(0)
    }

    /// Judges every recipient and groups those with the same decision, in order of their first recipient.
    ///
    /// Every recipient is in exactly one group. The work is bounded by rules times recipients: what does not depend on
    /// the recipient is looked at once.
    pub fn decide(&self, facts: Facts<'_>) -> Vec<Group> {
        let conclusion = conclusion::conclude(&self.settings, facts.reports);
        let matching = rules::matching(&self.settings.rules, facts, conclusion.score);
        // Which rule (an index into `matching`) governs, and whom.
        let mut groups: Vec<(Option<usize>, Vec<usize>)> = Vec::new();
        for (at, recipient) in facts.envelope.recipients.iter().enumerate() {
            let mailbox = recipient.mailbox.as_str();
            let fired = matching
                .iter()
                .position(|rule| rules::any(&rule.recipient, mailbox));
            match groups.iter_mut().find(|(rule, _)| *rule == fired) {
                Some((_, recipients)) => recipients.push(at),
                None => groups.push((fired, vec![at])),
            }
        }
        groups
            .into_iter()
            .map(|(fired, recipients)| {
                let decision = match fired.and_then(|at| matching.get(at)) {
                    Some(rule) => self.by_rule(rule, &conclusion, facts.reports),
                    None => self.decision(&conclusion, facts.reports),
                };
                (decision, recipients)
            })
            .collect()
    }

    /// The decision of steps 2 to 5.
    fn decision(&self, conclusion: &Conclusion, reports: &[Report]) -> Decision {
        Decision {
            verdict: conclusion.verdict,
            disposition: conclusion.disposition,
            rule: conclusion.rule.clone(),
            reason: conclusion.reason.clone(),
            score: conclusion.score,
            tag: conclusion.verdict == Verdict::Malicious
                || conclusion.score >= self.settings.tag_score,
            missing: reports
                .iter()
                .filter_map(|report| Some((report.engine.clone(), report.missing()?)))
                .collect(),
            config: self.config.clone(),
        }
    }

    /// The same where an administrator's rule says what is done.
    fn by_rule(&self, rule: &Rule, conclusion: &Conclusion, reports: &[Report]) -> Decision {
        let conditions = rules::conditions(rule).join(", ");
        Decision {
            disposition: rule.then,
            rule: rule.name.clone(),
            reason: format!(
                "matches {conditions}; without this rule {} would {}: {}",
                conclusion.rule,
                conclusion.disposition.as_str(),
                conclusion.reason
            ),
            ..self.decision(conclusion, reports)
        }
    }
}

/// How grave a disposition is where several apply. Refusing comes before holding: the sender learns of it. Discarding
/// loses the mail without a trace, so whatever keeps or refuses it goes first; only delivery gives way to it.
fn gravity(disposition: Disposition) -> u8 {
    match disposition {
        Disposition::Reject => 4,
        Disposition::Quarantine => 3,
        Disposition::Defer => 2,
        Disposition::Discard => 1,
        Disposition::Deliver => 0,
    }
}
