//! The transaction of one message: MAIL, RCPT and DATA, and the fate of each recipient.
//!
//! With PIPELINING (RFC 2920) the client sends all commands together, including DATA. Only then one special case can occur:
//! the server refuses every recipient and still replies 354. The client then sends the dot without content, and the reply
//! to it concerns no recipient (RFC 2920 3.1).

use super::parameters::{mail_parameters, rcpt_parameters};
use super::{Capabilities, Stage};
use crate::message::{Envelope, header, mime};
use crate::smtp::RemoteReply;
use crate::smtp::dot_stuff::has_bare_line_end;
use crate::smtp::reply::Class;
use crate::smtp::reply_parser::RawReply;

/// Largest number of commands sent before a reply is read. Without this limit both sides could wait forever: a server whose
/// replies are not read stops reading commands (RFC 2920 3.1).
const PIPELINED_COMMANDS_MAX: usize = 100;

/// Properties of the content that the client needs before the first command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Size in octets, before dots are doubled (RFC 1870 3).
    pub octets: u64,
    /// The content has an octet above 127.
    pub eight_bit: bool,
    /// The header section has an octet above 127, or the message is declared to need SMTPUTF8 and the header section of a
    /// part has one.
    pub header_eight_bit: bool,
}

/// The content has a bare CR or LF. Such content is never sent: see [`has_bare_line_end`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "5.6.0 the content has a bare CR or LF, which this relay does not pass on: lines must end with CRLF"
)]
pub struct BareLineEnd;

impl Facts {
    /// Inspects all octets that will be sent: the header fields of the relay and the content. With `smtputf8`, the client
    /// declared that the message needs SMTPUTF8. Only then do the header sections of parts matter, and are searched.
    pub fn of(prefix: &[u8], content: &[u8], smtputf8: bool) -> Result<Self, BareLineEnd> {
        if has_bare_line_end(prefix) || has_bare_line_end(content) {
            return Err(BareLineEnd);
        }
        let eight_bit = !(prefix.is_ascii() && content.is_ascii());
        Ok(Self {
            octets: (prefix.len() + content.len()) as u64,
            eight_bit,
            header_eight_bit: eight_bit
                && (!(prefix.is_ascii() && header::section(content).is_ascii())
                    || (smtputf8 && mime::has_eight_bit_headers(content, mime::Limits::default()))),
        })
    }
}

/// State of one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The server has not replied to RCPT.
    Open,
    /// The server replied 2yz to RCPT, and has not replied to the content.
    Accepted,
    /// The message needs an extension, and the server has refused EHLO ([`Capabilities::ehlo_refused`]), so the client did
    /// not send RCPT. In another session the server may offer the extension.
    NeedsEhlo(Unsupported),
    /// Final: no later reply changes this state.
    Settled(Settled),
}

/// Why a recipient is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// The server replied.
    Replied(Stage, RemoteReply),
    /// The message needs an extension that the server does not offer, so the client did not send RCPT.
    Unsupported(Unsupported),
}

/// Why the server cannot accept the message. Each text begins with the enhanced status code for a bounce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// The message is larger than the SIZE of the server.
    #[error("5.3.4 the message is larger than the {0} octets that the next hop takes")]
    Size(u64),
    /// The content has octets above 127, and the server does not offer 8BITMIME (RFC 6152 3).
    #[error("5.6.3 the content has 8-bit octets and the next hop does not offer 8BITMIME")]
    EightBit,
    /// Addresses or header fields are outside ASCII, and the server does not offer SMTPUTF8 (RFC 6531 3.2).
    #[error("5.6.7 the message needs SMTPUTF8 and the next hop does not offer it")]
    SmtpUtf8,
}

impl Unsupported {
    /// The need, with an enhanced status code for a lack that may not last.
    pub fn for_now(self) -> &'static str {
        match self {
            Self::Size(_) => "4.3.4 the message is too large",
            Self::EightBit => "4.6.3 the message needs 8BITMIME",
            Self::SmtpUtf8 => "4.6.7 the message needs SMTPUTF8",
        }
    }
}

