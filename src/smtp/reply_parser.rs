//! Parses the replies of a next hop.
//!
//! A next hop is trusted no more than a client. Its replies are limited in line length and number of lines, all lines of one
//! reply must have the same code (RFC 5321 4.2.1), and control characters are replaced in the text that is kept. The parser
//! works in place in the receive buffer, so the common `250 OK` needs no allocation.
//!
//! smtp-proto also has a parser for replies. It accepts lines with different codes, and its enhanced status codes end at
//! 255, although servers use codes such as 5.7.509 every day.

use memchr::memchr;

use super::RemoteReply;
use super::reply::Class;

/// Longest reply line in octets. RFC 5321 4.5.3.1.5 allows 512; enhanced status codes and links make lines longer today.
pub const REPLY_LINE_OCTETS_MAX: usize = 2048;
/// Largest number of lines in one reply; an EHLO reply has about fifteen.
pub const REPLY_LINES_MAX: usize = 128;
/// Largest text in a [`RemoteReply`], in octets.
const REPLY_TEXT_OCTETS_MAX: usize = 1000;

/// Why the input is not a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Garbage {
    /// The line has no code from 200 to 599, or no space or hyphen after it.
    #[error("the server's line is not an SMTP reply")]
    NoCode,
    /// A line such as `250-` is followed by a line with another code.
    #[error("the lines of the server's reply have different codes")]
    CodesDiffer,
    /// A line has more than [`REPLY_LINE_OCTETS_MAX`] octets.
    #[error("the server's reply line is too long")]
    LongLine,
    /// The reply has more than [`REPLY_LINES_MAX`] lines.
    #[error("the server's reply has too many lines")]
    ManyLines,
}

/// One complete reply in the receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawReply<'a> {
    code: u16,
    octets: &'a [u8],
}

impl<'a> RawReply<'a> {
    /// Parses a reply at the beginning of `buffer`; `None` if the reply is not complete yet.
    pub fn parse(buffer: &'a [u8]) -> Result<Option<Self>, Garbage> {
        let mut code = None;
        let mut at = 0;
        for _ in 0..REPLY_LINES_MAX {
            let rest = &buffer[at..];
            let Some(end) = memchr(b'\n', rest) else {
                return if rest.len() > REPLY_LINE_OCTETS_MAX {
                    Err(Garbage::LongLine)
                } else {
                    Ok(None)
                };
            };
            if end > REPLY_LINE_OCTETS_MAX {
                return Err(Garbage::LongLine);
            }
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            at += end + 1;
            let (line_code, last) = line_code(line).ok_or(Garbage::NoCode)?;
            if *code.get_or_insert(line_code) != line_code {
                return Err(Garbage::CodesDiffer);
            }
            if last {
                return Ok(Some(Self {
                    code: line_code,
                    octets: &buffer[..at],
                }));
            }
        }
        Err(Garbage::ManyLines)
    }

    /// Number of octets of the reply in the buffer.
    pub fn used(&self) -> usize {
        self.octets.len()
    }

    /// The reply code.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The class of the code.
    pub fn class(&self) -> Class {
        Class::of_code(self.code)
    }

    /// The texts of the lines, without code and line end.
    pub fn texts(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.octets
            .split(|octet| *octet == b'\n')
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
            .filter(|line| !line.is_empty())
            .map(|line| line.get(4..).unwrap_or_default())
    }

    /// A copy of limited size without control characters.
    pub fn to_remote(&self) -> RemoteReply {
        let mut enhanced = None;
        let mut text = String::new();
        for line in self.texts() {
            let line = String::from_utf8_lossy(line);
            let line = match split_enhanced(&line, self.class()) {
                Some((status, rest)) => {
                    enhanced = enhanced.or(Some(status));
                    rest
                }
                None => &line,
            };
            if !text.is_empty() && !line.is_empty() {
                text.push(' ');
            }
            text.extend(line.chars().map(|c| if c.is_control() { '?' } else { c }));
            if text.len() > REPLY_TEXT_OCTETS_MAX {
                text.truncate(text.floor_char_boundary(REPLY_TEXT_OCTETS_MAX));
                break;
            }
        }
        RemoteReply {
            code: self.code,
            enhanced,
            text,
        }
    }
}

/// The code of a line, and whether the line is the last of its reply.
fn line_code(line: &[u8]) -> Option<(u16, bool)> {
    let (digits, rest) = line.split_at_checked(3)?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = digits
        .iter()
        .fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    if !(200..600).contains(&code) {
        return None;
    }
    match rest.first() {
        None | Some(b' ') => Some((code, true)),
        Some(b'-') => Some((code, false)),
        Some(_) => None,
    }
}

