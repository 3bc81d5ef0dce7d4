//! What the server offers: the extensions in its reply to EHLO.

use std::borrow::Cow;
use std::sync::Arc;

/// What the server offers and demands. The offer changes after the TLS handshake.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Host name of the relay.
    pub hostname: Arc<str>,
    /// Largest content in octets, announced with SIZE.
    pub message_size: u64,
    /// Largest number of recipients of one transaction.
    pub recipients: usize,
    /// STARTTLS is offered: it is configured, and the session is not encrypted yet.
    pub starttls: bool,
    /// MAIL is refused without encryption.
    pub tls_required: bool,
    /// AUTH is configured.
    pub auth: bool,
    /// The session is encrypted. AUTH is offered only in an encrypted session.
    pub encrypted: bool,
    /// This peer may send XCLIENT.
    pub xclient: bool,
    /// This peer may send XFORWARD.
    pub xforward: bool,
}

impl Offer {
    /// The lines of the reply to EHLO after the first.
    pub(super) fn extensions(&self) -> Vec<Cow<'static, str>> {
        let mut extensions: Vec<Cow<'static, str>> = vec![
            "PIPELINING".into(),
            format!("SIZE {}", self.message_size).into(),
            "8BITMIME".into(),
            "SMTPUTF8".into(),
            "CHUNKING".into(),
            "DSN".into(),
            "ENHANCEDSTATUSCODES".into(),
        ];
        if self.starttls {
            extensions.push("STARTTLS".into());
        }
        if self.auth && self.encrypted {
            extensions.push("AUTH PLAIN LOGIN".into());
        }
        if self.xclient {
            extensions.push("XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT".into());
        }
        if self.xforward {
            extensions.push("XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE".into());
        }
        extensions
    }
}
