//! The end of a header section, its fields that describe the body, and the parts of a multipart.

use std::ops::Range;
use std::sync::LazyLock;

use mail_parser::{HeaderValue, MessageParser, MimeHeaders};
use memchr::{memchr, memmem};

use super::Limits;
use super::decode::Encoding;

/// Octets of a field that are decoded: 16 KiB. mail-parser needs time in the square of the number of parameters, and valid
/// fields are shorter.
const FIELD_OCTETS_MAX: usize = 16 * 1024;
/// Occurrences of a field that are kept: two are enough to see that they differ.
const OCCURRENCES_MAX: usize = 2;

const CONTENT_TYPE: &str = "Content-Type";
const CONTENT_DISPOSITION: &str = "Content-Disposition";
const TRANSFER_ENCODING: &str = "Content-Transfer-Encoding";
const SUBJECT: &str = "Subject";
const WANTED_FIELDS: [&str; 4] = [
    CONTENT_TYPE,
    CONTENT_DISPOSITION,
    TRANSFER_ENCODING,
    SUBJECT,
];

/// The fields that describe a part, and the beginning of the body.
pub(super) struct Section<'a> {
    /// The name of each field, and the text after its colon as received.
    fields: Vec<(&'static str, &'a [u8])>,
    /// Offset of the body.
    pub(super) body: usize,
    /// The section has more fields or octets than allowed; further fields are not kept.
    pub(super) exceeded: bool,
}

impl<'a> Section<'a> {
    fn keep(&mut self, name: &'static str, body: &'a [u8]) {
        // The part that is cut off may say where the parts of the message are. For a subject, only its end is lost.
        self.exceeded |= body.len() > FIELD_OCTETS_MAX && name != SUBJECT;
        self.fields
            .push((name, &body[..body.len().min(FIELD_OCTETS_MAX)]));
    }

    fn all(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.fields
            .iter()
            .filter(move |(known, _)| *known == name)
            .map(|(_, field)| *field)
    }

    /// Whether the field occurs twice with different values. The first one counts here, but not for every reader.
    fn differs(&self, name: &'static str) -> bool {
        let mut all = self.all(name);
        match (all.next(), all.next()) {
            (Some(a), Some(b)) => !a.trim_ascii().eq_ignore_ascii_case(b.trim_ascii()),
            _ => false,
        }
    }
}

/// Reads the header section of a message or part: up to the first empty line (RFC 5322 2.1). Lines may end in LF alone, as in
/// files.
pub(super) fn read<'a>(entity: &'a [u8], limits: &Limits) -> Section<'a> {
    let mut section = Section {
        fields: Vec::new(),
        body: entity.len(),
        exceeded: false,
    };
    let mut open: Option<(&'static str, usize)> = None;
    let mut count = 0;
    let mut at = 0;
    while at < entity.len() {
        let rest = &entity[at..];
        let end = memchr(b'\n', rest).map_or(rest.len(), |lf| lf + 1);
        let line = &rest[..end];
        let is_folded = matches!(line.first(), Some(b' ' | b'\t'));
        if !is_folded && let Some((name, start)) = open.take() {
            section.keep(name, &entity[start..at]);
        }
        if matches!(line, b"\n" | b"\r\n") {
            section.body = at + end;
            break;
        }
        if !is_folded {
            count += 1;
            section.exceeded |= count > limits.header_fields || at > limits.header_octets;
            if !section.exceeded
                && let Some((name, body)) = wanted(line)
                && section.all(name).count() < OCCURRENCES_MAX
            {
                open = Some((name, at + body));
            }
        }
        at += end;
    }
    section.exceeded |= at > limits.header_octets;
    if let Some((name, start)) = open {
        section.keep(name, &entity[start..]);
    }
    section
}

/// The wanted field that begins with this line, and the offset of its body.
fn wanted(line: &[u8]) -> Option<(&'static str, usize)> {
    // White space of any length may precede the colon (RFC 5322 4.5.8).
    let colon = memchr(b':', line)?;
    let name = line[..colon].trim_ascii_end();
    let mut wanted = WANTED_FIELDS.into_iter();
    let known = wanted.find(|known| name.eq_ignore_ascii_case(known.as_bytes()))?;
    Some((known, colon + 1))
}

/// The decoded fields.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub(super) subject: Option<String>,
    pub(super) media_type: String,
    pub(super) boundary: Option<String>,
    pub(super) names: Vec<String>,
    pub(super) encoding: Encoding,
    pub(super) is_attachment: bool,
    pub(super) is_encrypted: bool,
    pub(super) is_ambiguous: bool,
}

