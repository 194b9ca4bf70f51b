//! Token services that lie, and demands for a credential that must not be met (hostile inputs A9 and A10).

#![allow(clippy::unwrap_used, reason = "tests may fail at once")]

mod bed;

use bed::registry::{Registry, Reply};
use bed::tar::Tar;
use bed::{Bed, Built, Packing, build, chain, is_root};
use image::{Auth, Class, Digest};

const SECRET: &str = "hunter2";

fn image() -> Built {
    build(&[Tar::new().file("f", "x").end()], Packing::Gzip)
}

fn auth() -> Auth {
    Auth::Basic { username: "user".into(), password: SECRET.into() }
}

fn demand(challenge: &str) -> Reply {
    Reply::Status(401, vec![("WWW-Authenticate", challenge.to_owned())], vec![])
}

/// The pull is refused for the credential, and says so without it.
async fn refused(bed: &Bed, name: &str, case: &str) {
    let error = bed.images.pull(name, Some(auth())).await.expect_err(case);
    let text = chain(&error);
    assert_eq!(error.class(), Class::PermissionDenied, "{case}: {text}");
    assert!(!text.contains(SECRET) && text.len() < 1000, "{case}: {text}");
    bed.assert_clean(case);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_replies_that_hold_no_token() {
    if !is_root() {
        return;
    }
    let (registry, bed) = (Registry::start(), Bed::new());
    let name = registry.put("team/x", "1", &image());
    registry.reply("/v2/team/x/manifests/1", demand(&bearer(&registry, "/token")));
    let long = format!(r#"{{"token":"{}"}}"#, "t".repeat(65 << 10));
    let deep = format!(r#"{{"token":{}"#, "[".repeat(100_000));
    let replies = [
        "<html>log in</html>",
        "",
        "null",
        "[]",
        "{}",
        "7",
        r#"{"token":""}"#,
        r#"{"token":7}"#,
        r#"{"token":null}"#,
        r#"{"token":["x"]}"#,
        r#"{"token":"a\nX-Evil: 1"}"#,
        r#"{"token":"a","token":"b"}"#,
        r#"{"token":"a\u0000b"}"#,
        r#"{"token":"a""#,
        "{\"token\":\"\u{0}\"}",
        &long,
        &deep,
    ];
    for reply in replies {
        registry.reply("/token", Reply::Body(reply.as_bytes().to_vec()));
        refused(&bed, &name, &format!("token reply {reply:.60}")).await;
    }
    for status in [201, 204, 301, 302, 307, 308, 400, 401, 403, 404, 429, 500, 503] {
        let location = format!("http://{}/other", registry.address);
        let body = br#"{"token":"t"}"#.to_vec();
        registry.reply("/token", Reply::Status(status, vec![("Location", location)], body));
        refused(&bed, &name, &format!("token status {status}")).await;
    }
    assert_eq!(registry.count("GET", "/other"), 0, "a token service's redirect was followed");
}

fn bearer(registry: &Registry, path: &str) -> String {
    format!(r#"Bearer realm="http://{}{path}",service="s""#, registry.address)
}

#[tokio::test(flavor = "multi_thread")]
async fn demands_that_cannot_be_met() {
    if !is_root() {
        return;
    }
    let (registry, bed) = (Registry::start(), Bed::new());
    let name = registry.put("team/x", "1", &image());
    for challenge in [
        "Negotiate",
        "NTLM abc",
        r#"Digest realm="x",nonce="y""#,
        "",
        "Bearer",
        "Bearer ",
        "Bearer realm",
        "Bearer realm=",
        r#"Bearer realm="""#,
        r#"Bearer realm="/token""#,
        r#"Bearer realm="//host/token""#,
        r#"Bearer realm="token""#,
        r#"Bearer realm="file:///etc/passwd""#,
        r#"Bearer realm="unix:///run/meridian.sock""#,
        r#"Bearer realm="ftp://host/x""#,
        r#"Bearer realm="http://"#,
        r#"Bearer realm="http://[::1""#,
        r#"Bearer realm="javascript:alert(1)""#,
        r#"Bearer service="only""#,
        ",,,=,=,\"",
    ] {
        registry.reply("/v2/team/x/manifests/1", demand(challenge));
        refused(&bed, &name, &format!("challenge {challenge}")).await;
    }
    registry.reply("/v2/team/x/manifests/1", Reply::Status(401, vec![], vec![]));
    refused(&bed, &name, "no challenge").await;
    registry.reply("/v2/team/x/manifests/1", Reply::Status(403, vec![], vec![]));
    refused(&bed, &name, "forbidden").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_never_content_is_asked_twice() {
    if !is_root() {
        return;
    }
    let (registry, bed) = (Registry::start(), Bed::new());
    let name = registry.put("team/x", "1", &image());
    registry.reply("/token", Reply::Body(br#"{"token":"t"}"#.to_vec()));
    for challenge in [bearer(&registry, "/token"), r#"Basic realm="x""#.to_owned()] {
        registry.reply("/v2/team/x/manifests/1", demand(&challenge));
        let before = registry.count("GET", "/manifests/1");
        refused(&bed, &name, &challenge).await;
        assert_eq!(registry.count("GET", "/manifests/1") - before, 2, "{challenge}");
    }
}

/// Where a registry keeps its blobs is asked without a credential; what that host demands is not the registry's word.
#[tokio::test(flavor = "multi_thread")]
async fn a_demand_behind_a_redirect_is_not_met() {
    if !is_root() {
        return;
    }
    let (registry, storage, bed) = (Registry::start(), Registry::start(), Bed::new());
    let image = image();
    let name = registry.put("team/x", "1", &image);
    storage.reply("/token", Reply::Body(br#"{"token":"t"}"#.to_vec()));
    for challenge in [bearer(&storage, "/token"), r#"Basic realm="x""#.to_owned()] {
        storage.reply("/blob", demand(&challenge));
        for path in
            ["/v2/team/x/manifests/1".to_owned(), format!("/v2/team/x/blobs/{}", Digest::of(&image.blobs[0]))]
        {
            let (registry, location) = (&registry, format!("http://{}/blob", storage.address));
            registry.put("team/x", "1", &image);
            registry.reply(&path, Reply::Status(307, vec![("Location", location)], vec![]));
            refused(&bed, &name, &format!("{challenge} {path}")).await;
        }
    }
    assert_eq!(storage.count("GET", "/token"), 0, "a token service behind a redirect was asked");
    assert!(storage.requests().iter().all(|request| request.authorization.is_none()));
    assert!(registry.requests().iter().all(|request| request.authorization.is_none()));
}
