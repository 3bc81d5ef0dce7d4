//! Keys: what messages may have in common. A key is one trait, or two broad traits together.

use crate::message::fingerprint::Aspect;
use crate::message::{Fingerprint, Pattern, Trait};

/// One trait, or two broad traits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key(pub(super) Trait, pub(super) Option<Trait>);

impl Key {
    /// All keys of a message: each trait, and each pair of broad traits. Exact traits and bands form no pairs: one of them
    /// says already that the content is the same, and a pair would say no more.
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

    fn traits(self) -> impl Iterator<Item = Trait> {
        std::iter::once(self.0).chain(self.1)
    }

    /// Whether the key says that the content is the same, or nearly the same: an exact key, or a band. All other keys are about
    /// shape and origin, which valid mail has too.
    pub(super) fn is_content(self) -> bool {
        matches!(
            self.0.aspect,
            Aspect::Attachment | Aspect::Text | Aspect::Near
        )
    }

    /// Whether the key says that the content is the same: an attachment, or the text. An exact key is a key for content; a band
    /// is one too, but it is not exact.
    pub(super) fn is_exact(self) -> bool {
        matches!(self.0.aspect, Aspect::Attachment | Aspect::Text)
    }

    /// A hash of the key. Snapshots of the baseline depend on it.
    pub(super) fn hash(self) -> u64 {
        let one = |t: Trait| t.value ^ (t.aspect as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let other = self.1.map_or(0, |t| one(t).rotate_left(29));
        let both = (one(self.0) ^ other).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        both ^ (both >> 31)
    }
}

/// Messages that are alike in the sense of a key. One band says too little about nearly the same content, so a likeness
/// compares all bands of the message that it was learned from ([`Fingerprint::is_near`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Likeness {
    pub(super) key: Key,
    bands: Box<[Trait]>,
}

impl Likeness {
    /// Messages that are like this one in the sense of the key.
    pub(super) fn of(key: Key, fingerprint: &Fingerprint) -> Self {
        let is_near = key.0.aspect == Aspect::Near;
        let bands: Box<[Trait]> = match is_near {
            true => fingerprint.bands(key.0).collect(),
            false => Box::new([]),
        };
        // The first band names the likeness, whichever band found it, so that one likeness has one key.
        let first = bands.first().map(|band| Key(*band, None));
        Self {
            key: first.unwrap_or(key),
            bands,
        }
    }

    /// The likeness that a pattern describes; `None` if the pattern has conditions other than traits.
    pub(super) fn read(pattern: &Pattern) -> Option<Self> {
        let mut traits = pattern.traits.iter().chain(pattern.near.first());
        let first = *traits.next().filter(|_| pattern.is_of_traits())?;
        Some(Self {
            key: Key(first, traits.next().copied()),
            bands: pattern.near.as_slice().into(),
        })
    }

    pub(super) fn pattern(&self) -> Pattern {
        match self.bands.is_empty() {
            true => Pattern::of(self.key.traits()),
            false => Pattern::nearly(self.bands.iter().copied()),
        }
    }

    pub(super) fn matches(&self, fingerprint: &Fingerprint) -> bool {
        match self.bands.is_empty() {
            true => self.key.matches(fingerprint),
            false => fingerprint.is_near(&self.bands),
        }
    }

    /// All traits that the likeness compares.
    pub(super) fn traits(&self) -> impl Iterator<Item = Trait> {
        self.key.traits().chain(self.bands.iter().copied())
    }
}
