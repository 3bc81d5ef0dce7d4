//! What another configuration would do with mail that was decided already: `what-if` and the shadow.
//!
//! The history keeps each decision with its reports and its [`Basis`](crate::store::basis::Basis). [`Terms`] decide about such an
//! entry again, as the relay would have with the other rules, thresholds, coverage, weights and timeouts. What cannot be known
//! is not guessed: the result is then [`Decided::CannotSay`] with the reason.
//!
//! A message counts once, with its first decision. Later decisions about the same message would come at other times, or not at
//! all, under the other configuration.

mod answers;
mod comparison;
mod period;
mod slots;
mod terms;
#[cfg(test)]
mod tests;

pub use answers::{AnswerCounts, LateAnswers};
pub use comparison::{Change, Comparison, Example, Examples, Ruling};
pub use period::{Replayed, Wanted, replay};
pub use slots::{SlotsReplay, Waits};
pub use terms::{Decided, EngineTerms, Ruled, Terms};
