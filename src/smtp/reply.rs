//! SMTP replies. The same value is written to the socket and logged.
//!
//! Each reply has one [`Class`], which gives both the first digit of the reply code (RFC 5321 4.2.1) and the class of the
//! enhanced status code (RFC 3463 2). A reply such as 4yz with 5.x.x cannot be expressed. All replies of the relay are named
//! constructors in this file.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::reply_parser::parse_status;

/// First digit of the reply code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// 2yz: success.
    Positive = 2,
    /// 3yz: continue.
    Intermediate = 3,
    /// 4yz: transient failure.
    Transient = 4,
    /// 5yz: permanent failure.
    Permanent = 5,
}

impl Class {
    /// The class of a received code. A code outside 200 to 499 counts as permanent.
    pub fn of_code(code: u16) -> Self {
        match code / 100 {
            2 => Self::Positive,
            3 => Self::Intermediate,
            4 => Self::Transient,
            _ => Self::Permanent,
        }
    }
}

/// A reply of the relay to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    class: Class,
    /// Second and third digit of the code.
    detail: u8,
    /// Subject and detail of the enhanced status code; `None` for replies that have none (RFC 2034: greeting, EHLO,
    /// intermediate replies).
    enhanced: Option<(u16, u16)>,
    lines: Vec<Cow<'static, str>>,
    closes: bool,
}

impl Reply {
    /// Longest reply line in octets, including CRLF (RFC 5321 4.5.3.1.5).
    const LINE_OCTETS_MAX: usize = 512;

    fn new(
        class: Class,
        detail: u8,
        enhanced: impl Into<Option<(u16, u16)>>,
        text: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            class,
            detail,
            enhanced: enhanced.into(),
            lines: vec![text.into()],
            closes: false,
        }
    }

    /// The reply code.
    pub fn code(&self) -> u16 {
        self.class as u16 * 100 + u16::from(self.detail)
    }

    /// Its class.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Whether the session ends with this reply (421, and 221 to QUIT).
    pub fn closes(&self) -> bool {
        self.closes
    }

    /// Appends the reply in its wire format.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        use std::io::Write;
        let last = self.lines.len() - 1;
        for (at, line) in self.lines.iter().enumerate() {
            let separator = if at == last { ' ' } else { '-' };
            let start = out.len();
            // Writing to a Vec cannot fail.
            let _ = write!(out, "{}{separator}", self.code());
            if let Some((subject, detail)) = self.enhanced {
                let _ = write!(out, "{}.{subject}.{detail} ", self.class as u16);
            }
            // Text from other systems must not add a line break, and a client expects lines in ASCII (RFC 5321 4.2) of at
            // most 512 octets with CRLF (4.5.3.1.5).
            let room = (start + Self::LINE_OCTETS_MAX - 2).saturating_sub(out.len());
            let text = line.bytes().map(|b| match b {
                b' '..=b'~' => b,
                _ => b'?',
            });
            out.extend(text.take(room));
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// The form for the log: one line with the texts of all lines.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.code())?;
        if let Some((subject, detail)) = self.enhanced {
            write!(f, "{}.{subject}.{detail} ", self.class as u16)?;
        }
        f.write_str(&self.lines.join(" / "))
    }
}

/// Replies before the end of data.
impl Reply {
    /// 220 greeting.
    pub fn greeting(hostname: &str) -> Self {
        Self::new(
            Class::Positive,
            20,
            None,
            format!("{hostname} ESMTP Spillway"),
        )
    }

    /// 250 to HELO.
    pub fn helo(hostname: &str) -> Self {
        Self::new(Class::Positive, 50, None, hostname.to_owned())
    }

    /// 250 to EHLO with the extensions.
    pub fn ehlo(hostname: &str, extensions: Vec<Cow<'static, str>>) -> Self {
        let mut reply = Self::helo(hostname);
        reply.lines.extend(extensions);
        reply
    }

