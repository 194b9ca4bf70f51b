//! Mutual TLS 1.3 between the nodes' daemons.
//!
//! Both sides show a certificate of the one authority that the operator gave them (`meridian certs init`), and the
//! source checks that the certificate is the destination's by name or address. There is no other trust: no system
//! roots, no TLS 1.2, no resumption.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// A node's own certificate, its key and the authority that it trusts.
#[derive(Clone)]
pub struct Identity {
    client: TlsConnector,
    server: TlsAcceptor,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity")
    }
}

/// The certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file.
    #[error("read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// Not what it should be.
    #[error("{path} holds no {what}")]
    Empty {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// They do not fit.
    #[error("certificate {path} cannot be used with its key and authority")]
    Unusable {
        /// The certificate.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Identity {
    /// Reads PEM files.
    pub fn load(certificate: &Path, key: &Path, authority: &Path) -> Result<Self, IdentityError> {
        let chain = certificates(certificate)?;
        let secret = private_key(key)?;
        let mut roots = RootCertStore::empty();
        for root in certificates(authority)? {
            roots.add(root).map_err(|error| unusable(authority, error))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let only_13 = &[&version::TLS13];
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(only_13)
            .map_err(|error| unusable(certificate, error))?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), secret.clone_key())
            .map_err(|error| unusable(certificate, error))?;
        client.resumption = Resumption::disabled();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| unusable(authority, error))?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(only_13)
            .map_err(|error| unusable(certificate, error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, secret)
            .map_err(|error| unusable(certificate, error))?;
        server.send_tls13_tickets = 0;
        Ok(Self { client: Arc::new(client).into(), server: Arc::new(server).into() })
    }

    /// Connects to `HOST:PORT`, whose certificate must be for HOST.
    pub async fn connect(&self, peer: &str) -> io::Result<TlsStream<TcpStream>> {
        let host = peer.rsplit_once(':').map_or(peer, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not HOST:PORT"))?;
        let tcp = TcpStream::connect(peer).await?;
        tcp.set_nodelay(true)?;
        Ok(self.client.connect(name, tcp).await?.into())
    }

    /// Takes a connection from a node of the same authority.
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        tcp.set_nodelay(true)?;
        Ok(self.server.accept(tcp).await?.into())
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let read = |source| IdentityError::Read { path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(read)?);
    let found: Vec<_> = rustls_pemfile::certs(&mut reader).collect::<Result<_, _>>().map_err(read)?;
    match found.is_empty() {
        true => Err(IdentityError::Empty { path: path.to_owned(), what: "certificate" }),
        false => Ok(found),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let read = |source| IdentityError::Read { path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(read)?);
    let found = rustls_pemfile::private_key(&mut reader).map_err(read)?;
    found.ok_or_else(|| IdentityError::Empty { path: path.to_owned(), what: "private key" })
}

fn unusable(path: &Path, source: impl std::error::Error + Send + Sync + 'static) -> IdentityError {
    IdentityError::Unusable { path: path.to_owned(), source: Box::new(source) }
}
