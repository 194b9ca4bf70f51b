//! Answering a registry's demand for a credential (RFC 7617, RFC 6750 and the distribution project's token scheme).
//!
//! A credential goes to the host it was given for and to the token service that this host names, and to no one else:
//! not to mirrors, not over plain HTTP unless the registry itself is plain, not along redirects and
//! not on demand of a host that a redirect led to (CVE-2020-15157). It appears in no error, log line or `Debug` output.

use std::fmt;

use reqwest::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::error::FetchError;
use super::{Http, transfer};

/// Bytes of a token; registries take headers of 8 to 64 KiB.
const LONGEST: usize = 64 << 10;

/// A credential for one registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password, or an access token that the registry takes for one.
        password: String,
    },
    /// A refresh token (OAuth 2), exchanged for access tokens.
    IdentityToken(String),
    /// A bearer token that is sent as it is.
    RegistryToken(String),
}

impl Auth {
    /// The header that can be sent without being asked.
    pub(super) fn registry_token(&self) -> Option<HeaderValue> {
        match self {
            Self::RegistryToken(token) => secret(&format!("Bearer {token}")),
            _ => None,
        }
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(..)",
            Self::IdentityToken(_) => "IdentityToken(..)",
            Self::RegistryToken(_) => "RegistryToken(..)",
        })
    }
}

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
enum Scheme {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Who answers a demand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) auth: Option<&'a Auth>,
    pub(super) repository: &'a str,
    /// The registry's address.
    pub(super) base: &'a str,
    /// A client for tokens that only this registry's host may see.
    pub(super) own: Option<&'a Client>,
}

/// A registry's demand, and what was asked when it came.
#[derive(Debug)]
pub(super) struct Challenge<'a> {
    scheme: Scheme,
    url: &'a str,
}

impl<'a> Challenge<'a> {
    /// The demand of a 401 response to a request for `url`; Bearer where there is a choice.
    pub(super) fn of(response: &Response, url: &'a str) -> Result<Self, FetchError> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let schemes: Vec<_> = headers.iter().filter_map(|v| v.to_str().ok()).filter_map(parse).collect();
        let scheme = schemes.into_iter().max_by_key(|scheme| *scheme != Scheme::Basic);
        scheme.map(|scheme| Self { scheme, url }).ok_or_else(|| FetchError::Unauthorized {
            url: url.to_owned(),
            reason: "the registry asks in a way that is neither Basic nor Bearer",
        })
    }

    /// The header to send.
    pub(super) async fn answer(&self, http: &Http, asker: Asker<'_>) -> Result<HeaderValue, FetchError> {
        match (&self.scheme, asker.auth) {
            (Scheme::Basic, Some(Auth::Basic { username, password })) => {
                basic(&http.api, username, password).ok_or_else(|| self.refuse("it holds control characters"))
            }
            (Scheme::Basic, _) => Err(self.refuse("user name and password are asked for")),
            (Scheme::Bearer { .. }, Some(Auth::RegistryToken(_))) => {
                Err(self.refuse("the registry token was refused"))
            }
            (Scheme::Bearer { realm, service, scope }, auth) => {
                // A registry without TLS may have a token service without.
                let realm = self.realm(realm, asker.base.starts_with("http://"))?;
                let default = format!("repository:{}:pull", asker.repository);
                let scope = scope.as_deref().unwrap_or(&default);
                let client = asker.own.filter(|_| same_host(&realm, asker.base)).unwrap_or(&http.token);
                let request = token_request(client, realm, service.as_deref(), scope, auth);
                self.token(http, request).await
            }
        }
    }

    fn realm(&self, realm: &str, plain: bool) -> Result<Url, FetchError> {
        let url: Url = realm.parse().map_err(|_| self.refuse("the token service is not a URL"))?;
        match url.scheme() {
            "https" => Ok(url),
            "http" if plain => Ok(url),
            _ => Err(self.refuse("the token service is not reached over https")),
        }
    }

    async fn token(&self, http: &Http, request: RequestBuilder) -> Result<HeaderValue, FetchError> {
        #[derive(Deserialize)]
        struct Reply {
            token: Option<String>,
            access_token: Option<String>,
        }
        let response = http.send(request, "the token service").await?;
        if response.status() != StatusCode::OK {
            return Err(self.refuse("the token service refused it"));
        }
        let body = transfer::bounded(response, http.limits.reply, &http.limits).await?;
        let reply: Reply = serde_json::from_slice(&body)
            .map_err(|_| self.refuse("the token service's reply is not understood"))?;
        let token = reply.token.or(reply.access_token);
        let token = token.filter(|token| (1..=LONGEST).contains(&token.len()));
        let header = token.and_then(|token| secret(&format!("Bearer {token}")));
        header.ok_or_else(|| self.refuse("the token service sent no usable token"))
    }

