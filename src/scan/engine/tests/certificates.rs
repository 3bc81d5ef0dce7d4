//! TLS towards engines: which certificates the relay accepts.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::subjects::MAIL;
use crate::scan::engine::{Address, Engine, Kind, ScanError, SpamdSettings, Tls, build};
use crate::scan::tests::sample;
use crate::verdict::Reason;

/// Starts a spamd over TLS with a certificate for `name`, and writes this certificate to a file. Returns the port.
async fn spamd(folder: &Path, name: &str) -> u16 {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    std::fs::write(folder.join("ca.pem"), cert.pem()).expect("a file");
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .expect("a configuration");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut request = Vec::new();
            let _ = stream.read_to_end(&mut request).await;
            assert!(request.ends_with(MAIL));
            let answer = b"SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\nSpam: False ; 0 / 5\r\n\r\n";
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
        }
    });
    port
}

async fn ask(host: &str, port: u16, ca: Option<&Path>) -> Result<(), ScanError> {
    let kind = Kind::Spamd {
        addresses: vec![Address::Tcp(format!("{host}:{port}"))],
        settings: SpamdSettings {
            user: None,
            tls: Some(Tls {
                ca: ca.map(Into::into),
            }),
            connect_timeout: Duration::from_secs(60),
        },
    };
    let engine: Arc<dyn Engine> = build(&kind).expect("an engine").remove(0);
    engine.scan(sample(MAIL)).await.map(drop)
}

/// Mail goes only to an engine whose certificate is valid for its name and is signed by a trusted authority.
#[tokio::test]
async fn only_a_valid_certificate_is_accepted() {
    let folder = tempfile::tempdir().expect("folder");
    let ca = folder.path().join("ca.pem");
    let port = spamd(folder.path(), "localhost").await;
    ask("localhost", port, Some(&ca)).await.expect("an answer");
    for (host, ca) in [("localhost", None), ("127.0.0.1", Some(&*ca))] {
        let error = ask(host, port, ca).await.expect_err(host);
        assert_eq!(error.reason(), Reason::Unreachable, "{error}");
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}
