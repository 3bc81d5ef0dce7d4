//! The envelope: the arguments of MAIL and RCPT, and the client.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::address::{Mailbox, ReversePath};

/// Everything about a message that is not its content (RFC 5321 2.3.1), with the facts of the session that policy may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The argument of MAIL.
    pub reverse_path: ReversePath,
    /// The arguments of RCPT, in order; at least one, at most `limits.recipients`.
    pub recipients: Vec<Recipient>,
    /// BODY parameter (RFC 6152).
    pub body: BodyKind,
    /// SMTPUTF8 parameter (RFC 6531).
    pub smtputf8: bool,
    /// RET parameter (RFC 3461 4.3).
    pub ret: Option<Ret>,
    /// ENVID parameter, decoded from xtext (RFC 3461 4.4).
    pub envid: Option<String>,
    /// The origin of the message.
    pub origin: Origin,
}

/// One argument of RCPT with its DSN parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// The forward-path.
    pub mailbox: Mailbox,
    /// NOTIFY parameter (RFC 3461 4.1); `None` if the sender did not give one.
    pub notify: Option<Notify>,
    /// ORCPT parameter as received, decoded from xtext: `addr-type;address` (RFC 3461 4.2).
    pub orcpt: Option<String>,
}

impl From<Mailbox> for Recipient {
    fn from(mailbox: Mailbox) -> Self {
        Self {
            mailbox,
            notify: None,
            orcpt: None,
        }
    }
}

/// When the sender wants a notification about a recipient. If all are false: NOTIFY=NEVER.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Notify {
    /// NOTIFY=SUCCESS.
    pub success: bool,
    /// NOTIFY=FAILURE.
    pub failure: bool,
    /// NOTIFY=DELAY.
    pub delay: bool,
}

/// The kind of lines that the content may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BodyKind {
    /// Not declared, or 7BIT.
    #[default]
    SevenBit,
    /// 8BITMIME.
    EightBitMime,
}

/// How much of the message a bounce is to return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ret {
    /// RET=FULL.
    Full,
    /// RET=HDRS.
    Headers,
}

/// The client that sent the message: facts of the session, after XCLIENT and PROXY where those are trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Address of the client.
    pub client: IpAddr,
    /// Name of the client, if a trusted peer reported it (XCLIENT, XFORWARD). The relay makes no look-ups of its own.
    pub client_name: Option<String>,
    /// The argument of EHLO or HELO.
    pub helo: String,
    /// SMTP, ESMTP, ESMTPS, ESMTPSA … for Received (RFC 3848).
    pub protocol: String,
    /// TLS version and cipher suite of an encrypted session.
    pub tls: Option<String>,
    /// The authenticated user.
    pub user: Option<String>,
    /// Name of the listener.
    pub listener: Arc<str>,
}

impl Origin {
    /// The relay itself, as the origin of messages that it writes (bounces) and of files scanned from the command line.
    pub fn local(listener: &str) -> Self {
        Self {
            client: IpAddr::from([127, 0, 0, 1]),
            client_name: None,
            helo: String::new(),
            protocol: "local".to_owned(),
            tls: None,
            user: None,
            listener: listener.into(),
        }
    }
}
