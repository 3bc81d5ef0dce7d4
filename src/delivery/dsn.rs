//! Delivery status notifications (DSN) to the sender of a message (RFC 3461, RFC 3464; RFC 6533 for SMTPUTF8).
//!
//! A notification goes to the reverse-path and has the null reverse-path itself, so that no notification ever answers
//! another one (RFC 5321 4.5.5). This module writes the MIME structure directly instead of using a general MIME
//! library: the parts are fixed, two of the three parts have no general MIME form, and every line contains text from
//! other systems that must be cleaned piece by piece in any case.

use std::fmt::Write as _;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use jiff::tz::TimeZone;
use memchr::memmem;

use super::{Answer, Objection, Outcome};
use crate::message::{
    BodyKind, Envelope, Mailbox, MessageId, Notify, Origin, Recipient, Ret, ReversePath, header,
};
use crate::smtp::dot_stuff::has_bare_line_end;
use crate::smtp::orcpt;
use crate::store::Extent;

/// Largest part of the original message that a notification returns, in octets. A notification returns a smaller
/// message whole unless the sender asked for RET=HDRS; of a larger message it returns the header section up to this
/// size.
const MAX_RETURNED_OCTETS: usize = 50_000;
/// Longest line in octets, without CRLF (RFC 5322 2.1.1).
const LINE_OCTETS_MAX: usize = 998;
/// Column at which this module folds its own header fields: below the 78 that RFC 5322 2.1.1 recommends.
const FOLD_WIDTH: usize = 76;
/// Field label and address type before an address outside ASCII (RFC 6533 3).
const UTF8_RECIPIENT: &str = "Final-Recipient: utf-8; ";

/// The action that a notification reports for its recipients (RFC 3464 2.3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Delivery has ended without success: the next hop refused the recipient, or the time for delivery has passed.
    Failed,
    /// The message is not delivered yet; attempts continue.
    Delayed,
    /// A server took the message that sends no success notifications itself.
    Relayed,
    /// The message is in the recipient's mailbox.
    Delivered,
}

impl Action {
    /// The success that this relay must report; `None` if the next hop took over that duty.
    pub fn for_success(outcome: &Outcome) -> Option<Self> {
        match outcome {
            Outcome::Delivered(answer) if answer.dsn_passed => None,
            Outcome::Delivered(answer) if answer.reply.is_some() => Some(Self::Relayed),
            Outcome::Delivered(_) => Some(Self::Delivered),
            Outcome::Deferred(_) | Outcome::Failed(_) => None,
        }
    }

    /// Whether the sender asked for this notification. A sender without a NOTIFY parameter receives failures only (RFC
    /// 3461 4.1).
    fn is_wanted(self, notify: Option<Notify>) -> bool {
        match (self, notify) {
            (Self::Failed, notify) => notify.is_none_or(|wanted| wanted.failure),
            (Self::Delayed, notify) => notify.is_some_and(|wanted| wanted.delay),
            (Self::Relayed | Self::Delivered, notify) => {
                notify.is_some_and(|wanted| wanted.success)
            }
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Delayed => "delayed",
            Self::Relayed => "relayed",
            Self::Delivered => "delivered",
        }
    }

    /// The class of the enhanced status code if no server gave one.
    fn class(self) -> u16 {
        match self {
            Self::Failed => 5,
            Self::Delayed => 4,
            Self::Relayed | Self::Delivered => 2,
        }
    }

    fn subject(self) -> &'static str {
        match self {
            Self::Failed => "Undelivered mail returned to sender",
            Self::Delayed => "Mail delivery is delayed",
            Self::Relayed | Self::Delivered => "Mail delivery report",
        }
    }

    fn explanation(self) -> &'static str {
        match self {
            Self::Failed => {
                "Your message could not be delivered to the recipients below. This server\r\n\
                 will not try again.\r\n"
            }
            Self::Delayed => {
                "Your message has not been delivered to the recipients below yet. You do not\r\n\
                 need to send it again: this server will continue to try.\r\n"
            }
            Self::Relayed => {
                "Your message was passed on to servers that do not report on delivery. You\r\n\
                 may receive no further report about the recipients below.\r\n"
            }
            Self::Delivered => "Your message was delivered to the recipients below.\r\n",
        }
    }
}

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
        let report = Report {
            original: self,
            action,
            brief,
            frame: Frame {
                utf8: sender.is_internationalized() || (self.envelope.smtputf8 && !brief),
                boundary: boundary(id),
            },
        };
        let mut out = report.head(sender.as_str(), id, now);
        report.for_people(&mut out, &recipients);
        report.for_programs(&mut out, &recipients, now);
        let mut octets = out.into_bytes();
        report.returned(&mut octets);
        let body = if octets.is_ascii() {
            BodyKind::SevenBit
        } else {
            BodyKind::EightBitMime
        };
        let envelope = Envelope {
            reverse_path: ReversePath::NULL,
            recipients: vec![Recipient::from(sender.clone())],
            body,
            smtputf8: report.frame.utf8,
            ret: None,
            envid: None,
            origin: Origin::local("bounce"),
        };
        Some((envelope, octets.into()))
    }
}

