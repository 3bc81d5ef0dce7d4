//! Parser for the answers of clamd.

use crate::scan::engine::head::Malformed;

/// An answer to INSTREAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClamdAnswer<'a> {
    /// clamd found nothing, or reached a limit that its configuration does not report.
    Ok,
    /// clamd found the signature with this name.
    Found(&'a str),
    /// clamd could not scan, for this reason.
    Failed(&'a str),
}

/// Parses the whole answer to a `z` command: one line of text that ends with a NUL.
///
/// # Errors
/// [`Malformed::CutOff`] for an incomplete answer, [`Malformed::Garbage`] for any other text.
pub fn parse(answer: &[u8]) -> Result<ClamdAnswer<'_>, Malformed> {
    let Some(text) = answer.strip_suffix(b"\0") else {
        // Up to 15 octets may be the beginning of an answer that was cut off before any name.
        let short = std::str::from_utf8(answer).is_ok_and(|text| text.len() < 16);
        return Err(match short {
            true => Malformed::CutOff,
            false => Malformed::garbage(answer),
        });
    };
    let garbage = || Malformed::garbage(text);
    let text = std::str::from_utf8(text).map_err(|_| garbage())?;
    if text.contains(char::is_control) {
        return Err(garbage());
    }
    let said = text.strip_prefix("stream: ");
    if said == Some("OK") {
        Ok(ClamdAnswer::Ok)
    } else if let Some(name) = said.and_then(|said| said.strip_suffix(" FOUND")) {
        Ok(ClamdAnswer::Found(name))
    } else if let Some(message) = text.strip_suffix(" ERROR") {
        Ok(ClamdAnswer::Failed(message))
    } else {
        Err(garbage())
    }
}
