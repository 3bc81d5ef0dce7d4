//! Rules and thresholds: a pure function from facts to a decision.
//!
//! The steps, in order; a later step never overrules an earlier one:
//!
//! 1. the first of the administrator's `[[rule]]`s that matches ([`rules`]);
//! 2. findings by their kind: `policy.malware` and similar rules ([`conclusion`] does this and the following steps);
//! 3. the sum of the weighted scores, compared with thresholds: `policy.score`;
//! 4. coverage: fewer engines of a class answered than required: `coverage.av` and similar rules, or [`PASSED_RULE`] if a
//!    person lets mail pass without the missing ones;
//! 5. deliver, marked if the score reaches its threshold.
//!
//! The verdict is always the conclusion of steps 2 to 5, even if an administrator's rule decides the disposition: a rule can
//! deliver a message that no engine scanned, but cannot make it clean (promise P4).

mod conclusion;
mod rules;
mod settings;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::message::{AttachmentFact, ComparedAddress, Envelope};
use crate::verdict::{Decision, Disposition, EngineClass, Report, Verdict};
use conclusion::Conclusion;

pub use settings::{Rule, Settings};

/// The facts about a message that policy may use.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The envelope.
    pub envelope: &'a Envelope,
    /// Size of the content in octets.
    pub size: u64,
    /// The header section as received.
    pub header_section: &'a [u8],
    /// The attachments that the MIME inspection found.
    pub attachments: &'a [AttachmentFact],
    /// One report per engine.
    pub reports: &'a [Report],
}

/// The rule that delivers a message without the coverage of a class, because a person lets mail pass without a drained engine
/// ([`Report::passed`]).
pub const PASSED_RULE: &str = "coverage.passed";

/// A decision, and the recipients (indexes into the envelope) that it applies to.
pub type Group = (Decision, Vec<usize>);

/// The administrator's rules and thresholds, compiled.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Version of the configuration, which every decision names.
    pub config: Arc<str>,
    settings: Settings,
}

impl Policy {
    /// A policy whose decisions name `config`, the version of the configuration.
    pub fn new(settings: Settings, config: Arc<str>) -> Self {
        Self { config, settings }
    }

    /// Whether a rule examines attachments; if none does, [`Facts::attachments`] may be empty.
    pub fn looks_at_attachments(&self) -> bool {
        let looks =
            |rule: &Rule| !rule.attachment_name.is_empty() || !rule.attachment_type.is_empty();
        self.settings.rules.iter().any(looks)
    }

    /// Number of answers of that class that coverage requires.
    pub fn required(&self, class: EngineClass) -> usize {
        self.settings.coverage.get(&class).copied().unwrap_or(0)
    }

    /// Decides for every recipient, and groups recipients with the same decision, in the order of their first recipients.
    ///
    /// Every recipient is in exactly one group. The work is at most rules times recipients: conditions that do not depend on
    /// the recipient are checked once.
    pub fn decide(&self, facts: Facts<'_>) -> Vec<Group> {
        let conclusion = conclusion::conclude(&self.settings, facts.reports);
        let matching = rules::matching(&self.settings.rules, facts, conclusion.score);
        // The rule that applies (an index into `matching`), and its recipients.
        let mut groups: Vec<(Option<usize>, Vec<usize>)> = Vec::new();
        for (at, recipient) in facts.envelope.recipients.iter().enumerate() {
            // Without a rule that matches so far, as for most mail, the address is not looked at.
            let address = matching
                .first()
                .map(|_| ComparedAddress::of(&recipient.mailbox));
            let fired = address.and_then(|address| {
                matching
                    .iter()
                    .position(|rule| rules::any_address(&rule.recipient, &address))
            });
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

    /// The decision where an administrator's rule decides the disposition.
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

/// Order of dispositions where several apply. Rejecting comes before holding, because the sender learns of it. Discarding
/// loses the mail without a trace, so every disposition except delivery comes before it.
fn gravity(disposition: Disposition) -> u8 {
    match disposition {
        Disposition::Reject => 4,
        Disposition::Quarantine => 3,
        Disposition::Defer => 2,
        Disposition::Discard => 1,
        Disposition::Deliver => 0,
    }
}
