//! Nouns: the mail object and its parts. Nothing here does anything to a message.

pub mod address;
pub mod attachment;
pub mod content;
pub mod edit;
pub mod envelope;
pub mod fingerprint;
mod glob;
pub mod header;
pub mod id;
pub mod mime;
pub mod party;
pub mod pattern;

use std::sync::Arc;

pub use address::{Mailbox, ReversePath};
pub use attachment::AttachmentFact;
pub use content::{Charge, Content, Digest, MemoryBudget};
pub use edit::{Edit, RequestedEdit, Rights, Wanted};
pub use envelope::{BodyKind, Envelope, Notify, Origin, Recipient, Ret};
pub use fingerprint::{Fingerprint, Identity, SenderReputation, Trait};
pub use glob::{Glob, NotAGlob};
pub use id::MessageId;
pub use party::Party;
pub use pattern::Pattern;

/// One message on its way. Cloning shares everything.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its name in replies, logs and headers.
    pub id: MessageId,
    /// When its end of data was read.
    pub received_at: jiff::Timestamp,
    /// Who sends what to whom.
    pub envelope: Arc<Envelope>,
    /// Our `Received` field with its CRLF, to be put before the content (RFC 5321 4.4).
    pub trace: Arc<str>,
    /// Header section and body as received.
    pub content: Content,
}
