//! Octets before a message, for engines that detect the type of content by its first octets.

use std::sync::LazyLock;

/// The same octets before every message, so that no sender chooses the first octets. By those octets, engines decide how to
/// scan content, and whether to scan it at all. With `%PDF-: x` as first field, or with `ustar` at octet 257, clamd does not
/// treat mail as mail, and does not unpack its attachments; c-icap does not scan it at all. clamd looks at 1024 octets, most
/// other engines at fewer.
///
/// The preface begins like mail that a relay has passed on, which all these engines recognise. It ends with a field that no
/// engine uses: if the first line of the message begins with a space, the line continues that field.
pub(super) static PREFACE: LazyLock<String> = LazyLock::new(|| {
    let line = "\tThese lines are the same for every message, so that no sender chooses the first octets.\r\n";
    format!(
        "Received: by spillway.invalid; Thu, 1 Jan 1970 00:00:00 +0000\r\n\
         X-Spillway-Note: The message that is to be scanned follows.\r\n{}",
        line.repeat(12)
    )
});
