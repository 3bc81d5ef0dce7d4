//! Decides whether failures during content are about messages or about the hop.

use crate::message::Party;

/// Parties whose messages have failed during content since the hop last took a message.
///
/// A hop that answers EHLO, MAIL, RCPT and DATA and then breaks off or throttles may object to this content only.
/// Messages of one party have much in common; messages of two parties have only the hop in common.
#[derive(Debug, Default)]
pub(super) enum Doubt {
    /// No message has failed.
    #[default]
    None,
    /// Messages of this party only.
    One(Party),
    /// Messages of at least two parties.
    Many,
}

impl Doubt {
    /// Records one more failure; true while only one party is affected. A failure without a party counts as one of a
    /// second party.
    pub(super) fn add(&mut self, party: Option<&Party>) -> bool {
        *self = match (std::mem::take(self), party) {
            (Self::None, Some(party)) => Self::One(party.clone()),
            (Self::One(first), Some(party)) if first == *party => Self::One(first),
            _ => Self::Many,
        };
        matches!(self, Self::One(_))
    }
}
