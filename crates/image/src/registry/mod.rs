//! Talking to registries (OCI distribution specification): one repository, reached through its mirrors and its host.
//!
//! ```text
//! Reference --Registries::repository--> Repository { mirror, mirror, host }
//!               manifest(tag or digest) -> Document        first endpoint that has it
//!               blob(digest)            -> Read            any endpoint; digests tell right from wrong
//! ```
//! What the node's configuration says of a registry is in [`hosts`] and [`tls`].
//!
//! Plain HTTP is spoken to loopback and to hosts the configuration names, TLS to all others. Redirects never lead from
//! TLS to plain HTTP. Every body is bounded and must make progress. Credentials: see [`auth`].

mod auth;
mod authorities;
mod endpoint;
mod error;
mod hosts;
mod tls;
mod transfer;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, RequestBuilder, Response, Url};

pub use auth::Auth;
use endpoint::{Endpoint, Path};
pub use error::FetchError;
use transfer::Transfer;
pub use transfer::received_bytes;

use crate::digest::Digest;
use crate::limits::Limits;
use crate::reference::Reference;

const CONNECT: Duration = Duration::from_secs(10);
const REDIRECTS: usize = 10;
/// What a manifest may be, in order of preference.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// Another place where the images of `host` can be had. Names stay those of `host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The registry in image names, `registry.k8s.io`.
    pub host: String,
    /// Where to ask first, `http://127.0.0.1:5000`.
    pub endpoint: String,
}

/// How registries are reached.
#[derive(Debug)]
pub(crate) struct Registries {
    http: Arc<Http>,
    mirrors: Vec<Mirror>,
    insecure: Vec<String>,
    hosts: Vec<PathBuf>,
}

/// The HTTP clients, and how patient they are.
#[derive(Debug)]
struct Http {
    api: Client,
    /// Follows no redirect.
    token: Client,
    limits: Limits,
}

/// A manifest, index or configuration as it came, and its digest.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) content: Vec<u8>,
    /// The media type that the registry gave.
    pub(crate) kind: String,
    pub(crate) digest: Digest,
}

impl Registries {
    /// # Errors
    /// A mirror's endpoint is not a URL.
    pub(crate) fn new(
        mirrors: Vec<Mirror>,
        insecure: Vec<String>,
        hosts: Vec<PathBuf>,
        limits: Limits,
    ) -> Result<Self, FetchError> {
        // Fails only when the process has chosen a provider already, which then is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tls = authorities::trusting();
        let client = |policy| {
            builder(policy).tls_backend_preconfigured(tls.clone()).build().map_err(FetchError::Client)
        };
        let http = Http { api: client(Policy::custom(redirect))?, token: client(Policy::none())?, limits };
        let registries = Self { http: Arc::new(http), mirrors, insecure, hosts };
        for mirror in &registries.mirrors {
            registries.base(&mirror.endpoint)?;
        }
        Ok(registries)
    }

    /// The repository that `reference` is in. The credential goes to the host in the name only, never to a mirror.
    ///
    /// # Errors
    /// What the node says of the registry cannot be used.
    pub(crate) fn repository(
        &self,
        reference: &Reference,
        auth: Option<Auth>,
    ) -> Result<Repository, FetchError> {
        let registry = reference.registry();
        let mut endpoints = Vec::new();
        for mirror in self.mirrors.iter().filter(|mirror| mirror.host == registry) {
            endpoints.push(Endpoint::new(self.base(&mirror.endpoint)?, None).mirroring(registry));
        }
        let known = hosts::find(&self.hosts, registry)?;
        for host in known.iter().flat_map(|known| &known.mirrors) {
            let mirror = Endpoint::new(self.base(&host.address)?, None).mirroring(registry);
            endpoints.push(mirror.configured(host)?);
        }
        let named = known.as_ref().map(|known| known.server.address.as_str()).filter(|name| !name.is_empty());
        let own = named.unwrap_or(if registry == "docker.io" { "registry-1.docker.io" } else { registry });
        let server = Endpoint::new(self.base(own)?, auth);
        endpoints.push(match &known {
            Some(known) => server.configured(&known.server)?,
            None => server,
        });
        Ok(Repository {
            http: Arc::clone(&self.http),
            name: reference.repository().to_owned(),
            endpoints: endpoints.into_iter().map(Arc::new).collect(),
        })
    }

    /// `address` with a scheme.
    fn base(&self, address: &str) -> Result<String, FetchError> {
        let address = address.trim_end_matches('/');
        let url = match address.contains("://") {
            true => address.to_owned(),
            false if self.is_plain(address) => format!("http://{address}"),
            false => format!("https://{address}"),
        };
        let valid = Url::parse(&url).is_ok_and(|url| url.has_host() && url.scheme().starts_with("http"));
        if valid { Ok(url) } else { Err(FetchError::Address { url }) }
    }

    fn is_plain(&self, address: &str) -> bool {
        let host = endpoint::without_port(address);
        endpoint::is_loopback(host) || self.insecure.iter().any(|name| name == address || name == host)
    }
}

