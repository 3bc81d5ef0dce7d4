//! The server side of one session as a pure state machine: command lines go in, steps come out.
//!
//! The machine knows the sequence and the syntax of RFC 5321 and of the offered extensions, and uses no sockets, clocks or
//! configuration files. The listener passes lines in and carries out the [`Step`] that the machine returns.

mod arguments;
mod offer;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use smtp_proto::{
    AUTH_LOGIN, AUTH_PLAIN, MAIL_BODY_8BITMIME, MAIL_RET_FULL, MAIL_RET_HDRS, MAIL_SMTPUTF8,
    MailFrom, RCPT_NOTIFY_DELAY, RCPT_NOTIFY_FAILURE, RCPT_NOTIFY_NEVER, RCPT_NOTIFY_SUCCESS,
    RcptTo, Request,
};

use super::orcpt;
use super::reply::Reply;
use super::xtext::{self, Attributes};
use crate::message::{BodyKind, Mailbox, Notify, Recipient, Ret, ReversePath};
pub(super) use arguments::brackets;
use arguments::{chunk, is_printable, path, syntax_error};
pub use offer::Offer;

/// Next step of the session.
#[derive(Debug)]
pub enum Step {
    /// Send this reply and read the next command.
    Reply(Reply),
    /// Decide about a recipient: call [`Server::add_recipient`], or refuse the recipient.
    Recipient(Recipient),
    /// Send 354, read content up to the end of data, then call [`Server::finish`].
    Content,
    /// Read a chunk of content, and refuse it afterwards if there is a `refusal`.
    Chunk {
        /// Number of octets that follow the command line.
        octets: u64,
        /// Whether the message ends with this chunk.
        last: bool,
        /// Reply to a chunk out of sequence, whose octets must be read and dropped.
        refusal: Option<Reply>,
    },
    /// Send 220, drop the buffered input, do the TLS handshake, then call [`Server::reset_for_tls`].
    StartTls,
    /// Check credentials.
    Auth {
        /// PLAIN or LOGIN.
        mechanism: Mechanism,
        /// The initial response in base64, if the client sent one.
        initial: Option<String>,
    },
    /// Apply the attributes with which a trusted peer describes its client.
    Xclient(Attributes),
    /// Record the attributes with which a trusted peer describes the source of the message.
    Xforward(Attributes),
}

/// A SASL mechanism that the server offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 4616.
    Plain,
    /// The older exchange with two prompts.
    Login,
}

/// A transaction, from MAIL to the end of data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// The argument of MAIL.
    pub reverse_path: ReversePath,
    /// The accepted arguments of RCPT.
    pub recipients: Vec<Recipient>,
    /// BODY.
    pub body: BodyKind,
    /// SMTPUTF8.
    pub smtputf8: bool,
    /// RET.
    pub ret: Option<Ret>,
    /// ENVID.
    pub envid: Option<String>,
    /// SIZE; 0 if the client declared none. The real size may differ.
    pub declared_size: u64,
    /// The client has sent BDAT, so DATA is out of sequence (RFC 3030 3).
    pub chunking: bool,
}

/// The state machine of the server side of one session.
#[derive(Debug)]
pub struct Server {
    offer: Offer,
    helo: Option<Helo>,
    user: Option<String>,
    transaction: Option<Transaction>,
}

/// How the client introduced itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helo {
    /// Its argument.
    pub name: String,
    /// EHLO rather than HELO.
    pub extended: bool,
}

impl Server {
    /// The state before the greeting.
    pub fn new(offer: Offer) -> Self {
        Self {
            offer,
            helo: None,
            user: None,
            transaction: None,
        }
    }

    /// The current offer.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// How the client introduced itself; `None` before EHLO or HELO.
    pub fn helo(&self) -> Option<&Helo> {
        self.helo.as_ref()
    }

