//! The metadata of a message, for a service that must not see the content.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::message::mime::{Inspection, Part};
use crate::message::{Content, Envelope, MessageId};

#[derive(Serialize)]
struct Told<'a> {
    id: String,
    reverse_path: Cow<'a, str>,
    recipients: Vec<Cow<'a, str>>,
    client: String,
    client_name: Option<&'a str>,
    helo: &'a str,
    protocol: &'a str,
    tls: Option<&'a str>,
    user: Option<&'a str>,
    listener: &'a str,
    size: usize,
    sha256: String,
    subject: Option<&'a str>,
    parts: Vec<ToldPart<'a>>,
    /// Limits of the MIME analysis that the message exceeds. If there are any, `parts` is incomplete.
    exceeded: Vec<&'a str>,
}

#[derive(Serialize)]
struct ToldPart<'a> {
    path: &'a str,
    /// Media type that the message declares.
    r#type: &'a str,
    /// Media type that the relay detected in the content.
    sniffed: String,
    names: &'a [String],
    attachment: bool,
    encrypted: bool,
    size: usize,
    sha256: String,
}

/// Writes the JSON document. This hashes every part: for long content, call it outside the async runtime.
pub(super) fn write(
    hostname: &str,
    id: MessageId,
    envelope: &Envelope,
    content: &Content,
    inspection: &Inspection,
) -> Bytes {
    let origin = &envelope.origin;
    let leaves = inspection.parts.iter().filter(|part| !part.is_container);
    let told = Told {
        id: id.to_string(),
        reverse_path: envelope.reverse_path.qualified(hostname),
        recipients: envelope
            .recipients
            .iter()
            .map(|r| r.mailbox.qualified(hostname))
            .collect(),
        client: origin.client.to_canonical().to_string(),
        client_name: origin.client_name.as_deref(),
        helo: &origin.helo,
        protocol: &origin.protocol,
        tls: origin.tls.as_deref(),
        user: origin.user.as_deref(),
        listener: &origin.listener,
        size: content.len(),
        sha256: hex(&Sha256::digest(content.bytes())),
        subject: inspection.subject.as_deref(),
        parts: leaves.map(part).collect(),
        exceeded: inspection.exceeded.iter().map(|e| e.as_str()).collect(),
    };
    // Serialization cannot fail: the document contains only types that JSON has.
    serde_json::to_vec(&told).unwrap_or_default().into()
}

fn part(part: &Part) -> ToldPart<'_> {
    ToldPart {
        path: &part.path,
        r#type: &part.declared,
        sniffed: part.sniffed().media_type().to_owned(),
        names: &part.names,
        attachment: part.is_attachment,
        encrypted: part.is_encrypted,
        size: part.bytes.len(),
        sha256: hex(&part.sha256()),
    }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}
