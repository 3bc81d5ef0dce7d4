//! The verb of a command line.

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

/// All verbs with their names.
const VERBS: [(&str, Verb); 21] = [
    ("MAIL", Verb::Mail),
    ("RCPT", Verb::Rcpt),
    ("DATA", Verb::Data),
    ("EHLO", Verb::Ehlo),
    ("QUIT", Verb::Quit),
    ("RSET", Verb::Rset),
    ("HELO", Verb::Helo),
    ("NOOP", Verb::Noop),
    ("STARTTLS", Verb::StartTls),
    ("AUTH", Verb::Auth),
    ("XCLIENT", Verb::Xclient),
    ("XFORWARD", Verb::Xforward),
    ("VRFY", Verb::Vrfy),
    ("HELP", Verb::Help),
    ("EXPN", Verb::NotImplemented),
    ("LHLO", Verb::NotImplemented),
    ("ETRN", Verb::NotImplemented),
    ("ATRN", Verb::NotImplemented),
    ("BURL", Verb::NotImplemented),
    ("TURN", Verb::NotImplemented),
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
    let (_, verb) = VERBS.iter().find(named)?;
    Some((*verb, rest))
}
