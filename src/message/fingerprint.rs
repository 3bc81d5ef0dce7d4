//! Fingerprints: in which senses two messages are "the same".
//!
//! A message has one [`Fingerprint`]: its [`Identity`] (the same octets, as far as an engine is concerned), its exact
//! traits (the same attachment, the same text), and broad ones (similar content, the same shape, the same origin). A
//! [`Pattern`] is a conjunction of traits; interceptors are patterns with a consequence.

mod compute;
#[cfg(test)]
mod tests;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The content, as a hash: everything but the header fields that differ between copies of one message (trace fields, dates,
/// ids, recipients). Engines get those fields too, and may find something in them: two messages of one identity have one
/// *content*, and a scan each. What every octet is equal in has one [`Digest`](super::content::Digest).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity(pub [u8; 32]);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "Identity({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// Which sense of "the same".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aspect {
    /// Octets of one attachment.
    Attachment,
    /// The text, without what differs between copies of a mailing.
    Text,
    /// Nearly the same content: a bucket of a locality-sensitive hash.
    Near,
    /// Media type of the gravest attachment, or that there is none.
    Type,
    /// Octets of the message, as a power of two.
    Size,
    /// Whether it is large for a mail.
    Large,
    /// MIME structure: the tree of types, names and encodings.
    Skeleton,
    /// Domain of the reverse-path.
    SenderDomain,
    /// Subject without numbers, names and the like.
    Subject,
    /// Network of the client.
    Client,
}

impl Aspect {
    /// All senses.
    pub const ALL: [Self; 10] = [
        Self::Attachment,
        Self::Text,
        Self::Near,
        Self::Type,
        Self::Size,
        Self::Large,
        Self::Skeleton,
        Self::SenderDomain,
        Self::Subject,
        Self::Client,
    ];

    /// The word in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attachment => "attachment",
            Self::Text => "text",
            Self::Near => "near",
            Self::Type => "type",
            Self::Size => "size",
            Self::Large => "large",
            Self::Skeleton => "skeleton",
            Self::SenderDomain => "sender-domain",
            Self::Subject => "subject",
            Self::Client => "client",
        }
    }
}

/// One sense in which a message is the same as others: equal traits, equal in that sense. The value is a hash, stable
/// across restarts and relays. As text, and in JSON, `skeleton:00c0ffee00c0ffee`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Trait {
    /// Which sense.
    pub aspect: Aspect,
    /// The value.
    pub value: u64,
}

impl Trait {
    /// Of a near trait: whether it is of a text; otherwise it is of an attachment.
    pub fn is_of_text(self) -> bool {
        self.value & 1 == 1
    }
}

/// Of the value alone: engines look up some ten traits of each message, and that two senses have one value is an accident.
impl Hash for Trait {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.value);
    }
}

impl fmt::Display for Trait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:016x}", self.aspect.as_str(), self.value)
    }
}

/// The text is no trait.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a trait; write one as they are shown, such as skeleton:00c0ffee00c0ffee")]
pub struct NotATrait(String);

impl FromStr for Trait {
    type Err = NotATrait;