    /// 250 to MAIL.
    pub fn sender_ok() -> Self {
        Self::new(Class::Positive, 50, (1, 0), "Sender ok")
    }

    /// 250 to RCPT.
    pub fn recipient_ok() -> Self {
        Self::new(Class::Positive, 50, (1, 5), "Recipient ok")
    }

    /// 250 to RSET, NOOP and XFORWARD.
    pub fn ok() -> Self {
        Self::new(Class::Positive, 50, (0, 0), "Ok")
    }

    /// 250 to a BDAT chunk that is not the last (RFC 3030 2).
    pub fn chunk_ok(octets: usize) -> Self {
        Self::new(
            Class::Positive,
            50,
            (0, 0),
            format!("{octets} octets received"),
        )
    }

    /// 354 to DATA.
    pub fn send_content() -> Self {
        Self::new(
            Class::Intermediate,
            54,
            None,
            "Send the message, end with a dot on a line by itself",
        )
    }

    /// 334 with a challenge (RFC 4954 4), already in base 64.
    pub fn challenge(base64: &'static str) -> Self {
        Self::new(Class::Intermediate, 34, None, base64)
    }

    /// 235 after AUTH.
    pub fn authenticated() -> Self {
        Self::new(Class::Positive, 35, (7, 0), "Authenticated")
    }

    /// 535 after AUTH.
    pub fn bad_credentials() -> Self {
        Self::new(
            Class::Permanent,
            35,
            (7, 8),
            "User name or password is wrong",
        )
    }

    /// 454 when credentials cannot be checked now (RFC 4954 4).
    pub fn auth_unavailable() -> Self {
        Self::new(
            Class::Transient,
            54,
            (7, 0),
            "Credentials cannot be checked now, try again later",
        )
    }

    /// 501 when the client cancels AUTH with `*`.
    pub fn auth_cancelled() -> Self {
        Self::new(Class::Permanent, 1, (7, 0), "Authentication cancelled")
    }

    /// 504 for an AUTH mechanism that is not offered.
    pub fn unknown_mechanism() -> Self {
        Self::new(
            Class::Permanent,
            4,
            (5, 4),
            "Only AUTH PLAIN and LOGIN are offered here",
        )
    }

    /// 538 for AUTH without TLS (RFC 4954 6).
    pub fn auth_needs_tls() -> Self {
        Self::new(
            Class::Permanent,
            38,
            (7, 11),
            "Encryption required: use STARTTLS first",
        )
    }

    /// 220 to STARTTLS.
    pub fn start_tls() -> Self {
        Self::new(Class::Positive, 20, (0, 0), "Start TLS now")
    }

    /// 530 when the listener demands TLS (RFC 3207 4).
    pub fn tls_required() -> Self {
        Self::new(Class::Permanent, 30, (7, 0), "Use STARTTLS first")
    }

    /// 221 to QUIT.
    pub fn goodbye(hostname: &str) -> Self {
        let mut reply = Self::new(
            Class::Positive,
            21,
            (0, 0),
            format!("{hostname} closing the connection"),
        );
        reply.closes = true;
        reply
    }

    /// 252 to VRFY: the relay does not know which mailboxes exist (RFC 5321 7.3).
    pub fn cannot_verify() -> Self {
        Self::new(
            Class::Positive,
            52,
            (1, 5),
            "Cannot verify the mailbox, but delivery will be attempted",
        )
    }

    /// 214 to HELP.
    pub fn help() -> Self {
        Self::new(
            Class::Positive,
            14,
            (0, 0),
            "See RFC 5321; this is Spillway, a filtering relay",
        )
    }

    /// 500 for an unknown command.
    pub fn unknown_command() -> Self {
        Self::new(Class::Permanent, 0, (5, 2), "Unknown command")
    }

    /// 502 for a command of the standard that is not implemented here (EXPN, ETRN …).
    pub fn not_implemented() -> Self {
        Self::new(Class::Permanent, 2, (5, 1), "Command not implemented")
    }

