//! The certificate authorities that the relay trusts for TLS connections it makes: those of a file, or those of the system.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio_rustls::TlsConnector;

use crate::file;

/// Why no certificate can be checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoTrust {
    /// The certificate file is missing, unreadable, or without a certificate.
    #[error("certificate file {path}: {why}", path = .0.display(), why = .1)]
    File(PathBuf, String),
    /// The system has no certificates of authorities.
    #[error("the system has no certificates of authorities (set tls_ca): {0}")]
    NoSystem(String),
    /// The TLS library rejects the configuration.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// Returns the certificates of the file, or those of the system without a file. Blocks on files: call this at start and reload
/// only.
pub fn roots(path: Option<&Path>) -> Result<RootCertStore, NoTrust> {
    let mut roots = RootCertStore::empty();
    let Some(path) = path else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let why = found.errors.first().map(ToString::to_string);
            return Err(NoTrust::NoSystem(why.unwrap_or_default()));
        }
        return Ok(roots);
    };
    let broken = |why: String| NoTrust::File(path.to_owned(), why);
    let pem = file::read(path, file::CREDENTIAL_FILE_OCTETS_MAX)
        .map_err(|error| broken(error.to_string()))?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| broken(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| broken(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(broken("the file contains no certificate".to_owned()));
    }
    Ok(roots)
}

/// Returns a connector that checks the certificate and the name of the peer against [`roots`]. Blocks like [`roots`].
pub fn verified(file: Option<&Path>) -> Result<TlsConnector, NoTrust> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| NoTrust::Tls(error.to_string()))?
        .with_root_certificates(roots(file)?)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
