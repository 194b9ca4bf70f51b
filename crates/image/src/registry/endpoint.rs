//! One address that serves a registry's API, with what it takes to be let in.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use tokio::sync::Mutex;

use super::auth::{self, Asker, Auth};
use super::error::FetchError;
use super::hosts::Host;
use super::tls::Tls;
use super::{Http, transfer};

/// Tries of a request that a registry could not serve just now, and the pause before the second.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// What is asked of an endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path<'a> {
    pub(super) repository: &'a str,
    /// `manifests/X` or `blobs/X`.
    pub(super) object: &'a str,
}

/// What the answer shall be like.
#[derive(Debug, Clone, Copy)]
struct Wanted<'a> {
    accept: &'a str,
    /// First byte of interest.
    offset: u64,
}

impl Wanted<'_> {
    fn ranged(self, request: RequestBuilder) -> RequestBuilder {
        match self.offset {
            0 => request,
            offset => request.header(RANGE, format!("bytes={offset}-")),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Endpoint {
    base: String,
    /// Of the API: the base and `/v2`.
    root: String,
    /// The registry that this one mirrors, sent along for mirrors that mirror several.
    namespace: Option<String>,
    auth: Option<Auth>,
    authorization: Mutex<Option<HeaderValue>>,
    headers: HeaderMap,
    /// Clients of its own, for requests and for tokens.
    clients: Option<(Client, Client)>,
    resolves: bool,
    pulls: bool,
}

impl Endpoint {
    pub(super) fn new(base: String, auth: Option<Auth>) -> Self {
        let given = auth.as_ref().and_then(Auth::registry_token);
        Self {
            root: format!("{base}/v2"),
            base,
            namespace: None,
            auth,
            authorization: Mutex::new(given),
            headers: HeaderMap::new(),
            clients: None,
            resolves: true,
            pulls: true,
        }
    }

    pub(super) fn mirroring(self, host: &str) -> Self {
        Self { namespace: Some(host.to_owned()), ..self }
    }

    /// As the node's configuration says.
    pub(super) fn configured(mut self, host: &Host) -> Result<Self, FetchError> {
        if host.complete || self.base.ends_with("/v2") {
            self.root.clone_from(&self.base);
        }
        self.headers.clone_from(&host.headers);
        (self.resolves, self.pulls) = (host.resolves, host.pulls);
        if host.tls != Tls::default() || !host.headers.is_empty() {
            self.clients = Some(host.tls.clients()?);
        }
        Ok(self)
    }

    /// May be asked what a tag means.
    pub(super) fn resolves(&self) -> bool {
        self.resolves
    }

    /// May be asked for content.
    pub(super) fn pulls(&self) -> bool {
        self.pulls
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) async fn get(
        &self,
        http: &Http,
        path: &Path<'_>,
        accept: &str,
    ) -> Result<Response, FetchError> {
        self.patiently(http, Method::GET, path, Wanted { accept, offset: 0 }).await
    }

    /// A blob from byte `offset` on, or all of it where the registry knows no ranges: the status tells.
    pub(super) async fn get_from(
        &self,
        http: &Http,
        path: &Path<'_>,
        offset: u64,
    ) -> Result<Response, FetchError> {
        self.patiently(http, Method::GET, path, Wanted { accept: "*/*", offset }).await
    }

    pub(super) async fn head(&self, http: &Http, path: &Path<'_>) -> Result<(), FetchError> {
        self.patiently(http, Method::HEAD, path, Wanted { accept: "*/*", offset: 0 }).await.map(|_| ())
    }

    /// Repeats what failed for a passing reason. A Retry-After is not honoured: it may be any number.
    async fn patiently(
        &self,
        http: &Http,
        method: Method,
        path: &Path<'_>,
        wanted: Wanted<'_>,
    ) -> Result<Response, FetchError> {
        let mut attempt = 1;
        loop {
            match self.once(http, &method, path, wanted).await {
                Err(error) if error.is_passing() && attempt < TRIES => {
                    tracing::debug!(%error, attempt, "registry request is repeated");
                    tokio::time::sleep(PAUSE * attempt).await;
                    attempt += 1;
                }
                answer => return answer,
            }
        }
    }

    async fn once(
        &self,
        http: &Http,
        method: &Method,
        path: &Path<'_>,
        wanted: Wanted<'_>,
    ) -> Result<Response, FetchError> {
        let url = format!("{}/{}/{}", self.root, path.repository, path.object);
        let authorization = self.authorization.lock().await.clone();
        let first = self.send(http, method, &url, wanted, authorization).await?;
        if first.status() != StatusCode::UNAUTHORIZED {
            return accepted(http, first, url).await;
        }
        if !self.is_from(&first) {
            let reason = "the host it redirects to asks for one, and only the registry may";
            return Err(FetchError::Unauthorized { url, reason });
        }
        let challenge = auth::Challenge::of(&first, &url)?;
        let asker = Asker {
            auth: self.auth.as_ref(),
            repository: path.repository,
            base: &self.base,
            own: self.clients.as_ref().map(|(_, token)| token),
        };
        let answer = challenge.answer(http, asker).await?;
        *self.authorization.lock().await = Some(answer.clone());
        let second = self.send(http, method, &url, wanted, Some(answer)).await?;
        accepted(http, second, url).await
    }

    /// True unless a redirect led to another host, which must not name the token service that gets the credential.
    fn is_from(&self, response: &Response) -> bool {
        Url::parse(&self.base).is_ok_and(|base| base.origin() == response.url().origin())
    }

    async fn send(
        &self,
        http: &Http,
        method: &Method,
        url: &str,
        wanted: Wanted<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, FetchError> {
        let address = match &self.namespace {
            Some(host) => format!("{url}?ns={host}"),
            None => url.to_owned(),
        };
        let client = self.clients.as_ref().map_or(&http.api, |(own, _)| own);
        let mut request = client
            .request(method.clone(), address)
            .headers(self.headers.clone())
            .header(ACCEPT, wanted.accept);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = http.send(wanted.ranged(request), url).await?;
        match elsewhere(&response) {
            Some(location) => http.send(wanted.ranged(http.api.request(method.clone(), location)), url).await,
            None => Ok(response),
        }
    }
}

/// Where a redirect leads that a host's own client did not follow.
fn elsewhere(response: &Response) -> Option<Url> {
    let location = response.headers().get(LOCATION).filter(|_| response.status().is_redirection())?;
    let location = response.url().join(location.to_str().ok()?).ok()?;
    (response.url().scheme() != "https" || location.scheme() == "https").then_some(location)
}

/// The response if it is a success, else what it says.
async fn accepted(http: &Http, response: Response, url: String) -> Result<Response, FetchError> {
    match response.status() {
        status if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND => Err(FetchError::NotFound { url }),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(FetchError::Unauthorized {
            url,
            reason: "the registry refused the one it got, or asks for one",
        }),
        status => {
            let codes = match transfer::bounded(response, http.limits.reply, &http.limits).await {
                Ok(body) => codes(&body),
                Err(_) => String::new(),
            };
            Err(FetchError::Status { url, status: status.as_u16(), codes })
        }
    }
}

/// The codes of an error reply. Its messages are not shown: a registry could put into them what it was sent.
fn codes(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Reply {
        errors: Vec<Code>,
    }
    #[derive(serde::Deserialize)]
    struct Code {
        code: String,
    }
    let errors = serde_json::from_slice::<Reply>(body).map(|reply| reply.errors).unwrap_or_default();
    let plain = |code: &String| code.len() < 40 && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    errors.into_iter().map(|error| error.code).filter(plain).take(3).map(|code| format!(", {code}")).collect()
}

/// `address` without its port; brackets of an IPv6 address stay off too.
pub(super) fn without_port(address: &str) -> &str {
    if let Some(rest) = address.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    address.split([':', '/']).next().unwrap_or(address)
}

pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_by_address_not_by_look() {
        for (address, loopback) in [
            ("127.0.0.1:5000", true),
            ("127.9.9.9", true),
            ("localhost:1", true),
            ("[::1]:5000", true),
            ("127.0.0.1.example.org", false),
            ("localhost.example.org", false),
            ("10.0.0.1:5000", false),
            ("registry.k8s.io", false),
        ] {
            assert_eq!(is_loopback(without_port(address)), loopback, "{address}");
        }
    }

    #[test]
    fn error_replies_show_codes_only() {
        assert_eq!(
            codes(br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"Bearer secret"}]}"#),
            ", TOOMANYREQUESTS"
        );
        assert_eq!(codes(br#"{"errors":[{"code":"Bearer secret"}]}"#), "");
        assert_eq!(codes(b"<html>"), "");
    }
}