    /// 501 for a known command that is malformed.
    pub fn syntax(expected: &'static str) -> Self {
        Self::new(Class::Permanent, 1, (5, 4), format!("Syntax: {expected}"))
    }

    /// 500 for a command line over the limit.
    pub fn line_too_long(limit: usize) -> Self {
        Self::new(
            Class::Permanent,
            0,
            (5, 6),
            format!("Command line longer than {limit} octets"),
        )
    }

    /// 500 for a command line that is ended by, or contains, a bare CR or LF, or has a NUL.
    pub fn bad_line_end() -> Self {
        Self::new(
            Class::Permanent,
            0,
            (5, 2),
            "Lines must end with CRLF, without bare CR, LF or NUL",
        )
    }

    /// 421 for BDAT without a valid size. The relay cannot tell the octets of the chunk from commands, so it ends the session.
    pub fn bad_chunk() -> Self {
        Self::closing((5, 4), "Syntax: BDAT chunk-size [LAST]")
    }

    /// 503 for a command out of sequence.
    pub fn bad_sequence(expected: &'static str) -> Self {
        Self::new(Class::Permanent, 3, (5, 1), expected)
    }

    /// 555 for a MAIL or RCPT parameter that is not implemented (RFC 5321 4.1.1.11).
    pub fn unknown_parameter(parameter: &str) -> Self {
        let shown: String = parameter.chars().take(40).collect();
        Self::new(
            Class::Permanent,
            55,
            (5, 4),
            format!("Parameter not implemented: {shown}"),
        )
    }

    /// 501 for an invalid parameter value.
    pub fn bad_parameter(parameter: &'static str) -> Self {
        Self::new(
            Class::Permanent,
            1,
            (5, 4),
            format!("Bad value for {parameter}"),
        )
    }

    /// 553 for a MAIL argument that is not a mailbox.
    pub fn bad_sender(why: impl fmt::Display) -> Self {
        Self::new(
            Class::Permanent,
            53,
            (1, 7),
            format!("Bad reverse-path: {why}"),
        )
    }

    /// 553 for a RCPT argument that is not a mailbox.
    pub fn bad_recipient(why: impl fmt::Display) -> Self {
        Self::new(
            Class::Permanent,
            53,
            (1, 3),
            format!("Bad forward-path: {why}"),
        )
    }

    /// 553 for a non-ASCII address without SMTPUTF8 (RFC 6531 3.5).
    pub fn needs_smtputf8() -> Self {
        Self::new(
            Class::Permanent,
            53,
            (6, 7),
            "A non-ASCII address needs the SMTPUTF8 parameter",
        )
    }

    /// 452 for a recipient above the limit (RFC 5321 4.5.3.1.10).
    pub fn too_many_recipients() -> Self {
        Self::new(
            Class::Transient,
            52,
            (5, 3),
            "Too many recipients, send the message to the others in a new transaction",
        )
    }

    /// 550 for a client that may not relay.
    pub fn relay_denied() -> Self {
        Self::new(
            Class::Permanent,
            50,
            (7, 1),
            "Relaying denied: authenticate, or use an allowed network or client certificate",
        )
    }

    /// 550 for a domain without next hop.
    pub fn no_route(domain: &str) -> Self {
        Self::new(
            Class::Permanent,
            50,
            (4, 4),
            format!("No route to {domain} is configured here"),
        )
    }

    /// 554 for DATA without an accepted recipient.
    pub fn no_valid_recipients() -> Self {
        Self::new(Class::Permanent, 54, (5, 1), "No valid recipients")
    }

    /// 552 for a declared or real size above the limit (RFC 1870 6).
    pub fn too_large(limit: u64) -> Self {
        Self::new(
            Class::Permanent,
            52,
            (3, 4),
            format!("Message larger than {limit} octets"),
        )
    }

    /// 554 for content with a bare CR or LF.
    pub fn bare_line_end() -> Self {
        Self::new(
            Class::Permanent,
            54,
            (6, 0),
            "Bare CR or LF in the message is not allowed, lines must end with CRLF",
        )
    }