/// One repository of a registry.
#[derive(Debug)]
pub(crate) struct Repository {
    http: Arc<Http>,
    name: String,
    endpoints: Vec<Arc<Endpoint>>,
}

impl Repository {
    /// The manifest or index that a tag or digest names.
    pub(crate) async fn manifest(&self, target: &str) -> Result<Document, FetchError> {
        let path = format!("manifests/{target}");
        let expected: Option<Digest> = target.parse().ok();
        let serves =
            |endpoint: &Endpoint| if expected.is_some() { endpoint.pulls() } else { endpoint.resolves() };
        self.first(serves, |endpoint| self.document(endpoint, path.clone(), MANIFESTS, expected.clone()))
            .await
    }

    /// A small blob: an image's configuration.
    pub(crate) async fn small_blob(&self, digest: &Digest) -> Result<Document, FetchError> {
        let path = format!("blobs/{digest}");
        let document = |endpoint| self.document(endpoint, path.clone(), "*/*", Some(digest.clone()));
        self.first(Endpoint::pulls, document).await
    }

    /// Opens a blob for each place that may have it; which of them is right, its digest tells.
    pub(crate) fn sources(&self) -> impl Iterator<Item = Source<'_>> {
        let serving = self.endpoints.iter().filter(|endpoint| endpoint.pulls());
        serving.map(|endpoint| Source { repository: self, endpoint })
    }

    async fn document(
        &self,
        endpoint: Arc<Endpoint>,
        path: String,
        accept: &str,
        expected: Option<Digest>,
    ) -> Result<Document, FetchError> {
        let limits = &self.http.limits;
        let response = endpoint.get(&self.http, &self.path(&path), accept).await?;
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.unwrap_or_default().to_owned();
        let content = transfer::bounded(response, limits.document, limits).await?;
        let digest = Digest::of(&content);
        match expected.filter(|expected| *expected != digest) {
            Some(expected) => Err(FetchError::Digest { expected, actual: digest }),
            None => Ok(Document { content, kind, digest }),
        }
    }

    fn path<'a>(&'a self, object: &'a str) -> Path<'a> {
        Path { repository: &self.name, object }
    }

    /// The first answer; else the failure of the registry itself, which comes last and knows best.
    async fn first<T, F>(
        &self,
        serves: impl Fn(&Endpoint) -> bool,
        ask: impl Fn(Arc<Endpoint>) -> F,
    ) -> Result<T, FetchError>
    where
        F: Future<Output = Result<T, FetchError>>,
    {
        let (last, mirrors) = self.endpoints.split_last().expect("the registry itself is always an endpoint");
        for mirror in mirrors.iter().filter(|mirror| serves(mirror)) {
            match ask(Arc::clone(mirror)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => tracing::debug!(mirror = mirror.base(), error = %error, "mirror cannot serve"),
            }
        }
        ask(Arc::clone(last)).await
    }
}

/// One place that may have a repository's blobs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    repository: &'a Repository,
    endpoint: &'a Arc<Endpoint>,
}

impl Source<'_> {
    /// The place, as proofs of possession name it.
    pub(crate) fn name(&self) -> &str {
        self.endpoint.base()
    }

    /// True if this place would hand the blob to whoever holds this pull's credential.
    pub(crate) async fn has(&self, digest: &Digest) -> bool {
        let object = format!("blobs/{digest}");
        self.endpoint.head(&self.repository.http, &self.repository.path(&object)).await.is_ok()
    }

    /// The blob's bytes, unchecked, while the transfer is kept. Reading blocks, so it belongs on a thread that may.
    pub(crate) async fn open(
        &self,
        digest: &Digest,
    ) -> Result<(impl Read + Send + use<>, Transfer), FetchError> {
        let blob = transfer::Blob {
            http: Arc::clone(&self.repository.http),
            endpoint: Arc::clone(self.endpoint),
            repository: self.repository.name.clone(),
            object: format!("blobs/{digest}"),
        };
        blob.open().await
    }
}

impl Http {
    /// Sends a request; `url` is how errors name it.
    async fn send(&self, request: RequestBuilder, url: &str) -> Result<Response, FetchError> {
        let stalled = |_| FetchError::Stalled { url: url.to_owned(), seconds: self.limits.stall.as_secs() };
        let sent = tokio::time::timeout(self.limits.stall, request.send()).await.map_err(stalled)?;
        sent.map_err(|source| FetchError::unreachable(url, source))
    }
}

fn builder(redirects: Policy) -> reqwest::ClientBuilder {
    Client::builder()
        .connect_timeout(CONNECT)
        .referer(false)
        .redirect(redirects)
        .user_agent(concat!("meridian/", env!("CARGO_PKG_VERSION")))
}

/// At most ten hops, none from TLS to plain HTTP; reqwest drops the credential when host, port or scheme change.
fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let from_tls = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if attempt.previous().len() > REDIRECTS {
        attempt.error("more than 10 redirects")
    } else if from_tls && attempt.url().scheme() != "https" {
        attempt.error("redirect from https to plain http")
    } else {
        attempt.follow()
    }
}
