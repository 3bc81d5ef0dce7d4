//! Sends one message to a filter, event by event, and reads the replies.

use super::facts::{self, Macros};
use super::link::Link;
use super::packet::{Event, MilterReply, parse};
use super::results;
use crate::message::edit::{self, Edit, Wanted};
use crate::message::header;
use crate::scan::engine::head::Malformed;
use crate::scan::engine::{Sample, ScanError};

/// Octets of data in one packet. libmilter ends the session if there are more (MILTER_MAX_DATA_SIZE).
const PACKET_DATA_OCTETS_MAX: usize = 65_535;
/// Octets that a filter may send beyond those of the message: a replaced body is about as long as the message, and 1 MiB is
/// enough for all other replies.
const EXTRA_ANSWER_OCTETS_MAX: usize = 1 << 20;
/// Refused recipients in a report, to bound its size.
const REFUSED_RECIPIENTS_MAX: usize = 100;

/// What a filter has replied about a message.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Objections to the message: the name of the finding, and the filter's text.
    pub(super) against: Vec<(&'static str, String)>,
    /// The filter asks to send the message again later, with this text.
    pub(super) not_now: Option<String>,
    /// Recipients that the filter refuses, with its text.
    pub(super) recipients: Vec<String>,
    /// Requested edits: at most one more than a report may have, which shows that edits are missing.
    pub(super) wanted: Vec<Wanted>,
    /// Results in the Authentication-Results fields that the filter wants to add, even if the relay does not add them.
    pub(super) results: Vec<String>,
    /// The filter reports that it cannot work.
    pub(super) failed: bool,
    /// The part of the message that the filter could not get. The relay sends the filter nothing after it.
    pub(super) untold: Option<String>,
}

impl Outcome {
    fn wants(&mut self, wanted: Wanted) {
        if let Wanted::Field(Edit::Add { name, value, .. }) = &wanted
            && name.eq_ignore_ascii_case("Authentication-Results")
        {
            results::gather(&mut self.results, value);
        }
        edit::want(&mut self.wanted, wanted);
    }
}

/// What follows from the reply to one event.
enum Then {
    /// Send the next event.
    GoOn,
    /// Send the next event of another kind.
    Skip,
    /// The filter refuses this recipient: whether for good, and its text.
    NotThisOne(bool, String),
    /// The filter has decided about the message.
    Decided,
}

/// The dialogue about one message.
pub(super) struct Talk<'a> {
    sample: &'a Sample,
    hostname: &'a str,
    macros: Macros,
    link: &'a mut Link,
    outcome: Outcome,
    /// Whether the filter wants to replace the body.
    body: bool,
}

impl<'a> Talk<'a> {
    pub(super) fn about(sample: &'a Sample, hostname: &'a str, link: &'a mut Link) -> Self {
        let request = sample.request();
        link.allow(sample.content().len() + EXTRA_ANSWER_OCTETS_MAX);
        Self {
            macros: Macros::of(hostname, request.id, &request.envelope),
            sample,
            hostname,
            link,
            outcome: Outcome::default(),
            body: false,
        }
    }

    /// Sends all events that the filter wants, and returns the outcome.
    ///
    /// Cancel safety: dropping the future leaves the dialogue incomplete, so the link must be dropped too.
    pub(super) async fn tell_all(mut self) -> Result<Outcome, ScanError> {
        let decided = self.envelope().await? || self.content().await?;
        if !decided {
            self.tell(Event::EndOfBody, &[]).await?;
        }
        if self.body {
            let body = Wanted::Other("replace the body".to_owned());
            edit::want(&mut self.outcome.wanted, body);
        }
        Ok(self.outcome)
    }

    /// Sends the envelope. Returns whether the filter has decided about the message.
    async fn envelope(&mut self) -> Result<bool, ScanError> {
        let envelope = &self.sample.request().envelope;
        let size = self.sample.content().len();
        let mut hello = Vec::new();
        facts::put(&mut hello, &envelope.origin.helo);
        for (event, data) in [
            (Event::Connect, facts::connection(envelope)),
            (Event::Helo, hello),
            (Event::Mail, facts::sender(self.hostname, envelope, size)),
        ] {
            if let Then::Decided = self.tell(event, &[&data]).await? {
                return Ok(true);
            }
        }
        if self.recipients().await? {
            return Ok(true);
        }
        Ok(matches!(self.tell(Event::Data, &[]).await?, Then::Decided))
    }

    /// Sends the recipients. A refused recipient is reported. If the filter refuses all recipients, it refuses the message.
    /// Returns whether the filter has decided about the message.
    async fn recipients(&mut self) -> Result<bool, ScanError> {
        let envelope = &self.sample.request().envelope;
        let mut refused = 0;
        for recipient in &envelope.recipients {
            let mailbox = &recipient.mailbox;
            let terms = &self.link.terms;
            if let Some(macros) = self.macros.before(Event::Rcpt, terms, Some(mailbox)) {
                self.link.queue(b'D', &[&macros]).await?;
            }
            let recipient = facts::recipient(self.hostname, mailbox);
            match self.say(Event::Rcpt, &[&recipient]).await? {
                Then::GoOn => {}
                Then::Skip => break,
                Then::Decided => return Ok(true),
                Then::NotThisOne(for_good, words) => {
                    refused += 1;
                    if refused == envelope.recipients.len() {
                        self.refuse(for_good, words);
                        return Ok(true);
                    }
                    if self.outcome.recipients.len() < REFUSED_RECIPIENTS_MAX {
                        let told = format!("{mailbox} {words}");
                        self.outcome.recipients.push(told.trim_end().to_owned());
                    }
                }
            }
        }
        Ok(false)
    }