/// A notification while it is being written.
struct Report<'a> {
    original: &'a Original<'a>,
    action: Action,
    /// The notification returns at most the header section of the message, in ASCII.
    brief: bool,
    frame: Frame,
}

// Writing to a String cannot fail, so the results of `write!` below are ignored.
impl Report<'_> {
    fn head(&self, to: &str, id: MessageId, now: Timestamp) -> String {
        let host = self.frame.clean(self.original.reporting_mta);
        let mut out = String::with_capacity(4096);
        let _ = write!(
            out,
            "From: Mail Delivery System <MAILER-DAEMON@{host}>\r\n\
             To: <{to}>\r\n\
             Subject: {}\r\n\
             Date: {}\r\n\
             Message-ID: <{id}@{host}>\r\n",
            self.action.subject(),
            date(now)
        );
        if let Some(message_id) = self.original_message_id() {
            let _ = write!(
                out,
                "In-Reply-To: {message_id}\r\nReferences: {message_id}\r\n"
            );
        }
        let _ = write!(
            out,
            "Auto-Submitted: auto-replied\r\n\
             MIME-Version: 1.0\r\n\
             Content-Type: multipart/report; report-type=delivery-status;\r\n\
             \tboundary=\"{}\"\r\n\
             \r\n\
             This is a report about the delivery of a message, in MIME format.\r\n",
            self.frame.boundary
        );
        out
    }

    /// The original Message-ID, so that mail clients show the notification in the thread of its message. `None` if the
    /// field is not a plain msg-id of at most 250 octets.
    fn original_message_id(&self) -> Option<String> {
        let section = header::section(self.original.content);
        let message_id = header::first(section, "Message-ID")?.unfolded();
        let plain = message_id.len() <= 250
            && message_id.starts_with('<')
            && message_id.ends_with('>')
            && message_id.bytes().all(|octet| octet.is_ascii_graphic());
        plain.then_some(message_id)
    }

    fn for_people(&self, out: &mut String, recipients: &[&(Recipient, Answer)]) {
        let frame = &self.frame;
        frame.part(out, frame.for_people(), frame.utf8);
        let host = frame.clean(self.original.reporting_mta);
        let _ = write!(out, "This is the mail server {host}.\r\n\r\n");
        out.push_str(self.action.explanation());
        for (recipient, answer) in recipients {
            let _ = write!(out, "\r\n<{}>\r\n", frame.mailbox(&recipient.mailbox));
            fold(out, "    ", &frame.clean(&answer.text));
        }
        let _ = write!(
            out,
            "\r\nThe id of the message on this server was {}.\r\n",
            self.original.id
        );
    }

    fn for_programs(&self, out: &mut String, recipients: &[&(Recipient, Answer)], now: Timestamp) {
        let (frame, original) = (&self.frame, self.original);
        frame.part(out, frame.for_programs(), frame.utf8);
        let _ = write!(
            out,
            "Reporting-MTA: dns; {}\r\n",
            frame.clean(original.reporting_mta)
        );
        if let Some(envid) = &original.envelope.envid {
            fold(out, "Original-Envelope-Id: ", &frame.clean(envid));
        }
        let _ = write!(out, "Arrival-Date: {}\r\n", date(original.arrived));
        for (recipient, answer) in recipients {
            out.push_str("\r\n");
            if let Some(original) = &recipient.orcpt {
                let original = match original.starts_with(orcpt::TYPE) && !frame.utf8 {
                    true => orcpt::in_ascii(original),
                    false => frame.clean(original),
                };
                fold(out, "Original-Recipient: ", &original);
            }
            let kind = match recipient.mailbox.is_internationalized() {
                true => UTF8_RECIPIENT,
                false => "Final-Recipient: rfc822; ",
            };
            let mailbox = frame.mailbox(&recipient.mailbox);
            let _ = write!(
                out,
                "{kind}{mailbox}\r\nAction: {}\r\nStatus: {}\r\n",
                self.action.word(),
                status(self.action, answer)
            );
            if let Some(server) = answer.server {
                let _ = write!(out, "Remote-MTA: dns; [{}]\r\n", server.ip());
            }
            match &answer.reply {
                Some(reply) => fold(
                    out,
                    "Diagnostic-Code: smtp; ",
                    &frame.clean(&reply.to_string()),
                ),
                None => fold(
                    out,
                    "Diagnostic-Code: X-Spillway; ",
                    &frame.clean(&answer.text),
                ),
            }
            let _ = write!(out, "Last-Attempt-Date: {}\r\n", date(now));
        }
    }

    /// Appends the third part (the message or its header section) and the closing delimiter.
    fn returned(&self, octets: &mut Vec<u8>) {
        let (frame, content) = (&self.frame, self.original.content);
        if self.returns_all() {
            let kind = if frame.utf8 {
                "message/global"
            } else {
                "message/rfc822"
            };
            let mut head = String::new();
            frame.part(&mut head, kind, !content.is_ascii());
            octets.extend_from_slice(head.as_bytes());
            octets.extend_from_slice(content);
        } else {
            frame.headers(octets, content);
        }
        octets.extend_from_slice(frame.end().as_bytes());
    }

    /// Whether the notification returns the whole message. It does not if the sender asked for RET=HDRS, if the message
    /// is large or was refused for its form, or if the message cannot be a MIME part (bare line ends, lines that are
    /// too long).
    fn returns_all(&self) -> bool {
        let content = self.original.content;
        self.action == Action::Failed
            && !self.brief
            && self.original.envelope.ret != Some(Ret::Headers)
            && !has_bare_line_end(content)
            && lines(content).all(|line| line.len() <= LINE_OCTETS_MAX)
    }
}

