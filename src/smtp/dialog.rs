//! The client side of a session as pure machines: replies in, commands out.
//!
//! [`Opening`] leads from the greeting to a session that takes mail; [`Transaction`] carries one message, as often as
//! the session lasts. Both append commands to a buffer and say what they want next; whoever owns the socket writes the
//! buffer, reads a reply, and feeds it. So every turn a server can take is tested without one.

mod capabilities;
mod opening;
mod transaction;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use capabilities::Capabilities;
pub use opening::{Credentials, Opening, OpeningError, Progress, TlsWish};
pub use transaction::{
    BareLineEnd, Facts, Fate, Interruption, Next, Settled, Transaction, Unsupported,
};

/// What a reply answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The connection.
    Greeting,
    /// EHLO, LHLO or HELO.
    Hello,
    /// STARTTLS.
    StartTls,
    /// AUTH and its continuations.
    Auth,
    /// RSET.
    Reset,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA.
    Data,
    /// The dot after the content.
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
