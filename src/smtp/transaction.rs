//! The server side of one session as a pure state machine: command lines go in, steps come out.
//!
//! The machine knows the sequence and the syntax of RFC 5321 and of the offered extensions, and uses no sockets, clocks or
//! configuration files. The listener passes lines in and carries out the [`Step`] that the machine returns.

mod arguments;
mod offer;
#[cfg(test)]
mod tests;
mod verb;

use super::parameters::{self, MailParameters, ParameterError};
use super::path::{self, PathError};
use super::reply::Reply;
use super::xtext::{self, Attributes};
use crate::message::{BodyKind, Recipient, Ret, ReversePath};
pub use offer::Offer;
use verb::Verb;

/// The form of a MAIL command, for the reply to one of another form.
const MAIL_SYNTAX: &str = "MAIL FROM:<reverse-path> [parameters]";
/// The form of a RCPT command.
const RCPT_SYNTAX: &str = "RCPT TO:<forward-path> [parameters]";

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
        /// The initial response as received, if the client sent one: `=` or base64 (RFC 4954 4).
        initial: Option<Vec<u8>>,
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
            return Step::Reply(refusal(line, Reply::bad_line_end()));
        }
        let Some((verb, arguments)) = verb::split(line) else {
            return Step::Reply(Reply::unknown_command());
        };
        match verb {
            Verb::Ehlo => self.hello(arguments, true),
            Verb::Helo => self.hello(arguments, false),
            Verb::Mail => Step::Reply(self.mail(arguments).unwrap_or_else(|refusal| refusal)),
            Verb::Rcpt => self.rcpt(arguments).unwrap_or_else(Step::Reply),
            Verb::Bdat => match arguments::chunk(arguments) {
                Some((octets, last)) => self.bdat(octets, last),
                None => Step::Reply(Reply::bad_chunk()),
            },
            Verb::Auth => self.auth(arguments).unwrap_or_else(Step::Reply),
            Verb::Xclient => self.attributes(arguments, self.offer.xclient, Step::Xclient),
            Verb::Xforward => self.attributes(arguments, self.offer.xforward, Step::Xforward),
            Verb::Noop => Step::Reply(Reply::ok()),
            Verb::Vrfy if arguments::is_none(arguments) => {
                Step::Reply(Reply::syntax("VRFY string"))
            }
            Verb::Vrfy => Step::Reply(Reply::cannot_verify()),
            Verb::Help => Step::Reply(Reply::help()),
            Verb::NotImplemented => Step::Reply(Reply::not_implemented()),
            Verb::Data => self.without_argument("DATA", arguments, Self::data),
            Verb::Rset => self.without_argument("RSET", arguments, Self::rset),
            Verb::Quit => self.without_argument("QUIT", arguments, Self::quit),
            Verb::StartTls => self.without_argument("STARTTLS", arguments, Self::starttls),
        }
    }

    fn without_argument(
        &mut self,
        verb: &'static str,
        arguments: &[u8],
        then: fn(&mut Self) -> Step,
    ) -> Step {
        match arguments::is_none(arguments) {
            true => then(self),
            false => Step::Reply(Reply::syntax(verb)),
        }
    }

    fn rset(&mut self) -> Step {
        self.transaction = None;
        Step::Reply(Reply::ok())
    }

    fn quit(&mut self) -> Step {
        Step::Reply(Reply::goodbye(&self.offer.hostname))
    }

    /// EHLO and HELO also reset the transaction (RFC 5321 4.1.4).
    fn hello(&mut self, arguments: &[u8], extended: bool) -> Step {
        let Some(name) = arguments::host(arguments) else {
            return Step::Reply(Reply::syntax("EHLO hostname"));
        };
        self.transaction = None;
        self.helo = Some(Helo { name, extended });
        if !extended {
            return Step::Reply(Reply::helo(&self.offer.hostname));
        }
        let extensions = self.offer.extensions();
        Step::Reply(Reply::ehlo(&self.offer.hostname, extensions))
    }

    fn mail(&mut self, arguments: &[u8]) -> Result<Reply, Reply> {
        if self.helo.is_none() {
            return Err(Reply::bad_sequence("Send EHLO first"));
        }
        if self.offer.tls_required && !self.offer.encrypted {
            return Err(Reply::tls_required());
        }
        if self.transaction.is_some() {
            return Err(Reply::bad_sequence(
                "A transaction is open already, send RSET to end it",
            ));
        }
        let (reverse_path, rest) = path::reverse(arguments).map_err(|why| match why {
            PathError::Malformed => Reply::syntax(MAIL_SYNTAX),
            PathError::Mailbox(why) => Reply::bad_sender(why),
        })?;
        let parameters = parameters::mail(rest).map_err(|why| refused(why, MAIL_SYNTAX))?;
        let mailbox = reverse_path.mailbox();
        if mailbox.is_some_and(|mailbox| mailbox.is_internationalized()) && !parameters.smtputf8 {
            return Err(Reply::needs_smtputf8());
        }
        if parameters.auth && !(self.offer.auth && self.offer.encrypted) {
            return Err(Reply::unknown_parameter("AUTH"));
        }
        if parameters.size.unwrap_or_default() > self.offer.message_size {
            return Err(Reply::too_large(self.offer.message_size));
        }
        self.transaction = Some(Transaction::new(reverse_path, parameters));
        Ok(Reply::sender_ok())
    }

    fn rcpt(&mut self, arguments: &[u8]) -> Result<Step, Reply> {
        let Some(transaction) = &self.transaction else {
            return Err(Reply::bad_sequence("Send MAIL first"));
        };
        if transaction.chunking {
            return Err(Reply::bad_sequence(
                "BDAT has begun, send RSET to start again",
            ));
        }
        if transaction.recipients.len() >= self.offer.recipients {
            return Err(Reply::too_many_recipients());
        }
        let (mailbox, rest) = path::forward(arguments).map_err(|why| match why {
            PathError::Malformed => Reply::syntax(RCPT_SYNTAX),
            PathError::Mailbox(why) => Reply::bad_recipient(why),
        })?;
        let parameters = parameters::rcpt(rest).map_err(|why| refused(why, RCPT_SYNTAX))?;
        if mailbox.is_internationalized() && !transaction.smtputf8 {
            return Err(Reply::needs_smtputf8());
        }
        // A value outside ASCII needs SMTPUTF8 on MAIL as well (RFC 6533 3).
        let orcpt = parameters.orcpt.as_deref().unwrap_or_default();
        if !orcpt.is_ascii() && !transaction.smtputf8 {
            return Err(Reply::bad_parameter("ORCPT"));
        }
        Ok(Step::Recipient(Recipient {
            mailbox,
            notify: parameters.notify,
            orcpt: parameters.orcpt,
        }))
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

    fn auth(&mut self, arguments: &[u8]) -> Result<Step, Reply> {
        if !self.offer.auth {
            return Err(Reply::not_implemented());
        }
        if !self.offer.encrypted {
            return Err(Reply::auth_needs_tls());
        }
        if self.helo.as_ref().is_none_or(|helo| !helo.extended) {
            return Err(Reply::bad_sequence("Send EHLO first"));
        }
        if self.user.is_some() {
            return Err(Reply::bad_sequence("The session is authenticated already"));
        }
        if self.transaction.is_some() {
            return Err(Reply::bad_sequence("AUTH is not allowed in a transaction"));
        }
        let (mechanism, initial) = arguments::auth(arguments)
            .ok_or_else(|| Reply::syntax("AUTH mechanism [initial-response]"))?;
        Ok(Step::Auth {
            mechanism: mechanism.ok_or_else(Reply::unknown_mechanism)?,
            initial: initial.map(<[u8]>::to_vec),
        })
    }

    /// Records the user after a successful AUTH.
    pub fn set_user(&mut self, user: String) {
        self.user = Some(user);
    }

    fn attributes(
        &mut self,
        arguments: &[u8],
        offered: bool,
        step: fn(Attributes) -> Step,
    ) -> Step {
        if !offered {
            return Step::Reply(Reply::not_implemented());
        }
        if self.transaction.is_some() {
            return Step::Reply(Reply::bad_sequence("Not allowed in a transaction"));
        }
        match xtext::attributes(arguments) {
            Some(attributes) => step(attributes),
            None => Step::Reply(Reply::syntax("attribute=value [attribute=value ...]")),
        }
    }
}

