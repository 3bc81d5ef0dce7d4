//! Trusted peers that name another client: the PROXY header, XCLIENT and XFORWARD.

use std::net::{IpAddr, Ipv4Addr};

use super::proxy::{self, Parsed, ProxiedClient};
use super::{Ending, HANDSHAKE_TIMEOUT, Session};
use crate::deadline::Elapsed;
use crate::listener::Tls;
use crate::listener::context::Context;
use crate::message::Origin;
use crate::smtp::Reply;
use crate::smtp::transaction::{Offer, Server};
use crate::smtp::xtext::Attributes;

impl Session {
    pub(super) async fn proxy_header(&mut self) -> Result<(), Ending> {
        let deadline = self.ends.within(HANDSHAKE_TIMEOUT);
        loop {
            match proxy::parse(self.wire.input()) {
                Parsed::Header(octets, client) => {
                    self.wire.consume(octets);
                    match client {
                        ProxiedClient::At(address) => self.speak_for(address)?,
                        ProxiedClient::Proxy => {}
                        ProxiedClient::Unknown => self.speak_for_unknown(),
                    }
                    self.server = Server::new(offer(&self.context, self.address));
                    return Ok(());
                }
                Parsed::Bad => return Err(Ending::NoProxyHeader),
                Parsed::Incomplete(more) => {
                    match deadline.run(self.wire.read_at_most(more)).await {
                        Ok(Ok(0)) | Err(Elapsed) => return Err(Ending::NoProxyHeader),
                        Ok(read) => read?,
                    };
                }
            }
        }
    }

    /// Sets the client that a trusted peer names, and counts the session for that client. Fails if the client already has
    /// too many sessions.
    fn speak_for(&mut self, client: IpAddr) -> Result<(), Ending> {
        self.address = client.to_canonical();
        let per_client = self.context.limits.sessions_per_client;
        match self.place.pass_to(self.address, per_client) {
            true => Ok(()),
            false => Err(Ending::TooManySessions),
        }
    }

    /// Sets a client that the trusted peer does not know. The unspecified address gives no permission, because no client has
    /// it. The session still counts for the peer.
    fn speak_for_unknown(&mut self) {
        self.address = Ipv4Addr::UNSPECIFIED.into();
    }

    /// Carries out XCLIENT. From here on the session belongs to the client and has none of the peer's permissions.
    pub(super) fn xclient(&mut self, attributes: Attributes) -> Result<Reply, Ending> {
        match (&attributes.addr, attributes.address()) {
            (None, _) => {}
            (_, Some(address)) => self.speak_for(address)?,
            (Some(None), _) => self.speak_for_unknown(),
            (Some(Some(_)), None) => return Ok(Reply::bad_parameter("ADDR")),
        }
        self.client_certificate = false;
        // What XFORWARD said holds in its own session only, and a name holds for the address with which it was given.
        self.forwarded = Attributes::default();
        match attributes.name {
            Some(name) => self.client_name = name,
            None if attributes.addr.is_some() => self.client_name = None,
            None => {}
        }
        self.server.reset_for_xclient(attributes.login.flatten());
        Ok(Reply::greeting(&self.context.hostname))
    }

    /// The client for which admission counts the mail of this transaction: the client that XFORWARD named, otherwise the
    /// client of the session. A share of memory is no permission, so XFORWARD may decide it. Without XFORWARD, all mail that
    /// a mail server relays would count as the mail of one client.
    pub(super) fn client(&self) -> IpAddr {
        client(self.address, &self.forwarded)
    }
}

/// Whether a command begins a new transaction or session even if none is open: RSET, EHLO, HELO (RFC 5321 4.1.1.5, 4.1.4).
/// Such a command ends the validity of XFORWARD, as it does in Postfix.
pub(super) fn is_reset(line: &[u8]) -> bool {
    let is_white = |octet: &u8| matches!(octet, b' ' | b'\t');
    let mut words = line.split(is_white).filter(|word| !word.is_empty());
    let verb = words.next().unwrap_or_default();
    let resets: [&[u8]; 3] = [b"RSET", b"EHLO", b"HELO"];
    resets.iter().any(|reset| verb.eq_ignore_ascii_case(reset))
}

/// Extensions and limits that the listener offers to this client.
pub(super) fn offer(context: &Context, client: IpAddr) -> Offer {
    let settings = &context.settings;
    let trusted = |networks: &[ipnet::IpNet]| networks.iter().any(|n| n.contains(&client));
    Offer {
        hostname: context.hostname.clone(),
        message_size: context.limits.message_size,
        recipients: context.limits.recipients,
        starttls: matches!(settings.tls, Tls::StartTls | Tls::Required),
        tls_required: settings.tls == Tls::Required,
        auth: context.users.is_some(),
        encrypted: false,
        xclient: trusted(&settings.xclient_from),
        xforward: trusted(&settings.xforward_from),
    }
}

fn client(peer: IpAddr, forwarded: &Attributes) -> IpAddr {
    let named = forwarded.address();
    named.map_or(peer, |address| address.to_canonical())
}

/// Applies XFORWARD, which names the client that sent the message to the peer. XFORWARD gives no permission.
pub(super) fn apply_forwarded(origin: &mut Origin, forwarded: Attributes) {
    origin.client = client(origin.client, &forwarded);
    if let Some(name) = forwarded.name {
        origin.client_name = name;
    }
    if let Some(Some(helo)) = forwarded.helo {
        origin.helo = helo;
    }
}
