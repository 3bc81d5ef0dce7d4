//! The verb of a command line.

use std::borrow::Cow;

use smtp_proto::{Error, Request};

use crate::smtp::path::{is_white, trimmed};

/// A verb that the relay knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Ehlo,
    Helo,
    Mail,
    Rcpt,
    Data,
    Bdat,
    Rset,
    Noop,
    Quit,
    Vrfy,
    Help,
    StartTls,
    Auth,
    Xclient,
    Xforward,
    /// A command of the standard that is not implemented here.
    NotImplemented,
}

/// The verbs whose arguments the relay reads itself, with their names.
const VERBS: [(&str, Verb); 9] = [
    ("MAIL", Verb::Mail),
    ("RCPT", Verb::Rcpt),
    ("EHLO", Verb::Ehlo),
    ("HELO", Verb::Helo),
    ("STARTTLS", Verb::StartTls),
    ("AUTH", Verb::Auth),
    ("XCLIENT", Verb::Xclient),
    ("XFORWARD", Verb::Xforward),
    ("BDAT", Verb::Bdat),
];

/// Splits a command line into its verb and what follows, which is empty or begins with white space. `None` for an unknown
/// verb.
///
/// Octets follow the line of BDAT, and they must never be read as commands: whatever begins with this word is BDAT, so that
/// its arguments decide.
pub(super) fn split(line: &[u8]) -> Option<(Verb, &[u8])> {
    const CHUNK_VERB: &[u8] = b"BDAT";
    let line = trimmed(line);
    if let Some((word, rest)) = line.split_at_checked(CHUNK_VERB.len())
        && word.eq_ignore_ascii_case(CHUNK_VERB)
        && !rest.first().is_some_and(u8::is_ascii_alphabetic)
    {
        return Some((Verb::Bdat, rest));
    }
    let end = line.iter().position(|octet| is_white(*octet));
    let (word, rest) = line.split_at(end.unwrap_or(line.len()));
    let named = |(name, _): &&(&str, Verb)| word.eq_ignore_ascii_case(name.as_bytes());
    let own = VERBS.iter().find(named).map(|(_, verb)| *verb);
    Some((own.or_else(|| other(word))?, rest))
}

/// The verb of a command whose arguments decide nothing, as smtp-proto knows it. Faults in its reading of paths and parameters
/// (docs/SMTP-PROTO.md) do not matter here: it gets the word, and one argument for the commands that demand one.
fn other(word: &[u8]) -> Option<Verb> {
    let line = [word, b" x\r\n"].concat();
    let request: Result<Request<Cow<'_, str>>, Error> = Request::parse(&mut line.iter());
    match request {
        Ok(Request::Data) => Some(Verb::Data),
        Ok(Request::Rset) => Some(Verb::Rset),
        Ok(Request::Noop { .. }) => Some(Verb::Noop),
        Ok(Request::Quit) => Some(Verb::Quit),
        Ok(Request::Vrfy { .. }) => Some(Verb::Vrfy),
        Ok(Request::Help { .. }) => Some(Verb::Help),
        Ok(_) | Err(Error::SyntaxError { .. } | Error::InvalidParameter { .. }) => {
            Some(Verb::NotImplemented)
        }
        Err(_) => None,
    }
}
