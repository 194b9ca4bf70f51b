//! HTTP clients for hosts with certificates of their own.
//!
//! Such a client follows a redirect on its own host only: neither its client certificate nor what it trusts is for
//! anyone else. Where a redirect leads elsewhere, the ordinary client goes on.

use std::fs;
use std::path::{Path, PathBuf};

use reqwest::redirect::{Attempt, Policy};
use reqwest::{Certificate, Client, Identity};

use super::authorities;
use super::error::FetchError;

/// What is special about TLS with a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tls {
    /// Authorities beside the system's, PEM.
    pub(super) ca: Vec<PathBuf>,
    /// Client certificates: each a file with certificate and key, or the two of them, PEM.
    pub(super) identities: Vec<Vec<PathBuf>>,
    /// Any certificate will do.
    pub(super) skip_verify: bool,
}

impl Tls {
    /// The clients for a host's requests, and for tokens, which follow no redirect.
    pub(super) fn clients(&self) -> Result<(Client, Client), FetchError> {
        Ok((self.client(Policy::custom(own_host))?, self.client(Policy::none())?))
    }

    fn client(&self, redirects: Policy) -> Result<Client, FetchError> {
        if *self == Self::default() {
            let builder = super::builder(redirects).tls_backend_preconfigured(authorities::trusting());
            return builder.build().map_err(FetchError::Client);
        }
        let mut builder = super::builder(redirects).danger_accept_invalid_certs(self.skip_verify);
        for path in &self.ca {
            let authorities = Certificate::from_pem_bundle(&read(path)?);
            for authority in authorities.map_err(|error| wrong(path, &error))? {
                builder = builder.add_root_certificate(authority);
            }
        }
        // A client has one certificate; the first that can be used is it.
        if let Some(files) = self.identities.first() {
            let pem: Vec<_> = files.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
            let identity = Identity::from_pem(&pem.concat());
            builder = builder.identity(identity.map_err(|error| wrong(&files[0], &error))?);
        }
        builder.build().map_err(FetchError::Client)
    }
}

fn own_host(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let origin = |url: &reqwest::Url| {
        (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.port_or_known_default())
    };
    let same = attempt.previous().last().is_some_and(|last| origin(last) == origin(attempt.url()));
    if same { super::redirect(attempt) } else { attempt.stop() }
}

fn read(path: &Path) -> Result<Vec<u8>, FetchError> {
    fs::read(path).map_err(|error| wrong(path, &error))
}

fn wrong(file: &Path, error: &dyn std::error::Error) -> FetchError {
    FetchError::Hosts { file: file.to_owned(), reason: error.to_string() }
}
