//! Failures during content: decides whether they are about messages or about the hop.

use crate::message::Party;

/// Parties whose messages have failed during content since the hop last took a message.
///
/// A hop that answers EHLO, MAIL, RCPT and DATA and then breaks off or throttles may object to this content only.
/// Messages of one party have much in common; messages of two parties have only the hop in common. So failures of one
/// party are about its messages, and failures of two parties are about the hop.
#[derive(Debug, Default)]
pub(super) enum ContentFailures {
    /// No message has failed.
    #[default]
    None,
    /// Messages of this party only.
    OneParty(Party),
    /// Messages of at least two parties.
    SeveralParties,
}

impl ContentFailures {
    /// Records one more failure; true while only one party is affected. A failure without a party counts as one of a
    /// second party.
    pub(super) fn record(&mut self, party: Option<&Party>) -> bool {
        *self = match (std::mem::take(self), party) {
            (Self::None, Some(party)) => Self::OneParty(party.clone()),
            (Self::OneParty(first), Some(party)) if first == *party => Self::OneParty(first),
            _ => Self::SeveralParties,
        };
        matches!(self, Self::OneParty(_))
    }
}
