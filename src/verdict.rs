//! What engines answer and what policy concludes: pure data.
//!
//! The law of this module is promise P4: "not scanned, because X" is an answer of its own. There is no way to write a
//! [`Report`] that says "clean" by default; an engine either answered or it did not, and then there is a [`Reason`].

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ablation::{Mechanism, without};
use crate::message::{MessageId, RequestedEdit};

/// What an engine is good for; coverage is counted per class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineClass {
    /// Malware.
    Av,
    /// Unwanted mail.
    Spam,
    /// Who really sent it.
    Auth,
    /// What it is made of.
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

/// What sort of thing was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// A known piece of malware, or the test file that stands for it.
    Malware,
    /// Something that lures people into giving secrets away.
    Phishing,
    /// Unwanted, by score.
    Spam,
    /// Forbidden here by the administrator: a blocked attachment, say.
    Policy,
    /// A trait of malware, not proof of it; counts by its score.
    Suspicious,
    /// What the engine counts for or against a message that it does not object to: adds to the score, and nothing was
    /// found.
    Score,
    /// Worth showing, worth nothing in a score by itself.
    Info,
}

impl FindingKind {
    /// All kinds, the gravest first.
    pub const ALL: [Self; 7] = [
        Self::Malware,
        Self::Phishing,
        Self::Policy,
        Self::Spam,
        Self::Suspicious,
        Self::Score,
        Self::Info,
    ];

    /// Whether the engine objects to something: not where it only counts or remarks.
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

/// One thing found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What sort of thing.
    pub kind: FindingKind,
    /// Its name in the engine's words: `Win.Test.EICAR_HDB-1`, `blocked-extension`. At most 200 octets, no control characters.
    pub name: String,
    /// What it adds to the summed score before the engine's weight.
    pub score: f64,
    /// Where, or why: a part's name, a matched type. Untrusted text; shown escaped.
    pub detail: Option<String>,
}

impl Finding {
    /// A finding without detail; the name is cut and cleaned as the field's doc promises.
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

    /// The same with a detail.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

/// Why an engine has no answer. Policy says what each means; none of them means clean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The attempt, or the deadline, ran out while the engine worked.
    Timeout,
    /// No connection: refused, unreachable, name not found.
    Unreachable,
    /// The connection ended in the middle.
    Disconnected,
    /// An answer that is not in the protocol.
    Garbage,
    /// The engine itself reported an error.
    EngineError,
    /// More octets than the engine is configured to take.
    TooLarge,
    /// The engine stopped at a limit of its own (depth, files, scan size) before it had seen everything.
    LimitsReached,
    /// It cannot be looked into: encrypted.
    Encrypted,
    /// No slot became free in time.
    Busy,
    /// The message's scan budget is spent.
    BudgetSpent,
    /// The breaker refuses.
    BreakerOpen,
    /// An administrator has drained the engine.
    Drained,
    /// The engine's code panicked.
    Panicked,
    /// Content that is the same, or similar, is being scanned and slow; more of it is not sent meanwhile.
    Parked,
    /// Content that is the same, or similar, has failed so expensively that no more of it is sent.
    Suspect,
    /// What another engine found had decided already.
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

    /// Whether the same scan may well succeed later. What lies in the message itself does not pass with time.
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

    /// Whether the message, as far as anybody can tell, is the cause: the engine was fine with others. Then answers of
    /// other engines do not make up for this one, as this may be the only one that the message is dangerous to (a
    /// message that makes one engine hang may well be what that engine alone would have found).
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

/// An engine's answer, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It looked at everything; the findings may be none.
    Answered(Vec<Finding>),
    /// It did not, or not at everything.
    None {
        /// The class of the reason, for policy.
        reason: Reason,
        /// The particulars, for people.
        detail: String,
        /// What was found before it stopped; findings count even from an incomplete scan.
        findings: Vec<Finding>,
    },
}

impl Answer {
    /// No answer, and nothing found either.
    pub fn none(reason: Reason, detail: impl Into<String>) -> Self {
        Self::None {
            reason,
            detail: detail.into(),
            findings: Vec::new(),
        }
    }
}

