//! What a service is shown, and what it sends back.

use std::sync::LazyLock;

use bytes::Buf;
use bytes::buf::Chain;

/// Stands before every message, so that no sender chooses the first octets: by those services decide what they look at, and
/// whether they do. With `%PDF-: x` for a first field, or `ustar` at octet 257, mail is no mail to them, and its
/// attachments are not unpacked; c-icap leaves it alone altogether. clamd looks at 1024 octets, most others at fewer.
///
/// It begins as mail does by which a relay has passed, which all of them know, and ends with a field that nobody reads: a
/// first line that begins with a space would be part of it.
static BEFORE: LazyLock<String> = LazyLock::new(|| {
    let line = "\tThese lines are the same for every message, so that no sender chooses the first octets.\r\n";
    format!(
        "Received: by spillway.invalid; Thu, 1 Jan 1970 00:00:00 +0000\r\n\
         X-Spillway-Note: The message that is to be scanned follows.\r\n{}",
        line.repeat(12)
    )
});

/// All octets that are shown of a message.
pub(super) type Shown<'a> = Chain<&'static [u8], &'a [u8]>;

/// What is shown of that content.
pub(super) fn shown(content: &[u8]) -> Shown<'_> {
    BEFORE.as_bytes().chain(content)
}

/// What has become of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It came back as it was.
    Untouched,
    /// Something came back that begins like it and is as long, or longer.
    Modified,
    /// Less came back, or nothing, or a page about it. A service that has sent a part already when it finds something (c-icap
    /// above 2 MiB, unless configured) can only keep back the rest.
    Withheld,
}

/// What comes back, compared with what was shown.
pub(super) struct Echo<'a> {
    /// Octets of the message itself.
    content: usize,
    /// Not come back yet.
    left: Shown<'a>,
    same: bool,
    /// Octets that came.
    came: usize,
}

impl<'a> Echo<'a> {
    /// Nothing has come back yet of that content.
    pub(super) fn of(content: &'a [u8]) -> Self {
        Self {
            content: content.len(),
            left: shown(content),
            same: true,
            came: 0,
        }
    }

    /// Octets that came.
    pub(super) fn take(&mut self, mut octets: &[u8]) {
        self.came += octets.len();
        while self.same && !octets.is_empty() {
            let (here, more) = octets.split_at(octets.len().min(self.left.chunk().len()));
            self.same = !here.is_empty() && self.left.chunk().starts_with(here);
            if self.same {
                self.left.advance(here.len());
            }
            octets = more;
        }
    }

    /// What everything that came amounts to.
    pub(super) fn fate(&self) -> Fate {
        // Until the octets before it are through, nothing of the message is.
        let begins = self.left.remaining() <= self.content;
        match begins && self.came >= BEFORE.len() + self.content {
            true if self.same => Fate::Untouched,
            true => Fate::Modified,
            false => Fate::Withheld,
        }
    }
}