impl Transaction {
    /// The transaction that MAIL begins.
    fn new(reverse_path: ReversePath, parameters: MailParameters) -> Self {
        Self {
            reverse_path,
            recipients: Vec::new(),
            body: parameters.body.unwrap_or_default(),
            smtputf8: parameters.smtputf8,
            ret: parameters.ret,
            envid: parameters.envid,
            declared_size: parameters.size.unwrap_or_default(),
            chunking: false,
        }
    }
}

/// The reply to a line that is no command, or only the beginning of one: `reply`; but after BDAT it ends the session, because
/// octets of a chunk may follow, and they must never be read as commands.
pub fn refusal(line: &[u8], reply: Reply) -> Reply {
    match verb::split(line) {
        Some((Verb::Bdat, _)) => Reply::bad_chunk(),
        _ => reply,
    }
}

/// The reply to parameters that are refused; `syntax` is the form of the command.
fn refused(why: ParameterError<'_>, syntax: &'static str) -> Reply {
    match why {
        ParameterError::Malformed => Reply::syntax(syntax),
        ParameterError::Unknown(parameter) => Reply::unknown_parameter(parameter),
        ParameterError::Repeated(parameter) => Reply::repeated_parameter(parameter),
        ParameterError::Value(parameter) => Reply::bad_parameter(parameter),
    }
}