    /// Sends header and body. Returns whether the filter has decided before the end. For filters, as for mail servers, the
    /// header section ends at the first line that is not a field.
    async fn content(&mut self) -> Result<bool, ScanError> {
        let content = self.sample.content().bytes().clone();
        let section = self.sample.content().header_section();
        let mut told = 0;
        let mut skips = false;
        for (piece, field) in header::pieces(section) {
            let is_name =
                |octets: &[u8]| !octets.is_empty() && octets.iter().all(u8::is_ascii_graphic);
            let Some(field) = field.filter(|field| is_name(field.name)) else {
                break;
            };
            told += piece.len();
            if !skips && self.link.terms.wants(Event::Header) {
                let data = self.field(&field);
                if data.len() > PACKET_DATA_OCTETS_MAX {
                    let octets = data.len() - 2;
                    self.outcome.untold = Some(format!("a header field of {octets} octets"));
                    return Ok(true);
                }
                match self.say(Event::Header, &[&data]).await? {
                    Then::Decided => return Ok(true),
                    then => skips = matches!(then, Then::Skip),
                }
            }
        }
        if let Then::Decided = self.tell(Event::EndOfHeader, &[]).await? {
            return Ok(true);
        }
        let body = &content[told..];
        for piece in body
            .strip_prefix(b"\r\n")
            .unwrap_or(body)
            .chunks(PACKET_DATA_OCTETS_MAX)
        {
            match self.say(Event::Body, &[piece]).await? {
                Then::Decided => return Ok(true),
                Then::Skip => break,
                _ => {}
            }
        }
        Ok(false)
    }

    /// Name and value of a field. Lines of the value end with LF alone, as libmilter sends them.
    fn field(&self, field: &header::Field<'_>) -> Vec<u8> {
        let space = self.link.terms.leading_space();
        let body = match field.body.strip_prefix(b" ") {
            Some(rest) if !space => rest,
            _ => field.body,
        };
        let mut data = Vec::with_capacity(field.name.len() + body.len() + 2);
        data.extend_from_slice(field.name);
        data.push(0);
        for octet in body {
            match octet {
                b'\r' => {}
                0 => data.push(b' '),
                octet => data.push(*octet),
            }
        }
        data.push(0);
        data
    }

    /// Sends an event with its macros. The macros are sent even if the filter does not want the event.
    async fn tell(&mut self, event: Event, data: &[&[u8]]) -> Result<Then, ScanError> {
        if !self.link.terms.knows(event) {
            return Ok(Then::Skip);
        }
        if let Some(macros) = self.macros.before(event, &self.link.terms, None) {
            self.link.queue(b'D', &[&macros]).await?;
        }
        self.say(event, data).await
    }

    /// Sends an event if the filter wants it, and reads the reply if the filter sends one.
    async fn say(&mut self, event: Event, data: &[&[u8]]) -> Result<Then, ScanError> {
        if !self.link.terms.wants(event) {
            return Ok(Then::Skip);
        }
        self.link.queue(event.command(), data).await?;
        match self.link.terms.answers(event) {
            true => self.listen(event).await,
            false => Ok(Then::GoOn),
        }
    }

    /// Reads replies until one says what follows. `progress` says nothing, and does not extend the deadline.
    async fn listen(&mut self, event: Event) -> Result<Then, ScanError> {
        loop {
            let (command, data) = self.link.packet().await?;
            let said = parse(command, &data)?;
            let (for_good, words) = match said {
                MilterReply::Progress => continue,
                MilterReply::Continue => return Ok(Then::GoOn),
                MilterReply::Skip => return Ok(Then::Skip),
                MilterReply::Accept => return Ok(Then::Decided),
                MilterReply::Failed => {
                    self.outcome.failed = true;
                    return Ok(Then::Decided);
                }
                MilterReply::Discard => {
                    self.outcome.against.push(("discard", String::new()));
                    return Ok(Then::Decided);
                }
                MilterReply::Quarantine(reason) if self.outcome.against.is_empty() => {
                    self.outcome.against.push(("quarantine", reason));
                    continue;
                }
                MilterReply::Quarantine(_) => continue,
                // Only a filter that has seen the whole message may request a change.
                MilterReply::Wants(_) | MilterReply::Body if event != Event::EndOfBody => {
                    return Err(Malformed::garbage(&[command]).into());
                }
                MilterReply::Wants(wanted) => {
                    self.outcome.wants(wanted);
                    continue;
                }
                MilterReply::Body => {
                    self.body = true;
                    continue;
                }
                MilterReply::Reject => (true, String::new()),
                MilterReply::TempFail => (false, String::new()),
                MilterReply::Reply(words) => (words.starts_with('5'), words),
            };
            if event == Event::Rcpt {
                return Ok(Then::NotThisOne(for_good, words));
            }
            self.refuse(for_good, words);
            return Ok(Then::Decided);
        }
    }

    fn refuse(&mut self, for_good: bool, words: String) {
        match for_good {
            true => self.outcome.against.push(("reject", words)),
            false => self.outcome.not_now = Some(words),
        }
    }
}
