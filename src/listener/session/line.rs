//! One input line of a session.

use super::{Ending, http};
use crate::smtp::Reply;
use crate::smtp::transaction::refusal;

/// A line where a command, or the answer to a challenge, belongs.
pub(super) enum Line {
    /// The line without its CRLF.
    Command(Vec<u8>),
    /// Too long, or without CRLF; with the reply.
    Unacceptable(Reply),
}

impl Line {
    /// A line of at most `limit` octets, without its LF. A request of HTTP ends the session.
    pub(super) fn of(line: &[u8], limit: usize) -> Result<Self, Ending> {
        if http::is_http(line) {
            return Err(Ending::Http);
        }
        Ok(match line.strip_suffix(b"\r") {
            _ if line.len() + 1 > limit => {
                Self::Unacceptable(refusal(line, Reply::line_too_long(limit)))
            }
            Some(command) => Self::Command(command.to_vec()),
            None => Self::Unacceptable(refusal(line, Reply::bad_line_end())),
        })
    }
}
