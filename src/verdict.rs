//! The answers of engines and the conclusions of policy: pure data.
//!
//! The law of this module is promise P4: "not scanned, because X" is an answer of its own. No [`Report`] says "clean" by
//! default: either the engine answered, or the report has a [`Reason`].

mod report;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::report::{Report, Reused, Same, stand_ins};
use crate::ablation::{Mechanism, without};

/// What an engine examines. Policy counts coverage per class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineClass {
    /// Malware.
    Av,
    /// Unwanted mail.
    Spam,
    /// The true origin of a message.
    Auth,
    /// The composition of a message, for example its attachments.
    Content,
}

impl EngineClass {
    /// All classes, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Av, Self::Spam, Self::Auth, Self::Content];

    /// The word in configuration and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Av => "av",
            Self::Spam => "spam",
            Self::Auth => "auth",
            Self::Content => "content",
        }
    }
}

/// The kind of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// Known malware, or the test file that stands for malware.
    Malware,
    /// Content that tempts people to give away secrets.
    Phishing,
    /// Unwanted mail, by its score.
    Spam,
    /// Forbidden by the administrator, for example an attachment type.
    Policy,
    /// A sign of malware, but no proof. The finding counts by its score.
    Suspicious,
    /// A part of the score for or against a message, without an objection to the message.
    Score,
    /// Information for people, which adds no score by itself.
    Info,
}

impl FindingKind {
    /// All kinds, the most serious first.
    pub const ALL: [Self; 7] = [
        Self::Malware,
        Self::Phishing,
        Self::Policy,
        Self::Spam,
        Self::Suspicious,
        Self::Score,
        Self::Info,
    ];

    /// Whether the engine objects to the message. A score or information alone is no objection.
    pub fn is_objection(self) -> bool {
        !matches!(self, Self::Score | Self::Info)
    }

    /// The word in configuration and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malware => "malware",
            Self::Phishing => "phishing",
            Self::Spam => "spam",
            Self::Policy => "policy",
            Self::Suspicious => "suspicious",
            Self::Score => "score",
            Self::Info => "info",
        }
    }
}

/// One thing that an engine found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The kind of the finding.
    pub kind: FindingKind,
    /// The engine's name for the finding, for example `Win.Test.EICAR_HDB-1` or `blocked-extension`. At most 200 octets,
    /// without control characters.
    pub name: String,
    /// The score of the finding, before policy multiplies it by the engine's weight.
    pub score: f64,
    /// The place or the cause, for example the name of a part or a matched type. Untrusted text: escape before display.
    pub detail: Option<String>,
}

impl Finding {
    /// A finding without detail. The name is cut to 200 octets, and each control character becomes `?`.
    pub fn new(kind: FindingKind, name: &str, score: f64) -> Self {
        let clean = |c: char| if c.is_control() { '?' } else { c };
        let mut name: String = name.chars().map(clean).collect();
        let mut end = name.len().min(200);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
        Self {
            kind,
            name,
            score,
            detail: None,
        }
    }

    /// Adds a detail to the finding.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

/// Why an engine has no answer. Policy decides what follows from a reason; no reason means clean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The attempt or the deadline ran out while the engine worked.
    Timeout,
    /// No connection: refused, unreachable, or the name was not found.
    Unreachable,
    /// The connection ended before the answer was complete.
    Disconnected,
    /// The answer does not follow the protocol.
    Garbage,
    /// The engine itself reported an error.
    EngineError,
    /// The content is larger than `max_size` of the engine.
    TooLarge,
    /// The engine reached a limit of its own (depth, files, scan size) before the scan was complete.
    LimitsReached,
    /// The engine could not examine the content because the content is encrypted.
    Encrypted,
    /// No slot became free in time.
    Busy,
    /// The scan budget of the message is used up.
    BudgetSpent,
    /// The breaker is open, or an interceptor bypasses the engine.
    BreakerOpen,
    /// An administrator has drained the engine.
    Drained,
    /// The engine's code panicked.
    Panicked,
    /// The same or similar content is being scanned and is slow. The guard sends no more such content until that scan ends.
    Parked,
    /// The same or similar content cost the engine so much that an interceptor holds such content.
    Suspect,
    /// A finding of another engine has already decided about the message.
    Unneeded,
}

impl Reason {
    /// All reasons, as listed in the reference configuration.
    pub const ALL: [Self; 16] = [
        Self::Timeout,
        Self::Unreachable,
        Self::Disconnected,
        Self::Garbage,
        Self::EngineError,
        Self::TooLarge,
        Self::LimitsReached,
        Self::Encrypted,
        Self::Busy,
        Self::BudgetSpent,
        Self::BreakerOpen,
        Self::Drained,
        Self::Panicked,
        Self::Parked,
        Self::Suspect,
        Self::Unneeded,
    ];

