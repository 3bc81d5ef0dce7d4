//! Whose mail it is, for turns and shares.

use std::net::{IpAddr, Ipv6Addr};

use super::{Envelope, Mailbox, ReversePath};

/// The narrowest identity that a message has: whoever brings much has it counted under this name, and nobody else's mail with
/// it. Behind one mail server all mail has one client address, and all mail of an organisation one domain, so neither alone
/// says who sends.
///
/// A name that anybody may write is no protection by itself: who changes his reverse-path with each message is many parties
/// here. What bounds him is the reputation of a sender ([`super::SenderReputation`]) and the share of a client network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Party {
    /// Who logged in, from wherever: somebody who has the password is one party in a thousand places.
    User(Box<str>),
    /// The whole reverse-path through the client's network. In lower case: whether capitals matter in a local-part is its
    /// own domain's business (RFC 5321 2.4), and two mailboxes that differ in nothing else can share a turn.
    Sender(IpAddr, Box<str>),
    /// The null reverse-path, which all servers have (RFC 5321 4.5.5): the first recipient through the client's network. A
    /// flood of bounces to a forged sender is one party, and keeps nobody else's bounces waiting.
    Returned(IpAddr, Box<str>),
}

impl Party {
    /// Of what `client` brings as `user`, with this reverse-path, to `first` and maybe others. There is no `first` before
    /// RCPT: all returned mail through the client's network is one party then.
    pub fn new(
        client: IpAddr,
        user: Option<&str>,
        reverse_path: &ReversePath,
        first: Option<&Mailbox>,
    ) -> Self {
        let lower = |mailbox: &Mailbox| mailbox.as_str().to_lowercase().into();
        match (user, reverse_path.mailbox()) {
            (Some(user), _) => Self::User(user.into()),
            (None, Some(mailbox)) => Self::Sender(network(client), lower(mailbox)),
            (None, None) => Self::Returned(network(client), first.map(lower).unwrap_or_default()),
        }
    }

    /// Who brings it: the user, else the client's network.
    pub fn client(&self) -> (Option<&str>, Option<IpAddr>) {
        match self {
            Self::User(user) => (Some(user), None),
            Self::Sender(network, _) | Self::Returned(network, _) => (None, Some(*network)),
        }
    }

    /// Of a message that is here.
    pub fn of(envelope: &Envelope) -> Self {
        let first = envelope.recipients.first().map(|first| &first.mailbox);
        let origin = &envelope.origin;
        let user = origin.user.as_deref();
        Self::new(origin.client, user, &envelope.reverse_path, first)
    }
}

/// Whom an address belongs to. An IPv4 address stands for itself: neighbours are often strangers. Of IPv6 it is the /64,
/// since whoever has one address of it has them all (RFC 4291 2.5.4).
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

    /// Mail from `client` as `user` ("" for nobody) with that reverse-path to that recipient ("" for none yet).
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

    /// Who may have a turn of his own: two who share a client address, a domain or the null reverse-path are told apart;
    /// one who changes what costs him nothing is not.
    #[test]
    fn a_party_is_the_narrowest_identity_there_is() {
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
            (one, user, "somebody who says so and the user"),
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
