//! Keys: what messages may have in common. A trait, or two of the broad ones together.

use crate::message::fingerprint::Aspect;
use crate::message::{Fingerprint, Trait};

/// One or two traits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key(pub(super) Trait, pub(super) Option<Trait>);

impl Key {
    /// All keys of a message: each trait, and each pair of broad traits. What is the same content is said by one trait;
    /// a pair with it would say the same.
    pub(super) fn all(fingerprint: &Fingerprint) -> impl Iterator<Item = Self> {
        let pairs = || {
            let all = fingerprint.broad.iter();
            all.filter(|t| t.aspect != Aspect::Near).enumerate()
        };
        let single = fingerprint.traits().map(|one| Self(one, None));
        let pair = pairs().flat_map(move |(at, one)| {
            let others = pairs().skip(at + 1);
            others.map(move |(_, other)| Self(*one, Some(*other)))
        });
        single.chain(pair)
    }

    pub(super) fn matches(self, fingerprint: &Fingerprint) -> bool {
        fingerprint.has(self.0) && self.1.is_none_or(|other| fingerprint.has(other))
    }

    pub(super) fn traits(self) -> Vec<Trait> {
        std::iter::once(self.0).chain(self.1).collect()
    }

    /// Whether it says that the content is the same, or nearly.
    pub(super) fn is_content(self) -> bool {
        matches!(
            self.0.aspect,
            Aspect::Attachment | Aspect::Text | Aspect::Near
        )
    }

    /// A number for it.
    pub(super) fn hash(self) -> u64 {
        let one = |t: Trait| t.value ^ (t.aspect as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let other = self.1.map_or(0, |t| one(t).rotate_left(29));
        let both = (one(self.0) ^ other).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        both ^ (both >> 31)
    }
}
