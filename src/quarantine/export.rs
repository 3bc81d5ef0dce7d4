//! Exports a held message as a file, in the form of its delivery, with the trace field first.

use crate::message::MessageId;
use crate::store::{Record, Store};

use super::{Act, QuarantineError, held, not_held};

/// The form of an exported message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One message, octet for octet, with CRLF line ends.
    Eml,
    /// An entry of a mailbox file in the variant mboxrd, whose quoting can be undone, with LF line ends. Entries can be
    /// written one after the other into one file.
    Mbox,
}

/// Reads a held message in the given form, and records in the audit that `act` exported it to `destination`. The audit entry
/// is durable before this returns the octets.
///
/// Cancel safety: at worst, the audit has an entry for an export that was not finished.
pub async fn export(
    store: &dyn Store,
    id: MessageId,
    format: Format,
    destination: &str,
    act: &Act,
) -> Result<Vec<u8>, QuarantineError> {
    let record = held(store, id).await?;
    let content = store.content(id).await.map_err(not_held)?;
    let octets = match format {
        Format::Eml => eml(&record, &content),
        Format::Mbox => mbox(&record, &content),
    };
    let entry = act.entry("export", id, destination.to_owned());
    store.audit(entry).await.map_err(QuarantineError::Store)?;
    Ok(octets)
}

/// Trace field and content.
pub fn eml(record: &Record, content: &[u8]) -> Vec<u8> {
    let mut octets = Vec::with_capacity(record.trace.len() + content.len());
    octets.extend_from_slice(record.trace.as_bytes());
    octets.extend_from_slice(content);
    octets
}

/// The message as an mboxrd entry: a `From ` line, the message with similar lines quoted, and an empty line.
pub fn mbox(record: &Record, content: &[u8]) -> Vec<u8> {
    let message = eml(record, content);
    let sender = record.envelope.reverse_path.as_str();
    // A reader splits the fields of the separator at white space, which a quoted local-part may contain (RFC 4155, appendix
    // A).
    let sender = if sender.is_empty() || sender.contains(char::is_whitespace) {
        "MAILER-DAEMON"
    } else {
        sender
    };
    let date = record.received_at.strftime("%a %b %e %H:%M:%S %Y");
    let mut octets = format!("From {sender} {date}\n").into_bytes();
    octets.reserve(message.len() + 64);
    for line in message.split_inclusive(|octet| *octet == b'\n') {
        let quotes = line.iter().take_while(|octet| **octet == b'>').count();
        if line[quotes..].starts_with(b"From ") {
            octets.push(b'>');
        }
        match line.strip_suffix(b"\r\n") {
            Some(line) => {
                octets.extend_from_slice(line);
                octets.push(b'\n');
            }
            None => octets.extend_from_slice(line),
        }
    }
    if octets.last() != Some(&b'\n') {
        octets.push(b'\n');
    }
    octets.push(b'\n');
    octets
}
