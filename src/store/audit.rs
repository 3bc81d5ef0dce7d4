//! The audit: what persons did to stored messages and interceptors, or the relay in their place.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::message::MessageId;

/// One act of a person, or of the relay in a person's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Time of the act.
    pub at: Timestamp,
    /// Login name of the person (and the name behind sudo), or `spillway` for the relay's own acts (expiry).
    pub actor: String,
    /// The act: `release`, `delete`, `export`, `expire`; `add`, `remove` for interceptors.
    pub act: String,
    /// The object of the act.
    #[serde(flatten)]
    pub object: Object,
    /// Details: recipients of a release, the file of an export.
    pub detail: String,
}

/// The object of an act. As text: the id of a message, or `interceptor:ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    /// A record.
    #[serde(rename = "record")]
    Message(MessageId),
    /// An interceptor.
    #[serde(rename = "interceptor")]
    Interceptor(String),
}

impl From<MessageId> for Object {
    fn from(id: MessageId) -> Self {
        Self::Message(id)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(id) => write!(f, "{id}"),
            Self::Interceptor(id) => write!(f, "interceptor:{id}"),
        }
    }
}
