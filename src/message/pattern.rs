//! The pattern of an interceptor: conditions that must all hold, learned or written by a person.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{AddressPattern, ComparedAddress, Envelope, Fingerprint, Glob, Trait};

/// The facts that a pattern examines. An attacker may choose all of them.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The client.
    pub envelope: &'a Envelope,
    /// The reverse-path of the envelope.
    pub sender: &'a ComparedAddress<'a>,
    /// The decoded subject; empty if there is none.
    pub subject: &'a str,
    /// Traits and attachments.
    pub fingerprint: &'a Fingerprint,
}

/// Matches messages for which every condition holds. A pattern without conditions matches no message.
///
/// As text for people: `subject "*invoice*" and client 192.0.2.0/24`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pattern {
    /// The message has all of these traits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traits: Vec<Trait>,
    /// The content is nearly the same as the content with these bands ([`Fingerprint::is_near`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub near: Vec<Trait>,
    /// An attachment has this hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentHash>,
    /// The whole decoded subject matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Glob>,
    /// The whole reverse-path matches; `<>` stands for the null reverse-path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<AddressPattern>,
    /// The client's address is in this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpNet>,
}

impl Pattern {
    /// A pattern of traits alone.
    pub fn of(traits: impl IntoIterator<Item = Trait>) -> Self {
        Self {
            traits: traits.into_iter().collect(),
            ..Self::default()
        }
    }

    /// A pattern of nearly the same content alone.
    pub fn nearly(bands: impl IntoIterator<Item = Trait>) -> Self {
        Self {
            near: bands.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Whether all conditions are traits or near content, without conditions on envelope, subject or attachments.
    pub fn is_of_traits(&self) -> bool {
        let same = Self {
            near: self.near.clone(),
            ..Self::of(self.traits.iter().copied())
        };
        !self.is_empty() && *self == same
    }

    /// Whether the pattern has no condition, and so matches no message.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether every condition holds. Checks the cheap conditions first.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        let Facts {
            envelope,
            sender,
            subject,
            fingerprint,
        } = facts;
        // A dual-stack socket shows an IPv4 client as ::ffff:a.b.c.d; patterns are written for the address itself.
        let client: IpAddr = envelope.origin.client.to_canonical();
        let attached = |hash: AttachmentHash| fingerprint.attachments.contains(&hash.0);
        !self.is_empty()
            && self.client.is_none_or(|net| net.contains(&client))
            && self.attachment.is_none_or(attached)
            && self.traits.iter().all(|wanted| fingerprint.has(*wanted))
            && (self.near.is_empty() || fingerprint.is_near(&self.near))
            && self
                .sender
                .as_ref()
                .is_none_or(|pattern| sender.matches(pattern))
            && self
                .subject
                .as_ref()
                .is_none_or(|glob| glob.matches(subject))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conditions: Vec<String> = [
            self.attachment.map(|hash| format!("attachment {hash}")),
            self.subject
                .as_ref()
                .map(|glob| format!("subject {glob:?}")),
            self.sender
                .as_ref()
                .map(|pattern| format!("sender {pattern:?}")),
            self.client.map(|net| format!("client {net}")),
        ]
        .into_iter()
        .flatten()
        .chain(self.traits.iter().map(Trait::to_string))
        .chain(self.near.first().map(|band| {
            let more = self.near.len() - 1;
            format!("nearly the same content ({band} and {more} more bands)")
        }))
        .collect();
        f.write_str(&conditions.join(" and "))
    }
}

/// SHA-256 of an attachment's decoded octets; as text 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AttachmentHash(pub [u8; 32]);

impl fmt::Display for AttachmentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for AttachmentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a SHA-256 hash; write 64 hexadecimal digits, as sha256sum prints them")]
pub struct NotAHash(String);

