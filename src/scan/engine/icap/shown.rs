//! The octets that a service gets, and their comparison with the octets that it returns.

use bytes::Buf;
use bytes::buf::Chain;

use crate::scan::engine::preface::PREFACE;

/// All octets that a service gets for a message: the preface and the content.
pub(super) type Shown<'a> = Chain<&'static [u8], &'a [u8]>;

/// The octets that a service gets for `content`.
pub(super) fn shown(content: &[u8]) -> Shown<'_> {
    PREFACE.as_bytes().chain(content)
}

/// What the service did to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The service returned the message unchanged.
    Untouched,
    /// The service returned the unchanged preface and at least as many octets as the message has, but not the same octets.
    Modified,
    /// The service returned fewer octets, or none, or a page about the message. A service that has already returned a part
    /// when it finds something (c-icap above 2 MiB, unless configured otherwise) can only withhold the rest.
    Withheld,
}

/// Compares the octets that come back with the octets that were sent.
pub(super) struct Echo<'a> {
    /// Octets of the message, without the preface.
    content: usize,
    /// Octets that have not come back yet.
    left: Shown<'a>,
    same: bool,
    /// Number of octets that came back.
    came: usize,
}

impl<'a> Echo<'a> {
    /// Begins the comparison for `content`.
    pub(super) fn of(content: &'a [u8]) -> Self {
        Self {
            content: content.len(),
            left: shown(content),
            same: true,
            came: 0,
        }
    }

    /// Adds octets that came back.
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

    /// The result, after the last octets have come back.
    pub(super) fn fate(&self) -> Fate {
        // The message begins to come back only after the whole preface.
        let begins = self.left.remaining() <= self.content;
        match begins && self.came >= PREFACE.len() + self.content {
            true if self.same => Fate::Untouched,
            true => Fate::Modified,
            false => Fate::Withheld,
        }
    }
}
