//! What stands before a message where an engine tells by the first octets what it has got.

use std::sync::LazyLock;

/// The same for every message, so that no sender chooses the first octets: by those engines decide what they look at, and
/// whether they do. With `%PDF-: x` for a first field, or `ustar` at octet 257, mail is no mail to clamd, and its attachments
/// are not unpacked; c-icap leaves it alone altogether. clamd looks at 1024 octets, most others at fewer.
///
/// It begins as mail does by which a relay has passed, which all of them know, and ends with a field that nobody reads: a
/// first line that begins with a space would be part of it.
pub(super) static PREFACE: LazyLock<String> = LazyLock::new(|| {
    let line = "\tThese lines are the same for every message, so that no sender chooses the first octets.\r\n";
    format!(
        "Received: by spillway.invalid; Thu, 1 Jan 1970 00:00:00 +0000\r\n\
         X-Spillway-Note: The message that is to be scanned follows.\r\n{}",
        line.repeat(12)
    )
});
