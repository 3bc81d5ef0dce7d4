//! Facts about a message for a filter, other than the content: macros and the arguments of events, in the form in which mail
//! servers send them.

use std::net::IpAddr;

use super::packet::{Event, NegotiatedTerms};
use crate::message::{BodyKind, Envelope, Mailbox, MessageId};

/// The macros, each with the events before which the relay sends it, unless the filter has chosen the macros itself.
pub(super) struct Macros {
    hostname: String,
    all: Vec<(&'static str, String, &'static [Event])>,
}

/// Events before which the relay sends macros about the session.
const SESSION_EVENTS: &[Event] = &[Event::Connect];
/// Events before which the relay sends macros about TLS.
const HELO_EVENTS: &[Event] = &[Event::Helo];
/// Events before which the relay sends the message id.
const TRANSACTION_EVENTS: &[Event] = &[
    Event::Mail,
    Event::Rcpt,
    Event::Data,
    Event::EndOfHeader,
    Event::EndOfBody,
];
/// Events before which the relay sends macros about the sender.
const SENDER_EVENTS: &[Event] = &[Event::Mail];

impl Macros {
    /// The macros of a message, without those of its recipients.
    pub(super) fn of(hostname: &str, id: MessageId, envelope: &Envelope) -> Self {
        let origin = &envelope.origin;
        let client = address(origin.client);
        let name = name_of(envelope);
        let mut all = vec![
            ("j", hostname.to_owned(), SESSION_EVENTS),
            ("{daemon_name}", origin.listener.to_string(), SESSION_EVENTS),
            (
                "v",
                format!("Spillway {}", env!("CARGO_PKG_VERSION")),
                SESSION_EVENTS,
            ),
            ("_", format!("{name} [{client}]"), SESSION_EVENTS),
            ("{client_name}", name, SESSION_EVENTS),
            ("{client_addr}", client, SESSION_EVENTS),
        ];
        if let Some(tls) = &origin.tls {
            let (version, cipher) = tls.split_once(' ').unwrap_or((tls, ""));
            all.push(("{tls_version}", version.to_owned(), HELO_EVENTS));
            all.push(("{cipher}", cipher.to_owned(), HELO_EVENTS));
        }
        all.push(("i", id.to_string(), TRANSACTION_EVENTS));
        if let Some(user) = &origin.user {
            all.push(("{auth_authen}", user.clone(), SENDER_EVENTS));
            // The relay does not keep the mechanism. Filters ask only whether the client authenticated.
            all.push(("{auth_type}", "PLAIN".to_owned(), SENDER_EVENTS));
        }
        let sender = envelope.reverse_path.qualified(hostname);
        let (_, domain) = sender.rsplit_once('@').unwrap_or_default();
        all.push(("{mail_addr}", sender.to_string(), SENDER_EVENTS));
        all.push(("{mail_host}", domain.to_owned(), SENDER_EVENTS));
        all.push(("{mail_mailer}", "smtp".to_owned(), SENDER_EVENTS));
        Self {
            hostname: hostname.to_owned(),
            all,
        }
    }

    /// Data of the macro packet before an event: the event's command, then names and values. `None` if there are no macros.
    pub(super) fn before(
        &self,
        event: Event,
        terms: &NegotiatedTerms,
        recipient: Option<&Mailbox>,
    ) -> Option<Vec<u8>> {
        let chosen = event.stage().and_then(|stage| terms.macros[stage].as_ref());
        let mut data = vec![event.command()];
        let mut put = |name: &str, value: &str| {
            put(&mut data, name);
            put(&mut data, value);
        };
        for (name, value, events) in &self.all {
            let wanted = match chosen {
                Some(chosen) => chosen.iter().any(|wanted| bare(wanted) == bare(name)),
                None => events.contains(&event),
            };
            if wanted {
                put(name, value);
            }
        }
        if let Some(recipient) = recipient {
            let address = recipient.qualified(&self.hostname);
            let (_, domain) = address.rsplit_once('@').unwrap_or_default();
            put("{rcpt_addr}", &address);
            put("{rcpt_host}", domain);
            put("{rcpt_mailer}", "smtp");
        }
        (data.len() > 1).then_some(data)
    }
}

/// Arguments of the connect event: name, family, port and address of the client.
pub(super) fn connection(envelope: &Envelope) -> Vec<u8> {
    let client = envelope.origin.client.to_canonical();
    let mut data = Vec::new();
    put(&mut data, &name_of(envelope));
    data.push(if client.is_ipv4() { b'4' } else { b'6' });
    // The relay does not keep the client's port.
    data.extend_from_slice(&0_u16.to_be_bytes());
    put(&mut data, &address(client));
    data
}

/// The arguments of MAIL.
pub(super) fn sender(hostname: &str, envelope: &Envelope, size: usize) -> Vec<u8> {
    let mut data = Vec::new();
    put(
        &mut data,
        &format!("<{}>", envelope.reverse_path.qualified(hostname)),
    );
    put(&mut data, &format!("SIZE={size}"));
    if envelope.body == BodyKind::EightBitMime {
        put(&mut data, "BODY=8BITMIME");
    }
    if envelope.smtputf8 {
        put(&mut data, "SMTPUTF8");
    }
    data
}

/// The argument of RCPT.
pub(super) fn recipient(hostname: &str, mailbox: &Mailbox) -> Vec<u8> {
    let mut data = Vec::new();
    put(&mut data, &format!("<{}>", mailbox.qualified(hostname)));
    data
}

/// Appends a text and its final NUL. NUL, CR and LF in the text become spaces, so that no text can end early or add a line.
pub(super) fn put(data: &mut Vec<u8>, text: &str) {
    let harmless = |octet: u8| match octet {
        0 | b'\r' | b'\n' => b' ',
        octet => octet,
    };
    data.extend(text.bytes().map(harmless));
    data.push(0);
}

fn address(client: IpAddr) -> String {
    client.to_canonical().to_string()
}

/// Name of the client. If the name is unknown, the address in brackets, as mail servers send it.
fn name_of(envelope: &Envelope) -> String {
    let origin = &envelope.origin;
    match &origin.client_name {
        Some(name) => name.clone(),
        None => format!("[{}]", address(origin.client)),
    }
}

fn bare(name: &str) -> &str {
    name.trim_matches(['{', '}'])
}
