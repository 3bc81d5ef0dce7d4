//! What became of a message for one recipient, and what the next hop said.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Objection;
use crate::smtp::RemoteReply;
use crate::smtp::dialog::Stage;
use crate::smtp::reply_parser::parse_status;

/// Result of a delivery for one recipient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The next hop took responsibility for the message.
    Delivered(Answer),
    /// Transient failure: a 4yz reply, no connection, or the deadline passed.
    Deferred(Answer),
    /// Permanent failure: a 5yz reply, or a message that the next hop's protocol cannot carry.
    Failed(Answer),
}

/// What happened at the next hop: the server and its reply, or the reason why there is no reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Name of the next hop; empty if no next hop takes the domain.
    pub next_hop: Arc<str>,
    /// Address of the server, if a connection was attempted.
    pub server: Option<SocketAddr>,
    /// The server's reply.
    pub reply: Option<RemoteReply>,
    /// The command that the reply answers, if the reply is about this message.
    #[serde(default)]
    pub stage: Option<Stage>,
    /// One line for people: the reply with its stage, or the error if there is no reply. A refusal by this relay begins
    /// with its enhanced status code.
    pub text: String,
    /// The server offered DSN (RFC 3461) and received the DSN parameters, so the server now sends success
    /// notifications.
    #[serde(default)]
    pub dsn_passed: bool,
    /// No server was offered the message, so this was not an attempt. The next hop's pace decides when the message goes
    /// out.
    #[serde(default)]
    pub held_back: bool,
}

impl Answer {
    /// An answer without server, reply and text.
    pub(crate) fn of(next_hop: &Arc<str>) -> Self {
        Self {
            next_hop: next_hop.clone(),
            server: None,
            reply: None,
            stage: None,
            text: String::new(),
            dsn_passed: false,
            held_back: false,
        }
    }

    /// Whether no next hop takes the recipient's domain.
    pub fn is_unrouted(&self) -> bool {
        self.next_hop.is_empty()
    }

    /// The enhanced status code (RFC 3463) from the server's reply or, without a reply, from this relay's own text.
    pub fn status(&self) -> Option<(u16, u16, u16)> {
        match &self.reply {
            Some(reply) => reply.enhanced,
            None => parse_status(self.text.split(' ').next()?),
        }
    }

    /// What the answer objects to: the form of the message, the recipient, or something else.
    pub fn objection(&self) -> Objection {
        let code = self.reply.as_ref().map(|reply| reply.code);
        Objection::of(self.stage, code, self.status())
    }
}

impl Outcome {
    /// The answer inside the outcome.
    pub fn answer(&self) -> &Answer {
        match self {
            Self::Delivered(answer) | Self::Deferred(answer) | Self::Failed(answer) => answer,
        }
    }
}
