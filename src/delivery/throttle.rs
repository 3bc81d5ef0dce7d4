//! What a reply or a connection error says about the next hop, apart from what it says about the message ([`HopSignal`]).

use super::connection::ConnectionError;
use super::next_hop::HopSignal;
use crate::smtp::RemoteReply;
use crate::smtp::dialog::{Interruption, OpeningError, Stage};
use crate::smtp::reply::Class;

/// Words with which a reply states that this relay sends too fast or that the server is too busy.
const THROTTLE_WORDS: [&str; 11] = [
    "rate",
    "throttle",
    "throttled",
    "throttling",
    "limit",
    "limited",
    "exceeded",
    "busy",
    "load",
    "overloaded",
    "slow",
];

/// Phrases with the same meaning.
const THROTTLE_PHRASES: [&str; 4] = [
    "too much",
    "too fast",
    "too many messages",
    "too many connections",
];

/// Parts of words in replies that defer a first delivery as a test of the sender: greylisting (RFC 6647).
const GREYLISTING_WORDS: [&str; 4] = ["greylist", "graylist", "grey-list", "gray-list"];

/// What a reply at this stage says about the hop; [`HopSignal::Fine`] if the reply is about the message only.
pub fn of_reply(stage: Stage, reply: &RemoteReply) -> HopSignal {
    match (stage, of_words(stage, reply)) {
        (Stage::EndOfData, HopSignal::Throttled) => HopSignal::ThrottledAtEnd,
        (Stage::EndOfData, HopSignal::Later) => HopSignal::LaterAtEnd,
        (_, signal) => signal,
    }
}

fn of_words(stage: Stage, reply: &RemoteReply) -> HopSignal {
    let text = reply.text.to_ascii_lowercase();
    if GREYLISTING_WORDS.iter().any(|word| text.contains(word)) {
        return HopSignal::Fine;
    }
    // 421: the server closes the connection, independent of the command (RFC 5321 3.8).
    if reply.code == 421 {
        return HopSignal::Throttled;
    }
    if reply.class() != Class::Transient {
        return HopSignal::Fine;
    }
    // Before MAIL a reply cannot be about a message.
    if matches!(stage, Stage::Greeting | Stage::Hello) {
        return HopSignal::Throttled;
    }
    match reply.enhanced {
        // Address, mailbox, protocol, content: statuses about the message.
        Some((4, 1 | 2 | 5 | 6, _)) => HopSignal::Fine,
        // 450 to RCPT without an enhanced status means "mailbox unavailable" (RFC 5321 4.2.3).
        None if stage == Stage::Rcpt && reply.code == 450 => HopSignal::Fine,
        _ if names_throttling(reply) => HopSignal::Throttled,
        _ => HopSignal::Later,
    }
}

/// Whether a transient reply says that this relay sends too fast or that the server is too busy.
fn names_throttling(reply: &RemoteReply) -> bool {
    match reply.enhanced {
        // No storage, not accepting messages, congestion, too much mail (RFC 3463 3.4 and 3.5, and the registry of RFC
        // 5248).
        Some((4, 3, 1 | 2) | (4, 4, 5) | (4, 7, 28)) => true,
        _ => {
            let text = reply.text.to_ascii_lowercase();
            let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
            words.any(|word| THROTTLE_WORDS.contains(&word))
                || THROTTLE_PHRASES.iter().any(|phrase| text.contains(phrase))
        }
    }
}

/// What a refusal of AUTH says about the hop. A transient one that names throttling is about the number of sessions; the
/// password may be right.
fn of_login(reply: &RemoteReply) -> HopSignal {
    match reply.class() == Class::Transient && names_throttling(reply) {
        true => HopSignal::Throttled,
        false => HopSignal::LoginRefused,
    }
}

