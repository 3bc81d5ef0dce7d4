//! The text of a notification: its header section, the part for people, the part for programs, and the returned message.

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use jiff::tz::TimeZone;

use super::frame::{Frame, LINE_OCTETS_MAX, UTF8_RECIPIENT, fold, lines, unchanged};
use super::{Action, Original};
use crate::delivery::Answer;
use crate::message::{MessageId, Recipient, Ret, header};
use crate::smtp::dot_stuff::has_bare_line_end;
use crate::smtp::orcpt;

/// A notification while it is being written.
pub(super) struct Notification<'a> {
    pub(super) original: &'a Original<'a>,
    pub(super) action: Action,
    /// The notification returns at most the header section of the message, in ASCII.
    pub(super) brief: bool,
    pub(super) frame: Frame,
}

// Writing to a String cannot fail, so the results of `write!` below are ignored.
impl Notification<'_> {
    pub(super) fn head(&self, to: &str, id: MessageId, now: Timestamp) -> String {
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

    pub(super) fn for_people(&self, out: &mut String, recipients: &[&(Recipient, Answer)]) {
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

    pub(super) fn for_programs(
        &self,
        out: &mut String,
        recipients: &[&(Recipient, Answer)],
        now: Timestamp,
    ) {
        let (frame, original) = (&self.frame, self.original);
        frame.part(out, frame.for_programs(), frame.utf8);
        let _ = write!(
            out,
            "Reporting-MTA: dns; {}\r\n",
            frame.clean(original.reporting_mta)
        );
        if let Some(envid) = &original.envelope.envid {
            unchanged(out, "Original-Envelope-Id: ", &frame.clean(envid));
        }
        let _ = write!(out, "Arrival-Date: {}\r\n", date(original.arrived));
        for (recipient, answer) in recipients {
            out.push_str("\r\n");
            if let Some(original) = &recipient.orcpt {
                let original = match original.starts_with(orcpt::TYPE) && !frame.utf8 {
                    true => orcpt::in_ascii(original),
                    false => frame.clean(original),
                };
                unchanged(out, "Original-Recipient: ", &original);
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
    pub(super) fn returned(&self, octets: &mut Vec<u8>) {
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
