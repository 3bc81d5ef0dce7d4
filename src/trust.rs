//! Whose certificates are believed when we connect to somebody over TLS: the authorities of a file, or the system's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio_rustls::TlsConnector;

use crate::file;

/// Why no certificate could be checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoTrust {
    /// The certificate file cannot be used.
    #[error("certificate file {path}: {why}", path = .0.display(), why = .1)]
    File(PathBuf, String),
    /// No certificates of authorities on this system.
    #[error("the system has no certificates of authorities (set tls_ca): {0}")]
    NoSystem(String),
    /// The TLS library refuses to be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// The certificates of the file, or else the system's. Blocks on files: for start and reload.
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
    let pem = file::read(path, file::LARGEST).map_err(|error| broken(error.to_string()))?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| broken(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| broken(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(broken("it contains no certificate".to_owned()));
    }
    Ok(roots)
}

/// A connector that checks the peer's certificate and name against [`roots`].
pub fn verified(file: Option<&Path>) -> Result<TlsConnector, NoTrust> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| NoTrust::Tls(error.to_string()))?
        .with_root_certificates(roots(file)?)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
