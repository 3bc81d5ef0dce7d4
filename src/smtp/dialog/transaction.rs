//! One message: MAIL, RCPT, DATA, and what each recipient's fate is.
//!
//! With PIPELINING (RFC 2920) the commands go out together, DATA included. That makes one case possible that cannot
//! occur otherwise: every recipient was refused and the server still says 354. Then the dot alone is sent, and whatever
//! the server makes of it concerns nobody (RFC 2920 3.1).

use std::borrow::Cow;
use std::fmt::Write as _;

use super::{Capabilities, Stage};
use crate::message::{Envelope, Notify, Recipient, Ret, header};
use crate::smtp::dot_stuff::has_bare_line_end;
use crate::smtp::orcpt;
use crate::smtp::reply::{Class, RemoteReply};
use crate::smtp::reply_parser::RawReply;

/// Commands sent before a reply is read. A bound, because a server that has to wait until we read its replies stops
/// reading our commands, and then both wait for ever (RFC 2920 3.1).
const PIPELINED_COMMANDS_MAX: usize = 100;
/// Octets of ENVID and ORCPT at most (RFC 3461 4.2, 4.4); longer ones are not passed on.
const MAX_ENVID: usize = 100;
const MAX_ORCPT: usize = 500;

/// What has to be known of the content before the first command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Octets, before dots are doubled (RFC 1870 3).
    pub octets: u64,
    /// An octet above 127 somewhere.
    pub eight_bit: bool,
    /// An octet above 127 in the header section.
    pub header_eight_bit: bool,
}

/// Content with a CR or LF that stands alone is never sent: see [`has_bare_line_end`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("5.6.0 the content has a CR or LF that stands alone, and such content is not passed on")]
pub struct BareLineEnd;

impl Facts {
    /// Looks at everything that will be sent: our header fields and the content.
    pub fn of(prefix: &[u8], content: &[u8]) -> Result<Self, BareLineEnd> {
        if has_bare_line_end(prefix) || has_bare_line_end(content) {
            return Err(BareLineEnd);
        }
        let eight_bit = !(prefix.is_ascii() && content.is_ascii());
        Ok(Self {
            octets: (prefix.len() + content.len()) as u64,
            eight_bit,
            header_eight_bit: eight_bit
                && !(prefix.is_ascii() && header::section(content).is_ascii()),
        })
    }
}

/// Where one recipient stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// RCPT was not answered.
    Open,
    /// RCPT was answered 2yz; the content is to come, or its reply.
    Accepted,
    /// Nothing the server says will change it.
    Settled(Settled),
}

/// Why a recipient is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// The server said so.
    Replied(Stage, RemoteReply),
    /// The server does not offer what the message needs; it was not asked.
    Unsupported(Unsupported),
}

/// What the server does not offer. The texts begin with the enhanced status code that a bounce carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// The message is larger than its SIZE.
    #[error("5.3.4 the message is larger than the {0} octets that the next hop takes")]
    Size(u64),
    /// Octets above 127 without 8BITMIME (RFC 6152 3).
    #[error("5.6.3 the content has 8-bit octets and the next hop does not offer 8BITMIME")]
    EightBit,
    /// Addresses or header fields outside ASCII without SMTPUTF8 (RFC 6531 3.2).
    #[error("5.6.7 the message needs SMTPUTF8 and the next hop does not offer it")]
    SmtpUtf8,
}

/// What the owner of the socket does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Write what was appended, then read one reply.
    Reply,
    /// Write the content with its dot, then read one reply.
    Content,
    /// The transaction is over and the session free for the next one.
    Done,
}

/// The session ends here; recipients that are not settled were not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Interruption {
    /// 421: the server is about to close the connection (RFC 5321 3.8).
    #[error("{0}: {1}")]
    Closing(Stage, RemoteReply),
    /// A reply of a class that makes no sense here, such as 354 to RCPT.
    #[error("{0} got a reply that does not fit it: {1}")]
    Unexpected(Stage, RemoteReply),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Reset,
    Mail,
    /// The position in `fates`.
    Rcpt(usize),
    Data,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Commands,
    /// After 354, and after the content.
    Content,
    /// The dot alone was sent after all recipients had been refused.
    EmptyContent,
}