    /// The authenticated user.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Processes one command line, without its CRLF.
    pub fn command(&mut self, line: &[u8]) -> Step {
        if line.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
            return Step::Reply(Reply::bad_line_end());
        }
        // Commands that smtp-proto does not know, or whose parser assumes a server that offers every extension.
        let verb = line.split(|b| *b == b' ').next().unwrap_or_default();
        if verb.eq_ignore_ascii_case(b"XCLIENT") || verb.eq_ignore_ascii_case(b"XFORWARD") {
            return self.attributes(line, verb.len());
        }
        if verb.eq_ignore_ascii_case(b"BDAT") {
            return match chunk(&line[verb.len()..]) {
                Some((octets, last)) => self.bdat(octets, last),
                None => Step::Reply(Reply::bad_chunk()),
            };
        }
        match orcpt::take(line) {
            None => self.known(line),
            Some((rest, orcpt)) => match self.known(&rest) {
                Step::Recipient(recipient) => self.with_orcpt(recipient, orcpt),
                step => step,
            },
        }
    }

    /// Processes a command that smtp-proto parses.
    fn known(&mut self, line: &[u8]) -> Step {
        let mut terminated = Vec::with_capacity(line.len() + 2);
        terminated.extend_from_slice(line);
        terminated.extend_from_slice(b"\r\n");
        match Request::parse(&mut terminated.iter()) {
            Ok(request) => self.request(line, request),
            Err(error) => Step::Reply(syntax_error(error)),
        }
    }

    /// Adds the ORCPT. A value outside ASCII needs SMTPUTF8 on MAIL (RFC 6533 3).
    fn with_orcpt(&self, recipient: Recipient, orcpt: String) -> Step {
        let smtputf8 = self.transaction.as_ref().is_some_and(|t| t.smtputf8);
        if recipient.orcpt.is_some() || !orcpt.is_ascii() && !smtputf8 {
            return Step::Reply(Reply::bad_parameter("ORCPT"));
        }
        Step::Recipient(Recipient {
            orcpt: Some(orcpt),
            ..recipient
        })
    }

    fn request(&mut self, line: &[u8], request: Request<Cow<'_, str>>) -> Step {
        match request {
            Request::Ehlo { host } => self.hello(&host, true),
            Request::Helo { host } => self.hello(&host, false),
            Request::Mail { from } => Step::Reply(self.mail(line, &from)),
            Request::Rcpt { to } => self.rcpt(line, &to),
            Request::Data => self.data(),
            Request::Rset => {
                self.transaction = None;
                Step::Reply(Reply::ok())
            }
            Request::Noop { .. } => Step::Reply(Reply::ok()),
            Request::Quit => Step::Reply(Reply::goodbye(&self.offer.hostname)),
            Request::Vrfy { .. } => Step::Reply(Reply::cannot_verify()),
            Request::Help { .. } => Step::Reply(Reply::help()),
            Request::StartTls => self.starttls(),
            Request::Auth {
                mechanism,
                initial_response,
            } => self.auth(mechanism, &initial_response),
            Request::Bdat { .. }
            | Request::Expn { .. }
            | Request::Lhlo { .. }
            | Request::Etrn { .. }
            | Request::Atrn { .. }
            | Request::Burl { .. } => Step::Reply(Reply::not_implemented()),
        }
    }

    /// EHLO and HELO also reset the transaction (RFC 5321 4.1.4).
    fn hello(&mut self, host: &str, extended: bool) -> Step {
        if host.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Step::Reply(Reply::syntax("EHLO hostname"));
        }
        self.transaction = None;
        self.helo = Some(Helo {
            name: host.to_owned(),
            extended,
        });
        if !extended {
            return Step::Reply(Reply::helo(&self.offer.hostname));
        }
        let extensions = self.offer.extensions();
        Step::Reply(Reply::ehlo(&self.offer.hostname, extensions))
    }

    fn mail(&mut self, line: &[u8], from: &MailFrom<Cow<'_, str>>) -> Reply {
        if self.helo.is_none() {
            return Reply::bad_sequence("Send EHLO first");
        }
        if self.offer.tls_required && !self.offer.encrypted {
            return Reply::tls_required();
        }
        if self.transaction.is_some() {
            return Reply::bad_sequence("A transaction is open already, send RSET to end it");
        }
        let smtputf8 = from.flags & MAIL_SMTPUTF8 != 0;
        let reverse_path = match path(line) {
            Some("") => ReversePath::NULL,
            Some(text) => match Mailbox::parse(text) {
                Ok(mailbox) if mailbox.is_internationalized() && !smtputf8 => {
                    return Reply::needs_smtputf8();
                }
                Ok(mailbox) => mailbox.into(),
                Err(why) => return Reply::bad_sender(why),
            },
            None => return Reply::syntax("MAIL FROM:<reverse-path> [parameters]"),
        };
        if let Some(parameter) = self.offer.unsupported_parameter(from) {
            return Reply::unknown_parameter(parameter);
        }
        if from.size as u64 > self.offer.message_size {
            return Reply::too_large(self.offer.message_size);
        }
        let envid = from.env_id.as_deref().map(str::to_owned);
        if envid.as_deref().is_some_and(|id| !is_printable(id)) {
            return Reply::bad_parameter("ENVID");
        }
        self.transaction = Some(Transaction {
            reverse_path,
            recipients: Vec::new(),
            body: match from.flags & MAIL_BODY_8BITMIME {
                0 => BodyKind::SevenBit,
                _ => BodyKind::EightBitMime,
            },
            smtputf8,
            ret: match from.flags & (MAIL_RET_FULL | MAIL_RET_HDRS) {
                0 => None,
                MAIL_RET_HDRS => Some(Ret::Headers),
                _ => Some(Ret::Full),
            },
            envid,
            declared_size: from.size as u64,
            chunking: false,
        });
        Reply::sender_ok()
    }

    fn rcpt(&mut self, line: &[u8], to: &RcptTo<Cow<'_, str>>) -> Step {
        let Some(transaction) = &self.transaction else {
            return Step::Reply(Reply::bad_sequence("Send MAIL first"));
        };
        if transaction.chunking {
            return Step::Reply(Reply::bad_sequence(
                "BDAT has begun, send RSET to start again",
            ));
        }
        if transaction.recipients.len() >= self.offer.recipients {
            return Step::Reply(Reply::too_many_recipients());
        }
        if to.rrvs != 0 || to.flags & smtp_proto::RCPT_CONNEG != 0 {
            return Step::Reply(Reply::unknown_parameter("RRVS or CONNEG"));
        }
        let mailbox = match path(line).map(Mailbox::parse) {
            Some(Ok(mailbox)) => mailbox,
            Some(Err(why)) => return Step::Reply(Reply::bad_recipient(why)),
            None => return Step::Reply(Reply::syntax("RCPT TO:<forward-path> [parameters]")),
        };
        if mailbox.is_internationalized() && !transaction.smtputf8 {
            return Step::Reply(Reply::needs_smtputf8());
        }
        let orcpt = to
            .orcpt
            .as_deref()
            .map(|address| format!("rfc822;{address}"));
        if orcpt.as_deref().is_some_and(|text| !is_printable(text)) {
            return Step::Reply(Reply::bad_parameter("ORCPT"));
        }
        let said =
            RCPT_NOTIFY_NEVER | RCPT_NOTIFY_SUCCESS | RCPT_NOTIFY_FAILURE | RCPT_NOTIFY_DELAY;
        let notify = (to.flags & said != 0).then_some(Notify {
            success: to.flags & RCPT_NOTIFY_SUCCESS != 0,
            failure: to.flags & RCPT_NOTIFY_FAILURE != 0,
            delay: to.flags & RCPT_NOTIFY_DELAY != 0,
        });
        Step::Recipient(Recipient {
            mailbox,
            notify,
            orcpt,
        })
    }

    /// Adds the recipient of a [`Step::Recipient`], after the session has accepted it.
    pub fn add_recipient(&mut self, recipient: Recipient) -> Reply {
        match &mut self.transaction {
            Some(transaction) => {
                transaction.recipients.push(recipient);
                Reply::recipient_ok()
            }
            None => Reply::bad_sequence("Send MAIL first"),
        }
    }

    fn data(&mut self) -> Step {
        match &self.transaction {
            None => Step::Reply(Reply::bad_sequence("Send MAIL first")),
            Some(transaction) if transaction.chunking => Step::Reply(Reply::bad_sequence(
                "BDAT has begun, end the message with BDAT LAST",
            )),
            Some(transaction) if transaction.recipients.is_empty() => {
                Step::Reply(Reply::no_valid_recipients())
            }
            Some(_) => Step::Content,
        }
    }

    /// The octets of a chunk follow its command even if the server refuses the command, so they must be read.
    fn bdat(&mut self, octets: u64, last: bool) -> Step {
        let refusal = match &mut self.transaction {
            None => Some(Reply::bad_sequence("Send MAIL first")),
            Some(transaction) if transaction.recipients.is_empty() => {
                Some(Reply::no_valid_recipients())
            }
            Some(transaction) => {
                transaction.chunking = true;
                None
            }
        };
        Step::Chunk {
            octets,
            last,
            refusal,
        }
    }

    /// Ends the transaction and returns it, after the end of data or after a refusal.
    pub fn finish(&mut self) -> Option<Transaction> {
        self.transaction.take()
    }

    /// The transaction in progress.
    pub fn transaction(&self) -> Option<&Transaction> {
        self.transaction.as_ref()
    }

    fn starttls(&mut self) -> Step {
        if !self.offer.starttls {
            return Step::Reply(Reply::not_implemented());
        }
        Step::StartTls
    }

    /// Resets the session after the TLS handshake: forgets everything that the client sent before it (RFC 3207 4.2).
    pub fn reset_for_tls(&mut self) {
        self.set_encrypted();
        self.helo = None;
        self.user = None;
        self.transaction = None;
    }

    /// Marks the session as encrypted.
    pub fn set_encrypted(&mut self) {
        self.offer.starttls = false;
        self.offer.encrypted = true;
    }

    /// Resets the session after XCLIENT; the session starts again with a greeting.
    pub fn reset_for_xclient(&mut self, user: Option<String>) {
        self.helo = None;
        self.user = user;
        self.transaction = None;
    }

    fn auth(&mut self, mechanism: u64, initial: &str) -> Step {
        if !self.offer.auth {
            return Step::Reply(Reply::not_implemented());
        }
        if !self.offer.encrypted {
            return Step::Reply(Reply::auth_needs_tls());
        }
        if self.helo.as_ref().is_none_or(|helo| !helo.extended) {
            return Step::Reply(Reply::bad_sequence("Send EHLO first"));
        }
        if self.user.is_some() {
            return Step::Reply(Reply::bad_sequence("The session is authenticated already"));
        }
        if self.transaction.is_some() {
            return Step::Reply(Reply::bad_sequence("AUTH is not allowed in a transaction"));
        }
        let mechanism = match mechanism {
            AUTH_PLAIN => Mechanism::Plain,
            AUTH_LOGIN => Mechanism::Login,
            _ => return Step::Reply(Reply::unknown_mechanism()),
        };
        Step::Auth {
            mechanism,
            initial: (!initial.is_empty()).then(|| initial.to_owned()),
        }
    }

    /// Records the user after a successful AUTH.
    pub fn set_user(&mut self, user: String) {
        self.user = Some(user);
    }

    fn attributes(&mut self, line: &[u8], verb: usize) -> Step {
        let xclient = verb == "XCLIENT".len();
        if !(if xclient {
            self.offer.xclient
        } else {
            self.offer.xforward
        }) {
            return Step::Reply(Reply::not_implemented());
        }
        if self.transaction.is_some() {
            return Step::Reply(Reply::bad_sequence("Not allowed in a transaction"));
        }
        match xtext::attributes(&line[verb..]) {
            Some(attributes) if xclient => Step::Xclient(attributes),
            Some(attributes) => Step::Xforward(attributes),
            None => Step::Reply(Reply::syntax("attribute=value [attribute=value ...]")),
        }
    }
}