/// Next step of the owner of the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Write the appended commands, then read one reply.
    Reply,
    /// Write the content with its dot, then read one reply.
    Content,
    /// The transaction has ended, and the session can carry the next one.
    Done,
}

/// Why the session ends. The server has not taken the message for recipients that are not settled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Interruption {
    /// 421: the server is about to close the connection (RFC 5321 3.8).
    #[error("{0}: {1}")]
    Closing(Stage, RemoteReply),
    /// A reply of a class that is invalid here, such as 354 to RCPT.
    #[error("{0}: the server sent an unexpected reply: {1}")]
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
    /// After the dot without content, because the server had refused all recipients.
    EmptyContent,
}

/// The state machine of one transaction.
#[derive(Debug)]
pub struct Transaction<'a> {
    envelope: &'a Envelope,
    capabilities: &'a Capabilities,
    lmtp: bool,
    mail_parameters: String,
    commands: Vec<Command>,
    /// Number of `commands` that were written.
    written: usize,
    /// Number of `commands` that were answered.
    answered: usize,
    state: State,
    mail_refused: bool,
    /// The server may have an open transaction.
    open: bool,
    fates: Vec<(usize, Fate)>,
}

impl<'a> Transaction<'a> {
    /// A transaction for the recipients at these positions of the envelope. With `reset` the client sends RSET first, for
    /// a session whose last transaction was not completed.
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
            let fate = match (refused, &capabilities.ehlo_refused) {
                (None, _) => Fate::Open,
                (Some(why), Some(_)) => Fate::NeedsEhlo(why),
                (Some(why), None) => Fate::Settled(Settled::Unsupported(why)),
            };
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

    /// Appends the first commands. [`Next::Done`] if the server can accept no recipient.
    pub fn start(&mut self, out: &mut Vec<u8>) -> Next {
        if self.fates.iter().all(|(_, fate)| *fate != Fate::Open) {
            return Next::Done;
        }
        self.write_batch(out);
        Next::Reply
    }

    /// Processes the next reply of the server.
    pub fn on_reply(
        &mut self,
        reply: &RawReply<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Next, Interruption> {
        if reply.code() == 421 {
            let stage = self.stage();
            if self.state == State::Content {
                // Unlike a connection that just closes, this is a reply: the server did not take the message.
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

    /// The command or event that the next reply answers.
    pub fn stage(&self) -> Stage {
        match (self.state, self.commands.get(self.answered)) {
            (State::Content | State::EmptyContent, _) | (_, None) => Stage::EndOfData,
            (_, Some(Command::Reset)) => Stage::Reset,
            (_, Some(Command::Mail)) => Stage::Mail,
            (_, Some(Command::Rcpt(_))) => Stage::Rcpt,
            (_, Some(Command::Data)) => Stage::Data,
        }
    }

    /// Whether the next transaction of the session must begin with RSET.
    pub fn needs_reset(&self) -> bool {
        self.open
    }

    /// The recipients for whom the server has taken the message so far, in the order of the replies to the end of data.
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

    /// Position in the envelope and fate of each recipient.
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
            // After a refused MAIL the pipelined RCPTs fail as well. The reply to MAIL has settled their recipients.
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
            // RFC 2033 4.2 demands 503 here, because an LMTP server would send no reply to the dot.
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
            // The server sends one reply for each accepted recipient, in the order of the RCPTs (RFC 2033 4.2).
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

/// Why the server cannot accept the message for any recipient; `None` if it can.
fn unsupported(facts: Facts, utf8: bool, offered: &Capabilities) -> Option<Unsupported> {
    match offered.size {
        Some(limit) if limit > 0 && facts.octets > limit => Some(Unsupported::Size(limit)),
        _ if utf8 && !offered.smtputf8 => Some(Unsupported::SmtpUtf8),
        _ if facts.eight_bit && !offered.eight_bit_mime => Some(Unsupported::EightBit),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
