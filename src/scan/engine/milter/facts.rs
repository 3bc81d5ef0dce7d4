//! What a filter is told about a message beside its content: macros, and the arguments of the events, as mail servers send
//! them.

use std::net::IpAddr;

use super::packet::{Event, Terms};
use crate::message::{BodyKind, Envelope, Mailbox, MessageId};

/// The macros, each with the events that it goes with unless the filter chooses.
pub(super) struct Macros {
    hostname: String,
    all: Vec<(&'static str, String, &'static [Event])>,
}

const SESSION: &[Event] = &[Event::Connect];
const HELLO: &[Event] = &[Event::Helo];
const TRANSACTION: &[Event] = &[
    Event::Mail,
    Event::Rcpt,
    Event::Data,
    Event::EndOfHeader,
    Event::EndOfBody,
];
const SENDER: &[Event] = &[Event::Mail];

impl Macros {
    /// Those of a message, but for those of its recipients.
    pub(super) fn of(hostname: &str, id: MessageId, envelope: &Envelope) -> Self {
        let origin = &envelope.origin;
        let client = address(origin.client);
        let name = name_of(envelope);
        let mut all = vec![
            ("j", hostname.to_owned(), SESSION),
            ("{daemon_name}", origin.listener.to_string(), SESSION),
            (
                "v",
                format!("Spillway {}", env!("CARGO_PKG_VERSION")),
                SESSION,
            ),
            ("_", format!("{name} [{client}]"), SESSION),
            ("{client_name}", name, SESSION),
            ("{client_addr}", client, SESSION),
        ];
        if let Some(tls) = &origin.tls {
            let (version, cipher) = tls.split_once(' ').unwrap_or((tls, ""));
            all.push(("{tls_version}", version.to_owned(), HELLO));
            all.push(("{cipher}", cipher.to_owned(), HELLO));
        }
        all.push(("i", id.to_string(), TRANSACTION));
        if let Some(user) = &origin.user {
            all.push(("{auth_authen}", user.clone(), SENDER));
            // Which mechanism it was is not kept. Filters ask whether there was one.
            all.push(("{auth_type}", "PLAIN".to_owned(), SENDER));
        }
        let sender = envelope.reverse_path.qualified(hostname);
        let (_, domain) = sender.rsplit_once('@').unwrap_or_default();
        all.push(("{mail_addr}", sender.to_string(), SENDER));
        all.push(("{mail_host}", domain.to_owned(), SENDER));
        all.push(("{mail_mailer}", "smtp".to_owned(), SENDER));
        Self {
            hostname: hostname.to_owned(),
            all,
        }
    }

    /// The data of the macros that go before an event: its command, names and values; none if there are none.
    pub(super) fn before(
        &self,
        event: Event,
        terms: &Terms,
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

/// Name, family, port and address of the client.
pub(super) fn connection(envelope: &Envelope) -> Vec<u8> {
    let client = envelope.origin.client.to_canonical();
    let mut data = Vec::new();
    put(&mut data, &name_of(envelope));
    data.push(if client.is_ipv4() { b'4' } else { b'6' });
    // Nobody keeps the client's port.
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

/// A text with its end. What could be taken for its end, or for another line, is none of it.
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

/// The client's name; its address in brackets where that is not known, as mail servers say it.
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
