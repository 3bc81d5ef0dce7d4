//! What the administrator wrote under `[coverage]`, `[policy]` and `[[rule]]`.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use crate::message::Glob;
use crate::verdict::{Disposition, EngineClass, FindingKind, Reason};

/// Everything policy needs to know beside the facts.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `[[rule]]`, in order: the first that matches wins.
    pub rules: Vec<Rule>,
    /// What a finding of a kind means by itself, whatever its score. A kind that is not here, or is here with
    /// [`Disposition::Deliver`], counts by its score only.
    pub kinds: BTreeMap<FindingKind, Disposition>,
    /// Summed weighted score from which a message is marked although it is delivered.
    pub tag_score: f64,
    /// Summed weighted score from which a message is held.
    pub quarantine_score: f64,
    /// Summed weighted score from which a message is refused.
    pub reject_score: f64,
    /// Engines of a class that must really have answered before a message may be delivered; absent is 0.
    pub coverage: BTreeMap<EngineClass, usize>,
    /// What is done where coverage is not met, by the reason of the missing answer; absent is defer.
    pub missing: BTreeMap<Reason, Disposition>,
    /// Factor of an engine's scores, by its name; absent is 1.
    pub weights: BTreeMap<Arc<str>, f64>,
}

/// One `[[rule]]`. Every condition that is not empty must hold; within a condition one of the alternatives is enough.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Unique; named in every decision the rule makes.
    pub name: String,
    /// The reverse-path; `<>` stands for the null reverse-path.
    pub sender: Vec<Glob>,
    /// The forward-path.
    pub recipient: Vec<Glob>,
    /// The client's address.
    pub client: Vec<IpNet>,
    /// The authenticated user; a session without one matches nothing.
    pub user: Vec<Glob>,
    /// The listener's name.
    pub listener: Vec<String>,
    /// More octets of content than this.
    pub size_over: Option<u64>,
    /// An attachment's file name.
    pub attachment_name: Vec<Glob>,
    /// The same attachment's media type, claimed or found.
    pub attachment_type: Vec<Glob>,
    /// A finding's name.
    pub finding: Vec<Glob>,
    /// The same finding's kind.
    pub kind: Vec<FindingKind>,
    /// Narrows `finding`, `kind` and `missing` to these engines.
    pub engine: Vec<String>,
    /// An engine without an answer for one of these reasons.
    pub missing: Vec<Reason>,
    /// A summed weighted score above this.
    pub score_over: Option<f64>,
    /// What is done when all of it holds.
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
