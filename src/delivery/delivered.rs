//! Reports each recipient whose message a next hop has taken, at the time of its reply.
//!
//! A delivery ends with its last recipient. A next hop that answers for each recipient (LMTP, a Maildir) has answered
//! for the first one much earlier, and the caller that is responsible for the message may want to make that answer
//! durable immediately.

use tokio::sync::mpsc;

/// One recipient that has the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveredRecipient {
    /// Position of the recipient in the envelope.
    pub at: usize,
    /// Text as in [`super::Answer::text`].
    pub text: String,
}

/// The sending end of the reports; the default has no receiver.
#[derive(Debug, Clone, Default)]
pub struct DeliveredSender(Option<mpsc::Sender<DeliveredRecipient>>);

impl DeliveredSender {
    /// A sender with a receiver, for a message with this many recipients. The channel has room for one report per
    /// recipient, so that sending never blocks.
    pub fn channel(recipients: usize) -> (Self, mpsc::Receiver<DeliveredRecipient>) {
        let (sender, receiver) = mpsc::channel(recipients.max(1));
        (Self(Some(sender)), receiver)
    }

    /// Sends a report if there is a receiver.
    pub(crate) fn send(&self, at: usize, text: impl FnOnce() -> String) {
        if let Some(sender) = &self.0 {
            // A missing receiver is no error: the caller has the outcomes already, or has ended.
            let _ = sender.try_send(DeliveredRecipient { at, text: text() });
        }
    }
}