impl Fields {
    /// Decodes the fields that [`read`] kept, with mail-parser.
    pub(super) fn decode(section: &Section<'_>, default_type: &str) -> Self {
        static PARSER: LazyLock<MessageParser> = LazyLock::new(|| {
            MessageParser::new()
                .header_content_type(CONTENT_TYPE)
                .header_content_type(CONTENT_DISPOSITION)
                .header_text(TRANSFER_ENCODING)
                .header_text(SUBJECT)
        });
        let mut this = Self {
            media_type: default_type.to_owned(),
            is_ambiguous: section.differs(CONTENT_TYPE) || section.differs(TRANSFER_ENCODING),
            ..Self::default()
        };
        // Decode only the first occurrence of each field, so that it is clear which one counts.
        let mut kept = Vec::new();
        for name in WANTED_FIELDS {
            if let Some(body) = section.all(name).next() {
                kept.extend_from_slice(name.as_bytes());
                kept.push(b':');
                kept.extend_from_slice(body.trim_ascii_end());
                kept.extend_from_slice(b"\r\n");
            }
        }
        if kept.is_empty() {
            return this;
        }
        kept.extend_from_slice(b"\r\n");
        if let Some(message) = PARSER.parse_headers(&kept) {
            this.take(&message);
        }
        this
    }

    fn take(&mut self, message: &mail_parser::Message<'_>) {
        self.subject = message.subject().map(str::to_owned);
        if let Some(disposition) = message.content_disposition() {
            self.is_attachment = disposition.is_attachment();
            self.names
                .extend(disposition.attribute("filename").map(str::to_owned));
        }
        if let Some(declared) = message.content_type() {
            let sub = declared.subtype().unwrap_or_default();
            self.media_type = format!("{}/{sub}", declared.ctype()).to_ascii_lowercase();
            if let Some(name) = declared.attribute("name")
                && !self.names.iter().any(|known| known == name)
            {
                self.names.push(name.to_owned());
            }
            if declared.ctype().eq_ignore_ascii_case("multipart") {
                let boundary = declared.attribute("boundary").map(str::trim_end);
                self.boundary = boundary.filter(|b| !b.is_empty()).map(str::to_owned);
            }
            let enveloped = declared
                .attribute("smime-type")
                .is_some_and(|kind| kind.to_ascii_lowercase().contains("enveloped"));
            self.is_encrypted = enveloped || self.media_type == "multipart/encrypted";
        }
        if let Some(HeaderValue::Text(encoding)) = message.header(TRANSFER_ENCODING) {
            self.encoding = Encoding::from_field(encoding);
        }
    }

    /// The type of a part of this multipart that declares none (RFC 2046 5.1.5).
    pub(super) fn default_type_of_parts(&self) -> &'static str {
        match self.media_type.as_str() {
            "multipart/digest" => "message/rfc822",
            _ => "text/plain",
        }
    }

    /// Whether the body is a message: by its type, or by its name if the type is general.
    pub(super) fn is_message(&self) -> bool {
        match self.media_type.as_str() {
            "message/rfc822" | "message/global" | "message/news" => true,
            "application/octet-stream" => self
                .names
                .iter()
                .any(|name| name.to_ascii_lowercase().ends_with(".eml")),
            _ => false,
        }
    }
}

/// The first `room` parts between the delimiter lines of `boundary` (RFC 2046 5.1.1). The text after a closing delimiter is
/// not a part, but a later delimiter begins a part again, because some readers show such parts. The last part may have no end.
pub(super) fn split(body: &[u8], boundary: &str, room: usize) -> Vec<Range<usize>> {
    let delimiter = [b"--", boundary.as_bytes()].concat();
    let mut parts: Vec<Range<usize>> = Vec::new();
    let mut open: Option<usize> = None;
    for at in memmem::find_iter(body, &delimiter) {
        if at > 0 && body[at - 1] != b'\n' {
            continue;
        }
        let rest = &body[at + delimiter.len()..];
        let closes = rest.starts_with(b"--");
        let line = memchr(b'\n', rest).map_or(rest.len(), |lf| lf + 1);
        if !closes && !rest[..line].trim_ascii().is_empty() {
            // The delimiter of a longer boundary with the same beginning.
            continue;
        }
        if let Some(start) = open.take() {
            parts.push(start..before_line_end(body, at).max(start));
            if parts.len() >= room {
                return parts;
            }
        }
        if !closes {
            open = Some(at + delimiter.len() + line);
        }
    }
    if let Some(start) = open {
        parts.push(start..body.len());
    }
    parts
}

/// The line end before a delimiter belongs to the delimiter (RFC 2046 5.1.1).
fn before_line_end(body: &[u8], at: usize) -> usize {
    let head = &body[..at];
    let head = head.strip_suffix(b"\n").unwrap_or(head);
    head.strip_suffix(b"\r").unwrap_or(head).len()
}
