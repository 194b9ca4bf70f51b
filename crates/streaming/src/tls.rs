//! The certificate that the server shows, where an operator wants TLS.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, ServerConfig};

/// Files in PEM.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// The certificate and what leads from it to its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds something else.
    #[error("read {path} as PEM")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No private key is in the key file.
    #[error("{0} holds no private key")]
    NoKey(PathBuf),
    /// Certificate and key do not fit.
    #[error("the streaming server's certificate cannot be used")]
    Certificate(#[source] rustls::Error),
}

pub(crate) fn acceptor(config: &TlsConfig) -> Result<TlsAcceptor, TlsError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| TlsError::File { path, source }
    };
    let open = |path: &Path| File::open(path).map(BufReader::new).map_err(failed(path));
    let chain = rustls_pemfile::certs(&mut open(&config.certificate)?).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(failed(&config.certificate))?;
    let key = rustls_pemfile::private_key(&mut open(&config.key)?).map_err(failed(&config.key))?;
    let key = key.ok_or_else(|| TlsError::NoKey(config.key.clone()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Certificate)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(TlsError::Certificate)?;
    Ok(TlsAcceptor::from(Arc::new(server)))
}