/// The machine.
#[derive(Debug)]
pub struct Transaction<'a> {
    envelope: &'a Envelope,
    capabilities: &'a Capabilities,
    lmtp: bool,
    mail_parameters: String,
    commands: Vec<Command>,
    /// Of `commands`.
    written: usize,
    /// Of `commands`.
    answered: usize,
    state: State,
    mail_refused: bool,
    /// The server may believe that a transaction is open.
    open: bool,
    fates: Vec<(usize, Fate)>,
}

impl<'a> Transaction<'a> {
    /// A transaction for the recipients at these positions of the envelope. `reset` sends RSET first, for a session
    /// whose last transaction did not come to its end.
    pub fn new(
        envelope: &'a Envelope,
        recipients: &[usize],
        facts: Facts,
        capabilities: &'a Capabilities,
        lmtp: bool,
        reset: bool,
    ) -> Self {
        let needs_utf8 = envelope
            .reverse_path
            .mailbox()
            .is_some_and(|mailbox| mailbox.is_internationalized())
            || (envelope.smtputf8 && facts.header_eight_bit);
        let all = unsupported(facts, needs_utf8, capabilities);
        let mut utf8 = needs_utf8;
        let mut fates = Vec::with_capacity(recipients.len());
        for at in recipients.iter().copied() {
            let Some(recipient) = envelope.recipients.get(at) else {
                continue;
            };
            let alone = recipient.mailbox.is_internationalized();
            utf8 |= alone;
            let refused =
                all.or((alone && !capabilities.smtputf8).then_some(Unsupported::SmtpUtf8));
            let fate = refused.map_or(Fate::Open, |why| Fate::Settled(Settled::Unsupported(why)));
            fates.push((at, fate));
        }
        let open = (0..fates.len()).filter(|at| fates[*at].1 == Fate::Open);
        let mut commands = Vec::with_capacity(fates.len() + 3);
        commands.extend(reset.then_some(Command::Reset));
        commands.push(Command::Mail);
        commands.extend(open.map(Command::Rcpt));
        commands.push(Command::Data);
        Self {
            mail_parameters: mail_parameters(envelope, facts, utf8, capabilities),
            envelope,
            capabilities,
            lmtp,
            commands,
            written: 0,
            answered: 0,
            state: State::Commands,
            mail_refused: false,
            open: reset,
            fates,
        }
    }

    /// Appends the first commands. [`Next::Done`] if no recipient can be offered to this server.
    pub fn start(&mut self, out: &mut Vec<u8>) -> Next {
        if self.fates.iter().all(|(_, fate)| *fate != Fate::Open) {
            return Next::Done;
        }
        self.write_batch(out);
        Next::Reply
    }

