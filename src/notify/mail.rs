//! The way by mail, straight to a next hop: no store, no lane and no engine sees it, because each of them may be what the mail
//! is about.
//!
//! It cannot loop: RFC 3834 forbids an answer to `Auto-Submitted: auto-generated`, the reverse-path is null unless the
//! configuration names a sender, and the relay makes no notification about a message.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::fmt::rfc2822::DateTimePrinter;
use jiff::tz::TimeZone;

use super::{Failure, MailSettings, Notification, Sender};
use crate::deadline::Deadline;
use crate::delivery::{DeliveredSender, Delivery, Outbound, Outcome};
use crate::message::{
    BodyKind, Content, Envelope, Mailbox, MessageId, Origin, Recipient, ReversePath,
};

/// Octets of text in one encoded word: 60 characters of base64, so that the word has at most 75 (RFC 2047 2).
const ENCODED_WORD_OCTETS_MAX: usize = 45;
/// Octets of a plain subject on the line of its field (RFC 5322 2.1.1).
const PLAIN_SUBJECT_OCTETS_MAX: usize = 65;
/// Characters of a line of base64 (RFC 2045 6.8).
const BASE64_LINE_CHARACTERS_MAX: usize = 76;

/// A way by mail.
pub(super) struct Mail {
    settings: MailSettings,
    timeout: Duration,
    relay: Arc<str>,
    delivery: Delivery,
}

impl Mail {
    pub(super) fn new(
        settings: MailSettings,
        timeout: Duration,
        relay: Arc<str>,
        delivery: Delivery,
    ) -> Self {
        Self {
            settings,
            timeout,
            relay,
            delivery,
        }
    }

    /// Tries the next hops in turn until each recipient has the mail. One recipient who has it is enough: another try would tell
    /// this one a second time.
    async fn mail(&self, told: &Notification) -> Result<String, Failure> {
        let content = Content::uncharged(self.content(told));
        let (mut left, mut taken, mut why) = (self.settings.to.clone(), Vec::new(), Vec::new());
        let mut is_passing = false;
        for next_hop in self.order(told) {
            let mail = self.outbound(&left, content.clone());
            let deadline = Deadline::after(self.timeout);
            let outcomes = self.delivery.deliver_through(next_hop, &mail, deadline);
            let Some(outcomes) = outcomes.await else {
                why.push(format!("mail: there is no next hop {next_hop}"));
                continue;
            };
            let mut open = Vec::new();
            for (mailbox, outcome) in left.into_iter().zip(outcomes) {
                if let Outcome::Delivered(_) = outcome {
                    taken.push(next_hop);
                    continue;
                }
                is_passing |= matches!(outcome, Outcome::Deferred(_));
                let said = &outcome.answer().text;
                why.push(format!("mail by next hop {next_hop} to {mailbox}: {said}"));
                open.push(mailbox);
            }
            left = open;
            if left.is_empty() {
                break;
            }
        }
        let why = why.join("; ");
        taken.dedup();
        match (taken.is_empty(), left.is_empty(), is_passing) {
            (false, true, _) => Ok(format!("mail taken by next hop {}", taken.join(", "))),
            (false, false, _) => {
                let taken = taken.join(", ");
                Ok(format!(
                    "mail taken by next hop {taken}, but not for all: {why}"
                ))
            }
            (true, _, true) => Err(Failure::Passing(why)),
            (true, _, false) => Err(Failure::Lasting(why)),
        }
    }

    /// The next hops, those last that the notification itself reports as broken.
    fn order(&self, told: &Notification) -> Vec<&str> {
        let all = self.settings.next_hops.iter().map(|hop| &**hop);
        let (broken, good): (Vec<_>, Vec<_>) = all.partition(|hop| told.blames(hop));
        good.into_iter().chain(broken).collect()
    }

    fn outbound(&self, to: &[Mailbox], content: Content) -> Outbound {
        let from = self.settings.from.clone();
        let addresses = to.iter().chain(&from);
        let smtputf8 = addresses.clone().any(Mailbox::is_internationalized);
        let envelope = Envelope {
            reverse_path: from.clone().map_or(ReversePath::NULL, ReversePath::from),
            recipients: to.iter().cloned().map(Recipient::from).collect(),
            body: if smtputf8 {
                BodyKind::EightBitMime
            } else {
                BodyKind::SevenBit
            },
            smtputf8,
            ret: None,
            envid: None,
            origin: Origin::local("notify"),
        };
        Outbound {
            id: MessageId::new(),
            envelope: Arc::new(envelope),
            prefix: Bytes::new(),
            content,
            delivered: DeliveredSender::default(),
        }
    }

    fn content(&self, told: &Notification) -> Bytes {
        let host = &self.relay;
        let from = match &self.settings.from {
            Some(from) => from.to_string(),
            None => format!("MAILER-DAEMON@{host}"),
        };
        let date = DateTimePrinter::new()
            .zoned_to_string(&told.at().to_zoned(TimeZone::UTC))
            .unwrap_or_default();
        let to: Vec<String> = self
            .settings
            .to
            .iter()
            .map(|to| format!("<{to}>"))
            .collect();
        let subject = subject(&format!("[spillway {host}] {}", told.headline()));
        let mut mail = format!(
            "From: Spillway <{from}>\r\n\
             To: {}\r\n\
             Subject: {subject}\r\n\
             Date: {date}\r\n\
             Message-ID: <{}@{host}>\r\n\
             Auto-Submitted: auto-generated\r\n\
             MIME-Version: 1.0\r\n",
            to.join(",\r\n "),
            told.id(),
        );
        body(&mut mail, &told.text());
        mail.into()
    }
}

impl Sender for Mail {
    fn send<'a>(&'a self, told: &'a Notification) -> BoxFuture<'a, Result<String, Failure>> {
        Box::pin(self.mail(told))
    }
}

/// The body of the field: plain if it is short and ASCII, else encoded words (RFC 2047).
fn subject(text: &str) -> String {
    if text.is_ascii() && text.len() <= PLAIN_SUBJECT_OCTETS_MAX {
        return text.to_owned();
    }
    let mut words: Vec<String> = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (word, tail) = rest.split_at(rest.floor_char_boundary(ENCODED_WORD_OCTETS_MAX));
        words.push(format!("=?utf-8?B?{}?=", STANDARD.encode(word)));
        rest = tail;
    }
    words.join("\r\n ")
}

/// Appends the fields of the content and the content: plain if it is ASCII, else base64, which has no line of any other length.
fn body(mail: &mut String, text: &str) {
    let is_plain = text.is_ascii() && text.lines().all(|line| line.len() <= 900);
    if is_plain {
        mail.push_str("Content-Type: text/plain; charset=us-ascii\r\n\r\n");
        mail.push_str(&text.replace('\n', "\r\n"));
        return;
    }
    mail.push_str(
        "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n",
    );
    let encoded = STANDARD.encode(text.replace('\n', "\r\n"));
    let mut rest = &*encoded;
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(BASE64_LINE_CHARACTERS_MAX));
        let _ = write!(mail, "{line}\r\n");
        rest = tail;
    }
}