impl FromStr for AttachmentHash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<Self, NotAHash> {
        let octets = || {
            let (pairs, rest) = text.as_bytes().as_chunks::<2>();
            let digit = |octet: u8| char::from(octet).to_digit(16);
            let octet =
                |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok();
            let octets = pairs.iter().map(octet).collect::<Option<Vec<u8>>>()?;
            rest.is_empty().then(|| octets.try_into().ok())?
        };
        octets()
            .map(Self)
            .ok_or_else(|| NotAHash(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for AttachmentHash {
    type Error = NotAHash;

    fn try_from(text: String) -> Result<Self, NotAHash> {
        text.parse()
    }
}

impl From<AttachmentHash> for String {
    fn from(hash: AttachmentHash) -> Self {
        hash.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::fingerprint::Aspect;
    use crate::message::{BodyKind, Identity, Mailbox, Origin};

    fn shape(value: u64) -> Trait {
        Trait {
            aspect: Aspect::Skeleton,
            value,
        }
    }

    /// Every condition must hold. A pattern without conditions matches no message.
    #[test]
    fn every_condition_must_hold() {
        let envelope = Envelope {
            reverse_path: Mailbox::parse("Eve@bad.example").expect("mailbox").into(),
            recipients: Vec::new(),
            body: BodyKind::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
            origin: Origin {
                client: "::ffff:192.0.2.7".parse().expect("address"),
                ..Origin::local("smtp")
            },
        };
        let fingerprint = Fingerprint {
            identity: Identity([0; 32]),
            exact: Box::new([]),
            broad: Box::new([shape(7)]),
            attachments: Box::new([[1; 32], [2; 32]]),
        };
        let facts = Facts {
            envelope: &envelope,
            sender: &ComparedAddress::of_sender(&envelope.reverse_path),
            subject: "Your Invoice 123",
            fingerprint: &fingerprint,
        };
        let glob = |text: &str| Some(text.parse().expect("pattern"));
        let address = |text: &str| Some(text.parse().expect("pattern"));
        let net = |text: &str| Some(text.parse().expect("network"));
        let hash = |octet| Some(AttachmentHash([octet; 32]));
        let none = Pattern::default;
        for (pattern, expected) in [
            (none(), false),
            (
                Pattern {
                    subject: glob("*invoice*"),
                    ..none()
                },
                true,
            ),
            (
                Pattern {
                    subject: glob("invoice"),
                    ..none()
                },
                false,
            ),
            (
                Pattern {
                    sender: address("\"e\\ve\"@BAD.example."),
                    ..none()
                },
                true,
            ),
            (
                Pattern {
                    sender: address("<>"),
                    ..none()
                },
                false,
            ),
            (
                Pattern {
                    client: net("192.0.2.0/24"),
                    ..none()
                },
                true,
            ),
            (
                Pattern {
                    client: net("198.51.100.0/24"),
                    ..none()
                },
                false,
            ),
            (
                Pattern {
                    attachment: hash(2),
                    ..none()
                },
                true,
            ),
            (
                Pattern {
                    attachment: hash(3),
                    ..none()
                },
                false,
            ),
            (Pattern::of([shape(7)]), true),
            (Pattern::of([shape(7), shape(8)]), false),
            (
                Pattern {
                    subject: glob("*"),
                    client: net("10.0.0.0/8"),
                    ..none()
                },
                false,
            ),
        ] {
            assert_eq!(pattern.matches(&facts), expected, "{pattern}");
        }
    }

    /// The shown text of a condition can be parsed again, and a stored pattern is read back.
    #[test]
    fn patterns_are_shown_stored_and_read_back() {
        let pattern = Pattern {
            traits: vec![shape(0xc0ffee)],
            near: Vec::new(),
            attachment: Some(AttachmentHash([0xab; 32])),
            subject: Some("*invoice*".parse().expect("pattern")),
            sender: None,
            client: Some("192.0.2.0/24".parse().expect("network")),
        };
        let hash = "ab".repeat(32);
        let shown = format!(
            "attachment {hash} and subject \"*invoice*\" and client 192.0.2.0/24 and skeleton:0000000000c0ffee"
        );
        assert_eq!(pattern.to_string(), shown);
        let json = serde_json::to_string(&pattern).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Pattern>(&json).expect("reads"),
            pattern
        );
        assert_eq!(hash.parse(), Ok(AttachmentHash([0xab; 32])));
        assert_eq!("skeleton:0000000000c0ffee".parse(), Ok(shape(0xc0ffee)));
        for wrong in [
            "",
            "ab",
            &"zz".repeat(32),
            &"é".repeat(32),
            &"ab".repeat(33),
        ] {
            assert!(wrong.parse::<AttachmentHash>().is_err(), "{wrong}");
        }
        for wrong in [
            "",
            "skeleton",
            "skeleton:1",
            "shape:0000000000c0ffee",
            "size:+000000000c0ffee",
        ] {
            assert!(wrong.parse::<Trait>().is_err(), "{wrong}");
        }
    }
}
