//! The TLS handshake of a session, and what the session learns from it.

use std::io;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Ending, HANDSHAKE_TIMEOUT, Session};
use crate::deadline::Elapsed;
use crate::listener::counts;

impl Session {
    pub(super) async fn handshake(&mut self) -> Result<(), Ending> {
        let failed = |why: &str| Ending::Handshake(io::Error::other(why.to_owned()));
        // `take_plain` drops the buffered input: it arrived unencrypted, and an attacker may have injected it
        // (CVE-2011-0411).
        let socket = self
            .wire
            .take_plain()
            .ok_or_else(|| failed("the session is encrypted already"))?;
        let config = self
            .context
            .tls
            .clone()
            .ok_or_else(|| failed("the listener has no certificate"))?;
        let accepted = self
            .ends
            .within(HANDSHAKE_TIMEOUT)
            .run(TlsAcceptor::from(config).accept(socket))
            .await
            .inspect_err(|Elapsed| counts::handshake_failed("timed-out"))
            .map_err(|Elapsed| failed("timed out"))?
            .inspect_err(|_| counts::handshake_failed("error"))
            .map_err(Ending::Handshake)?;
        counts::handshake(version(&accepted));
        self.tls = Some(describe(&accepted));
        self.client_certificate = has_client_certificate(&accepted);
        self.wire.set_tls(accepted);
        self.server.set_encrypted();
        Ok(())
    }
}

/// Protocol version and cipher suite, as shown in the `Received` field.
fn describe(stream: &TlsStream<TcpStream>) -> String {
    let suite = stream
        .get_ref()
        .1
        .negotiated_cipher_suite()
        .and_then(|suite| suite.suite().as_str())
        .unwrap_or("unknown cipher");
    format!("{} {suite}", version(stream))
}

/// One of the two versions that the relay offers.
fn version(stream: &TlsStream<TcpStream>) -> &'static str {
    match stream.get_ref().1.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLSv1.3",
    }
}

/// Whether the client has a certificate of `client_ca`. Without `client_ca` no client is asked for a certificate, and rustls
/// has verified each certificate that a client sent.
fn has_client_certificate(stream: &TlsStream<TcpStream>) -> bool {
    stream
        .get_ref()
        .1
        .peer_certificates()
        .is_some_and(|chain| !chain.is_empty())
}
