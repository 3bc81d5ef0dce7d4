//! Delivery status notifications (DSN) to the sender of a message (RFC 3461, RFC 3464; RFC 6533 for SMTPUTF8).
//!
//! A notification goes to the reverse-path and has the null reverse-path itself, so that no notification ever answers
//! another one (RFC 5321 4.5.5). This module writes the MIME structure directly instead of using a general MIME
//! library: the parts are fixed, two of the three parts have no general MIME form, and every line contains text from
//! other systems that must be cleaned piece by piece in any case.

mod action;
mod frame;
mod notification;
mod reduced;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use jiff::Timestamp;

use super::{Answer, Objection};
use crate::message::{BodyKind, Envelope, MessageId, Origin, Recipient, ReversePath};

pub use action::Action;
use frame::{Frame, MAX_RETURNED_OCTETS};
use notification::Notification;
pub use reduced::reduced;

/// The message that a notification reports on.
#[derive(Debug, Clone, Copy)]
pub struct Original<'a> {
    /// The value of `relay.hostname`.
    pub reporting_mta: &'a str,
    /// The message id from this relay's 250 reply.
    pub id: MessageId,
    /// The envelope as received.
    pub envelope: &'a Envelope,
    /// Time at which the end of data was received.
    pub arrived: Timestamp,
    /// The content as received.
    pub content: &'a [u8],
}

impl Original<'_> {
    /// Whether a notification of this action may be sent for this recipient: the reverse-path is not null (RFC 5321
    /// 4.5.5), and the sender's NOTIFY parameter allows it (RFC 3461 4.1).
    pub fn wants(&self, action: Action, recipient: &Recipient) -> bool {
        !self.envelope.reverse_path.is_null() && action.is_wanted(recipient.notify)
    }

    /// Writes the notification with the id `id` and the date `now` about these recipients, each with the answer that it
    /// received. Returns its envelope and content, or `None` if the reverse-path is null or the sender wants no
    /// notification for any of the recipients.
    pub fn report(
        &self,
        action: Action,
        recipients: &[(Recipient, Answer)],
        id: MessageId,
        now: Timestamp,
    ) -> Option<(Envelope, Bytes)> {
        let sender = self.envelope.reverse_path.mailbox()?;
        let wanted = |(recipient, _): &&(Recipient, Answer)| self.wants(action, recipient);
        let recipients: Vec<&(Recipient, Answer)> = recipients.iter().filter(wanted).collect();
        if recipients.is_empty() {
            return None;
        }
        // A server that refused the form of the message would refuse a bounce that contains the message.
        let brief = action == Action::Failed
            && (self.content.len() > MAX_RETURNED_OCTETS
                || recipients
                    .iter()
                    .any(|(_, answer)| answer.objection() == Objection::Form));
        let notification = Notification {
            original: self,
            action,
            brief,
            frame: Frame::new(
                id,
                sender.is_internationalized() || (self.envelope.smtputf8 && !brief),
            ),
        };
        let mut out = notification.head(sender.as_str(), id, now);
        notification.for_people(&mut out, &recipients);
        notification.for_programs(&mut out, &recipients, now);
        let mut octets = out.into_bytes();
        notification.returned(&mut octets);
        let body = if octets.is_ascii() {
            BodyKind::SevenBit
        } else {
            BodyKind::EightBitMime
        };
        let envelope = Envelope {
            reverse_path: ReversePath::NULL,
            recipients: vec![Recipient::from(sender.clone())],
            body,
            smtputf8: notification.frame.utf8,
            ret: None,
            envid: None,
            origin: Origin::local("bounce"),
        };
        Some((envelope, octets.into()))
    }
}
