//! Certificates for tests: one authority, a server `relay.test` and a client of it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, SignatureScheme};

struct Made {
    ca: String,
    server: (String, String),
    client: (String, String),
}

fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let mut params = CertificateParams::new(vec!["ca.test".to_owned()]).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key"))
            .expect("authority");
        let leaf = |name: &str| {
            let key = KeyPair::generate().expect("key");
            let params = CertificateParams::new(vec![name.to_owned()]).expect("params");
            let certificate = params.signed_by(&key, &issuer).expect("certificate");
            (certificate.pem(), key.serialize_pem())
        };
        Made {
            server: leaf("relay.test"),
            client: leaf("client.test"),
            ca: issuer.pem(),
        }
    })
}

/// Writes `ca.pem`, `server.pem`, `server.key`, `client.pem`, `client.key`.
pub fn write(folder: &Path) {
    let made = made();
    for (name, pem) in [
        ("ca.pem", &made.ca),
        ("server.pem", &made.server.0),
        ("server.key", &made.server.1),
        ("client.pem", &made.client.0),
        ("client.key", &made.client.1),
    ] {
        let file = folder.join(name);
        std::fs::write(&file, pem).expect("certificate file");
        // A key that every user can read causes a warning.
        std::fs::set_permissions(file, PermissionsExt::from_mode(0o600)).expect("its mode");
    }
}

/// A client that takes any certificate: what it protects is not under test.
pub fn trusting_client() -> ClientConfig {
    builder().with_no_client_auth()
}

/// The same, with a certificate of the test's authority.
pub fn certified_client() -> ClientConfig {
    let (certificate, key) = &made().client;
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<_, _>>()
        .expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
    builder()
        .with_client_auth_cert(chain, key)
        .expect("they belong together")
}

fn builder() -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let provider = Arc::new(ring::default_provider());
    ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting(provider)))
}

#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
