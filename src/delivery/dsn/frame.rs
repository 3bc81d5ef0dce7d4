//! What all parts of a notification share: the MIME structure, the character set, and the length of lines.

use std::fmt::Write as _;

use memchr::memmem;

use crate::message::{Mailbox, MessageId, header};

/// Largest part of the original message that a notification returns, in octets. A notification returns a smaller
/// message whole unless the sender asked for RET=HDRS; of a larger message it returns the header section up to this
/// size.
pub(super) const MAX_RETURNED_OCTETS: usize = 50_000;
/// Longest line in octets, without CRLF (RFC 5322 2.1.1).
pub(super) const LINE_OCTETS_MAX: usize = 998;
/// Column at which this module folds its own header fields: below the 78 that RFC 5322 2.1.1 recommends.
const FOLD_WIDTH: usize = 76;
/// Field label and address type before an address outside ASCII (RFC 6533 3).
pub(super) const UTF8_RECIPIENT: &str = "Final-Recipient: utf-8; ";

/// Properties that all parts of a notification share.
pub(super) struct Frame {
    /// The notification may contain text outside ASCII and is sent with SMTPUTF8.
    pub(super) utf8: bool,
    pub(super) boundary: String,
}

// Writing to a String cannot fail, so the results of `write!` below are ignored.
impl Frame {
    /// The frame of the notification with this id. The original message cannot contain its boundary, because the id did
    /// not exist when the original message was written.
    pub(super) fn new(id: MessageId, utf8: bool) -> Self {
        Self {
            utf8,
            boundary: format!("=_{id}"),
        }
    }

    pub(super) fn for_people(&self) -> &'static str {
        match self.utf8 {
            true => "text/plain; charset=utf-8",
            false => "text/plain; charset=us-ascii",
        }
    }

    pub(super) fn for_programs(&self) -> &'static str {
        match self.utf8 {
            true => "message/global-delivery-status",
            false => "message/delivery-status",
        }
    }

    pub(super) fn delimiter(&self) -> String {
        format!("\r\n--{}\r\n", self.boundary)
    }

    pub(super) fn end(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary)
    }

    pub(super) fn part(&self, out: &mut String, content_type: &str, eight_bit: bool) {
        out.push_str(&self.delimiter());
        let _ = write!(out, "Content-Type: {content_type}\r\n");
        if eight_bit {
            out.push_str("Content-Transfer-Encoding: 8bit\r\n");
        }
        out.push_str("\r\n");
    }

    /// Appends the part with the header section of `content`. Lines and total size are cut to the limits; the text is
    /// ASCII unless UTF-8 is allowed.
    pub(super) fn headers(&self, octets: &mut Vec<u8>, content: &[u8]) {
        let kind = match self.utf8 {
            true => "message/global-headers",
            false => "text/rfc822-headers",
        };
        let mut head = String::new();
        self.part(&mut head, kind, self.utf8);
        octets.extend_from_slice(head.as_bytes());
        let end = octets.len() + MAX_RETURNED_OCTETS;
        for line in lines(header::section(content)) {
            let line = &line[..line.len().min(LINE_OCTETS_MAX)];
            if octets.len() + line.len() > end {
                return;
            }
            let clean = self.clean(&String::from_utf8_lossy(line));
            octets
                .extend_from_slice(&clean.as_bytes()[..clean.floor_char_boundary(LINE_OCTETS_MAX)]);
            octets.extend_from_slice(b"\r\n");
        }
    }

    /// Replaces control characters in text from another system and, unless UTF-8 is allowed, characters outside ASCII,
    /// so that the text stays within one line.
    pub(super) fn clean(&self, text: &str) -> String {
        let clean = |c: char| match c {
            '\t' => ' ',
            c if c.is_control() || (!self.utf8 && !c.is_ascii()) => '?',
            c => c,
        };
        text.chars().map(clean).collect()
    }

    /// The recipient's address, encoded so that a reader can recover it even if only ASCII is allowed.
    pub(super) fn mailbox(&self, mailbox: &Mailbox) -> String {
        match mailbox.is_internationalized() && !self.utf8 {
            true => in_ascii(mailbox.as_str()),
            false => self.clean(mailbox.as_str()),
        }
    }

    /// Copies text of an earlier notification, converted to ASCII unless UTF-8 is allowed.
    pub(super) fn copy_text(&self, out: &mut String, text: &str) {
        if self.utf8 {
            return out.push_str(text);
        }
        for line in lines(text.as_bytes()) {
            let line = String::from_utf8_lossy(line);
            let (label, address) = match line.strip_prefix(UTF8_RECIPIENT) {
                Some(address) => (UTF8_RECIPIENT, address),
                None => ("", ""),
            };
            match address.is_ascii() {
                true => out.push_str(&self.clean(&line)),
                false => out.extend([label, &in_ascii(address)]),
            }
            out.push_str("\r\n");
        }
    }
}

/// Encodes an address outside ASCII in ASCII as RFC 6533 3 specifies (`utf-8-addr-xtext`), cut at the maximum line
/// length.
fn in_ascii(address: &str) -> String {
    // The longest escape of one character.
    const ESCAPE_OCTETS_MAX: usize = "\\x{10FFFF}".len();
    let mut out = String::new();
    for c in address.chars() {
        match c {
            _ if UTF8_RECIPIENT.len() + out.len() + ESCAPE_OCTETS_MAX > LINE_OCTETS_MAX => break,
            '!'..='~' if !matches!(c, '+' | '=' | '\\') => out.push(c),
            c => {
                let _ = write!(out, "\\x{{{:02X}}}", u32::from(c));
            }
        }
    }
    out
}

/// The lines without their CRLF.
pub(super) fn lines(octets: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = octets;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memmem::find(rest, b"\r\n");
        let line = &rest[..end.unwrap_or(rest.len())];
        rest = end.map_or(&[][..], |end| &rest[end + 2..]);
        Some(line)
    })
}

/// Appends `label` and the text as it is, because a program compares it with what the sender gave (RFC 3464 2.2.1 and
/// 2.3.1); folded only if it would not fit into a line.
pub(super) fn unchanged(out: &mut String, label: &str, text: &str) {
    match label.len() + text.len() <= LINE_OCTETS_MAX {
        true => out.extend([label, text, "\r\n"]),
        false => fold(out, label, text),
    }
}

/// Appends `label` and the text, folded at spaces. A word that is too long for a line is cut.
pub(super) fn fold(out: &mut String, label: &str, text: &str) {
    out.push_str(label);
    let mut width = label.len();
    for (at, word) in text.split(' ').filter(|word| !word.is_empty()).enumerate() {
        let word = &word[..word.floor_char_boundary(LINE_OCTETS_MAX / 2)];
        if at > 0 && width + word.len() >= FOLD_WIDTH {
            out.push_str("\r\n    ");
            width = 4;
        } else if at > 0 {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += word.len();
    }
    out.push_str("\r\n");
}
