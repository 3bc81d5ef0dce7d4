//! What the text protocols of spamd and ICAP share: a first line, header fields, an empty line, and a bound on all of it.

use tokio::io::{AsyncRead, AsyncReadExt};

use super::ScanError;
use crate::message::header::{self, Field};

/// Why an answer cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// It ends before it is complete.
    CutOff,
    /// It is not in the protocol: its beginning, or what is wrong with it.
    Garbage(String),
}

impl Malformed {
    /// The beginning of an answer that is not in the protocol.
    pub fn garbage(answer: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&answer[..answer.len().min(200)]);
        let clean = |c: char| if c.is_control() { ' ' } else { c };
        Self::Garbage(text.chars().take(100).map(clean).collect())
    }

    /// The same as the failure of a replica.
    pub(super) fn of(self, replica: &str) -> ScanError {
        let replica = replica.to_owned();
        match self {
            Self::CutOff => ScanError::Disconnected {
                replica,
                cause: "before its answer was complete".to_owned(),
            },
            Self::Garbage(answer) => ScanError::Garbage { replica, answer },
        }
    }
}

/// The header fields below a first line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a> {
    fields: &'a [u8],
}

impl<'a> Head<'a> {
    /// The head at the beginning of `answer`, and what follows its empty line; none while it is not complete.
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

    /// The same where there is only one: of two, nobody could say which is meant.
    pub(super) fn only(&self, name: &str) -> Result<Option<String>, Malformed> {
        match self.all(name).nth(1) {
            None => Ok(self.get(name)),
            Some(_) => Err(Malformed::garbage(format!("{name} twice").as_bytes())),
        }
    }

    /// The fields of that name.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = Field<'a>> {
        header::fields(self.fields).filter(move |field| field.is(name))
    }

    /// The only field of that name, whose body is a whole number.
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

/// The first line, if it is text and has an end.
pub(super) fn first_line(answer: &[u8]) -> Option<&str> {
    let end = memchr::memmem::find(answer, b"\r\n")?;
    let line = std::str::from_utf8(&answer[..end]).ok()?;
    (!line.contains(char::is_control)).then_some(line)
}

/// Everything up to the end of the stream, but not more than `most` octets: more is an error of the kind `InvalidData`.
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
