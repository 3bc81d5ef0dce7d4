//! The settings of `[coverage]`, `[policy]` and `[[rule]]`.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use crate::message::{AddressPattern, Glob};
use crate::verdict::{Disposition, EngineClass, FindingKind, Reason};

/// Everything that policy needs in addition to the facts.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `[[rule]]`, in order: the first that matches decides.
    pub rules: Vec<Rule>,
    /// Disposition of a finding by its kind, whatever its score. A kind that is missing here, or has [`Disposition::Deliver`],
    /// counts by its score only.
    pub kinds: BTreeMap<FindingKind, Disposition>,
    /// Sum of the weighted scores from which a message is marked although it is delivered.
    pub tag_score: f64,
    /// Sum of the weighted scores from which a message is held.
    pub quarantine_score: f64,
    /// Sum of the weighted scores from which a message is rejected.
    pub reject_score: f64,
    /// Number of engines of a class that must have answered before a message may be delivered; 0 if absent.
    pub coverage: BTreeMap<EngineClass, usize>,
    /// Disposition where coverage is not met, by the reason of the missing answer; defer if absent.
    pub missing: BTreeMap<Reason, Disposition>,
    /// Factor for an engine's scores, by its name; 1 if absent.
    pub weights: BTreeMap<Arc<str>, f64>,
}

/// One `[[rule]]`. Every condition that is not empty must hold; for one condition, one of its alternatives is enough.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Unique name, in every decision of the rule.
    pub name: String,
    /// The reverse-path; `<>` stands for the null reverse-path.
    pub sender: Vec<AddressPattern>,
    /// The forward-path.
    pub recipient: Vec<AddressPattern>,
    /// Network of the client.
    pub client: Vec<IpNet>,
    /// The authenticated user; a session without a user matches no pattern.
    pub user: Vec<Glob>,
    /// Name of the listener.
    pub listener: Vec<String>,
    /// The content has more octets than this.
    pub size_over: Option<u64>,
    /// File name of an attachment.
    pub attachment_name: Vec<Glob>,
    /// Media type of the same attachment, declared or recognised.
    pub attachment_type: Vec<Glob>,
    /// Name of a finding.
    pub finding: Vec<Glob>,
    /// Kind of the same finding.
    pub kind: Vec<FindingKind>,
    /// Limits `finding`, `kind` and `missing` to these engines.
    pub engine: Vec<String>,
    /// An engine without an answer for one of these reasons.
    pub missing: Vec<Reason>,
    /// The sum of the weighted scores is above this.
    pub score_over: Option<f64>,
    /// Disposition if all conditions hold.
    pub then: Disposition,
}

impl Rule {
    /// A rule without any condition.
    pub fn new(name: impl Into<String>, then: Disposition) -> Self {
        Self {
            name: name.into(),
            sender: Vec::new(),
            recipient: Vec::new(),
            client: Vec::new(),
            user: Vec::new(),
            listener: Vec::new(),
            size_over: None,
            attachment_name: Vec::new(),
            attachment_type: Vec::new(),
            finding: Vec::new(),
            kind: Vec::new(),
            engine: Vec::new(),
            missing: Vec::new(),
            score_over: None,
            then,
        }
    }
}
