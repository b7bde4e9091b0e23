//! TLS of the API: certificate and key from files, read again when they change.

use crate::config;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// A PEM file is no larger than this, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {why}")]
    File { path: PathBuf, why: String },
    #[error("certificate and key: {0}")]
    Pair(#[from] rustls::Error),
    #[error("client_ca: {0}")]
    Authority(#[from] rustls::server::VerifierBuilderError),
}

/// What new connections are served with.
pub struct Tls {
    files: config::Tls,
    config: Arc<ServerConfig>,
    /// Of the files that were last looked at.
    digest: [u8; 32],
}

impl Tls {
    /// Reads the files. Needs a process-wide rustls provider.
    ///
    /// # Errors
    /// When a file cannot be read, or what they hold does not fit together.
    pub fn load(files: &config::Tls) -> Result<Tls, TlsError> {
        let pem = Pem::read(files)?;
        Ok(Tls { files: files.clone(), config: Arc::new(pem.config(files)?), digest: pem.digest() })
    }

    /// Reads the files again. What is faulty is logged once, and the old goes on being used.
    pub(super) fn refresh(&mut self) {
        let fresh = Pem::read(&self.files).and_then(|pem| {
            let changed = pem.digest() != self.digest;
            self.digest = pem.digest();
            if changed { pem.config(&self.files).map(Some) } else { Ok(None) }
        });
        match fresh {
            Ok(None) => {}
            Ok(Some(config)) => {
                self.config = Arc::new(config);
                tracing::info!("the certificate has changed: new connections are served with it");
            }
            Err(error) if self.digest != [0; 32] => {
                tracing::error!("the new certificate cannot be used, and the old one stays: {error}");
                // A file that is away is told once, and one that is there again is read.
                if matches!(error, TlsError::File { .. }) {
                    self.digest = [0; 32];
                }
            }
            Err(_) => {}
        }
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

/// The files' content.
struct Pem {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Pem {
    fn read(files: &config::Tls) -> Result<Pem, TlsError> {
        let client_ca = files.client_ca.as_deref().map(read).transpose()?;
        Ok(Pem { certificate: read(&files.certificate)?, key: read(&files.key)?, client_ca })
    }

    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()] {
            hash.update(Sha256::digest(part.map_or(&[][..], Vec::as_slice)));
        }
        hash.finalize().into()
    }

    fn config(&self, files: &config::Tls) -> Result<ServerConfig, TlsError> {
        let chain = certificates(&files.certificate, &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|e| fault(&files.key, format!("no private key in PEM: {e}")))?;
        let builder = match (&files.client_ca, &self.client_ca) {
            (Some(path), Some(pem)) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path, pem)? {
                    roots.add(authority)?;
                }
                ServerConfig::builder().with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build()?)
            }
            _ => ServerConfig::builder().with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(fault(path, "no certificate in PEM".to_owned())),
        Err(error) => Err(fault(path, format!("no certificate in PEM: {error}"))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let length = std::fs::metadata(path).map_err(|e| fault(path, e.to_string()))?.len();
    if length > MAX_FILE {
        return Err(fault(path, format!("has {length} bytes, and at most {MAX_FILE} are read")));
    }
    std::fs::read(path).map_err(|e| fault(path, e.to_string()))
}

fn fault(path: &Path, why: String) -> TlsError {
    TlsError::File { path: path.to_owned(), why }
}
