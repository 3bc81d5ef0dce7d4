//! Fingerprints: the ways in which two messages can be alike.
//!
//! A message has one [`Fingerprint`]: its [`Identity`] (the content that an engine judges), its exact traits (the same
//! attachment, the same text), and its broad traits (similar content, the same shape, the same origin). A
//! [`Pattern`](super::Pattern) is a set of traits that must all be there; an interceptor is a pattern with a consequence.

mod compute;
#[cfg(test)]
mod tests;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Hash of the content: of everything except the header fields that differ between copies of one message (trace fields, dates,
/// ids, recipients). Engines get those fields too, and may find something in them. So two messages with one identity have one
/// *content*, but each gets its own scan. Messages with equal octets have one [`Digest`](super::content::Digest).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity(pub [u8; 32]);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "Identity({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// The kind of a trait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aspect {
    /// The octets of one attachment.
    Attachment,
    /// The text, without the parts that differ between copies of a mailing.
    Text,
    /// Nearly the same content: a bucket of a locality-sensitive hash.
    Near,
    /// Media type of the largest attachment, or none.
    Type,
    /// Size of the message in octets, as a power of two.
    Size,
    /// Whether the message has at least 1 MiB.
    Large,
    /// MIME structure: the tree of types, names and encodings.
    Skeleton,
    /// Domain of the reverse-path.
    SenderDomain,
    /// Subject without words that contain digits.
    Subject,
    /// Network of the client.
    Client,
}

impl Aspect {
    /// All aspects.
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

/// One way in which messages can be alike: messages with equal traits are alike in that aspect. The value is a hash, stable
/// across restarts and relays. As text, and in JSON: `skeleton:00c0ffee00c0ffee`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Trait {
    /// The aspect.
    pub aspect: Aspect,
    /// The value.
    pub value: u64,
}

impl Trait {
    /// For a near trait: whether it belongs to a text; if not, to an attachment.
    pub fn is_of_text(self) -> bool {
        self.value & 1 == 1
    }
}

/// Hashes the value alone: engines look up about ten traits of each message, and two aspects rarely have the same value.
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

/// The text is not a trait.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a trait; write a trait as shown, such as skeleton:00c0ffee00c0ffee")]
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

/// All traits of one message.
#[derive(Debug, Clone, PartialEq)]
pub struct Fingerprint {
    /// The content that an engine judges.
    pub identity: Identity,
    /// Traits of its attachments ([`Aspect::Attachment`]) and of its text ([`Aspect::Text`]), if the text has enough words; at
    /// least one, at most [`Fingerprint::EXACT_TRAITS_MAX`].
    pub exact: Box<[Trait]>,
    /// All other traits: near content, shape, origin.
    pub broad: Box<[Trait]>,
    /// SHA-256 of each attachment, for patterns written by people; as many as `exact` has attachments.
    pub attachments: Box<[[u8; 32]]>,
}

impl Fingerprint {
    /// Maximum number of exact traits. A message with more attachments is described by its first ones, to bound the work for
    /// each message.
    pub const EXACT_TRAITS_MAX: usize = 16;

    /// All traits.
    pub fn traits(&self) -> impl Iterator<Item = Trait> {
        self.exact.iter().chain(&self.broad).copied()
    }

    /// Whether the message has this trait.
    pub fn has(&self, wanted: Trait) -> bool {
        self.traits().any(|t| t == wanted)
    }

    /// The bands of the same kind as `of`: those of the largest attachment, or those of the text.
    pub fn bands(&self, of: Trait) -> impl Iterator<Item = Trait> + '_ {
        let near = self.broad.iter().copied();
        near.filter(move |band| band.aspect == Aspect::Near && band.is_of_text() == of.is_of_text())
    }

    /// The bands that follow from these exact traits: the bands of the attachment if all attachments are among the traits, and
    /// the bands of the text if the text is.
    pub fn bands_within<'a>(&'a self, exact: &'a [Trait]) -> impl Iterator<Item = Trait> + 'a {
        let is_within = move |of: Aspect| {
            let mut all = self.exact.iter().filter(move |one| one.aspect == of);
            // The largest attachment may be one without an exact trait.
            let is_told =
                of != Aspect::Attachment || self.attachments.len() < Self::EXACT_TRAITS_MAX - 1;
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

    /// Whether the content is nearly the same as the content with these bands, which are all of one kind.
    ///
    /// One equal band occurs too often by accident. Contents that share a part J of their shingles share each band with
    /// probability J². A flood of 40 KiB of words that valid mail uses too has J = 0.02 with that mail. Of eight bands, at
    /// least one is equal in 3 of 1,000 messages, two in 5 of a million, and three in 4 of a billion. Compared with 512 slow
    /// messages, that is one message in 400 for two bands and one in 500,000 for three. Three of eight bands still recognise
    /// copies that share 80 % (97 % of them) or 65 % (73 %) of their shingles, and each slow copy that is remembered is one
    /// more chance. Short texts fill fewer bands; the same part of these must be equal, and at least two.
    pub fn is_near(&self, bands: &[Trait]) -> bool {
        let common = bands.iter().filter(|band| self.has(**band)).count();
        common >= 2 && common * 8 >= bands.len() * 3
    }

    /// The fingerprint without these traits.
    pub fn without(&self, traits: &[Trait]) -> Self {
        let rest = |of: &[Trait]| of.iter().filter(|t| !traits.contains(t)).copied().collect();
        Self {
            exact: rest(&self.exact),
            broad: rest(&self.broad),
            ..self.clone()
        }
    }

    /// Whether the message has an attachment.
    pub fn has_attachments(&self) -> bool {
        self.exact.iter().any(|t| t.aspect == Aspect::Attachment)
    }

    /// The traits by which the gate limits unproven copies: those that unrelated mail does not share.
    pub fn canary_keys(&self) -> impl Iterator<Item = Trait> {
        let near = self.broad.iter().filter(|t| t.aspect == Aspect::Near);
        self.exact.iter().chain(near).copied()
    }
}

/// Whether mail of this sender domain through this client network was scanned well before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SenderReputation {
    /// At least two messages were scanned well.
    Known,
    /// Nothing is known about the sender yet.
    Unknown,
}
