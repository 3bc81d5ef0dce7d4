//! Whether trouble with contents is about messages or about the hop.

use crate::message::Party;

/// Whose messages have failed in their content since the hop last took one.
///
/// A hop that answers EHLO, MAIL, RCPT and DATA and then breaks off, or wants to be left alone, may dislike that content and
/// nothing else. The messages of one party have much in common; those of two have the hop.
#[derive(Debug, Default)]
pub(super) enum Doubt {
    /// Nobody's.
    #[default]
    None,
    /// Of this party alone.
    One(Party),
    /// Of two at least.
    Many,
}

impl Doubt {
    /// One more has failed; true while one party alone is affected. Nobody in particular counts as others.
    pub(super) fn add(&mut self, party: Option<&Party>) -> bool {
        *self = match (std::mem::take(self), party) {
            (Self::None, Some(party)) => Self::One(party.clone()),
            (Self::One(first), Some(party)) if first == *party => Self::One(first),
            _ => Self::Many,
        };
        matches!(self, Self::One(_))
    }
}
