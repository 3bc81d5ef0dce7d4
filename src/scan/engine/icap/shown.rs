//! What a service is shown, and what it sends back.

use bytes::Buf;
use bytes::buf::Chain;

use crate::scan::engine::preface::PREFACE;

/// All octets that are shown of a message.
pub(super) type Shown<'a> = Chain<&'static [u8], &'a [u8]>;

/// What is shown of that content.
pub(super) fn shown(content: &[u8]) -> Shown<'_> {
    PREFACE.as_bytes().chain(content)
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
        match begins && self.came >= PREFACE.len() + self.content {
            true if self.same => Fate::Untouched,
            true => Fate::Modified,
            false => Fate::Withheld,
        }
    }
}
