//! The history of a message that parts ways, and what the history says of its content.

use super::Settling;
use crate::deadline::wall_clock;
use crate::message::MessageId;
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
                detail: format!("from {id}"),
            });
        }
    }

    /// Adds subject and attachments to the first entry, if this pass has inspected the message.
    pub(super) fn describe(&mut self) {
        let described = self
            .draft
            .judged
            .and_then(|judged| judged.described.as_ref());
        if let (Some(first), Some(described)) = (self.history.first_mut(), described) {
            first.subject.clone_from(&described.subject);
            first.attachments.clone_from(&described.attachments);
        }
    }
}
