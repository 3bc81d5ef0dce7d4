//! Certificates of a listener.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::file;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or does not contain PEM of the right kind.
    #[error("{path}: {why}", path = .0.display(), why = .1)]
    File(PathBuf, String),
    /// The parts do not match, for example the key and the certificate.
    #[error("certificate {path}: {why}", path = .0.display(), why = .1)]
    Mismatch(PathBuf, rustls::Error),
}

/// Reads the certificate chain, the key and the client CAs. Blocks on disk I/O; the files are small, and are read only at
/// start and at a reload.
pub fn server_config(
    certificate: &Path,
    key: &Path,
    client_ca: Option<&Path>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(certificate)?;
    let secret = PrivateKeyDer::from_pem_slice(&pem(key)?)
        .map_err(|e| TlsError::File(key.to_owned(), format!("no private key in PEM form: {e}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Mismatch(certificate.to_owned(), e))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots
                    .add(authority)
                    .map_err(|e| TlsError::Mismatch(path.to_owned(), e))?;
            }
            // A client without a certificate is accepted, but gets no permission to relay from TLS.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|e| TlsError::File(path.to_owned(), e.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    builder
        .with_single_cert(chain, secret)
        .map(Arc::new)
        .map_err(|e| TlsError::Mismatch(certificate.to_owned(), e))
}

/// Checks that a listener can use these files. Blocks like [`server_config`].
///
/// # Errors
/// The first problem.
pub fn check_certificate_files(
    certificate: &Path,
    key: &Path,
    client_ca: Option<&Path>,
) -> Result<(), TlsError> {
    server_config(certificate, key, client_ca).map(drop)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |why: String| TlsError::File(path.to_owned(), why);
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem(path)?)
        .collect::<Result<_, _>>()
        .map_err(|e| wrong(format!("cannot be read as PEM: {e}")))?;
    if chain.is_empty() {
        return Err(wrong("no certificate in PEM form".to_owned()));
    }
    Ok(chain)
}

fn pem(path: &Path) -> Result<Vec<u8>, TlsError> {
    file::read(path, file::CREDENTIAL_FILE_OCTETS_MAX)
        .map_err(|error| TlsError::File(path.to_owned(), format!("cannot be read: {error}")))
}