    fn from_str(text: &str) -> Result<Self, NotATrait> {
        let read = || {
            let (word, digits) = text.split_once(':')?;
            let aspect = Aspect::ALL.into_iter().find(|a| a.as_str() == word)?;
            let whole = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            let value = whole.then(|| u64::from_str_radix(digits, 16).ok())??;
            Some(Self { aspect, value })
        };
        read().ok_or_else(|| NotATrait(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for Trait {
    type Error = NotATrait;

    fn try_from(text: String) -> Result<Self, NotATrait> {
        text.parse()
    }
}

impl From<Trait> for String {
    fn from(of: Trait) -> Self {
        of.to_string()
    }
}

impl fmt::Debug for Trait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// All senses in which one message can be the same as others.
#[derive(Debug, Clone, PartialEq)]
pub struct Fingerprint {
    /// What an engine judges.
    pub identity: Identity,
    /// Its attachments ([`Aspect::Attachment`]) and its text ([`Aspect::Text`]), if that says anything; at least one, at
    /// most [`Fingerprint::EXACT`].
    pub exact: Box<[Trait]>,
    /// Everything else: near duplicates, shape, origin.
    pub broad: Box<[Trait]>,
    /// SHA-256 of each attachment, for patterns written by people; as many as `exact` has attachments.
    pub attachments: Box<[[u8; 32]]>,
}

impl Fingerprint {
    /// Attachments that are told apart; a message with more of them is described by its first ones.
    pub const EXACT: usize = 16;

    /// All traits.
    pub fn traits(&self) -> impl Iterator<Item = Trait> {
        self.exact.iter().chain(&self.broad).copied()
    }

    /// Whether it has that trait.
    pub fn has(&self, wanted: Trait) -> bool {
        self.traits().any(|t| t == wanted)
    }

    /// The bands of the kind that one of them is of: of the largest attachment, or of the text.
    pub fn bands(&self, of: Trait) -> impl Iterator<Item = Trait> + '_ {
        let near = self.broad.iter().copied();
        near.filter(move |band| band.aspect == Aspect::Near && band.is_of_text() == of.is_of_text())
    }

    /// The bands that say nothing but what these exact traits say: those of attachments where all attachments are among
    /// them, those of the text where that is.
    pub fn bands_within<'a>(&'a self, exact: &'a [Trait]) -> impl Iterator<Item = Trait> + 'a {
        let is_within = move |of: Aspect| {
            let mut all = self.exact.iter().filter(move |one| one.aspect == of);
            // The largest attachment may be one that is not told apart.
            let is_told = of != Aspect::Attachment || self.attachments.len() < Self::EXACT - 1;
            is_told && all.clone().next().is_some() && all.all(|one| exact.contains(one))
        };
        let near = self.broad.iter().copied();
        near.filter(move |band| band.aspect == Aspect::Near)
            .filter(move |band| {
                is_within(match band.is_of_text() {
                    true => Aspect::Text,
                    false => Aspect::Attachment,
                })
            })
    }

    /// Whether its content is nearly the same as the one that has these bands, all of one kind.
    ///
    /// One band alone is equal by accident too often. Contents that share a part J of their shingles share each band with
    /// probability J². A flood of 40 KiB of words that valid mail uses too has J = 0.02 with it: some band of eight is equal
    /// in 3 messages of 1,000, two in 5 of a million, three in 4 of a billion; compared with 512 slow ones, that is one
    /// message in 400 for two bands and one in 500,000 for three. Three of eight still tell copies apart that share 80 %
    /// (97 % of them) or 65 % (73 %) of their shingles, and each slow copy that is remembered is one more chance. Short texts
    /// fill fewer bands; the same part of them has to be equal, and two at least.
    pub fn is_near(&self, bands: &[Trait]) -> bool {
        let common = bands.iter().filter(|band| self.has(**band)).count();
        common >= 2 && common * 8 >= bands.len() * 3
    }

    /// The same without those traits.
    pub fn without(&self, traits: &[Trait]) -> Self {
        let rest = |of: &[Trait]| of.iter().filter(|t| !traits.contains(t)).copied().collect();
        Self {
            exact: rest(&self.exact),
            broad: rest(&self.broad),
            ..self.clone()
        }
    }

    /// Whether there is more than text.
    pub fn has_attachments(&self) -> bool {
        self.exact.iter().any(|t| t.aspect == Aspect::Attachment)
    }

    /// The traits of which only a few unproven copies are scanned at once: those that unrelated mail does not share.
    pub fn canary_keys(&self) -> impl Iterator<Item = Trait> {
        let near = self.broad.iter().filter(|t| t.aspect == Aspect::Near);
        self.exact.iter().chain(near).copied()
    }
}

/// Whether mail of this sender through this client has been scanned well before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SenderReputation {
    /// It has, at least twice.
    Known,
    /// Nothing speaks for it yet.
    Unknown,
}
