//! Parser for the common form of spamd and ICAP answers: a first line, header fields and an empty line, within a bound.

use tokio::io::{AsyncRead, AsyncReadExt};

use super::ScanError;
use crate::message::header::{self, Field};

/// Why an answer is not valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// The answer ends before it is complete.
    CutOff,
    /// The answer does not follow the protocol. The text is the beginning of the answer, or the error in it.
    Garbage(String),
}

impl Malformed {
    /// Makes [`Malformed::Garbage`] with the beginning of an answer, at most 100 characters.
    pub fn garbage(answer: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&answer[..answer.len().min(200)]);
        let clean = |c: char| if c.is_control() { ' ' } else { c };
        Self::Garbage(text.chars().take(100).map(clean).collect())
    }
}

impl From<Malformed> for ScanError {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::CutOff => Self::Disconnected("the answer is incomplete".to_owned()),
            Malformed::Garbage(answer) => Self::Garbage(answer),
        }
    }
}

/// The header fields after the first line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a> {
    fields: &'a [u8],
}

impl<'a> Head<'a> {
    /// Splits `answer` into the head and the octets after its empty line. Returns `None` while the head is incomplete.
    ///
    /// # Errors
    /// [`Malformed::Garbage`] if the first line is not text.
    pub(super) fn split(answer: &'a [u8]) -> Result<Option<(Self, &'a [u8])>, Malformed> {
        let Some(end) = memchr::memmem::find(answer, b"\r\n\r\n") else {
            return Ok(None);
        };
        let (head, rest) = answer.split_at(end + 4);
        let line = first_line(head).ok_or_else(|| Malformed::garbage(answer))?;
        let fields = &head[line.len() + 2..head.len() - 2];
        Ok(Some((Self { fields }, rest)))
    }

    /// The unfolded body of the first field of that name.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        header::first(self.fields, name).map(|field| field.unfolded())
    }

    /// The unfolded body of the only field of that name.
    ///
    /// # Errors
    /// [`Malformed::Garbage`] for two fields of that name, which may contradict each other.
    pub(super) fn only(&self, name: &str) -> Result<Option<String>, Malformed> {
        match self.all(name).nth(1) {
            None => Ok(self.get(name)),
            Some(_) => Err(Malformed::garbage(
                format!("the field {name} occurs twice").as_bytes(),
            )),
        }
    }

    /// All fields of that name.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = Field<'a>> {
        header::fields(self.fields).filter(move |field| field.is(name))
    }

    /// The whole number in the only field of that name.
    ///
    /// # Errors
    /// [`Malformed::Garbage`] for two fields of that name, and for a body that is not a whole number.
    pub(super) fn number(&self, name: &str) -> Result<Option<usize>, Malformed> {
        let Some(text) = self.only(name)? else {
            return Ok(None);
        };
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number
            .map(Some)
            .ok_or_else(|| Malformed::garbage(format!("{name}: {text:.50}").as_bytes()))
    }
}

/// The first line without its line end; `None` if the line is incomplete, not UTF-8, or contains control characters.
pub(super) fn first_line(answer: &[u8]) -> Option<&str> {
    let end = memchr::memmem::find(answer, b"\r\n")?;
    let line = std::str::from_utf8(&answer[..end]).ok()?;
    (!line.contains(char::is_control)).then_some(line)
}

/// Reads to the end of the stream, at most `most` octets.
///
/// # Errors
/// `InvalidData` if the stream has more than `most` octets; otherwise the error of the stream.
pub(super) async fn read_all(
    from: &mut (impl AsyncRead + Unpin),
    most: usize,
) -> std::io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let read = from.take(most as u64 + 1).read_to_end(&mut answer).await?;
    if read > most {
        let what = format!("an answer of more than {most} octets");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
    }
    Ok(answer)
}
