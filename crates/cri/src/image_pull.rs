//! `PullImage`.

use api::cri::v1::{AuthConfig, PullImageRequest, PullImageResponse};
use base64::{Engine, engine::general_purpose::STANDARD};
use image::{Auth, Images, Reference, ReferenceError};

use crate::{
    check::{Field, Invalid},
    error::Failure,
    image_status::image_name,
};

/// Fetches an image and returns its id.
pub(crate) async fn pull(images: &Images, request: PullImageRequest) -> Result<PullImageResponse, Failure> {
    let name = image_name(request.image.as_ref())?;
    let reference = reference(name)?;
    let auth = request.auth.map(|given| credential(&given, reference.registry())).transpose()?.flatten();
    let id = images.pull(name, auth).await.map_err(|error| Failure::of_pull(&error))?;
    Ok(PullImageResponse { image_ref: id.to_string() })
}

/// The name as a reference. The parser's complaint quotes the name itself.
fn reference(name: &str) -> Result<Reference, Invalid> {
    let bad = |error: ReferenceError| {
        Field::of("image").at("image").conflict(format_args!("is no image reference: {error}"))
    };
    name.parse().map_err(bad)
}

/// The first usable form of a credential; none if it is for another registry.
fn credential(given: &AuthConfig, registry: &str) -> Result<Option<Auth>, Invalid> {
    if !given.server_address.is_empty() && host(&given.server_address) != host(registry) {
        return Ok(None);
    }
    let auth = if !given.registry_token.is_empty() {
        Auth::RegistryToken(given.registry_token.clone())
    } else if !given.identity_token.is_empty() {
        Auth::IdentityToken(given.identity_token.clone())
    } else if !given.username.is_empty() {
        Auth::Basic { username: given.username.clone(), password: given.password.clone() }
    } else if !given.auth.is_empty() {
        basic(&given.auth)?
    } else {
        return Ok(None);
    };
    Ok(Some(auth))
}

/// Base64 of `user:password`. The value is a secret: no complaint quotes it.
fn basic(given: &str) -> Result<Auth, Invalid> {
    let bad = || Field::of("auth").at("auth").conflict("must be the base64 form of user:password");
    let text = String::from_utf8(STANDARD.decode(given.trim()).map_err(|_| bad())?).map_err(|_| bad())?;
    let (username, password) = text.split_once(':').ok_or_else(bad)?;
    Ok(Auth::Basic { username: username.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

/// Host and port of an address, which may be a URL; Docker Hub has several names.
fn host(address: &str) -> &str {
    let rest =
        address.strip_prefix("https://").or_else(|| address.strip_prefix("http://")).unwrap_or(address);
    match rest.split('/').next().unwrap_or_default() {
        "docker.io" | "registry-1.docker.io" => "index.docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic_auth(username: &str, password: &str) -> Option<Auth> {
        Some(Auth::Basic { username: username.into(), password: password.into() })
    }

    #[test]
    fn forms_of_credentials() {
        let of = |given: AuthConfig| credential(&given, "registry.example:5000").expect("a good credential");
        let base = || AuthConfig { username: "u".into(), password: "p".into(), ..Default::default() };
        assert_eq!(of(base()), basic_auth("u", "p"));
        assert_eq!(of(AuthConfig { auth: "dTpwOnE=".into(), ..Default::default() }), basic_auth("u", "p:q"));
        let token = AuthConfig { identity_token: "i".into(), ..base() };
        assert_eq!(of(token), Some(Auth::IdentityToken("i".into())));
        let token = AuthConfig { registry_token: "r".into(), identity_token: "i".into(), ..base() };
        assert_eq!(of(token), Some(Auth::RegistryToken("r".into())));
        assert_eq!(of(AuthConfig::default()), None);
    }

    #[test]
    fn a_credential_goes_to_its_own_registry_only() {
        let of = |server: &str| {
            let given =
                AuthConfig { username: "u".into(), server_address: server.into(), ..Default::default() };
            credential(&given, "registry.example:5000").expect("a good credential").is_some()
        };
        assert!(of("") && of("registry.example:5000") && of("https://registry.example:5000/v2/"));
        assert!(!of("registry.example") && !of("https://evil.example/registry.example:5000"));
        let hub = AuthConfig {
            username: "u".into(),
            server_address: "https://index.docker.io/v1/".into(),
            ..Default::default()
        };
        assert!(credential(&hub, "docker.io").expect("a good credential").is_some());
    }

    #[test]
    fn a_complaint_does_not_quote_the_secret() {
        for secret in ["hunter2!", "aHVudGVyMg=="] {
            let error = basic(secret).expect_err("no colon in it").to_string();
            assert!(error.starts_with("auth.auth ") && !error.contains("hunter2"), "{error}");
        }
    }
}
