//! What a refusal is about: whether less of the message, or anything at all, may pass.

use crate::smtp::dialog::Stage;

/// What an answer objects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objection {
    /// The form of this message: its size, its 8-bit octets, what it contains. Another may pass.
    Form,
    /// This recipient: nobody has the name, or takes anything.
    Recipient,
    /// Something else, or nothing that could be told: policy, the sender, no connection.
    Other,
}

impl Objection {
    /// From the command that was answered, the reply code, and the enhanced status code (RFC 3463).
    pub(super) fn of(
        stage: Option<Stage>,
        code: Option<u16>,
        status: Option<(u16, u16, u16)>,
    ) -> Self {
        let status = status.map(|(_, subject, detail)| (subject, detail));
        match (status, stage, code) {
            // Longer than the mailbox takes, larger than the system takes, and all that is said of content.
            (Some((2, 3) | (3, 4) | (6, _)), ..) => Self::Form,
            // The address of the sender.
            (Some((1, _)), Some(Stage::Mail), _) | (Some((1, 7 | 8)), ..) => Self::Other,
            // Our own routes, that lack the domain; nobody was asked.
            (Some((4, 4)), None, None) => Self::Other,
            // An address, a mailbox, and a domain that has no route.
            (Some((1 | 2, _) | (4, 4)), ..) => Self::Recipient,
            // RFC 1870 6, and RFC 5321 4.1.1.11 of parameters that tell of size, 8-bit octets and UTF-8.
            (.., Some(552)) | (_, Some(Stage::Mail), Some(504 | 555)) => Self::Form,
            // The mail system as a whole.
            (Some((3, _)), ..) => Self::Other,
            // Nothing of the message but this recipient was told then.
            (_, Some(Stage::Rcpt), _) => Self::Recipient,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What servers in use say about large messages, 8-bit octets, unknown and disabled mailboxes, and us.
    #[test]
    fn size_and_content_are_told_from_recipients_and_the_rest() {
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
            (Some(Rcpt), Some(550), Some((5, 4, 1)), Recipient),
            (Some(Rcpt), Some(550), Some((5, 7, 1)), Recipient),
            (Some(Rcpt), Some(550), None, Recipient),
            (Some(Rcpt), Some(450), Some((4, 2, 2)), Recipient),
            (Some(Rcpt), Some(550), Some((5, 4, 4)), Recipient),
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
