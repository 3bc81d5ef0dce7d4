//! STARTTLS and AUTH towards a next hop.

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

use super::*;

/// An acceptor with a certificate for `localhost`, and that certificate in PEM.
fn acceptor() -> (TlsAcceptor, String) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .expect("a configuration");
    (TlsAcceptor::from(Arc::new(config)), cert.pem())
}

const START: &str = "
    S: 220 hi
    C: EHLO me
    S: 250-hi
    S: 250 STARTTLS
    C: STARTTLS
";
const SECURED: &str = "
    S: 220 go
    TLS
    C: EHLO me
    S: 250-hi
    S: 250 PIPELINING
";
const TAKEN: &str = "delivered end of data: 250 2.0.0 taken";

/// `localhost:port` of the server.
fn by_name(server: &Server) -> String {
    server.address().replace("127.0.0.1", "localhost")
}

/// The message goes over the encrypted session, and `verified` accepts the certificate that the settings trust.
#[tokio::test]
async fn mail_goes_over_tls() {
    let (tls, pem) = acceptor();
    let folder = tempfile::tempdir().expect("folder");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, pem).expect("file");
    for mode in [TlsMode::Opportunistic, TlsMode::Required, TlsMode::Verified] {
        let server =
            Server::start_tls(&[&script(&[START, SECURED, ONE_MAIL])], Some(tls.clone())).await;
        let delivery = delivery(SmtpSettings {
            tls: mode,
            tls_ca: Some(ca.clone()),
            ..hop(&[by_name(&server)])
        });
        assert_eq!(
            outcomes(&delivery, &mail(&["b@y"], CONTENT), soon()).await,
            [TAKEN],
            "{mode:?}"
        );
        server.finished().await;
    }
}

/// With `verified`, a server gets no message if its certificate is not trusted or is for another name.
#[tokio::test]
async fn an_unknown_certificate_gets_no_mail() {
    let (tls, pem) = acceptor();
    let (_, other) = acceptor();
    let folder = tempfile::tempdir().expect("folder");
    let ca = folder.path().join("ca.pem");
    for (trusted, by_address) in [(&other, false), (&pem, true)] {
        std::fs::write(&ca, trusted).expect("file");
        let server = Server::start_tls(&[&script(&[START, SECURED])], Some(tls.clone())).await;
        let address = if by_address {
            server.address()
        } else {
            by_name(&server)
        };
        let delivery = delivery(SmtpSettings {
            tls: TlsMode::Verified,
            tls_ca: Some(ca.clone()),
            ..hop(&[address])
        });
        let got = outcomes(&delivery, &mail(&["b@y"], CONTENT), soon()).await;
        assert!(
            got[0].starts_with("deferred") && got[0].contains("TLS failed"),
            "{got:?}"
        );
        server.finished().await;
    }
}

/// If the handshake fails, opportunistic encryption continues unencrypted on a new connection, and required encryption does
/// not.
#[tokio::test]
async fn failed_tls_falls_back_only_where_allowed() {
    let failing = script(&[START, "S: 220 go"]);
    let server = Server::start(&[&failing, &script(&[HELLO, ONE_MAIL])]).await;
    let opportunistic = delivery(SmtpSettings {
        tls: TlsMode::Opportunistic,
        ..hop(&[server.address()])
    });
    assert_eq!(
        outcomes(&opportunistic, &mail(&["b@y"], CONTENT), soon()).await,
        [TAKEN]
    );
    server.finished().await;

    let server = Server::start(&[&failing]).await;
    let required = delivery(SmtpSettings {
        tls: TlsMode::Required,
        ..hop(&[server.address()])
    });
    let got = outcomes(&required, &mail(&["b@y"], CONTENT), soon()).await;
    assert!(got[0].contains("TLS failed"), "{got:?}");
    server.finished().await;

    let server = Server::start(&[HELLO]).await;
    let required = delivery(SmtpSettings {
        tls: TlsMode::Required,
        ..hop(&[server.address()])
    });
    let got = outcomes(&required, &mail(&["b@y"], CONTENT), soon()).await;
    assert!(got[0].contains("does not offer STARTTLS"), "{got:?}");
    server.finished().await;
}

/// The client does not treat replies that arrived before the handshake as encrypted (CVE-2011-0411): the session ends, in
/// every mode.
#[tokio::test]
async fn plaintext_behind_starttls_ends_the_session() {
    for mode in [TlsMode::Opportunistic, TlsMode::Required] {
        let injected = script(&[START, "S; 220 go\nS: 250 injected\nEOF"]);
        let server = Server::start(&[&injected]).await;
        let delivery = delivery(SmtpSettings {
            tls: mode,
            ..hop(&[server.address()])
        });
        let got = outcomes(&delivery, &mail(&["b@y"], CONTENT), soon()).await;
        assert!(
            got[0].starts_with("deferred") && got[0].contains("injected"),
            "{got:?}"
        );
        server.finished().await;
    }
}

/// With a user name the client authenticates before the first MAIL. A refused password is an error of the settings, so no
/// message bounces.
#[tokio::test]
async fn sessions_are_authenticated() {
    let folder = tempfile::tempdir().expect("folder");
    let password = folder.path().join("password");
    std::fs::write(&password, "p\n").expect("file");
    let offer = "S: 220 hi
        C: EHLO me
        S: 250-hi
        S: 250-PIPELINING
        S: 250 AUTH PLAIN
        C: AUTH PLAIN AHUAcA==
    ";
    let settings = |server: &Server| SmtpSettings {
        username: Some("u".to_owned()),
        password_file: Some(password.clone()),
        ..hop(&[server.address()])
    };
    let server = Server::start(&[&script(&[offer, "S: 235 in", ONE_MAIL])]).await;
    let accepted = delivery(settings(&server));
    assert_eq!(
        outcomes(&accepted, &mail(&["b@y"], CONTENT), soon()).await,
        [TAKEN]
    );
    server.finished().await;

    let server = Server::start(&[&script(&[offer, "S: 535 5.7.8 no"])]).await;
    let refused = delivery(settings(&server));
    let got = outcomes(&refused, &mail(&["b@y"], CONTENT), soon()).await;
    assert!(
        got[0].starts_with("deferred") && got[0].contains("AUTH: 535 5.7.8 no"),
        "{got:?}"
    );
    server.finished().await;

    let server = Server::start(&[HELLO]).await;
    let missing = delivery(settings(&server));
    let got = outcomes(&missing, &mail(&["b@y"], CONTENT), soon()).await;
    assert!(
        got[0].contains("neither AUTH PLAIN nor AUTH LOGIN"),
        "{got:?}"
    );
    server.finished().await;
}