    /// 554 for a message that too many relays have handled (RFC 5321 6.3).
    pub fn loop_detected(hops: usize) -> Self {
        Self::new(
            Class::Permanent,
            54,
            (4, 6),
            format!("Mail loop: {hops} Received fields"),
        )
    }

    /// 452 if memory or disk has no room now.
    pub fn no_room() -> Self {
        Self::new(
            Class::Transient,
            52,
            (3, 1),
            "No room for this message now, try again later",
        )
    }

    /// 451 to a client or sender with too much of the waiting work (RFC 3463: 4.3.2, the system accepts no messages now).
    pub fn over_share() -> Self {
        Self::new(
            Class::Transient,
            51,
            (3, 2),
            "Too much mail from this client or sender waits here, try again later",
        )
    }

    /// 451 to all clients while the backlog is at its limit.
    pub fn too_busy() -> Self {
        Self::new(
            Class::Transient,
            51,
            (3, 2),
            "Too much mail waits here, try again later",
        )
    }

    /// 421 when the relay stops.
    pub fn shutting_down(hostname: &str) -> Self {
        Self::closing(
            (3, 2),
            format!("{hostname} is shutting down, try again later"),
        )
    }

    /// 421 for a session above the session limits.
    pub fn too_many_sessions() -> Self {
        Self::closing((7, 0), "Too many sessions, try again later")
    }

    /// 421 after too many errors or commands.
    pub fn too_many_errors() -> Self {
        Self::closing((7, 0), "Too many errors or commands in this session")
    }

    /// 421 for a client that sent nothing within a timeout, or sends too slowly.
    pub fn timed_out(what: &'static str) -> Self {
        Self::closing((4, 2), what)
    }

    fn closing(enhanced: (u16, u16), text: impl Into<Cow<'static, str>>) -> Self {
        let mut reply = Self::new(Class::Transient, 21, enhanced, text);
        reply.closes = true;
        reply
    }
}

/// Replies to the end of data.
impl Reply {
    /// 250: the next hop took the message; the text of its reply is passed on.
    pub fn delivered(id: impl fmt::Display, said: impl fmt::Display) -> Self {
        Self::new(
            Class::Positive,
            50,
            (0, 0),
            format!("Ok: {id} delivered, next hop said: {said}"),
        )
    }

    /// 250: the relay has taken custody of the message.
    pub fn accepted(id: impl fmt::Display) -> Self {
        Self::new(Class::Positive, 50, (0, 0), format!("Ok: accepted as {id}"))
    }

    /// 550: policy rejected the message.
    pub fn rejected(id: impl fmt::Display, rule: &str) -> Self {
        Self::new(
            Class::Permanent,
            50,
            (7, 1),
            format!("Rejected by policy {rule} ({id})"),
        )
    }

    /// 5yz: the next hop refused the message; the text of its reply is passed on.
    pub fn refused(id: impl fmt::Display, said: &RemoteReply) -> Self {
        let detail = u8::try_from(said.code % 100).unwrap_or(54);
        let enhanced = said
            .enhanced
            .filter(|(class, ..)| *class == 5)
            .map_or((0, 0), |(_, subject, detail)| (subject, detail));
        Self::new(
            Class::Permanent,
            detail,
            enhanced,
            format!("{id} refused, next hop said: {}", said.text),
        )
    }

    /// 552 or 554: the next hop cannot accept this kind of message. The enhanced status code is the one at the beginning of
    /// `why`, if there is one.
    pub fn undeliverable(id: impl fmt::Display, why: &str) -> Self {
        let given = why.split_once(' ').and_then(|(first, words)| {
            let (class, subject, detail) = parse_status(first)?;
            (class == 5).then_some(((subject, detail), words))
        });
        let (status, words) = given.unwrap_or(((0, 0), why));
        let detail = match status {
            // RFC 1870 6.
            (3, 4) => 52,
            _ => 54,
        };
        Self::new(
            Class::Permanent,
            detail,
            status,
            format!("{id} cannot be delivered: {words}"),
        )
    }

