//! The history of a message that parts ways, and what the history says of its content.

use super::Settling;
use crate::deadline::wall_clock;
use crate::message::{Mailbox, Message, MessageId};
use crate::pipeline::Judgement;
use crate::policy::Group;
use crate::store::basis::{Basis, GroupBasis};
use crate::store::history::HistoryEntry;

impl Settling<'_> {
    /// The first record keeps the id of the message; records for other ways get new ids. The history leads from a new id to
    /// the message, also when the record is gone.
    pub(super) fn name_parts(&mut self) {
        let id = self.draft.message.id;
        for record in self.keep.iter_mut().skip(1) {
            record.id = MessageId::new();
            self.history.push(HistoryEntry {
                at: wall_clock(),
                message: record.id,
                part_of: Some(id),
                event: "parted".into(),
                sender: record.envelope.reverse_path.clone(),
                recipients: Vec::new(),
                client: record.envelope.origin.client,
                listener: record.envelope.origin.listener.clone(),
                size: record.size,
                decision: None,
                reports: Vec::new(),
                subject: String::new(),
                attachments: Vec::new(),
                basis: None,
                detail: format!("from {id}"),
            });
        }
    }

    /// Adds subject, attachments and the basis of the decision to the first entry, if this pass has inspected and judged the
    /// message.
    pub(super) fn describe(&mut self) {
        let (Some(first), Some(judged)) = (self.history.first_mut(), self.draft.judged) else {
            return;
        };
        if let Some(described) = &judged.described {
            first.subject.clone_from(&described.subject);
            first.attachments.clone_from(&described.attachments);
        }
        if let Some(basis) = &judged.basis {
            first.basis = Some(Basis {
                groups: groups(self.draft.message, judged, first),
                ..basis.clone()
            });
        }
    }
}

/// The groups of a judgement, unless `entry` itself has the only decision and all recipients.
fn groups(message: &Message, judged: &Judgement, entry: &HistoryEntry) -> Vec<GroupBasis> {
    if let [(decision, recipients)] = &judged.groups[..]
        && entry.recipients.len() == recipients.len()
        && entry.decision.as_ref() == Some(decision)
    {
        return Vec::new();
    }
    let mailboxes = |recipients: &[usize]| -> Vec<Mailbox> {
        let chosen = recipients
            .iter()
            .filter_map(|at| message.envelope.recipients.get(*at));
        chosen.map(|recipient| recipient.mailbox.clone()).collect()
    };
    let group = |(decision, those): &Group| GroupBasis::new(decision, mailboxes(those));
    judged.groups.iter().map(group).collect()
}