/// What the end of a connection says about the hop. `begun`: the server was ready for the content, or receiving it.
pub fn of_error(error: &ConnectionError, begun: bool) -> HopSignal {
    match error {
        // This relay's own deadline passed, which may have been too short.
        ConnectionError::Deadline => HopSignal::Unknown,
        ConnectionError::LoginsBusy => HopSignal::Busy,
        ConnectionError::Opening(OpeningError::Refused {
            stage: Stage::Auth,
            reply,
        }) => of_login(reply),
        ConnectionError::Opening(OpeningError::Refused { stage, reply }) => {
            match of_reply(*stage, reply) {
                HopSignal::Throttled => HopSignal::Throttled,
                _ => HopSignal::Unreachable,
            }
        }
        ConnectionError::Interrupted(Interruption::Closing(stage, reply)) => {
            of_reply(*stage, reply)
        }
        _ if begun => HopSignal::Broken,
        _ => HopSignal::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(line: &str) -> RemoteReply {
        let (code, text) = line.split_once(' ').expect("a code and a text");
        let (first, rest) = text.split_once(' ').unwrap_or((text, ""));
        let enhanced = crate::smtp::reply_parser::parse_status(first);
        RemoteReply {
            code: code.parse().expect("a code"),
            enhanced,
            text: if enhanced.is_some() { rest } else { text }.to_owned(),
        }
    }

    /// Replies of servers in use when they throttle, and replies about one message. A full mailbox, greylisting or an
    /// unknown sender must not slow down other mail.
    #[test]
    fn throttling_replies_differ_from_replies_about_a_message() {
        use HopSignal::{Fine, Later, LaterAtEnd, Throttled, ThrottledAtEnd};
        use Stage::{Data, EndOfData, Greeting, Hello, Mail, Rcpt};
        for (stage, line, signal) in [
            (Greeting, "421 4.7.0 Too many connections", Throttled),
            (Greeting, "450 please wait", Throttled),
            (Hello, "451 4.3.0 Temporary failure", Throttled),
            (Rcpt, "421 4.7.0 Try again later", Throttled),
            (Mail, "451 4.7.1 slow down, rate limit", Throttled),
            (Mail, "451 4.7.1 Too much mail from you", Throttled),
            (Mail, "451 4.3.2 Please try again later", Throttled),
            (Mail, "452 4.3.1 Insufficient system resources", Throttled),
            (Data, "451 4.7.500 Server busy. Please try again", Throttled),
            (Data, "421 4.7.0 Try again later", Throttled),
            (EndOfData, "421 4.7.0 not that content", ThrottledAtEnd),
            (EndOfData, "450 4.7.28 unusual amount", ThrottledAtEnd),
            (Mail, "451 4.7.1 Try again later", Later),
            (EndOfData, "451 4.7.1 Service unavailable", LaterAtEnd),
            (Rcpt, "451 Local error in processing", Later),
            (Rcpt, "450 4.7.1 Client host rejected", Later),
            (Rcpt, "450 4.2.0 Greylisted, come back in 5 minutes", Fine),
            (Rcpt, "451 4.7.1 Greylisting in action", Fine),
            (Rcpt, "450 4.2.1 The user is receiving mail too fast", Fine),
            (Rcpt, "450 Mailbox busy", Fine),
            (Rcpt, "452 4.2.2 Mailbox full, limit exceeded", Fine),
            (Rcpt, "452 4.5.3 Too many recipients", Fine),
            (Mail, "450 4.1.8 Domain not found", Fine),
            (Rcpt, "550 5.7.1 rate limit", Fine),
            (EndOfData, "250 2.0.0 taken", Fine),
        ] {
            assert_eq!(of_reply(stage, &reply(line)), signal, "{stage}: {line}");
        }
    }

    /// A refused login stops all mail for a minute at least, because the next ones could lock the account. A server that
    /// names throttling refuses the session, not the password, and is paced.
    #[test]
    fn a_refused_login_is_not_throttling() {
        use HopSignal::{LoginRefused, Throttled};
        for (line, signal) in [
            ("535 5.7.8 bad credentials", LoginRefused),
            ("535 5.7.0 rate limit", LoginRefused),
            ("454 4.7.0 Temporary authentication failure", LoginRefused),
            (
                "454 4.7.0 Too many login attempts, please try again later",
                LoginRefused,
            ),
            ("421 4.7.0 bye", LoginRefused),
            ("421 4.3.2 Concurrent connections exceeded", Throttled),
            ("454 4.7.0 server busy", Throttled),
        ] {
            let refused = OpeningError::Refused {
                stage: Stage::Auth,
                reply: reply(line),
            };
            assert_eq!(of_error(&refused.into(), false), signal, "{line}");
        }
    }
}
