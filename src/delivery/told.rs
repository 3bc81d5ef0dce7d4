//! Reports each recipient that a next hop accepts, at the time of its reply.
//!
//! A delivery ends with its last recipient. A next hop that answers for each recipient (LMTP, a Maildir) has answered
//! for the first one much earlier, and the caller that is responsible for the message may want to make that answer
//! durable immediately.

use tokio::sync::mpsc;

/// One recipient that has the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Position of the recipient in the envelope.
    pub at: usize,
    /// Text as in [`super::Answer::text`].
    pub text: String,
}

/// The sending end of the reports; the default has no receiver.
#[derive(Debug, Clone, Default)]
pub struct Told(Option<mpsc::Sender<Taken>>);

impl Told {
    /// A sender with a receiver, for a message with this many recipients. The channel has room for one report per
    /// recipient, so that sending never blocks.
    pub fn of(recipients: usize) -> (Self, mpsc::Receiver<Taken>) {
        let (tell, told) = mpsc::channel(recipients.max(1));
        (Self(Some(tell)), told)
    }

    /// Sends a report if there is a receiver.
    pub(crate) fn tell(&self, at: usize, text: impl FnOnce() -> String) {
        if let Some(tell) = &self.0 {
            // A missing receiver is no error: the caller has the outcomes already, or has ended.
            let _ = tell.try_send(Taken { at, text: text() });
        }
    }
}
