//! The owner of mail, for turns and shares.

use std::net::{IpAddr, Ipv6Addr};

use super::{Envelope, Mailbox, ReversePath, canonical};

/// The narrowest identity of the owner of a message. Turns and shares are counted by it, so that the mail of one party does
/// not count for another. Behind one mail server all mail has one client address, and all mail of an organisation has one
/// domain, so neither alone identifies the sender.
///
/// A party is no protection by itself, because a sender may write any reverse-path: a sender that changes it with each message
/// is many parties. The sender's reputation ([`super::SenderReputation`]) and the share of its client network bound such a
/// sender.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Party {
    /// The authenticated user, from any address: all sessions with one user's password are one party.
    User(Box<str>),
    /// The whole reverse-path in canonical form, and the client's network. Only the domain itself knows whether the case of a
    /// local-part matters (RFC 5321 2.4), and two mailboxes that differ only in case can share a turn.
    Sender(IpAddr, Box<str>),
    /// For the null reverse-path, which all servers use (RFC 5321 4.5.5): the first recipient and the client's network. A
    /// flood of bounces to a forged sender is one party, and does not delay other bounces.
    Returned(IpAddr, Box<str>),
}

impl Party {
    /// The party of mail from `client`, authenticated as `user`, with this reverse-path, whose first recipient is `first`.
    /// Before RCPT there is no `first`, so all mail with a null reverse-path from the client's network is one party.
    pub fn new(
        client: IpAddr,
        user: Option<&str>,
        reverse_path: &ReversePath,
        first: Option<&Mailbox>,
    ) -> Self {
        let key = |mailbox: &Mailbox| canonical::mailbox(mailbox.as_str()).into();
        match (user, reverse_path.mailbox()) {
            (Some(user), _) => Self::User(user.into()),
            (None, Some(mailbox)) => Self::Sender(network(client), key(mailbox)),
            (None, None) => Self::Returned(network(client), first.map(key).unwrap_or_default()),
        }
    }

    /// The user, or else the client's network.
    pub fn client(&self) -> (Option<&str>, Option<IpAddr>) {
        match self {
            Self::User(user) => (Some(user), None),
            Self::Sender(network, _) | Self::Returned(network, _) => (None, Some(*network)),
        }
    }

    /// The party of a received message.
    pub fn of(envelope: &Envelope) -> Self {
        let first = envelope.recipients.first().map(|first| &first.mailbox);
        let origin = &envelope.origin;
        let user = origin.user.as_deref();
        Self::new(origin.client, user, &envelope.reverse_path, first)
    }
}

/// The network that an address belongs to. An IPv4 address is its own network, because neighbouring addresses often have other
/// owners. For IPv6 it is the /64, because the owner of one address has all of them (RFC 4291 2.5.4).
pub fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox(text: &str) -> Mailbox {
        Mailbox::parse(text).expect(text)
    }

    /// Mail from `client` as `user` ("" for none) with that reverse-path to that recipient ("" for none yet).
    fn party([client, user, from, to]: [&str; 4]) -> Party {
        let some = |text: &'static str| (!text.is_empty()).then_some(text);
        let leak = |text: &str| -> &'static str { Box::leak(text.into()) };
        let reverse_path = some(leak(from)).map(|from| mailbox(from).into());
        let first = some(leak(to)).map(mailbox);
        Party::new(
            client.parse().expect(client),
            some(leak(user)),
            &reverse_path.unwrap_or_default(),
            first.as_ref(),
        )
    }

    /// Senders that share a client address, a domain or the null reverse-path are different parties. A sender that changes
    /// only what costs nothing to change is one party.
    #[test]
    fn a_party_is_the_narrowest_identity() {
        let one = ["192.0.2.1", "", "a@one.test", "x@b.test"];
        let returned = ["192.0.2.1", "", "", "x@b.test"];
        let user = ["192.0.2.1", "joe", "a@one.test", "x@b.test"];
        let six = ["2001:db8:1:2::3", "", "a@one.test", "x@b.test"];
        for (left, right, why) in [
            (
                one,
                ["192.0.2.1", "", "b@one.test", "x@b.test"],
                "two of one domain",
            ),
            (
                one,
                ["192.0.2.1", "", "a@two.test", "x@b.test"],
                "two domains",
            ),
            (
                one,
                ["192.0.2.2", "", "a@one.test", "x@b.test"],
                "neighbours of IPv4",
            ),
            (one, returned, "a message and a bounce"),
            (one, user, "a claimed sender and the user"),
            (
                user,
                ["192.0.2.1", "ann", "a@one.test", "x@b.test"],
                "two users",
            ),
            (
                returned,
                ["192.0.2.1", "", "", "y@b.test"],
                "bounces to two",
            ),
            (
                six,
                ["2001:db8:1:3::3", "", "a@one.test", "x@b.test"],
                "two networks of IPv6",
            ),
        ] {
            assert_ne!(party(left), party(right), "{why}");
        }
        for (left, right, why) in [
            (
                one,
                ["192.0.2.1", "", "A@One.Test", "y@b.test"],
                "another spelling",
            ),
            (
                one,
                ["192.0.2.1", "", "\"a\"@one.test.", "y@b.test"],
                "a quoted spelling",
            ),
            (
                returned,
                ["192.0.2.1", "", "", "\"\\x\"@b.test"],
                "the recipient's escapes",
            ),
            (
                one,
                ["::ffff:192.0.2.1", "", "a@one.test", ""],
                "IPv4 in IPv6",
            ),
            (
                user,
                ["198.51.100.1", "joe", "z@z.test", ""],
                "a user elsewhere",
            ),
            (
                six,
                ["2001:db8:1:2:f::", "", "a@one.test", ""],
                "a /64 of IPv6",
            ),
            (
                returned,
                ["192.0.2.1", "", "", "X@B.test"],
                "the recipient's spelling",
            ),
        ] {
            assert_eq!(party(left), party(right), "{why}");
        }
    }
}
