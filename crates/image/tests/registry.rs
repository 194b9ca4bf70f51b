//! Registries that lie, stall, ask for credentials or are asked by many at once (hostile inputs A7 to A12).

#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "tests may fail at once and list many cases")]

mod bed;

use std::time::Duration;

use bed::registry::{Registry, Reply};
use bed::tar::Tar;
use bed::{Bed, Built, Packing, build, chain, descriptor, inside, is_root, listing, manifest};
use image::{Auth, Class, Digest, Mirror};

fn sample() -> Built {
    let base = Tar::new().file("base", "base").end();
    let top = Tar::new().file("top", "top").end();
    build(&[base, top], Packing::Gzip)
}

async fn refused(bed: &Bed, name: &str, case: &str, class: Class, message: &str) {
    let error = bed.images.pull(name, None).await.expect_err(case);
    let text = chain(&error);
    assert_eq!(error.class(), class, "{case}: {text}");
    assert!(text.contains(message), "{case}: {text}");
    assert_eq!(bed.images.list(), [], "{case}");
    without_layers(bed, case).await;
    bed.assert_clean(case);
}

/// Another layer of an image that failed may have been under way; its thread removes what it made.
async fn without_layers(bed: &Bed, case: &str) {
    let layers = || listing(&bed.config.root.join("layers"));
    for _ in 0..100 {
        if layers() == ["empty"] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(layers(), ["empty"], "{case}");
}

#[tokio::test(flavor = "multi_thread")]
async fn content_without_its_digest_never_becomes_an_image() {
    if !is_root() {
        return;
    }
    let image = sample();
    let blob = Digest::of(&image.blobs[1]);
    let config = Digest::of(&image.config);
    let other = build(&[Tar::new().file("other", "x").end()], Packing::Gzip);
    let flipped = |at: usize| {
        let mut blob = image.blobs[1].clone();
        blob[at] ^= 1;
        blob
    };
    let extra = [image.blobs[1].clone(), vec![0; 512]].concat();
    let half = image.blobs[1][..image.blobs[1].len() / 2].to_vec();
    let length = image.blobs[1].len();
    for (case, digest, reply, class, message) in [
        ("another blob", &blob, Reply::Body(other.blobs[0].clone()), Class::DataLoss, "descriptor says"),
        ("flipped bit in the header", &blob, Reply::Body(flipped(4)), Class::DataLoss, "digest is"),
        (
            "flipped bit in the data",
            &blob,
            Reply::Body(flipped(length / 2)),
            Class::DataLoss,
            "descriptor says",
        ),
        ("flipped bit in the trailer", &blob, Reply::Body(flipped(length - 1)), Class::DataLoss, "digest is"),
        ("extra bytes", &blob, Reply::Body(extra), Class::DataLoss, "bytes or more"),
        ("half, said to be whole", &blob, Reply::Body(half.clone()), Class::DataLoss, "bytes or more"),
        ("half, broken off", &blob, Reply::Truncated(half, length), Class::Unavailable, "broke off"),
        ("endless blob", &blob, Reply::Endless, Class::DataLoss, "bytes or more"),
        ("missing blob", &blob, Reply::Status(404, vec![], vec![]), Class::NotFound, "does not exist"),
        ("other configuration", &config, Reply::Body(other.config.clone()), Class::DataLoss, "sent sha256:"),
        ("endless configuration", &config, Reply::Endless, Class::ResourceExhausted, "limit of"),
    ] {
        let (registry, bed) = (Registry::start(), Bed::new());
        let name = registry.put("library/x", "1", &image);
        registry.blob("library/x", digest, reply);
        refused(&bed, &name, case, class, message).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_lie_are_refused() {
    if !is_root() {
        return;
    }
    let image = sample();
    let text = String::from_utf8(image.manifest.clone()).unwrap();
    let size = format!("\"size\":{}", image.blobs[1].len());
    let index = |digest: &str, platform: &str| {
        format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":1{platform}}}]}}"#)
    };
    let arm = r#","platform":{"os":"linux","architecture":"arm64"}"#;
    let absent = Digest::of(b"absent");
    let mut huge = text.clone();
    huge.insert_str(1, &format!("\"x\":\"{}\",", "a".repeat(5 << 20)));
    let digest = Digest::of(&image.blobs[1]).to_string();
    let cases = [
        ("not JSON", "<html>".to_owned(), Class::InvalidArgument, "malformed"),
        ("deep JSON", "[".repeat(100_000), Class::InvalidArgument, "malformed"),
        ("both kinds", text.replacen('{', r#"{"manifests":[],"#, 1), Class::InvalidArgument, "either"),
        ("twice layers", text.replacen('{', r#"{"layers":[],"#, 1), Class::InvalidArgument, "malformed"),
        ("schema 1", text.replace(":2", ":1"), Class::InvalidArgument, "schema version 1"),
        ("huge", huge, Class::ResourceExhausted, "limit of"),
        ("size lie up", text.replace(&size, "\"size\":99999"), Class::DataLoss, "descriptor says 99999"),
        ("size lie down", text.replace(&size, "\"size\":10"), Class::DataLoss, "descriptor says 10"),
        (
            "md5",
            text.replace(&digest, "md5:d41d8cd98f00b204e9800998ecf8427e"),
            Class::InvalidArgument,
            "malformed",
        ),
        (
            "path as digest",
            text.replace(&digest, "sha256:../../../../etc/passwd"),
            Class::InvalidArgument,
            "malformed",
        ),
        ("upper case", text.replace(&digest, &digest.to_uppercase()), Class::InvalidArgument, "malformed"),
        ("encrypted", text.replace("tar+gzip", "tar+encrypted"), Class::InvalidArgument, "media type"),
        ("other platform", index(absent.as_str(), arm), Class::NotFound, "linux/amd64"),
        ("empty index", r#"{"schemaVersion":2,"manifests":[]}"#.into(), Class::NotFound, "linux/amd64"),
        ("index of nothing", index(absent.as_str(), ""), Class::NotFound, "does not exist"),
    ];
    for (case, manifest, class, message) in cases {
        let (registry, bed) = (Registry::start(), Bed::new());
        let name = registry.put("library/x", "1", &image);
        registry.reply("/v2/library/x/manifests/1", Reply::Body(manifest.into_bytes()));
        refused(&bed, &name, case, class, message).await;
    }
    let (registry, bed) = (Registry::start(), Bed::new());
    let name = registry.put("library/x", "1", &image);
    registry.reply("/v2/library/x/manifests/1", Reply::Endless);
    refused(&bed, &name, "endless", Class::ResourceExhausted, "limit of").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_followed_to_this_platform() {
    if !is_root() {
        return;
    }
    let (registry, bed) = (Registry::start(), Bed::new());
    let image = sample();
    registry.put("library/x", "amd64", &image);
    let mut here = descriptor("application/vnd.oci.image.manifest.v1+json", &image.manifest);
    here["platform"] = serde_json::json!({"os": "linux", "architecture": "amd64"});
    let mut arm = descriptor("application/vnd.oci.image.manifest.v1+json", b"absent");
    arm["platform"] = serde_json::json!({"os": "linux", "architecture": "arm64"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [arm, here]}).to_string().into_bytes();
    registry.reply("/v2/library/x/manifests/1", Reply::Body(index.clone()));
    let name = format!("{}/library/x:1", registry.address);
    let id = bed.images.pull(&name, None).await.unwrap();
    assert_eq!(*id.digest(), Digest::of(&image.config));
    assert_eq!(
        bed.get(&name).repo_digests,
        [format!("{}/library/x@{}", registry.address, Digest::of(&index))]
    );
    bed.assert_clean("index");
}

/// Large layers are brought to the disk by tasks of their own.
#[tokio::test(flavor = "multi_thread")]
async fn large_layers_are_as_whole_as_small_ones() {
    if !is_root() {
        return;
    }
    let (registry, bed) = (Registry::start(), Bed::new());
    let layers: Vec<_> =
        (0..4).map(|n| Tar::new().file(&format!("f{n}"), &n.to_string().repeat(17 << 20)).end()).collect();
    let name = registry.put("library/large", "1", &build(&layers, Packing::Zstd));
    bed.images.pull(&name, None).await.unwrap();
    bed.assert_clean("large");
    let rootfs = bed.rootfs(&bed.get(&name));
    assert_eq!(std::fs::metadata(inside(&rootfs, "f3")).unwrap().len(), 17 << 20);
    bed.images.remove(&name).unwrap();
    bed.images.collect().unwrap();
    assert_eq!(listing(&bed.config.root.join("layers")), ["empty"]);
}

/// A configuration that lists the diff ids of someone else's layers does not get them (A12).
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_another_tenant_is_not_given_away() {
    if !is_root() {
        return;
    }
    let (private, evil, bed) = (Registry::start(), Registry::start(), Bed::new());
    let secret = build(&[Tar::new().file("secret", "secret").end()], Packing::Gzip);
    bed.images.pull(&private.put("tenant/a", "1", &secret), None).await.unwrap();

    // Another blob behind the same diff id, the same blob that the registry does not have, and a HEAD that lies.
    let mine = build(&[Tar::new().file("mine", "mine").end()], Packing::Gzip);
    let config = String::from_utf8(secret.config.clone()).unwrap().replace("true", "false").into_bytes();
    let forged = Built {
        manifest: manifest(&config, &mine.blobs),
        config: config.clone(),
        blobs: mine.blobs.clone(),
        archives: mine.archives,
    };
    let error = bed.images.pull(&evil.put("tenant/b", "1", &forged), None).await.unwrap_err();
    assert_eq!(error.class(), Class::InvalidArgument, "{}", chain(&error));
    let claimed = Built { manifest: manifest(&config, &secret.blobs), config, ..secret.clone() };
    let name = evil.put("tenant/b", "2", &claimed);
    let blob = Digest::of(&secret.blobs[0]);
    evil.blob("tenant/b", &blob, Reply::Body(vec![b'x'; secret.blobs[0].len()]));
    let error = bed.images.pull(&name, None).await.unwrap_err();
    assert_eq!(error.class(), Class::DataLoss, "{}", chain(&error));
    assert_eq!(bed.images.list().len(), 1);

    // Whoever has the blob gets the layer, without a second copy.
    evil.blob("tenant/b", &blob, Reply::Body(secret.blobs[0].clone()));
    bed.images.pull(&name, None).await.unwrap();
    assert_eq!(bed.images.list().len(), 2);
    assert_eq!(listing(&bed.config.root.join("layers")).len(), 2);
    bed.assert_clean("tenants");
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_pulls_of_one_image_fetch_it_once() {
    if !is_root() {
        return;
    }
    let (registry, bed) = (Registry::start(), Bed::new());
    let image = sample();
    let name = registry.put("library/x", "1", &image);
    let pulls: Vec<_> = (0..8)
        .map(|_| {
            let (images, name) = (bed.images.clone(), name.clone());
            tokio::spawn(async move { images.pull(&name, None).await.unwrap() })
        })
        .collect();
    for pull in pulls {
        assert_eq!(*pull.await.unwrap().digest(), Digest::of(&image.config));
    }
    for blob in &image.blobs {
        assert_eq!(registry.count("GET", Digest::of(blob).as_str()), 1);
        assert_eq!(registry.count("HEAD", Digest::of(blob).as_str()), 7);
    }
    assert_eq!(listing(&bed.config.root.join("layers")), ["1", "2", "empty"]);
    bed.assert_clean("eight");
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_and_sweeping_during_pulls_loses_nothing() {
    if !is_root() {
        return;
    }
    let (registry, bed) = (Registry::start(), Bed::new());
    let base = Tar::new().file("base", "base").end();
    let names: Vec<_> = (0..6)
        .map(|n| {
            let top = Tar::new().file("top", &n.to_string()).end();
            registry.put(&format!("library/x{n}"), "1", &build(&[base.clone(), top], Packing::Zstd))
        })
        .collect();
    for round in 0..10 {
        let pulls: Vec<_> = names
            .iter()
            .map(|name| {
                let (images, name) = (bed.images.clone(), name.clone());
                tokio::spawn(async move { images.pull(&name, None).await.unwrap() })
            })
            .collect();
        let _ = bed.images.remove(&names[round % 6]);
        bed.images.collect().unwrap();
        for pull in pulls {
            pull.await.unwrap();
        }
        bed.images.pull(&names[round % 6], None).await.unwrap();
        for name in &names {
            let image = bed.get(name);
            let directory = tempfile::tempdir_in(bed.directory.path()).unwrap();
            let rootfs = bed.images.rootfs(&image, "c", directory.path(), None).unwrap();
            assert_eq!(listing(&inside(&rootfs, "")), ["base", "top"]);
        }
    }
    bed.assert_clean("sweep");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_fails_or_lies_is_passed_over() {
    if !is_root() {
        return;
    }
    let (mirror, registry) = (Registry::start(), Registry::start());
    let bed = Bed::with(|config| {
        config.mirrors =
            vec![Mirror { host: registry.address.clone(), endpoint: format!("http://{}", mirror.address) }];
    });
    let image = sample();
    let name = registry.put("library/x", "1", &image);
    mirror.put("library/x", "1", &image);
    mirror.blob("library/x", &Digest::of(&image.blobs[0]), Reply::Body(image.blobs[1].clone()));
    mirror.blob("library/x", &Digest::of(&image.blobs[1]), Reply::Status(500, vec![], vec![]));
    let auth = Auth::RegistryToken("for the registry alone".into());
    bed.images.pull(&name, Some(auth)).await.unwrap();
    assert!(mirror.requests().iter().all(|request| request.authorization.is_none()));
    assert!(mirror.requests()[0].path.contains(&format!("ns={}", registry.address)));
    assert_eq!(registry.count("GET", "/manifests/"), 0);
    assert_eq!(registry.count("GET", "/blobs/"), 2);
    bed.assert_clean("mirror");
}

fn bearer(registry: &Registry, token: &str, realm: &str, body: Vec<u8>) -> Reply {
    Reply::Guarded {
        authorization: format!("Bearer {token}"),
        challenge: format!(r#"Bearer realm="{realm}",service="{}""#, registry.address),
        body,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_go_where_they_belong() {
    if !is_root() {
        return;
    }
    let (registry, tokens, storage, bed) =
        (Registry::start(), Registry::start(), Registry::start(), Bed::new());
    let image = sample();
    let name = registry.put("team/x", "1", &image);
    let realm = format!("http://{}/token", tokens.address);
    let guarded = |body: Vec<u8>| bearer(&registry, "granted", &realm, body);
    registry.reply("/v2/team/x/manifests/1", guarded(image.manifest.clone()));
    registry.blob("team/x", &Digest::of(&image.config), guarded(image.config.clone()));
    tokens.reply(
        "/token",
        Reply::Guarded {
            authorization: "Basic dXNlcjpodW50ZXIy".into(),
            challenge: "Basic".into(),
            body: br#"{"token":"granted"}"#.to_vec(),
        },
    );
    for blob in &image.blobs {
        let digest = Digest::of(blob);
        let location = format!("http://{}/storage/{digest}?signature=s3cret", storage.address);
        registry.blob("team/x", &digest, Reply::Status(307, vec![("Location", location)], vec![]));
        storage.reply(&format!("/storage/{digest}"), Reply::Body(blob.clone()));
    }
    let wrong = Auth::Basic { username: "user".into(), password: "wr0ng".into() };
    let error = bed.images.pull(&name, Some(wrong)).await.unwrap_err();
    assert_eq!(error.class(), Class::PermissionDenied);
    assert!(!chain(&error).contains("wr0ng"), "{}", chain(&error));
    let error = bed.images.pull(&name, None).await.unwrap_err();
    assert_eq!(error.class(), Class::PermissionDenied, "{}", chain(&error));

    let auth = Auth::Basic { username: "user".into(), password: "hunter2".into() };
    bed.images.pull(&name, Some(auth)).await.unwrap();
    let asked = tokens.requests().pop().unwrap();
    assert!(
        asked.path.contains("scope=repository%3Ateam%2Fx%3Apull") && asked.path.contains("service="),
        "{asked:?}"
    );
    assert!(storage.requests().iter().all(|request| request.authorization.is_none()), "not along redirects");
    assert!(
        registry.requests().iter().all(|r| !r.authorization.as_deref().unwrap_or("").starts_with("Basic"))
    );

    // The same with a token that was given, and with one that is exchanged.
    for auth in [Auth::RegistryToken("granted".into()), Auth::IdentityToken("refresh".into())] {
        let bed = Bed::new();
        tokens.reply("/token", Reply::Body(br#"{"access_token":"granted"}"#.to_vec()));
        bed.images.pull(&name, Some(auth)).await.unwrap();
    }
    assert_eq!(tokens.requests().pop().unwrap().method, "POST");
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_credentials_are_sent_when_asked_for() {
    if !is_root() {
        return;
    }
    let (registry, bed) = (Registry::start(), Bed::new());
    let image = sample();
    let name = registry.put("team/x", "1", &image);
    registry.reply(
        "/v2/team/x/manifests/1",
        Reply::Guarded {
            authorization: "Basic dXNlcjpodW50ZXIy".into(),
            challenge: r#"Basic realm="x""#.into(),
            body: image.manifest.clone(),
        },
    );
    let auth = Auth::Basic { username: "user".into(), password: "hunter2".into() };
    bed.images.pull(&name, Some(auth)).await.unwrap();
    assert_eq!(registry.requests()[0].authorization, None, "not before it is asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn loops_stalls_and_floods_end() {
    if !is_root() {
        return;
    }
    let image = sample();
    let blob = Digest::of(&image.blobs[0]);
    let reply_with = |location: String| Reply::Status(302, vec![("Location", location)], vec![]);
    for case in ["loop", "stall", "head stall", "token flood", "garbage", "gone"] {
        let registry = Registry::start();
        let bed = Bed::with(|config| {
            config.limits.stall = Duration::from_millis(300);
        });
        let name = registry.put("library/x", "1", &image);
        let (class, message) = match case {
            "loop" => {
                let path = format!("/v2/library/x/blobs/{blob}");
                registry.reply(&path, reply_with(format!("http://{}{path}", registry.address)));
                (Class::Unavailable, "10 redirects")
            }
            "stall" => {
                registry.blob("library/x", &blob, Reply::Stall(image.blobs[0][..20].to_vec()));
                (Class::Unavailable, "nothing of use")
            }
            "head stall" => {
                registry.reply("/v2/library/x/manifests/1", Reply::Stall(vec![]));
                (Class::Unavailable, "nothing of use")
            }
            "token flood" => {
                let realm = format!("http://{}/token", registry.address);
                registry.reply("/token", Reply::Endless);
                registry.reply("/v2/library/x/manifests/1", bearer(&registry, "t", &realm, vec![]));
                (Class::ResourceExhausted, "limit of")
            }
            "garbage" => {
                registry.reply("/v2/library/x/manifests/1", Reply::Status(500, vec![], vec![b'x'; 5 << 20]));
                (Class::Unavailable, "answered 500")
            }
            _ => {
                refused(&bed, "127.0.0.1:1/library/x:1", "gone", Class::Unavailable, "cannot reach").await;
                continue;
            }
        };
        refused(&bed, &name, case, class, message).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_hosts_that_are_none_are_refused() {
    let bed = Bed::new();
    let error = bed.images.pull("registry.invalid/x:1", None).await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable, "{}", chain(&error));
    for name in ["", "host/UPPER", "x:1:2", "http://127.0.0.1/x", "../x", "x@sha256:12", "a\nb"] {
        assert_eq!(
            bed.images.pull(name, None).await.unwrap_err().class(),
            Class::InvalidArgument,
            "{name:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_pull_leaves_nothing() {
    if !is_root() {
        return;
    }
    let (registry, bed) = (Registry::start(), Bed::new());
    let image = sample();
    let name = registry.put("library/x", "1", &image);
    registry.blob("library/x", &Digest::of(&image.blobs[1]), Reply::Stall(image.blobs[1][..20].to_vec()));
    let pull = tokio::time::timeout(Duration::from_millis(300), bed.images.pull(&name, None)).await;
    assert!(pull.is_err(), "it should have been stalled");
    without_layers(&bed, "dropped").await;
    bed.assert_clean("dropped");
    registry.put("library/x", "1", &image);
    bed.images.pull(&name, None).await.unwrap();
}
