//! Replies before the end of data: to commands, and to sessions that the relay ends.

use std::borrow::Cow;
use std::fmt;

use super::{Class, Reply};

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
        .because("bad-credentials")
    }

    /// 535 after AUTH with an authorization identity other than the user (RFC 4616 2).
    pub fn foreign_identity() -> Self {
        Self::new(
            Class::Permanent,
            35,
            (7, 8),
            "A user cannot act for another user here: leave the authorization identity empty",
        )
        .because("foreign-identity")
    }

    /// 501 after AUTH with a response that cannot be read (RFC 4954 4).
    pub fn bad_response(why: &'static str) -> Self {
        Self::new(Class::Permanent, 1, (5, 2), why).because("bad-response")
    }

    /// 454 when credentials cannot be checked now (RFC 4954 4).
    pub fn auth_unavailable() -> Self {
        Self::new(
            Class::Transient,
            54,
            (7, 0),
            "Credentials cannot be checked now, try again later",
        )
        .because("auth-unavailable")
    }

    /// 501 when the client answers a challenge with `*` (RFC 4954 4).
    pub fn auth_cancelled() -> Self {
        Self::new(Class::Permanent, 1, (7, 0), "Authentication cancelled").because("auth-cancelled")
    }

    /// 504 for an AUTH mechanism that is not offered.
    pub fn unknown_mechanism() -> Self {
        Self::new(
            Class::Permanent,
            4,
            (5, 4),
            "Only AUTH PLAIN and LOGIN are offered here",
        )
        .because("unknown-mechanism")
    }

    /// 538 for AUTH without TLS (RFC 4954 6).
    pub fn auth_needs_tls() -> Self {
        Self::new(
            Class::Permanent,
            38,
            (7, 11),
            "Encryption required: use STARTTLS first",
        )
        .because("tls-required")
    }

    /// 220 to STARTTLS.
    pub fn start_tls() -> Self {
        Self::new(Class::Positive, 20, (0, 0), "Start TLS now")
    }

    /// 530 when the listener demands TLS (RFC 3207 4).
    pub fn tls_required() -> Self {
        Self::new(Class::Permanent, 30, (7, 0), "Use STARTTLS first").because("tls-required")
    }

    /// 421 to a request of HTTP in place of a command.
    pub fn not_http(hostname: &str) -> Self {
        let text = format!("{hostname} speaks SMTP, not HTTP; closing the connection");
        let mut reply = Self::new(Class::Transient, 21, (7, 0), text).because("http");
        reply.closes = true;
        reply
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
        Self::new(Class::Permanent, 0, (5, 2), "Unknown command").because("unknown-command")
    }

    /// 502 for a command of the standard that is not implemented here (EXPN, ETRN …).
    pub fn not_implemented() -> Self {
        Self::new(Class::Permanent, 2, (5, 1), "Command not implemented").because("not-implemented")
    }

    /// 501 for a known command that is malformed.
    pub fn syntax(expected: &'static str) -> Self {
        Self::new(Class::Permanent, 1, (5, 4), format!("Syntax: {expected}")).because("syntax")
    }

    /// 500 for a command line over the limit.
    pub fn line_too_long(limit: usize) -> Self {
        Self::new(
            Class::Permanent,
            0,
            (5, 6),
            format!("Command line longer than {limit} octets"),
        )
        .because("line-too-long")
    }

    /// 500 for a command line that is ended by, or contains, a bare CR or LF, or has a NUL.
    pub fn bad_line_end() -> Self {
        Self::new(
            Class::Permanent,
            0,
            (5, 2),
            "Lines must end with CRLF, without bare CR, LF or NUL",
        )
        .because("line-end")
    }

    /// 421 for BDAT without a valid size. The relay cannot tell the octets of the chunk from commands, so it ends the session.
    pub fn bad_chunk() -> Self {
        Self::closing((5, 4), "Syntax: BDAT chunk-size [LAST]").because("syntax")
    }

    /// 503 for a command out of sequence.
    pub fn bad_sequence(expected: &'static str) -> Self {
        Self::new(Class::Permanent, 3, (5, 1), expected).because("sequence")
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
        .because("parameter")
    }

    /// 501 for an invalid parameter value.
    pub fn bad_parameter(parameter: &'static str) -> Self {
        Self::new(
            Class::Permanent,
            1,
            (5, 4),
            format!("Bad value for {parameter}"),
        )
        .because("parameter")
    }

    /// 501 for a parameter that is given twice.
    pub fn repeated_parameter(parameter: &'static str) -> Self {
        Self::new(
            Class::Permanent,
            1,
            (5, 4),
            format!("{parameter} is given twice"),
        )
        .because("parameter")
    }

    /// 553 for a MAIL argument that is not a mailbox.
    pub fn bad_sender(why: impl fmt::Display) -> Self {
        Self::new(
            Class::Permanent,
            53,
            (1, 7),
            format!("Bad reverse-path: {why}"),
        )
        .because("address")
    }

    /// 553 for a RCPT argument that is not a mailbox.
    pub fn bad_recipient(why: impl fmt::Display) -> Self {
        Self::new(
            Class::Permanent,
            53,
            (1, 3),
            format!("Bad forward-path: {why}"),
        )
        .because("address")
    }

    /// 553 for a non-ASCII address without SMTPUTF8 (RFC 6531 3.5).
    pub fn needs_smtputf8() -> Self {
        Self::new(
            Class::Permanent,
            53,
            (6, 7),
            "A non-ASCII address needs the SMTPUTF8 parameter",
        )
        .because("needs-smtputf8")
    }

    /// 452 for a recipient above the limit (RFC 5321 4.5.3.1.10).
    pub fn too_many_recipients() -> Self {
        Self::new(
            Class::Transient,
            52,
            (5, 3),
            "Too many recipients, send the message to the others in a new transaction",
        )
        .because("too-many-recipients")
    }

    /// 550 for a client that may not relay.
    pub fn relay_denied() -> Self {
        Self::new(
            Class::Permanent,
            50,
            (7, 1),
            "Relaying denied: authenticate, or use an allowed network or client certificate",
        )
        .because("relay-denied")
    }

    /// 550 for a domain without next hop.
    pub fn no_route(domain: &str) -> Self {
        Self::new(
            Class::Permanent,
            50,
            (4, 4),
            format!("No route to {domain} is configured here"),
        )
        .because("no-route")
    }

    /// 554 for DATA without an accepted recipient.
    pub fn no_valid_recipients() -> Self {
        Self::new(Class::Permanent, 54, (5, 1), "No valid recipients").because("no-recipients")
    }

    /// 552 for a declared or real size above the limit (RFC 1870 6).
    pub fn too_large(limit: u64) -> Self {
        Self::new(
            Class::Permanent,
            52,
            (3, 4),
            format!("Message larger than {limit} octets"),
        )
        .because("too-large")
    }

    /// 554 for content with a bare CR or LF.
    pub fn bare_line_end() -> Self {
        Self::new(
            Class::Permanent,
            54,
            (6, 0),
            "Bare CR or LF in the message is not allowed, lines must end with CRLF",
        )
        .because("line-end")
    }

    /// 554 for a message that too many relays have handled (RFC 5321 6.3).
    pub fn loop_detected(hops: usize) -> Self {
        Self::new(
            Class::Permanent,
            54,
            (4, 6),
            format!("Mail loop: {hops} Received fields"),
        )
        .because("loop")
    }

    /// 452 if memory or disk has no room now.
    pub fn no_room() -> Self {
        Self::new(
            Class::Transient,
            52,
            (3, 1),
            "No room for this message now, try again later",
        )
        .because("no-room")
    }

    /// 451 to a client or sender with too much of the waiting work (RFC 3463: 4.3.2, the system accepts no messages now).
    pub fn over_share() -> Self {
        Self::new(
            Class::Transient,
            51,
            (3, 2),
            "Too much mail from this client or sender waits here, try again later",
        )
        .because("over-share")
    }

    /// 451 to all clients while the backlog is at its limit.
    pub fn too_busy() -> Self {
        Self::new(
            Class::Transient,
            51,
            (3, 2),
            "Too much mail waits here, try again later",
        )
        .because("backlog")
    }

    /// 421 when the relay stops.
    pub fn shutting_down(hostname: &str) -> Self {
        Self::closing(
            (3, 2),
            format!("{hostname} is shutting down, try again later"),
        )
        .because("stopping")
    }

    /// 421 for a session above the session limits.
    pub fn too_many_sessions() -> Self {
        Self::closing((7, 0), "Too many sessions, try again later").because("too-many-sessions")
    }

    /// 421 after too many errors or commands.
    pub fn too_many_errors() -> Self {
        Self::closing((7, 0), "Too many errors or commands in this session")
            .because("too-many-errors")
    }

    /// 421 for a client that sent nothing within a timeout, or sends too slowly.
    pub fn timed_out(what: &'static str) -> Self {
        Self::closing((4, 2), what).because("timeout")
    }

    fn closing(enhanced: (u16, u16), text: impl Into<Cow<'static, str>>) -> Self {
        let mut reply = Self::new(Class::Transient, 21, enhanced, text);
        reply.closes = true;
        reply
    }
}