/// Splits `4.2.1 text` if the first number is the class of the reply code.
fn split_enhanced(text: &str, class: Class) -> Option<((u16, u16, u16), &str)> {
    let (status, rest) = text.split_once(' ').unwrap_or((text, ""));
    let status = parse_status(status)?;
    (status.0 == class as u16).then_some((status, rest))
}

/// Parses an enhanced status code (RFC 3463 2) such as `5.7.509`.
pub fn parse_status(text: &str) -> Option<(u16, u16, u16)> {
    let mut numbers = text.split('.').map(|number| {
        let sound = (1..=3).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        sound.then(|| number.parse::<u16>().ok()).flatten()
    });
    let status = (numbers.next()??, numbers.next()??, numbers.next()??);
    (numbers.next().is_none() && matches!(status.0, 2 | 4 | 5)).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(text: &str) -> RemoteReply {
        let raw = RawReply::parse(text.as_bytes())
            .expect("a reply")
            .expect("a whole reply");
        assert_eq!(raw.used(), text.len());
        raw.to_remote()
    }

    /// Replies of one or several lines, with or without enhanced status code and text, are parsed into one value.
    #[test]
    fn replies_become_values() {
        for (text, shown) in [
            ("250 OK\r\n", "250 OK"),
            ("250\r\n", "250"),
            ("250 \n", "250"),
            ("550 5.7.509 no\r\n", "550 5.7.509 no"),
            (
                "550-5.1.1 no such\r\n550 5.1.1 user\r\n",
                "550 5.1.1 no such user",
            ),
            ("450 5.1.1 class differs\r\n", "450 5.1.1 class differs"),
            ("250 2.0 half a code\r\n", "250 2.0 half a code"),
            ("554 5.7.1000 x\r\n", "554 5.7.1000 x"),
            ("250 a\x1b[2Jb\u{85}c\r\n", "250 a?[2Jb?c"),
        ] {
            assert_eq!(remote(text).to_string(), shown, "{text:?}");
        }
        assert_eq!(remote("450 5.1.1 class differs\r\n").enhanced, None);
        assert_eq!(remote("550 5.7.509 no\r\n").enhanced, Some((5, 7, 509)));
    }

    /// The parser returns a reply when it is complete, and uses only the octets of this reply.
    #[test]
    fn a_reply_ends_with_its_last_line() {
        let text = b"250-a\r\n250 b\r\n354 go\r\n";
        for end in 0..14 {
            assert_eq!(RawReply::parse(&text[..end]), Ok(None), "{end}");
        }
        let first = RawReply::parse(text).expect("reply").expect("whole");
        assert_eq!((first.code(), first.used()), (250, 14));
        assert_eq!(first.texts().collect::<Vec<_>>(), [b"a", b"b"]);
    }

    /// Input that is not a reply fails at once, so a server cannot make the client read forever.
    #[test]
    fn garbage_is_bounded() {
        for (text, why) in [
            ("HTTP/1.1 400 Bad Request\r\n".to_owned(), Garbage::NoCode),
            ("\r\n".to_owned(), Garbage::NoCode),
            ("25\r\n".to_owned(), Garbage::NoCode),
            ("150 x\r\n".to_owned(), Garbage::NoCode),
            ("600 x\r\n".to_owned(), Garbage::NoCode),
            ("250+x\r\n".to_owned(), Garbage::NoCode),
            ("250-a\r\n550 b\r\n".to_owned(), Garbage::CodesDiffer),
            (
                format!("250 {}", "x".repeat(REPLY_LINE_OCTETS_MAX)),
                Garbage::LongLine,
            ),
            (
                format!("250 {}\r\n", "x".repeat(REPLY_LINE_OCTETS_MAX)),
                Garbage::LongLine,
            ),
            ("250-x\r\n".repeat(REPLY_LINES_MAX), Garbage::ManyLines),
        ] {
            assert_eq!(RawReply::parse(text.as_bytes()), Err(why), "{text:.40?}");
        }
    }

    /// The kept text has a limited size and is valid UTF-8.
    #[test]
    fn kept_text_is_bounded() {
        let kept = remote(&format!(
            "250-{}\r\n250 {}\r\n",
            "ä".repeat(600),
            "b".repeat(999)
        ));
        assert!(kept.text.len() <= REPLY_TEXT_OCTETS_MAX);
    }
}
