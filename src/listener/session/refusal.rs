//! The refusals of a session, as [`Refusal`] counts and logs them.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Ending, Session};
use crate::deadline::wall_clock;
use crate::listener::refusals::{Refusal, Stage};
use crate::message::{Envelope, MessageId, Recipient};
use crate::smtp::Reply;
use crate::smtp::transaction::Transaction;

/// Longest address in a line, in octets: the longest valid one (RFC 5321 4.5.3.1).
const ADDRESS_OCTETS_MAX: usize = 320;
/// Most recipients of a refused message that a line names.
const RECIPIENTS_NAMED_MAX: usize = 5;

/// The part of session ids that differs between two runs of the relay.
static RUN: LazyLock<i64> = LazyLock::new(|| wall_clock().as_second());
static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// The number of a new session in this process.
pub(super) fn session_number() -> u64 {
    SESSIONS.fetch_add(1, Ordering::Relaxed)
}

impl Session {
    /// A command is refused. Its argument is logged for HELO, MAIL and RCPT only: after a refused AUTH, clients send passwords
    /// that look like commands.
    pub(super) fn command_refused(&self, line: &[u8], reply: &Reply) {
        let stage = Stage::of_command(line);
        let argument = match stage {
            Stage::Helo => words(line),
            Stage::From | Stage::To => path(line),
            _ => None,
        };
        let transaction = self.server.transaction();
        let opened = transaction.map(|transaction| sender(&transaction.reverse_path));
        let id = self.id();
        let refusal = self.refusal(stage, &id, reply);
        match stage {
            Stage::Helo => Refusal {
                helo: argument.as_deref().or(refusal.helo),
                ..refusal
            },
            Stage::From => Refusal {
                from: argument.map(|path| format!("<{path}>").into()),
                ..refusal
            },
            Stage::To => Refusal {
                from: opened,
                to: argument,
                ..refusal
            },
            _ => Refusal {
                from: opened,
                ..refusal
            },
        }
        .tell();
    }

    /// Content is refused, at its command or after it.
    pub(super) fn content_refused(&self, transaction: Option<&Transaction>, reply: &Reply) {
        let id = self.id();
        Refusal {
            from: transaction.map(|transaction| sender(&transaction.reverse_path)),
            to: transaction.and_then(|transaction| named(&transaction.recipients)),
            ..self.refusal(Stage::Data, &id, reply)
        }
        .tell();
    }

    /// The reply to a judged message is not positive.
    pub(super) fn message_refused(&self, message: MessageId, envelope: &Envelope, reply: &Reply) {
        let id = self.id();
        Refusal {
            client: envelope.origin.client,
            from: Some(sender(&envelope.reverse_path)),
            to: named(&envelope.recipients),
            id: Some(message),
            ..self.refusal(Stage::Reply, &id, reply)
        }
        .tell();
    }

    /// The relay ends the session.
    pub(super) fn session_refused(&self, ending: &Ending, farewell: Option<&Reply>) {
        let (stage, reason) = match ending {
            Ending::Quit | Ending::Closed | Ending::Lost(_) => return,
            Ending::NoProxyHeader => (Stage::Client, "no-proxy-header"),
            Ending::Handshake(_) => (Stage::Tls, "tls-handshake"),
            Ending::TooManySessions | Ending::Drained => (Stage::Client, ""),
            Ending::TooManyErrors if self.wrong_passwords > 0 => (Stage::User, ""),
            Ending::TooManyErrors | Ending::Http => (Stage::Command, ""),
            Ending::TimedOut(_) => (self.waits_for(), ""),
        };
        let detail = farewell.is_none().then(|| ending.to_string().into());
        let (id, transaction) = (self.id(), self.server.transaction());
        Refusal {
            stage,
            reason: farewell.map_or(reason, Reply::reason),
            reply: farewell,
            from: transaction.map(|transaction| sender(&transaction.reverse_path)),
            to: transaction.and_then(|transaction| named(&transaction.recipients)),
            detail,
            ..self.refusal(stage, &id, &Reply::ok())
        }
        .tell();
    }

    /// The stage of what a silent client should send next.
    fn waits_for(&self) -> Stage {
        match self.server.transaction() {
            Some(transaction) if transaction.recipients.is_empty() => Stage::To,
            Some(_) => Stage::Data,
            None if self.server.helo().is_none() => Stage::Helo,
            None => Stage::Command,
        }
    }

    fn refusal<'a>(&'a self, stage: Stage, session: &'a str, reply: &'a Reply) -> Refusal<'a> {
        Refusal {
            stage,
            session,
            helo: self.server.helo().map(|helo| &*helo.name),
            user: self.server.user(),
            ..Refusal::of_client(self.client(), &self.context.settings.name, reply)
        }
    }

    /// The id of the session in the log.
    fn id(&self) -> String {
        format!("{:x}-{:x}", *RUN, self.number)
    }
}

fn sender(path: &crate::message::ReversePath) -> Cow<'_, str> {
    path.to_string().into()
}

/// The first recipients: `a@b.test, c@d.test, … and 5 more`.
fn named(recipients: &[Recipient]) -> Option<Cow<'_, str>> {
    let first = recipients.iter().take(RECIPIENTS_NAMED_MAX);
    let mut named: Vec<&str> = first.map(|recipient| recipient.mailbox.as_str()).collect();
    let more = match recipients.len().saturating_sub(RECIPIENTS_NAMED_MAX) {
        0 => String::new(),
        more => format!("… and {more} more"),
    };
    if !more.is_empty() {
        named.push(&more);
    }
    (!named.is_empty()).then(|| named.join(", ").into())
}

/// What follows the verb.
fn words(line: &[u8]) -> Option<Cow<'_, str>> {
    let at = memchr::memchr2(b' ', b'\t', line)?;
    Some(cut(line[at..].trim_ascii()))
}

/// The path of MAIL or RCPT, however wrong it is: what is between the angle brackets, or else all that follows the colon.
fn path(line: &[u8]) -> Option<Cow<'_, str>> {
    let argument = line[memchr::memchr(b':', line)? + 1..].trim_ascii();
    let inside = argument.strip_prefix(b"<").and_then(|rest| {
        let end = memchr::memrchr(b'>', rest)?;
        Some(&rest[..end])
    });
    Some(cut(inside.unwrap_or(argument)))
}

/// The beginning of the text, as long as an address.
pub(super) fn cut(text: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(&text[..text.len().min(ADDRESS_OCTETS_MAX)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A refused address is shown as the client wrote it, and no more of the line than the address.
    #[test]
    fn a_refused_path_is_shown_as_it_came() {
        for (line, shown) in [
            ("MAIL FROM:<a@b.test> SIZE=5", Some("a@b.test")),
            ("MAIL FROM:<>", Some("")),
            ("RCPT TO: <a..b@c.test>", Some("a..b@c.test")),
            (
                "RCPT TO:<\"a>b\"@c.test> NOTIFY=NEVER",
                Some("\"a>b\"@c.test"),
            ),
            ("MAIL FROM:a@b.test", Some("a@b.test")),
            ("MAIL", None),
        ] {
            assert_eq!(path(line.as_bytes()).as_deref(), shown, "{line}");
        }
        let long = format!("MAIL FROM:<{}>", "x".repeat(900));
        let shown = path(long.as_bytes()).expect("a path");
        assert_eq!(shown.len(), ADDRESS_OCTETS_MAX);
    }
}
