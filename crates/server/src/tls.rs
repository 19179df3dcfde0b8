//! TLS in front of HTTP: version 1.2 or 1.3, HTTP/1.1 within, no certificates of clients.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring,
        pki_types::{
            CertificateDer, PrivateKeyDer,
            pem::{self, PemObject},
        },
    },
};

/// A server's certificate and key, ready for use.
#[derive(Clone, Debug)]
pub struct Tls(Arc<ServerConfig>);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}: {reason}", .path.display())]
    Pem { path: PathBuf, reason: String },
    #[error("{} has no certificate; it must have the server's own, and those that vouch for it behind it, as PEM", .path.display())]
    NoCertificate { path: PathBuf },
    #[error("the key in {} does not go with the certificate in {}: {reason}", .key.display(), .certificate.display())]
    Unfit { certificate: PathBuf, key: PathBuf, reason: rustls::Error },
}

impl Tls {
    /// Reads PEM files: the chain of certificates with the server's own first, and its private key (PKCS #1, PKCS #8 or SEC 1).
    ///
    /// # Errors
    /// When a file cannot be read, or the two do not go together.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let unread = |path: &Path, error: pem::Error| TlsError::Pem { path: path.to_owned(), reason: reason(error) };
        let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|error| unread(certificate, error))?;
        if chain.is_empty() {
            return Err(TlsError::NoCertificate { path: certificate.to_owned() });
        }
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unread(key, error))?;
        let unfit = |reason| TlsError::Unfit { certificate: certificate.to_owned(), key: key.to_owned(), reason };
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
        let mut config = config.map_err(unfit)?.with_no_client_auth().with_single_cert(chain, private).map_err(unfit)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.0).into()
    }
}

fn reason(error: pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "it has no private key as PEM".into(),
        other => format!("it is not PEM: {other}"),
    }
}