    fn refuse(&self, reason: &'static str) -> FetchError {
        FetchError::Unauthorized { url: self.url.to_owned(), reason }
    }
}

fn same_host(url: &Url, base: &str) -> bool {
    Url::parse(base).is_ok_and(|base| base.host() == url.host() && base.scheme() == url.scheme())
}

/// A request for a token, by the client that follows no redirect: a 307 would carry the credential in the body on.
fn token_request(
    client: &Client,
    mut realm: Url,
    service: Option<&str>,
    scope: &str,
    auth: Option<&Auth>,
) -> RequestBuilder {
    if let Some(Auth::IdentityToken(token)) = auth {
        let form = [
            ("grant_type", "refresh_token"),
            ("service", service.unwrap_or_default()),
            ("client_id", "meridian"),
            ("scope", scope),
            ("refresh_token", token),
        ];
        let mut body = Url::parse("form:/").expect("a constant");
        body.query_pairs_mut().extend_pairs(form);
        let body = body.query().unwrap_or_default().to_owned();
        return client.post(realm).header("content-type", "application/x-www-form-urlencoded").body(body);
    }
    realm.query_pairs_mut().append_pair("scope", scope);
    if let Some(service) = service {
        realm.query_pairs_mut().append_pair("service", service);
    }
    match auth {
        Some(Auth::Basic { username, password }) => client.get(realm).basic_auth(username, Some(password)),
        _ => client.get(realm),
    }
}

/// `username` and `password` as reqwest encodes them.
fn basic(client: &Client, username: &str, password: &str) -> Option<HeaderValue> {
    let request = client.get("http://localhost/").basic_auth(username, Some(password)).build().ok()?;
    request.headers().get(AUTHORIZATION).cloned()
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// One WWW-Authenticate header: a scheme and `key="value"` or `key=value`, separated by commas.
fn parse(header: &str) -> Option<Scheme> {
    let (name, parameters) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if name.eq_ignore_ascii_case("basic") {
        return Some(Scheme::Basic);
    }
    if !name.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let get = |key| parameter(parameters, key);
    Some(Scheme::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") })
}

fn parameter(mut text: &str, wanted: &str) -> Option<String> {
    loop {
        let (key, rest) = text.split_once('=')?;
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => rest.split_at(rest.find(',').unwrap_or(rest.len())),
        };
        if key.trim_matches([' ', ',']).eq_ignore_ascii_case(wanted) {
            return Some(value.trim().to_owned());
        }
        text = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_parsed() {
        let header = r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a,b:pull""#;
        assert_eq!(
            parse(header),
            Some(Scheme::Bearer {
                realm: "https://auth.example/token".into(),
                service: Some("reg".into()),
                scope: Some("repository:a,b:pull".into()),
            })
        );
        assert_eq!(parse("bearer service=x, realm=https://r").map(|s| s != Scheme::Basic), Some(true));
        assert_eq!(parse(r#"Basic realm="x""#), Some(Scheme::Basic));
        assert_eq!(parse("Bearer"), None);
        assert_eq!(parse(r#"Bearer realm="open"#), None);
        assert_eq!(parse("Negotiate"), None);
    }

    #[test]
    fn a_token_service_without_tls_belongs_to_a_registry_without() {
        let challenge = Challenge { scheme: Scheme::Basic, url: "https://registry.example/v2/x" };
        for realm in
            ["http://169.254.169.254/token", "http://auth.example", "file:///etc/passwd", "/token", ""]
        {
            assert!(challenge.realm(realm, false).is_err(), "{realm}");
        }
        assert!(challenge.realm("https://auth.example/token", false).is_ok());
        assert!(challenge.realm("http://127.0.0.1:1/token", true).is_ok());
    }

    #[test]
    fn secrets_are_not_printed() {
        let auth = Auth::Basic { username: "u".into(), password: "hunter2".into() };
        assert!(!format!("{auth:?}{:?}", secret("Bearer hunter2")).contains("hunter2"));
    }
}