/// The MIME boundary of the notification with this id. The original message cannot contain it, because the id did not
/// exist when the original message was written.
fn boundary(id: MessageId) -> String {
    format!("=_{id}")
}

/// Properties that all parts of a notification share.
struct Frame {
    /// The notification may contain text outside ASCII and is sent with SMTPUTF8.
    utf8: bool,
    boundary: String,
}

impl Frame {
    fn for_people(&self) -> &'static str {
        match self.utf8 {
            true => "text/plain; charset=utf-8",
            false => "text/plain; charset=us-ascii",
        }
    }

    fn for_programs(&self) -> &'static str {
        match self.utf8 {
            true => "message/global-delivery-status",
            false => "message/delivery-status",
        }
    }

    fn delimiter(&self) -> String {
        format!("\r\n--{}\r\n", self.boundary)
    }

    fn end(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary)
    }

    fn part(&self, out: &mut String, content_type: &str, eight_bit: bool) {
        out.push_str(&self.delimiter());
        let _ = write!(out, "Content-Type: {content_type}\r\n");
        if eight_bit {
            out.push_str("Content-Transfer-Encoding: 8bit\r\n");
        }
        out.push_str("\r\n");
    }

    /// Appends the part with the header section of `content`. Lines and total size are cut to the limits; the text is
    /// ASCII unless UTF-8 is allowed.
    fn headers(&self, octets: &mut Vec<u8>, content: &[u8]) {
        let kind = match self.utf8 {
            true => "message/global-headers",
            false => "text/rfc822-headers",
        };
        let mut head = String::new();
        self.part(&mut head, kind, self.utf8);
        octets.extend_from_slice(head.as_bytes());
        let end = octets.len() + MAX_RETURNED_OCTETS;
        for line in lines(header::section(content)) {
            let line = &line[..line.len().min(LINE_OCTETS_MAX)];
            if octets.len() + line.len() > end {
                return;
            }
            let clean = self.clean(&String::from_utf8_lossy(line));
            octets
                .extend_from_slice(&clean.as_bytes()[..clean.floor_char_boundary(LINE_OCTETS_MAX)]);
            octets.extend_from_slice(b"\r\n");
        }
    }

    /// Replaces control characters in text from another system and, unless UTF-8 is allowed, characters outside ASCII,
    /// so that the text stays within one line.
    fn clean(&self, text: &str) -> String {
        let clean = |c: char| match c {
            '\t' => ' ',
            c if c.is_control() || (!self.utf8 && !c.is_ascii()) => '?',
            c => c,
        };
        text.chars().map(clean).collect()
    }

    /// The recipient's address, encoded so that a reader can recover it even if only ASCII is allowed.
    fn mailbox(&self, mailbox: &Mailbox) -> String {
        match mailbox.is_internationalized() && !self.utf8 {
            true => in_ascii(mailbox.as_str()),
            false => self.clean(mailbox.as_str()),
        }
    }

    /// Copies text of an earlier notification, converted to ASCII unless UTF-8 is allowed.
    fn again(&self, out: &mut String, text: &str) {
        if self.utf8 {
            return out.push_str(text);
        }
        for line in lines(text.as_bytes()) {
            let line = String::from_utf8_lossy(line);
            let (label, address) = match line.strip_prefix(UTF8_RECIPIENT) {
                Some(address) => (UTF8_RECIPIENT, address),
                None => ("", ""),
            };
            match address.is_ascii() {
                true => out.push_str(&self.clean(&line)),
                false => out.extend([label, &in_ascii(address)]),
            }
            out.push_str("\r\n");
        }
    }
}

