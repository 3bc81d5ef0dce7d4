//! The action of a notification: when a sender is notified of it, and the words for it.

use crate::delivery::Outcome;
use crate::message::Notify;

/// The action that a notification reports for its recipients (RFC 3464 2.3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Delivery has ended without success: the next hop refused the recipient, or the time for delivery has passed.
    Failed,
    /// The message is not delivered yet; attempts continue.
    Delayed,
    /// A server took the message that sends no success notifications itself.
    Relayed,
    /// The message is in the recipient's mailbox.
    Delivered,
}

impl Action {
    /// The success that this relay must report; `None` if the next hop took over that duty.
    pub fn for_success(outcome: &Outcome) -> Option<Self> {
        match outcome {
            Outcome::Delivered(answer) if answer.dsn_passed => None,
            Outcome::Delivered(answer) if answer.reply.is_some() => Some(Self::Relayed),
            Outcome::Delivered(_) => Some(Self::Delivered),
            Outcome::Deferred(_) | Outcome::Failed(_) => None,
        }
    }

    /// Whether the sender asked for this notification. A sender without a NOTIFY parameter receives failures only (RFC
    /// 3461 4.1).
    pub(super) fn is_wanted(self, notify: Option<Notify>) -> bool {
        match (self, notify) {
            (Self::Failed, notify) => notify.is_none_or(|wanted| wanted.failure),
            (Self::Delayed, notify) => notify.is_some_and(|wanted| wanted.delay),
            (Self::Relayed | Self::Delivered, notify) => {
                notify.is_some_and(|wanted| wanted.success)
            }
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Delayed => "delayed",
            Self::Relayed => "relayed",
            Self::Delivered => "delivered",
        }
    }

    /// The class of the enhanced status code if no server gave one.
    pub(super) fn class(self) -> u16 {
        match self {
            Self::Failed => 5,
            Self::Delayed => 4,
            Self::Relayed | Self::Delivered => 2,
        }
    }

    pub(super) fn subject(self) -> &'static str {
        match self {
            Self::Failed => "Undelivered mail returned to sender",
            Self::Delayed => "Mail delivery is delayed",
            Self::Relayed | Self::Delivered => "Mail delivery report",
        }
    }

    pub(super) fn explanation(self) -> &'static str {
        match self {
            Self::Failed => {
                "Your message could not be delivered to the recipients below. This server\r\n\
                 will not try again.\r\n"
            }
            Self::Delayed => {
                "Your message has not been delivered to the recipients below yet. You do not\r\n\
                 need to send it again: this server will continue to try.\r\n"
            }
            Self::Relayed => {
                "Your message was passed on to servers that do not report on delivery. You\r\n\
                 may receive no further report about the recipients below.\r\n"
            }
            Self::Delivered => "Your message was delivered to the recipients below.\r\n",
        }
    }
}
