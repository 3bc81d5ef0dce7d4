//! Transfer encodings. mail-parser decodes. If it fails, this module decodes leniently, as mail readers do: otherwise one
//! misplaced character would hide a part from the scan.

use mail_parser::decoders::base64::base64_decode;
use mail_parser::decoders::quoted_printable::quoted_printable_decode;

/// Content-Transfer-Encoding (RFC 2045 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Encoding {
    /// 7bit, 8bit, binary, no declaration, or an unknown encoding.
    #[default]
    Identity,
    Base64,
    QuotedPrintable,
}

impl Encoding {
    pub(super) fn from_field(value: &str) -> Self {
        let value = value.trim();
        if value.eq_ignore_ascii_case("base64") {
            Self::Base64
        } else if value.eq_ignore_ascii_case("quoted-printable") {
            Self::QuotedPrintable
        } else {
            Self::Identity
        }
    }
}

/// The decoded body. It never has more octets than `raw`, and decoding never fails.
pub(super) fn body(raw: &[u8], encoding: Encoding) -> bytes::Bytes {
    match encoding {
        Encoding::Identity => raw.to_vec().into(),
        Encoding::Base64 => base64_decode(raw)
            .or_else(|| base64_decode(&only_base64(raw)))
            .unwrap_or_else(|| raw.to_vec())
            .into(),
        Encoding::QuotedPrintable => quoted_printable_decode(raw)
            .unwrap_or_else(|| lenient_quoted_printable(raw))
            .into(),
    }
}

/// Removes characters outside the alphabet, which a decoder must ignore (RFC 2045 6.8).
fn only_base64(raw: &[u8]) -> Vec<u8> {
    raw.iter()
        .copied()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/' | b'='))
        .collect()
}

/// Decodes; an equals sign that begins neither an octet nor a soft line break is kept (RFC 2045 6.7, note).
fn lenient_quoted_printable(raw: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&octet, tail)) = rest.split_first() {
        rest = tail;
        if octet != b'=' {
            decoded.push(octet);
            continue;
        }
        let after_padding = tail.trim_ascii_start();
        let padding = &tail[..tail.len() - after_padding.len()];
        if let Some(lf) = memchr::memchr(b'\n', padding) {
            rest = &tail[lf + 1..];
        } else if let Some(value) = tail.get(..2).and_then(hex) {
            decoded.push(value);
            rest = &tail[2..];
        } else {
            decoded.push(octet);
        }
    }
    decoded
}

fn hex(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits).ok()?;
    // `from_str_radix` would accept a sign.
    digits
        .bytes()
        .all(|d| d.is_ascii_hexdigit())
        .then_some(())?;
    u8::from_str_radix(digits, 16).ok()
}
