//! Nouns: the message and its parts, as data. This module takes no action on a message.

pub mod address;
pub mod attachment;
pub mod canonical;
pub mod content;
pub mod described;
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
use std::time::Duration;

use tokio::time::Instant;

pub use address::{Mailbox, ReversePath};
pub use attachment::AttachmentFact;
pub use canonical::{AddressPattern, ComparedAddress};
pub use content::{Charge, Content, Digest, MemoryBudget};
pub use described::Described;
pub use edit::{Edit, RequestedEdit, Rights, Wanted};
pub use envelope::{BodyKind, Envelope, Notify, Origin, Recipient, Ret};
pub use fingerprint::{Fingerprint, Identity, SenderReputation, Trait};
pub use glob::{Glob, NotAGlob};
pub use id::MessageId;
pub use party::Party;
pub use pattern::Pattern;

/// A message. Clones share all data.
#[derive(Debug, Clone)]
pub struct Message {
    /// The id of the message in replies, logs and headers.
    pub id: MessageId,
    /// When the relay read the end of data.
    pub received_at: jiff::Timestamp,
    /// Sender, recipients and client.
    pub envelope: Arc<Envelope>,
    /// The relay's `Received` field with its CRLF, which goes before the content (RFC 5321 4.4).
    pub trace: Arc<str>,
    /// Header section and body as received.
    pub content: Content,
    /// What this process has measured of the message's way so far; `None` for a message that the relay has read from its store
    /// or has written itself.
    pub times: Option<Times>,
}

/// Times of a message in the process that received it, by the monotonic clock. They are not stored: after a restart they are
/// unknown.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// The end of data.
    pub received: Instant,
    /// From DATA, or the first BDAT, to the end of data.
    pub receiving: Duration,
    /// The wait for the store before the reply to the end of data.
    pub storing: Duration,
}
