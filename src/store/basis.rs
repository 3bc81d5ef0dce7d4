//! The basis of a decision: what policy knew of a message besides the reports, kept in the history so that `what-if` can decide
//! about the message again under other rules.

use serde::{Deserialize, Serialize};

use crate::message::{AttachmentFact, Mailbox};
use crate::verdict::{Decision, Disposition};

/// What policy knew, and what it decided. In JSON, what is empty is absent, so most messages add 11 octets to the history.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Basis {
    /// Whether the message was judged before: it was deferred, held, or delivered without an engine.
    #[serde(default, skip_serializing_if = "is_false")]
    pub again: bool,
    /// The authenticated user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The attachments, at most [`Basis::ATTACHMENTS_MAX`]. Untrusted text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<AttachmentBasis>,
    /// Whether policy saw more of the attachments than is kept here: more of them, or longer names.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_cut: bool,
    /// The decision for each group of recipients; empty if the entry itself has the only decision, for all recipients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupBasis>,
}

/// What rules look at in one attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentBasis {
    /// The declared file name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The declared media type.
    #[serde(rename = "type")]
    pub declared: String,
    /// The media type according to the octets, if it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sniffed: Option<String>,
}

/// What policy decided for a group of recipients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupBasis {
    /// The recipients of the group.
    pub recipients: Vec<Mailbox>,
    /// [`Decision::disposition`].
    pub disposition: Disposition,
    /// [`Decision::rule`].
    pub rule: String,
    /// [`Decision::tag`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub tag: bool,
}

impl Basis {
    /// Most attachments that are kept, as many as [`Described`](crate::message::Described) names.
    pub const ATTACHMENTS_MAX: usize = 10;
    /// Longest name or type that is kept, in characters.
    const TEXT_CHARACTERS_MAX: usize = 120;

    /// The basis of a judgement, without its groups. Of `attachments`, the first ones are kept.
    pub fn new(again: bool, user: Option<&str>, attachments: &[AttachmentFact]) -> Self {
        let mut is_cut = attachments.len() > Self::ATTACHMENTS_MAX;
        let mut kept = |text: &str| match text.char_indices().nth(Self::TEXT_CHARACTERS_MAX) {
            Some((end, _)) => {
                is_cut = true;
                text[..end].to_owned()
            }
            None => text.to_owned(),
        };
        let first = attachments.iter().take(Self::ATTACHMENTS_MAX);
        let attachments = first.map(|fact| AttachmentBasis {
            name: fact.name.as_deref().map(&mut kept),
            declared: kept(&fact.declared),
            sniffed: (fact.sniffed != fact.declared).then(|| kept(&fact.sniffed)),
        });
        let attachments = attachments.collect();
        Self {
            again,
            user: user.map(str::to_owned),
            attachments,
            is_cut,
            groups: Vec::new(),
        }
    }

    /// The attachments as policy gets them, except for their sizes, at which no rule looks.
    pub fn facts(&self) -> Vec<AttachmentFact> {
        let fact = |kept: &AttachmentBasis| AttachmentFact {
            name: kept.name.clone(),
            declared: kept.declared.clone(),
            sniffed: kept.sniffed.as_ref().unwrap_or(&kept.declared).clone(),
            size: 0,
        };
        self.attachments.iter().map(fact).collect()
    }
}

impl GroupBasis {
    /// What is kept of a decision for these recipients.
    pub fn new(decision: &Decision, recipients: Vec<Mailbox>) -> Self {
        Self {
            recipients,
            disposition: decision.disposition,
            rule: decision.rule.clone(),
            tag: decision.tag,
        }
    }
}

fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(name: &str, declared: &str, sniffed: &str) -> AttachmentFact {
        AttachmentFact {
            name: Some(name.to_owned()),
            declared: declared.to_owned(),
            sniffed: sniffed.to_owned(),
            size: 0,
        }
    }

    /// What is read back is what policy saw, or it says that it is not all of it. Most messages cost the history nothing.
    #[test]
    fn a_basis_is_complete_or_says_that_it_is_cut() {
        let back = |basis: &Basis| -> (String, Basis) {
            let json = serde_json::to_string(basis).expect("JSON");
            let read = serde_json::from_str(&json).expect("reads");
            (json, read)
        };
        let plain = Basis::new(false, None, &[]);
        assert_eq!(back(&plain), ("{}".to_owned(), plain.clone()));
        let facts = [
            fact("a.pdf", "application/pdf", "application/pdf"),
            fact("b.pdf", "application/pdf", "application/x-msdownload"),
        ];
        let basis = Basis::new(true, Some("ann"), &facts);
        let (_, read) = back(&basis);
        assert_eq!(
            (&read, read.facts(), read.is_cut),
            (&basis, facts.to_vec(), false)
        );
        let many = vec![facts[0].clone(); Basis::ATTACHMENTS_MAX + 1];
        let long = [fact(&"é".repeat(121), "a/b", "a/b")];
        for cut in [&many[..], &long] {
            let basis = Basis::new(false, None, cut);
            assert!(basis.is_cut);
            assert!(basis.attachments.len() <= Basis::ATTACHMENTS_MAX);
        }
        let fits = [fact(&"é".repeat(120), "a/b", "a/b")];
        for whole in [&fits[..], &many[1..]] {
            assert!(!Basis::new(false, None, whole).is_cut);
        }
    }
}
