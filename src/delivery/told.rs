//! Who is told of each recipient that a next hop takes, at the moment in which it says so.
//!
//! A delivery ends with its last recipient. Where a next hop answers for each of them (LMTP, a Maildir), what it said of the
//! first is known much earlier, and whoever answers for the message may want to have it durable by then.

use tokio::sync::mpsc;

/// One recipient has the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The recipient's position in the envelope.
    pub at: usize,
    /// As in [`super::Answer::text`].
    pub text: String,
}

/// The telling end; by default nobody listens.
#[derive(Debug, Clone, Default)]
pub struct Told(Option<mpsc::Sender<Taken>>);

impl Told {
    /// With somebody who listens, for a message to so many recipients: each is told of once at most, so that nobody waits.
    pub fn of(recipients: usize) -> (Self, mpsc::Receiver<Taken>) {
        let (tell, told) = mpsc::channel(recipients.max(1));
        (Self(Some(tell)), told)
    }

    /// Tells of it, if somebody listens.
    pub(super) fn tell(&self, at: usize, text: impl FnOnce() -> String) {
        if let Some(tell) = &self.0 {
            // Who does not listen any more has the outcomes, or is gone.
            let _ = tell.try_send(Taken { at, text: text() });
        }
    }

    /// The same by a next hop of a test.
    #[cfg(test)]
    pub(crate) fn say(&self, at: usize, text: &str) {
        self.tell(at, || text.to_owned());
    }
}