/// One engine's whole answer about one message: exactly one per configured engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The engine's name in the configuration.
    pub engine: Arc<str>,
    /// What it is good for.
    pub class: EngineClass,
    /// The answer.
    pub answer: Answer,
    /// Which replica answered last, where there are several.
    pub replica: Option<String>,
    /// Version of the signatures, where the engine tells.
    pub signatures: Option<String>,
    /// Calls made, the first included; 0 if none was made.
    pub attempts: u32,
    /// Where the answer came from, if the engine was not asked about this message now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reused: Option<Reused>,
    /// What it wants done to the message, in its order, and whether that is done.
    /// Records of earlier versions call them wishes.
    #[serde(default, alias = "wishes", skip_serializing_if = "Vec::is_empty")]
    pub requested_edits: Vec<RequestedEdit>,
    /// From the start of the scan to this report, waiting for a slot included.
    #[serde(with = "millis")]
    pub elapsed: Duration,
}

/// An answer that was given about another scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reused {
    /// The message that was really scanned; the same message, if its answer came after it had left.
    pub from: MessageId,
    /// What the two have in common.
    pub same: Same,
}

/// In what a message is the same as the one that was scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Same {
    /// Every octet that the engine gets: its answer would be the same.
    Octets,
    /// The content, under another header ([`Identity`](crate::message::Identity)). The engine might say something else about
    /// this message: the answer is a *stand-in* while the engine is short of slots, and the engine is asked later.
    Content,
}

impl Report {
    /// The message whose answer stands in, if the engine has not seen every octet of this one.
    pub fn stand_in(&self) -> Option<MessageId> {
        let reused = self.reused.filter(|reused| reused.same == Same::Content)?;
        Some(reused.from)
    }

    /// What was found, complete answer or not.
    pub fn findings(&self) -> &[Finding] {
        match &self.answer {
            Answer::Answered(findings) | Answer::None { findings, .. } => findings,
        }
    }

    /// The reason of a missing answer.
    pub fn missing(&self) -> Option<Reason> {
        match &self.answer {
            Answer::Answered(_) => None,
            Answer::None { reason, .. } => Some(*reason),
        }
    }
}

/// The engines in whose place an answer about another message stands, each with that message; in order.
pub fn stand_ins(reports: &[Report]) -> impl Iterator<Item = (&Arc<str>, MessageId)> {
    reports
        .iter()
        .filter_map(|report| Some((&report.engine, report.stand_in()?)))
}

/// What policy concludes about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Enough engines answered and nothing was found that matters.
    Clean,
    /// Enough was found to mark it.
    Suspect,
    /// Enough was found to keep it away from people.
    Malicious,
    /// Too few engines answered to say.
    Undetermined,
}

impl Verdict {
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

/// What we do with a message, per group of recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disposition {
    /// Pass it to the next hop.
    Deliver,
    /// Keep it for review.
    Quarantine,
    /// 550 in the session.
    Reject,
    /// Keep it and scan again later.
    Defer,
    /// Accept and forget, only if the administrator says so.
    Discard,
}

impl Disposition {
    /// All, for configuration and completions.
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
    /// What was concluded.
    pub verdict: Verdict,
    /// What is done.
    pub disposition: Disposition,
    /// The name of the rule that fired: an administrator's `[[rule]]`, or `policy.malware`, `policy.score`,
    /// `coverage.av` and the like for the built-in ones. Names the quarantine reason as well.
    pub rule: String,
    /// Why, in one line for people: the finding, the score against its threshold, the engine that is missing.
    pub reason: String,
    /// Summed weighted score.
    pub score: f64,
    /// Marks the message in its result header as suspect although it is delivered.
    pub tag: bool,
    /// Engines that did not answer, with their reasons: delivered with less than full coverage if not empty.
    pub missing: Vec<(Arc<str>, Reason)>,
    /// The configuration that decided, as shown by `status`.
    pub config: Arc<str>,
}

/// Durations as whole milliseconds, the unit of everything we print.
pub(crate) mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}
