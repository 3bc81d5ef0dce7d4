//! Size classes: a scan time says something only beside the size of what was scanned.

use std::fmt;

/// The size of a content, in one of four classes. A content from 1 MiB is large to the guard, which allows ten times `slow`; no
/// class has content on both sides of that bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SizeClass {
    /// Less than 64 KiB: mail without attachments.
    Tiny,
    /// From 64 KiB, less than 1 MiB.
    Small,
    /// From 1 MiB, less than 10 MiB.
    Medium,
    /// From 10 MiB.
    Large,
}

impl SizeClass {
    /// All classes, the smallest first.
    pub const ALL: [Self; 4] = [Self::Tiny, Self::Small, Self::Medium, Self::Large];

    /// The class of a content of that many octets.
    pub fn of(octets: u64) -> Self {
        match octets {
            ..0x1_0000 => Self::Tiny,
            0x1_0000..0x10_0000 => Self::Small,
            0x10_0000..0xA0_0000 => Self::Medium,
            0xA0_0000.. => Self::Large,
        }
    }

    /// The word in the file and in JSON output. A word never changes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tiny => "below-64k",
            Self::Small => "below-1m",
            Self::Medium => "below-10m",
            Self::Large => "from-10m",
        }
    }

    /// The class with that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == word)
    }

    /// Whether the guard allows content of this class ten times `slow`.
    pub fn is_large(self) -> bool {
        self >= Self::Medium
    }
}

impl fmt::Display for SizeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tiny => "below 64 KiB",
            Self::Small => "below 1 MiB",
            Self::Medium => "below 10 MiB",
            Self::Large => "from 10 MiB",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each class ends where its name says, and its word leads back to it.
    #[test]
    fn classes_end_where_their_names_say() {
        let (kib, mib) = (1 << 10, 1 << 20);
        for (octets, class) in [
            (0, SizeClass::Tiny),
            (64 * kib - 1, SizeClass::Tiny),
            (64 * kib, SizeClass::Small),
            (mib - 1, SizeClass::Small),
            (mib, SizeClass::Medium),
            (10 * mib - 1, SizeClass::Medium),
            (10 * mib, SizeClass::Large),
            (u64::MAX, SizeClass::Large),
        ] {
            assert_eq!(SizeClass::of(octets), class, "{octets}");
            assert_eq!(class.is_large(), octets >= mib, "{octets}");
            assert_eq!(SizeClass::from_word(class.as_str()), Some(class));
        }
        assert_eq!(SizeClass::from_word(""), None);
    }
}