    /// Takes the server's next reply.
    pub fn on_reply(
        &mut self,
        reply: &RawReply<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Next, Interruption> {
        if reply.code() == 421 {
            let stage = self.stage();
            if self.state == State::Content {
                // Unlike a connection that just ends, this is an answer: the message was not taken.
                self.settle(Fate::Accepted, stage, reply);
            }
            return Err(Interruption::Closing(stage, reply.to_remote()));
        }
        match self.state {
            State::Commands => self.on_command_reply(reply, out),
            State::Content => self.on_content_reply(reply),
            State::EmptyContent => {
                self.open = false;
                Ok(Next::Done)
            }
        }
    }

    /// What the next reply answers.
    pub fn stage(&self) -> Stage {
        match (self.state, self.commands.get(self.answered)) {
            (State::Content | State::EmptyContent, _) | (_, None) => Stage::EndOfData,
            (_, Some(Command::Reset)) => Stage::Reset,
            (_, Some(Command::Mail)) => Stage::Mail,
            (_, Some(Command::Rcpt(_))) => Stage::Rcpt,
            (_, Some(Command::Data)) => Stage::Data,
        }
    }

    /// Whether the session's next transaction has to begin with RSET.
    pub fn needs_reset(&self) -> bool {
        self.open
    }

    /// Who has the message by the replies to the end of data so far, in the order of the replies.
    pub fn taken(&self) -> impl Iterator<Item = (usize, &RemoteReply)> {
        self.fates.iter().filter_map(|(at, fate)| match fate {
            Fate::Settled(Settled::Replied(Stage::EndOfData, reply))
                if reply.class() == Class::Positive =>
            {
                Some((*at, reply))
            }
            _ => None,
        })
    }

    /// Position in the envelope and fate of every recipient.
    pub fn into_fates(self) -> Vec<(usize, Fate)> {
        self.fates
    }

    fn on_command_reply(
        &mut self,
        reply: &RawReply<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Next, Interruption> {
        let stage = self.stage();
        let command = self.commands[self.answered];
        let unexpected = || Interruption::Unexpected(stage, reply.to_remote());
        match (command, reply.class()) {
            (Command::Reset, Class::Positive) => self.open = false,
            (Command::Mail, Class::Positive) => self.open = true,
            (Command::Mail, Class::Transient | Class::Permanent) => {
                self.mail_refused = true;
                self.settle(Fate::Open, stage, reply);
            }
            // After a refused MAIL the pipelined RCPTs fail for that reason, which is settled already.
            (Command::Rcpt(_), _) if self.mail_refused => {}
            (Command::Rcpt(at), Class::Positive) => self.fates[at].1 = Fate::Accepted,
            (Command::Rcpt(at), Class::Transient | Class::Permanent) => {
                self.fates[at].1 = Fate::Settled(Settled::Replied(stage, reply.to_remote()));
            }
            (Command::Data, Class::Intermediate) => return self.on_go_ahead(reply, out),
            (Command::Data, Class::Transient | Class::Permanent) => {
                self.settle(Fate::Accepted, stage, reply);
                return Ok(Next::Done);
            }
            _ => return Err(unexpected()),
        }
        self.answered += 1;
        if self.answered < self.written {
            return Ok(Next::Reply);
        }
        let next_is_data = self.commands.get(self.written) == Some(&Command::Data);
        if self.mail_refused || (next_is_data && self.accepted() == 0) {
            return Ok(Next::Done);
        }
        self.write_batch(out);
        Ok(Next::Reply)
    }

    fn on_go_ahead(
        &mut self,
        reply: &RawReply<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Next, Interruption> {
        if self.accepted() > 0 {
            self.state = State::Content;
            return Ok(Next::Content);
        }
        if self.lmtp {
            // RFC 2033 4.2 demands 503 here: there would be no reply at all to the dot.
            return Err(Interruption::Unexpected(Stage::Data, reply.to_remote()));
        }
        out.extend_from_slice(b".\r\n");
        self.state = State::EmptyContent;
        Ok(Next::Reply)
    }

    fn on_content_reply(&mut self, reply: &RawReply<'_>) -> Result<Next, Interruption> {
        if reply.class() == Class::Intermediate {
            let reply = reply.to_remote();
            return Err(Interruption::Unexpected(Stage::EndOfData, reply));
        }
        if self.lmtp {
            // One reply for each accepted recipient, in the order of their RCPTs (RFC 2033 4.2).
            let accepted = |(_, fate): &&mut (usize, Fate)| *fate == Fate::Accepted;
            if let Some((_, fate)) = self.fates.iter_mut().find(accepted) {
                *fate = Fate::Settled(Settled::Replied(Stage::EndOfData, reply.to_remote()));
            }
        } else {
            self.settle(Fate::Accepted, Stage::EndOfData, reply);
        }
        if self.accepted() > 0 {
            return Ok(Next::Reply);
        }
        self.open = false;
        Ok(Next::Done)
    }

    fn settle(&mut self, which: Fate, stage: Stage, reply: &RawReply<'_>) {
        let settled = Fate::Settled(Settled::Replied(stage, reply.to_remote()));
        for (_, fate) in &mut self.fates {
            if *fate == which {
                *fate = settled.clone();
            }
        }
    }

    fn accepted(&self) -> usize {
        let accepted = |(_, fate): &&(usize, Fate)| *fate == Fate::Accepted;
        self.fates.iter().filter(accepted).count()
    }

    fn write_batch(&mut self, out: &mut Vec<u8>) {
        let window = if self.capabilities.pipelining {
            PIPELINED_COMMANDS_MAX
        } else {
            1
        };
        let end = (self.written + window).min(self.commands.len());
        for command in &self.commands[self.written..end] {
            match command {
                Command::Reset => out.extend_from_slice(b"RSET"),
                Command::Mail => {
                    for part in ["MAIL FROM:<", self.envelope.reverse_path.as_str(), ">"] {
                        out.extend_from_slice(part.as_bytes());
                    }
                    out.extend_from_slice(self.mail_parameters.as_bytes());
                }
                Command::Rcpt(at) => {
                    let recipient = &self.envelope.recipients[self.fates[*at].0];
                    for part in ["RCPT TO:<", recipient.mailbox.as_str(), ">"] {
                        out.extend_from_slice(part.as_bytes());
                    }
                    if self.capabilities.dsn {
                        out.extend_from_slice(rcpt_parameters(recipient).as_bytes());
                    }
                }
                Command::Data => out.extend_from_slice(b"DATA"),
            }
            out.extend_from_slice(b"\r\n");
        }
        self.written = end;
    }
}

/// What keeps the whole message from this server.
fn unsupported(facts: Facts, utf8: bool, offered: &Capabilities) -> Option<Unsupported> {
    match offered.size {
        Some(limit) if limit > 0 && facts.octets > limit => Some(Unsupported::Size(limit)),
        _ if utf8 && !offered.smtputf8 => Some(Unsupported::SmtpUtf8),
        _ if facts.eight_bit && !offered.eight_bit_mime => Some(Unsupported::EightBit),
        _ => None,
    }
}

fn mail_parameters(
    envelope: &Envelope,
    facts: Facts,
    utf8: bool,
    offered: &Capabilities,
) -> String {
    let mut parameters = String::new();
    if offered.size.is_some() {
        // Writing to a String cannot fail, here and below.
        let _ = write!(parameters, " SIZE={}", facts.octets);
    }
    if facts.eight_bit && offered.eight_bit_mime {
        parameters.push_str(" BODY=8BITMIME");
    }
    if utf8 && offered.smtputf8 {
        parameters.push_str(" SMTPUTF8");
    }
    if offered.dsn {
        match envelope.ret {
            Some(Ret::Full) => parameters.push_str(" RET=FULL"),
            Some(Ret::Headers) => parameters.push_str(" RET=HDRS"),
            None => {}
        }
        if let Some(envid) = envelope
            .envid
            .as_deref()
            .and_then(|id| xtext(id, MAX_ENVID))
        {
            let _ = write!(parameters, " ENVID={envid}");
        }
    }
    parameters
}

fn rcpt_parameters(recipient: &Recipient) -> String {
    let mut parameters = String::new();
    if let Some(notify) = recipient.notify {
        let _ = write!(parameters, " NOTIFY={}", notify_words(notify));
    }
    let orcpt = recipient.orcpt.as_deref().and_then(|written| {
        let orcpt = match written.starts_with(orcpt::TYPE) {
            true => Cow::Owned(orcpt::in_ascii(written)),
            false => Cow::Borrowed(written),
        };
        let (kind, address) = orcpt.split_once(';')?;
        let sound =
            !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        sound.then(|| xtext(address, MAX_ORCPT).map(|address| format!("{kind};{address}")))?
    });
    if let Some(orcpt) = orcpt {
        let _ = write!(parameters, " ORCPT={orcpt}");
    }
    parameters
}

fn notify_words(notify: Notify) -> String {
    let words = [
        (notify.success, "SUCCESS"),
        (notify.failure, "FAILURE"),
        (notify.delay, "DELAY"),
    ];
    let words: Vec<&str> = words.iter().filter(|w| w.0).map(|w| w.1).collect();
    if words.is_empty() {
        "NEVER".to_owned()
    } else {
        words.join(",")
    }
}

/// Encodes as xtext (RFC 3461 4); `None` if outside ASCII or longer than `limit`: the parameter is then left out.
fn xtext(text: &str, limit: usize) -> Option<String> {
    if !text.is_ascii() || text.is_empty() {
        return None;
    }
    let mut encoded = String::with_capacity(text.len());
    for octet in text.bytes() {
        match octet {
            b'+' | b'=' | 0..=32 | 127.. => {
                let _ = write!(encoded, "+{octet:02X}");
            }
            _ => encoded.push(octet as char),
        }
    }
    (encoded.len() <= limit).then_some(encoded)
}

#[cfg(test)]
mod tests;
