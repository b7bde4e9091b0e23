//! Whether an endpoint can be reached, without asking anything of it: name, address, connection, TLS.

use super::endpoint::{Endpoint, EndpointFault};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls_platform_verifier::{ConfigVerifierExt as _, Verifier};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Of each step.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why an endpoint cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    #[error(transparent)]
    Endpoint(#[from] EndpointFault),
    #[error("{0}")]
    File(String),
    #[error("its name cannot be resolved: {0}")]
    Name(String),
    #[error("no address of its name may be called: {0}")]
    Address(&'static str),
    #[error("no connection to {address}: {reason}")]
    Connection { address: SocketAddr, reason: String },
    #[error("no TLS with {address}: {reason}")]
    Tls { address: SocketAddr, reason: String },
}

/// With the authorities of a file, beside those that this machine trusts.
fn trusting(path: &Path) -> Result<rustls::ClientConfig, String> {
    let fault = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let roots: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| fault(&e))?.collect();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier::new_with_extra_roots(roots.map_err(|e| fault(&e))?, Arc::clone(&provider)).map_err(|e| fault(&e))?;
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|e| fault(&e))?;
    Ok(config.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

impl Endpoint {
    /// Connects as an attempt would, and closes the connection again. Says where to. Needs a process-wide rustls provider.
    ///
    /// # Errors
    /// The first step that fails.
    pub async fn probe(&self) -> Result<String, Unreachable> {
        self.check().map_err(|error| error.fault)?;
        let Some(url) = self.targets()?.into_iter().next() else { return self.probe_file() };
        let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(443));
        let host = host.trim_matches(['[', ']']);
        let address = self.address(host, port).await?;
        let refused = |reason: String| Unreachable::Connection { address, reason };
        let stream = match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
            Ok(connected) => connected.map_err(|e| refused(e.to_string()))?,
            Err(_) => return Err(refused(format!("no answer in {} s", PATIENCE.as_secs()))),
        };
        if url.scheme() != "https" {
            return Ok(format!("{address}, without TLS"));
        }
        let broken = |reason: String| Unreachable::Tls { address, reason };
        let config = match &self.ca_file {
            None => rustls::ClientConfig::with_platform_verifier().map_err(|e| broken(e.to_string()))?,
            Some(path) => trusting(path).map_err(broken)?,
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|e| broken(e.to_string()))?;
        let shaken = tokio::time::timeout(PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
        match shaken {
            Ok(Ok(_)) => Ok(format!("{address}, TLS")),
            Ok(Err(error)) => Err(broken(error.to_string())),
            Err(_) => Err(broken(format!("no answer in {} s", PATIENCE.as_secs()))),
        }
    }

    /// Of an endpoint that is a file.
    fn probe_file(&self) -> Result<String, Unreachable> {
        let file = self.file.clone().unwrap_or_default();
        match std::fs::metadata(&file) {
            Ok(_) => Ok(format!("{}, a file", file.display())),
            Err(e) => Err(Unreachable::File(format!("{}: {e}", file.display()))),
        }
    }

    /// The first address of a name that may be called.
    async fn address(&self, host: &str, port: u16) -> Result<SocketAddr, Unreachable> {
        let found = tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host, port))).await;
        let found = found.map_err(|_| Unreachable::Name(format!("no answer in {} s", PATIENCE.as_secs())))?;
        let mut refused = Err(Unreachable::Name("it has no address".to_owned()));
        for address in found.map_err(|e| Unreachable::Name(e.to_string()))? {
            match self.reach.address(host, address.ip()) {
                Ok(()) => return Ok(address),
                Err(why) => refused = Err(Unreachable::Address(why)),
            }
        }
        refused
    }
}