    /// 451: the relay could not store the message, so the sender keeps it.
    pub fn not_kept(id: impl fmt::Display) -> Self {
        Self::new(
            Class::Transient,
            51,
            (3, 0),
            format!("{id} could not be stored here, try again later"),
        )
    }
}

/// A reply of a next hop, with a text of limited size. The relay shows, logs and stores it, and passes it on in bounces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteReply {
    /// 200 to 599.
    pub code: u16,
    /// Enhanced status code, if the text began with a code of the same class.
    pub enhanced: Option<(u16, u16, u16)>,
    /// The text without codes, with lines joined by a space: at most 1000 octets, and control characters replaced.
    pub text: String,
}

impl RemoteReply {
    /// The class of the code. A code outside 200 to 499 counts as permanent.
    pub fn class(&self) -> Class {
        Class::of_code(self.code)
    }
}

impl fmt::Display for RemoteReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some((class, subject, detail)) = self.enhanced {
            write!(f, " {class}.{subject}.{detail}")?;
        }
        if !self.text.is_empty() {
            write!(f, " {}", self.text)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reply code and the enhanced status code always have the same class.
    #[test]
    fn code_and_enhanced_code_share_their_class() {
        let said = RemoteReply {
            code: 552,
            enhanced: Some((4, 2, 2)),
            text: "mailbox full".to_owned(),
        };
        let mut wire = Vec::new();
        Reply::refused("X", &said).write_to(&mut wire);
        assert_eq!(
            String::from_utf8_lossy(&wire),
            "552 5.0.0 X refused, next hop said: mailbox full\r\n"
        );
    }

    /// A message that the relay refuses for a next hop gets the status code of the reason, once (RFC 1870 6, RFC 6152 3).
    #[test]
    fn a_refusal_has_the_code_of_its_reason() {
        for (why, line) in [
            (
                "5.3.4 the message is larger than the 1000 octets that the next hop takes",
                "552 5.3.4 X cannot be delivered: the message is larger than the 1000 octets that the next hop takes",
            ),
            (
                "5.6.3 no 8BITMIME",
                "554 5.6.3 X cannot be delivered: no 8BITMIME",
            ),
            (
                "5.4.4 no route",
                "554 5.4.4 X cannot be delivered: no route",
            ),
            (
                "4.3.4 not now",
                "554 5.0.0 X cannot be delivered: 4.3.4 not now",
            ),
            ("why not", "554 5.0.0 X cannot be delivered: why not"),
        ] {
            assert_eq!(Reply::undeliverable("X", why).to_string(), line);
        }
    }

    /// Text from another system never becomes a reply line of its own.
    #[test]
    fn line_breaks_in_texts_stay_inside_the_line() {
        let mut wire = Vec::new();
        Reply::no_route("a\r\n250 2.0.0 b").write_to(&mut wire);
        assert_eq!(wire.iter().filter(|b| **b == b'\n').count(), 1);
    }

    /// RFC 5321 4.2 and 4.5.3.1.5: with any text of a next hop, the reply line is ASCII and has at most 512 octets.
    #[test]
    fn reply_lines_are_short_and_ascii() {
        let mut wire = Vec::new();
        Reply::delivered("X", "é".repeat(500)).write_to(&mut wire);
        assert!(wire.is_ascii() && wire.ends_with(b"?\r\n"));
        assert_eq!(wire.len(), 512);
    }

    /// Each line of a reply except the last has a hyphen after the code (RFC 5321 4.2.1).
    #[test]
    fn all_lines_but_the_last_have_a_hyphen() {
        let mut wire = Vec::new();
        Reply::ehlo("h", vec!["PIPELINING".into(), "SIZE 1".into()]).write_to(&mut wire);
        assert_eq!(wire, b"250-h\r\n250-PIPELINING\r\n250 SIZE 1\r\n");
    }
}
