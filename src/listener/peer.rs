//! Peers that speak for others, and what they are believed: the PROXY header, XCLIENT and XFORWARD.

use std::net::{IpAddr, Ipv4Addr};

use super::Tls;
use super::accept::Context;
use super::proxy::{self, Parsed};
use super::session::{Ending, HANDSHAKE, Session};
use crate::deadline::Elapsed;
use crate::message::Origin;
use crate::smtp::Reply;
use crate::smtp::transaction::{Offer, Server};
use crate::smtp::xtext::Attributes;

impl Session {
    pub(super) async fn proxy_header(&mut self) -> Result<(), Ending> {
        let deadline = self.ends.within(HANDSHAKE);
        loop {
            match proxy::parse(self.wire.input()) {
                Parsed::Header(octets, address) => {
                    self.wire.consume(octets);
                    self.speak_for(address.unwrap_or(self.address))?;
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

    /// A trusted peer says who its client is.
    fn speak_for(&mut self, client: IpAddr) -> Result<(), Ending> {
        self.address = client.to_canonical();
        let per_client = self.context.limits.sessions_per_client;
        match self.place.pass_to(self.address, per_client) {
            true => Ok(()),
            false => Err(Ending::TooManySessions),
        }
    }

    /// From here on the session is the client's: nothing of it may have a permission that the peer has.
    pub(super) fn xclient(&mut self, attributes: Attributes) -> Result<Reply, Ending> {
        match (&attributes.addr, attributes.address()) {
            (None, _) => {}
            (_, Some(address)) => self.speak_for(address)?,
            // The peer does not know: an address that is in no network.
            (Some(None), _) => self.address = Ipv4Addr::UNSPECIFIED.into(),
            (Some(Some(_)), None) => return Ok(Reply::bad_parameter("ADDR")),
        }
        self.client_certificate = false;
        if let Some(name) = attributes.name {
            self.client_name = name;
        }
        self.server.reset_for_xclient(attributes.login.flatten());
        Ok(Reply::greeting(&self.context.hostname))
    }

    /// Whom the mail of this transaction is counted with: the client that XFORWARD named, or else the session's. A share is
    /// no permission: without this all that a mail server relays would be one client's.
    pub(super) fn client(&self) -> IpAddr {
        client(self.address, &self.forwarded)
    }
}

/// What a session of this client is offered.
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

/// XFORWARD tells where a message came from before it came to our peer; it gives no permission.
pub(super) fn apply_forwarded(origin: &mut Origin, forwarded: Attributes) {
    origin.client = client(origin.client, &forwarded);
    if let Some(name) = forwarded.name {
        origin.client_name = name;
    }
    if let Some(Some(helo)) = forwarded.helo {
        origin.helo = helo;
    }
}
