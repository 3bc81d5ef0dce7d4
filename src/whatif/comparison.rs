//! What two configurations decide about the same mail, in counts and examples.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::terms::{Decided, Ruled};
use crate::store::basis::GroupBasis;
use crate::store::history::HistoryEntry;
use crate::verdict::{Decision, Disposition};

/// Most different changes that are told apart. A configuration has fewer rules; further ones count as changed messages only.
const CHANGES_MAX: usize = 1000;
/// Longest subject of an example, in characters.
const EXAMPLE_SUBJECT_CHARACTERS_MAX: usize = 100;

/// What is done with a message, and by which rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ruling {
    /// The disposition.
    pub disposition: Disposition,
    /// Whether the message is delivered with a mark.
    #[serde(default)]
    pub marked: bool,
    /// The rule or threshold that decided.
    pub rule: String,
}

impl Ruling {
    /// The ruling of a decision.
    pub fn of(decision: &Decision) -> Self {
        Self::new(decision.disposition, decision.tag, decision.rule.clone())
    }

    /// The ruling of a recorded group.
    pub(super) fn of_kept(group: &GroupBasis) -> Self {
        Self::new(group.disposition, group.tag, group.rule.clone())
    }

    fn new(disposition: Disposition, tag: bool, rule: String) -> Self {
        Self {
            disposition,
            marked: tag && disposition == Disposition::Deliver,
            rule,
        }
    }

    /// What is done, for people: `deliver`, `deliver marked`, `quarantine`.
    pub fn act(&self) -> &'static str {
        match self.marked {
            true => "deliver marked",
            false => self.disposition.as_str(),
        }
    }

    pub(super) fn is_done_alike(&self, other: &Self) -> bool {
        (self.disposition, self.marked) == (other.disposition, other.marked)
    }
}

/// A kind of change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What was decided.
    pub from: Ruling,
    /// What would be decided.
    pub to: Ruling,
    /// Number of messages. A message whose recipients change in several ways counts in each.
    pub messages: u64,
    /// Number of recipients.
    pub recipients: u64,
}

/// One message that changes. All text is untrusted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// The id of the message.
    pub message: String,
    /// The time of the decision.
    pub at: Timestamp,
    /// The sender.
    pub sender: String,
    /// The first recipient.
    pub recipient: String,
    /// Number of further recipients.
    pub more: u64,
    /// The subject, cut.
    pub subject: String,
    /// What was decided.
    pub from: Ruling,
    /// What would be decided.
    pub to: Ruling,
    /// The score then.
    pub score_then: f64,
    /// The score now.
    pub score_now: f64,
    /// The reason then.
    pub then: String,
    /// The reason now.
    pub now: String,
}

/// Which examples are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Examples {
    /// The first ones of each kind of change.
    First(usize),
    /// The newest ones of all.
    Newest(usize),
}

/// The comparison of two configurations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Messages about which both configurations decide.
    pub messages: u64,
    /// Messages with a recipient for whom something else would be done.
    pub changed: u64,
    /// Messages for which the same would be done, by another rule.
    pub other_rule: u64,
    /// Messages that an interceptor or the guard held: no rule decided.
    pub by_guard: u64,
    /// Messages about which nobody can say, by reason.
    pub cannot_say: BTreeMap<String, u64>,
    /// The changes, in the order of their rulings.
    pub changes: Vec<Change>,
    /// Examples of changes.
    pub examples: VecDeque<Example>,
    /// The first decision that was compared.
    pub first: Option<Timestamp>,
    /// The last decision that was compared.
    pub last: Option<Timestamp>,
    #[serde(skip, default = "no_examples")]
    kept: Examples,
}

fn no_examples() -> Examples {
    Examples::First(0)
}

impl Comparison {
    /// An empty comparison that keeps these examples.
    pub fn new(kept: Examples) -> Self {
        Self {
            messages: 0,
            changed: 0,
            other_rule: 0,
            by_guard: 0,
            cannot_say: BTreeMap::new(),
            changes: Vec::new(),
            examples: VecDeque::new(),
            first: None,
            last: None,
            kept,
        }
    }

    /// Adds what would be decided about a recorded message.
    pub fn add(&mut self, entry: &HistoryEntry, decided: &Decided) {
        self.first.get_or_insert(entry.at);
        self.last = self.last.max(Some(entry.at));
        let ruled = match decided {
            Decided::ByGuard => {
                self.by_guard += 1;
                return;
            }
            Decided::CannotSay(why) => {
                // The reasons name engines, of which a configuration has few.
                if self.cannot_say.len() < CHANGES_MAX || self.cannot_say.contains_key(why) {
                    *self.cannot_say.entry(why.clone()).or_default() += 1;
                }
                return;
            }
            Decided::Ruled(ruled) => ruled,
        };
        self.messages += 1;
        let changed: Vec<&Ruled> = ruled
            .iter()
            .filter(|ruled| !ruled.from.is_done_alike(&ruled.to))
            .collect();
        if changed.is_empty() {
            self.other_rule += u64::from(ruled.iter().any(|ruled| ruled.from != ruled.to));
            return;
        }
        self.changed += 1;
        for ruled in changed {
            let count = self.count(ruled);
            self.keep_example(entry, ruled, count);
        }
    }

    /// Counts a message in its kind of change, and returns how many of them there are.
    fn count(&mut self, ruled: &Ruled) -> u64 {
        let key = (&ruled.from, &ruled.to);
        let found = self
            .changes
            .binary_search_by(|change| (&change.from, &change.to).cmp(&key));
        let at = match found {
            Ok(at) => at,
            Err(_) if self.changes.len() >= CHANGES_MAX => return u64::MAX,
            Err(at) => {
                let change = Change {
                    from: ruled.from.clone(),
                    to: ruled.to.clone(),
                    messages: 0,
                    recipients: 0,
                };
                self.changes.insert(at, change);
                at
            }
        };
        let Some(change) = self.changes.get_mut(at) else {
            return u64::MAX;
        };
        change.messages += 1;
        change.recipients += ruled.recipients;
        change.messages
    }

    fn keep_example(&mut self, entry: &HistoryEntry, ruled: &Ruled, count: u64) {
        match self.kept {
            Examples::First(most) if count > most as u64 => return,
            Examples::Newest(most) if self.examples.len() >= most => {
                self.examples.pop_front();
            }
            Examples::First(_) | Examples::Newest(_) => {}
        }
        let decision = entry.decision.as_ref();
        let basis = entry.basis.as_ref();
        let group = basis.and_then(|basis| {
            let mut groups = basis.groups.iter();
            groups.find(|group| Ruling::of_kept(group) == ruled.from)
        });
        let recipients = group.map_or(&entry.recipients, |group| &group.recipients);
        // The entry has the reason of its own decision only.
        let then = decision.filter(|decision| Ruling::of(decision) == ruled.from);
        let subject = entry.subject.chars().take(EXAMPLE_SUBJECT_CHARACTERS_MAX);
        self.examples.push_back(Example {
            message: entry.message.to_string(),
            at: entry.at,
            sender: entry.sender.to_string(),
            recipient: recipients
                .first()
                .map_or(String::new(), ToString::to_string),
            more: ruled.recipients.saturating_sub(1),
            subject: subject.collect(),
            from: ruled.from.clone(),
            to: ruled.to.clone(),
            score_then: decision.map_or(0.0, |decision| decision.score),
            score_now: ruled.score,
            then: then.map_or(String::new(), |decision| decision.reason.clone()),
            now: ruled.reason.clone(),
        });
    }
}
