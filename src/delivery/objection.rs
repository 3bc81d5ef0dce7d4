//! Classifies what a refusal objects to, which decides whether a smaller form of the message, or any message, may pass.

use crate::smtp::dialog::Stage;

/// What an answer objects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objection {
    /// The form of this message: its size, its 8-bit octets or its content. Another message may pass.
    Form,
    /// This recipient, permanently: the mailbox does not exist or accepts no mail. No doubtful refusal may get this
    /// class: the relay drops such a message without keeping a copy if no notification about it is allowed.
    Recipient,
    /// Another or unknown reason: policy, the sender, no connection, or a transient problem.
    Other,
}

impl Objection {
    /// Classifies by the command that was answered, the reply code, and the enhanced status code (RFC 3463).
    pub(super) fn of(
        stage: Option<Stage>,
        code: Option<u16>,
        status: Option<(u16, u16, u16)>,
    ) -> Self {
        match (status, stage, code) {
            // Message longer than the mailbox allows, message larger than the system allows, and all statuses about
            // content.
            (Some((_, 2, 3) | (_, 3, 4) | (_, 6, _)), ..) => Self::Form,
            // Statuses about the sender's address.
            (Some((_, 1, _)), Some(Stage::Mail), _) | (Some((_, 1, 7 | 8)), ..) => Self::Other,
            // Permanent statuses about an address or a mailbox. With a transient status the server may accept the
            // message later, or another server may.
            (Some((5, 1 | 2, _)), ..) => Self::Recipient,
            // 552 (RFC 1870 6), and rejected MAIL parameters for size, 8-bit octets and UTF-8 (RFC 5321 4.1.1.11).
            (.., Some(552)) | (_, Some(Stage::Mail), Some(504 | 555)) => Self::Form,
            // RFC 5321 4.2.3, without an enhanced status that says otherwise. A policy refusal has its own status, or
            // 554.
            (None, Some(Stage::Rcpt), Some(550 | 551 | 553)) => Self::Recipient,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replies of servers in use about large messages, 8-bit octets, unknown and disabled mailboxes, and this relay.
    #[test]
    fn refusals_are_classified_by_their_objection() {
        use Objection::{Form, Other, Recipient};
        use Stage::{Data, EndOfData, Mail, Rcpt};
        for (stage, code, status, objection) in [
            (None, None, Some((5, 3, 4)), Form),
            (None, None, Some((5, 6, 3)), Form),
            (None, None, Some((5, 6, 7)), Form),
            (Some(Mail), Some(552), Some((5, 3, 4)), Form),
            (Some(Mail), Some(555), None, Form),
            (Some(Mail), Some(555), Some((5, 5, 4)), Form),
            (Some(EndOfData), Some(552), None, Form),
            (Some(EndOfData), Some(552), Some((5, 7, 0)), Form),
            (Some(EndOfData), Some(552), Some((5, 2, 3)), Form),
            (Some(Rcpt), Some(550), Some((5, 2, 3)), Form),
            (Some(EndOfData), Some(554), Some((5, 6, 0)), Form),
            (Some(Rcpt), Some(550), Some((5, 1, 1)), Recipient),
            (Some(EndOfData), Some(550), Some((5, 1, 1)), Recipient),
            (Some(Rcpt), Some(550), Some((5, 2, 1)), Recipient),
            (Some(EndOfData), Some(552), Some((5, 2, 2)), Recipient),
            (Some(Rcpt), Some(550), Some((5, 1, 10)), Recipient),
            (Some(Rcpt), Some(550), None, Recipient),
            (Some(Rcpt), Some(551), None, Recipient),
            (Some(Rcpt), Some(553), None, Recipient),
            (Some(Rcpt), Some(451), None, Other),
            (Some(Rcpt), Some(451), Some((4, 7, 1)), Other),
            (Some(Rcpt), Some(450), Some((4, 1, 1)), Other),
            (Some(Rcpt), Some(450), Some((4, 2, 2)), Other),
            (Some(Rcpt), Some(554), None, Other),
            (Some(Rcpt), Some(554), Some((5, 7, 1)), Other),
            (Some(Rcpt), Some(550), Some((5, 7, 1)), Other),
            (Some(Rcpt), Some(550), Some((5, 4, 1)), Other),
            (Some(Rcpt), Some(503), None, Other),
            (Some(Rcpt), Some(550), Some((5, 4, 4)), Other),
            (None, None, Some((5, 4, 4)), Other),
            (None, None, Some((4, 4, 4)), Other),
            (Some(Rcpt), Some(452), Some((4, 3, 1)), Other),
            (Some(Mail), Some(550), Some((5, 1, 0)), Other),
            (Some(Rcpt), Some(550), Some((5, 1, 8)), Other),
            (Some(Mail), Some(550), Some((5, 7, 1)), Other),
            (Some(Data), Some(554), None, Other),
            (Some(EndOfData), Some(550), Some((5, 7, 1)), Other),
            (Some(EndOfData), Some(554), None, Other),
            (None, Some(421), None, Other),
            (None, None, None, Other),
        ] {
            let found = Objection::of(stage, code, status);
            assert_eq!(found, objection, "{stage:?} {code:?} {status:?}");
        }
    }
}
