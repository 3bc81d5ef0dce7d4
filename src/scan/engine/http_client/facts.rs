//! The envelope as fields of an HTTP request.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::message::{Envelope, MessageId};

/// Octets of recipients that are sent. HTTP servers limit the head of a request, so further recipients are left out.
pub(super) const RECIPIENT_OCTETS_MAX: usize = 16 * 1024;

/// The envelope in the request fields of rspamd's protocol, each name with `prefix` before it. A message that the relay
/// itself made has no client, so its `ip` and `helo` are left out. `hostname` is the relay's own: it completes the bare
/// postmaster address.
pub(in crate::scan::engine) fn facts(
    prefix: &str,
    hostname: &str,
    id: MessageId,
    envelope: &Envelope,
) -> HeaderMap {
    let mut fields = HeaderMap::new();
    let mut put = |name: &str, text: &str| {
        if let Ok(name) = HeaderName::try_from(format!("{prefix}{name}")) {
            fields.append(name, value(text));
        }
    };
    put("queue-id", &id.to_string());
    put("from", &envelope.reverse_path.qualified(hostname));
    let mut told = 0;
    for recipient in &envelope.recipients {
        let mailbox = recipient.mailbox.qualified(hostname);
        told += mailbox.len();
        if told > RECIPIENT_OCTETS_MAX {
            break;
        }
        put("rcpt", &mailbox);
    }
    let origin = &envelope.origin;
    if origin.protocol != "local" {
        put("ip", &origin.client.to_canonical().to_string());
        put("helo", &origin.helo);
    }
    if let Some(name) = &origin.client_name {
        put("hostname", name);
    }
    if let Some(user) = &origin.user {
        put("user", user);
    }
    if let Some((version, cipher)) = origin.tls.as_deref().and_then(|tls| tls.split_once(' ')) {
        put("tls-version", version);
        put("tls-cipher", cipher);
    }
    fields
}

/// A field value with `text`. Control characters become `?`, so that no text can end the field.
pub(super) fn value(text: &str) -> HeaderValue {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    let text: String = text.chars().map(clean).collect();
    HeaderValue::from_bytes(text.as_bytes()).unwrap_or(HeaderValue::from_static("?"))
}
