//! A notification with less of the original message, for a server that refuses the whole notification.

use bytes::Bytes;
use memchr::memmem;

use super::frame::Frame;
use crate::message::MessageId;
use crate::store::Extent;

/// Reduces a notification that this module wrote under `id` to `extent`. Any other content is returned unchanged.
pub fn reduced(written: &Bytes, id: MessageId, extent: Extent) -> Bytes {
    let mut frame = Frame::new(id, false);
    let parts = match extent {
        Extent::Whole => None,
        Extent::Headers | Extent::Bare => Parts::of(written, &frame),
    };
    let Some(parts) = parts else {
        return written.clone();
    };
    // A mailbox outside ASCII can only be addressed with SMTPUTF8.
    frame.utf8 = !parts.head.is_ascii();
    let mut out = parts.head.to_owned();
    frame.part(&mut out, frame.for_people(), frame.utf8);
    frame.copy_text(&mut out, parts.for_people);
    frame.part(&mut out, frame.for_programs(), frame.utf8);
    frame.copy_text(&mut out, parts.for_programs);
    let mut octets = out.into_bytes();
    if let (Extent::Headers, Some(returned)) = (extent, parts.returned) {
        frame.headers(&mut octets, returned);
    }
    octets.extend_from_slice(frame.end().as_bytes());
    octets.into()
}

/// The parts of a notification that this module wrote.
struct Parts<'a> {
    head: &'a str,
    for_people: &'a str,
    for_programs: &'a str,
    /// The returned message or its header section.
    returned: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn of(written: &'a [u8], frame: &Frame) -> Option<Self> {
        let whole = written.strip_suffix(frame.end().as_bytes())?;
        let delimiter = frame.delimiter();
        let (head, rest) = cut(whole, delimiter.as_bytes())?;
        let (for_people, rest) = cut(rest, delimiter.as_bytes())?;
        let (for_programs, returned) = match cut(rest, delimiter.as_bytes()) {
            Some((for_programs, returned)) => (for_programs, Some(body(returned)?)),
            None => (rest, None),
        };
        let text = |part| std::str::from_utf8(body(part)?).ok();
        Some(Self {
            head: std::str::from_utf8(head).ok()?,
            for_people: text(for_people)?,
            for_programs: text(for_programs)?,
            returned,
        })
    }
}

/// The octets after the header fields of a MIME part.
fn body(part: &[u8]) -> Option<&[u8]> {
    cut(part, b"\r\n\r\n").map(|(_, body)| body)
}

fn cut<'a>(octets: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let begin = memmem::find(octets, at)?;
    Some((&octets[..begin], &octets[begin + at.len()..]))
}