/// Encodes an address outside ASCII in ASCII as RFC 6533 3 specifies (`utf-8-addr-xtext`), cut at the maximum line
/// length.
fn in_ascii(address: &str) -> String {
    // The longest escape of one character.
    const ESCAPE_OCTETS_MAX: usize = "\\x{10FFFF}".len();
    let mut out = String::new();
    for c in address.chars() {
        match c {
            _ if UTF8_RECIPIENT.len() + out.len() + ESCAPE_OCTETS_MAX > LINE_OCTETS_MAX => break,
            '!'..='~' if !matches!(c, '+' | '=' | '\\') => out.push(c),
            c => {
                let _ = write!(out, "\\x{{{:02X}}}", u32::from(c));
            }
        }
    }
    out
}

/// Reduces a notification that this module wrote under `id` to `extent`. Any other content is returned unchanged.
pub fn reduced(written: &Bytes, id: MessageId, extent: Extent) -> Bytes {
    let mut frame = Frame {
        utf8: false,
        boundary: boundary(id),
    };
    let parts = match extent {
        Extent::Whole => None,
        Extent::Headers | Extent::Bare => Parts::of(written, &frame),
    };
    let Some(parts) = parts else {
        return written.clone();
    };
    // A mailbox outside ASCII can only be addressed with SMTPUTF8.
    frame.utf8 = !parts.head.is_ascii();
    let mut out = parts.head.to_owned();
    frame.part(&mut out, frame.for_people(), frame.utf8);
    frame.again(&mut out, parts.for_people);
    frame.part(&mut out, frame.for_programs(), frame.utf8);
    frame.again(&mut out, parts.for_programs);
    let mut octets = out.into_bytes();
    if let (Extent::Headers, Some(returned)) = (extent, parts.returned) {
        frame.headers(&mut octets, returned);
    }
    octets.extend_from_slice(frame.end().as_bytes());
    octets.into()
}

/// The parts of a notification that this module wrote.
struct Parts<'a> {
    head: &'a str,
    for_people: &'a str,
    for_programs: &'a str,
    /// The returned message or its header section.
    returned: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn of(written: &'a [u8], frame: &Frame) -> Option<Self> {
        let whole = written.strip_suffix(frame.end().as_bytes())?;
        let delimiter = frame.delimiter();
        let (head, rest) = cut(whole, delimiter.as_bytes())?;
        let (for_people, rest) = cut(rest, delimiter.as_bytes())?;
        let (for_programs, returned) = match cut(rest, delimiter.as_bytes()) {
            Some((for_programs, returned)) => (for_programs, Some(body(returned)?)),
            None => (rest, None),
        };
        let text = |part| std::str::from_utf8(body(part)?).ok();
        Some(Self {
            head: std::str::from_utf8(head).ok()?,
            for_people: text(for_people)?,
            for_programs: text(for_programs)?,
            returned,
        })
    }
}

/// The octets after the header fields of a MIME part.
fn body(part: &[u8]) -> Option<&[u8]> {
    cut(part, b"\r\n\r\n").map(|(_, body)| body)
}

fn cut<'a>(octets: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let begin = memmem::find(octets, at)?;
    Some((&octets[..begin], &octets[begin + at.len()..]))
}

fn lines(octets: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = octets;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memmem::find(rest, b"\r\n");
        let line = &rest[..end.unwrap_or(rest.len())];
        rest = end.map_or(&[][..], |end| &rest[end + 2..]);
        Some(line)
    })
}

/// Appends `label` and the text, folded at spaces. A word that is too long for a line is cut.
fn fold(out: &mut String, label: &str, text: &str) {
    out.push_str(label);
    let mut width = label.len();
    for (at, word) in text.split(' ').filter(|word| !word.is_empty()).enumerate() {
        let word = &word[..word.floor_char_boundary(LINE_OCTETS_MAX / 2)];
        if at > 0 && width + word.len() >= FOLD_WIDTH {
            out.push_str("\r\n    ");
            width = 4;
        } else if at > 0 {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += word.len();
    }
    out.push_str("\r\n");
}

/// The enhanced status code (RFC 3463) that the answer contains; otherwise the class with zero subject and detail.
fn status(action: Action, answer: &Answer) -> String {
    let class = answer
        .reply
        .as_ref()
        .map_or(action.class(), |reply| reply.class() as u16);
    let (class, subject, detail) = answer.status().unwrap_or((class, 0, 0));
    format!("{class}.{subject}.{detail}")
}

fn date(at: Timestamp) -> String {
    // Printing fails only for years that RFC 5322 cannot represent.
    DateTimePrinter::new()
        .zoned_to_string(&at.to_zoned(TimeZone::UTC))
        .unwrap_or_else(|_| "Thu, 01 Jan 1970 00:00:00 +0000".to_owned())
}

#[cfg(test)]
mod tests;
