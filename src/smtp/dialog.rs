//! The client side of a session as pure state machines: replies go in, commands come out.
//!
//! [`Opening`] leads from the greeting to a session that accepts mail. Each [`Transaction`] then carries one message. Both
//! append commands to a buffer and return the next step. The owner of the socket writes the buffer, reads a reply, and
//! passes the reply in. Tests can therefore play every behaviour of a server without a socket.

mod capabilities;
mod opening;
mod parameters;
mod transaction;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use capabilities::Capabilities;
pub use opening::{Credentials, Opening, OpeningError, Progress, TlsWish};
pub use transaction::{
    BareLineEnd, Facts, Fate, Interruption, Next, Settled, Transaction, Unsupported,
};

/// The command or event that a reply answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The new connection.
    Greeting,
    /// EHLO, LHLO or HELO.
    Hello,
    /// STARTTLS.
    StartTls,
    /// AUTH and the lines of its exchange.
    Auth,
    /// RSET.
    Reset,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA.
    Data,
    /// The end of data: the dot after the content.
    EndOfData,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Greeting => "greeting",
            Self::Hello => "EHLO",
            Self::StartTls => "STARTTLS",
            Self::Auth => "AUTH",
            Self::Reset => "RSET",
            Self::Mail => "MAIL",
            Self::Rcpt => "RCPT",
            Self::Data => "DATA",
            Self::EndOfData => "end of data",
        })
    }
}