    /// The word in configuration and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Disconnected => "disconnected",
            Self::Garbage => "garbage",
            Self::EngineError => "engine-error",
            Self::TooLarge => "too-large",
            Self::LimitsReached => "limits-reached",
            Self::Encrypted => "encrypted",
            Self::Busy => "busy",
            Self::BudgetSpent => "budget-spent",
            Self::BreakerOpen => "breaker-open",
            Self::Drained => "drained",
            Self::Panicked => "panicked",
            Self::Parked => "parked",
            Self::Suspect => "suspect",
            Self::Unneeded => "unneeded",
        }
    }

    /// Whether the same scan may succeed later. A reason that lies in the message itself remains.
    pub fn is_transient(self) -> bool {
        match self {
            Self::Timeout
            | Self::Unreachable
            | Self::Disconnected
            | Self::Garbage
            | Self::EngineError
            | Self::Busy
            | Self::BudgetSpent
            | Self::BreakerOpen
            | Self::Drained
            | Self::Panicked
            | Self::Parked
            | Self::Suspect
            | Self::Unneeded => true,
            Self::TooLarge | Self::LimitsReached | Self::Encrypted => false,
        }
    }

    /// Whether the message is the probable cause, because the engine worked for other mail. Answers of other engines then do
    /// not make up for the missing one: a message that makes one engine hang may be the one that only this engine would
    /// detect.
    pub fn blames_message(self) -> bool {
        match self {
            Self::Timeout | Self::Parked | Self::Suspect => !without(Mechanism::Blame),
            Self::Unreachable
            | Self::Disconnected
            | Self::Garbage
            | Self::EngineError
            | Self::TooLarge
            | Self::LimitsReached
            | Self::Encrypted
            | Self::Busy
            | Self::BudgetSpent
            | Self::BreakerOpen
            | Self::Drained
            | Self::Panicked
            | Self::Unneeded => false,
        }
    }
}

/// The answer of an engine, or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The engine examined the whole message; the list may be empty.
    Answered(Vec<Finding>),
    /// The engine did not examine the message, or not all of it.
    None {
        /// The reason, for policy.
        reason: Reason,
        /// Details, for people.
        detail: String,
        /// Findings from before the scan stopped. Findings count even from an incomplete scan.
        findings: Vec<Finding>,
    },
}

impl Answer {
    /// A missing answer without findings.
    pub fn none(reason: Reason, detail: impl Into<String>) -> Self {
        Self::None {
            reason,
            detail: detail.into(),
            findings: Vec::new(),
        }
    }
}

/// The conclusion of policy about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Enough engines answered, and the findings, if any, do not matter.
    Clean,
    /// The findings are enough to mark the message.
    Suspect,
    /// The findings are enough to keep the message from its recipients.
    Malicious,
    /// Too few engines answered for a conclusion.
    Undetermined,
}

impl Verdict {
    /// All verdicts.
    pub const ALL: [Self; 4] = [
        Self::Clean,
        Self::Suspect,
        Self::Malicious,
        Self::Undetermined,
    ];

    /// The word in headers and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Suspect => "suspect",
            Self::Malicious => "malicious",
            Self::Undetermined => "undetermined",
        }
    }
}

/// What the relay does with a message, per group of recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disposition {
    /// Pass the message to the next hop.
    Deliver,
    /// Keep the message for review.
    Quarantine,
    /// Answer 550 in the session.
    Reject,
    /// Keep the message and scan it again later.
    Defer,
    /// Accept the message and drop it. Only an administrator's rule can decide this.
    Discard,
}

impl Disposition {
    /// All dispositions, for configuration and completions.
    pub const ALL: [Self; 5] = [
        Self::Deliver,
        Self::Quarantine,
        Self::Reject,
        Self::Defer,
        Self::Discard,
    ];

    /// The word in configuration and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deliver => "deliver",
            Self::Quarantine => "quarantine",
            Self::Reject => "reject",
            Self::Defer => "defer",
            Self::Discard => "discard",
        }
    }
}

/// Verdict, disposition, and the name of the rule that fired.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// The conclusion.
    pub verdict: Verdict,
    /// What the relay does.
    pub disposition: Disposition,
    /// The name of the rule that fired: an administrator's `[[rule]]`, or a built-in rule such as `policy.malware`,
    /// `policy.score` or `coverage.av`. The name is also the quarantine reason.
    pub rule: String,
    /// The reason in one line for people: the finding, the score and its threshold, or the missing engine.
    pub reason: String,
    /// Sum of the weighted scores.
    pub score: f64,
    /// Whether the result header marks the message as suspect although the message is delivered.
    pub tag: bool,
    /// Engines that did not answer, each with the reason. If not empty, the message was decided with less than full coverage.
    pub missing: Vec<(Arc<str>, Reason)>,
    /// The configuration that decided, as `status` shows it.
    pub config: Arc<str>,
}

/// Durations as whole milliseconds, the unit of all output.
pub(crate) mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }

    /// Whether the duration is written as 0.
    pub fn is_zero(value: &Duration) -> bool {
        value.as_millis() == 0
    }
}
