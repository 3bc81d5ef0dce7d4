//! Decodes content from the wire: removes dot-stuffing and checks line ends.
//!
//! Only `<CRLF>.<CRLF>` ends a message. If two systems disagree about other endings, the next relay may read one message as
//! two ("SMTP smuggling", CVE-2023-51764 and similar). A message with a bare CR or LF is therefore refused, or each of them
//! is replaced by CRLF; neither of them ever ends the message. In both cases the decoder continues to the true end, so that
//! the next command is found.

use memchr::memchr2;

/// Reverses the transparency procedure (RFC 5321 4.5.2) on octets that arrive in pieces.
#[derive(Debug, Clone)]
pub struct Decoder {
    state: State,
    dots: bool,
    normalise: bool,
    bare: bool,
}

/// The octets directly before the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// CRLF, or the start of content.
    LineStart,
    /// A dot at the start of a line.
    Dot,
    /// A dot and a CR at the start of a line.
    DotCr,
    /// Anything else.
    Inside,
    /// A CR inside a line.
    Cr,
}

impl Decoder {
    /// A decoder for DATA: removes stuffed dots and finds the end of data.
    pub fn data(normalise: bool) -> Self {
        Self {
            state: State::LineStart,
            dots: true,
            normalise,
            bare: false,
        }
    }

    /// A decoder for BDAT (RFC 3030): the length is known, so it checks line ends only. One decoder serves all chunks.
    pub fn chunks(normalise: bool) -> Self {
        Self {
            dots: false,
            ..Self::data(normalise)
        }
    }

    /// Decodes a piece of input and passes the content to `out`. Returns the number of octets used, and whether the end of
    /// data was found (never for chunks). All input is used unless the end was found.
    pub fn decode(&mut self, input: &[u8], mut out: impl FnMut(&[u8])) -> (usize, bool) {
        let mut at = 0;
        while at < input.len() {
            let octet = input[at];
            match self.state {
                State::LineStart if octet == b'.' && self.dots => {
                    self.state = State::Dot;
                    at += 1;
                }
                State::LineStart | State::Inside => {
                    let rest = &input[at..];
                    let end = memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
                    out(&rest[..end]);
                    at += end;
                    if end > 0 {
                        self.state = State::Inside;
                    }
                    match rest.get(end) {
                        Some(b'\r') => self.state = State::Cr,
                        Some(_) => {
                            self.bare(&mut out, b"\n");
                            self.state = State::Inside;
                        }
                        None => break,
                    }
                    at += 1;
                }
                State::Dot if octet == b'\r' => {
                    self.state = State::DotCr;
                    at += 1;
                }
                // The first dot of a longer line is removed; this octet is content.
                State::Dot => self.state = State::Inside,
                State::DotCr if octet == b'\n' => return (at + 1, true),
                State::DotCr => {
                    self.bare(&mut out, b"\r");
                    self.state = State::Inside;
                }
                State::Cr if octet == b'\n' => {
                    out(b"\r\n");
                    self.state = State::LineStart;
                    at += 1;
                }
                State::Cr => {
                    self.bare(&mut out, b"\r");
                    self.state = State::Inside;
                }
            }
        }
        (at, false)
    }

    /// Ends the decoding after the last chunk. A CR at the end of the content is a bare CR.
    pub fn finish(&mut self, mut out: impl FnMut(&[u8])) {
        if self.state == State::Cr {
            self.bare(&mut out, b"\r");
            self.state = State::Inside;
        }
    }

    /// Whether a bare CR or LF has been seen.
    pub fn saw_bare_line_end(&self) -> bool {
        self.bare
    }

    fn bare(&mut self, out: &mut impl FnMut(&[u8]), octet: &[u8]) {
        self.bare = true;
        out(if self.normalise { b"\r\n" } else { octet });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(mut decoder: Decoder, input: &[u8], step: usize) -> (Vec<u8>, usize, bool, bool) {
        let mut out = Vec::new();
        let mut used = 0;
        for piece in input.chunks(step) {
            let (n, done) = decoder.decode(piece, |b| out.extend_from_slice(b));
            used += n;
            if done {
                return (out, used, true, decoder.saw_bare_line_end());
            }
        }
        (out, used, false, decoder.saw_bare_line_end())
    }

    /// Of all sequences that look like an end of data, cut into pieces of any size, only CRLF.CRLF ends the message.
    #[test]
    fn only_crlf_dot_crlf_ends_a_message() {
        for (input, content, ends, bare, why) in [
            (&b"a\r\n.\r\n"[..], &b"a\r\n"[..], true, false, "the end"),
            (b".\r\n", b"", true, false, "the end of nothing"),
            (b"a\n.\n", b"a\n.\n", false, true, "bare LF twice"),
            (b"a\n.\r\n", b"a\n.\r\n", false, true, "LF before the dot"),
            (b"a\r\n.\n", b"a\r\n\n", false, true, "LF after the dot"),
            (b"a\r.\r\n", b"a\r.\r\n", false, true, "CR before the dot"),
            (b"a\r\n.\r", b"a\r\n", false, false, "not yet"),
            (
                b"a\r\n.\rb\r\n",
                b"a\r\n\rb\r\n",
                false,
                true,
                "CR after the dot",
            ),
            (
                b"a\r\n.\r\r\n",
                b"a\r\n\r\r\n",
                false,
                true,
                "CR CR LF after the dot",
            ),
            (
                b"a\r\r\n.\r\n",
                b"a\r\r\n",
                true,
                true,
                "CR CR LF before it",
            ),
            (b"a\r\n..\r\n", b"a\r\n.\r\n", false, false, "a stuffed dot"),
            (
                b"a\r\n.b\r\n",
                b"a\r\nb\r\n",
                false,
                false,
                "a dot that should be two",
            ),
            (b"a.\r\n", b"a.\r\n", false, false, "not at the start"),
            (
                b"a\r\n\0.\r\n",
                b"a\r\n\0.\r\n",
                false,
                false,
                "NUL before the dot",
            ),
        ] {
            for step in 1..=input.len() {
                let (out, _, done, saw) = decode(Decoder::data(false), input, step);
                assert_eq!(
                    (out.as_slice(), done, saw),
                    (content, ends, bare),
                    "{why}, pieces of {step}"
                );
            }
        }
    }

    /// Normalising replaces bare line ends, and a dot after a replaced one does not end the message.
    #[test]
    fn normalising_makes_no_new_end() {
        let (out, _, done, bare) = decode(Decoder::data(true), b"a\n.\nb\r.\rc\r\n.\r\n", 1);
        assert_eq!(out, b"a\r\n.\r\nb\r\n.\r\nc\r\n");
        assert!(done && bare);
    }

    /// Octets after the end of data belong to the next command.
    #[test]
    fn nothing_after_the_end_is_used() {
        let (_, used, done, _) = decode(Decoder::data(false), b"a\r\n.\r\nQUIT\r\n", 64);
        assert_eq!((used, done), (6, true));
    }

    /// In chunks a dot has no special meaning.
    #[test]
    fn a_dot_is_content_in_a_chunk() {
        let mut decoder = Decoder::chunks(false);
        let mut out = Vec::new();
        decoder.decode(b".\r\n..\r\n\r", |b| out.extend_from_slice(b));
        assert!(!decoder.saw_bare_line_end());
        decoder.finish(|b| out.extend_from_slice(b));
        assert_eq!(out, b".\r\n..\r\n\r");
        assert!(decoder.saw_bare_line_end());
    }
}
