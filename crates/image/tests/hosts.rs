//! `hosts.toml` directories: who is asked for what, and in which order.

#![allow(clippy::unwrap_used, reason = "tests may fail at once")]

mod bed;

use std::fs;

use bed::registry::{Registry, Reply};
use bed::tar::Tar;
use bed::{Bed, Built, Packing, build, chain, is_root};
use image::{Auth, Class, Digest};

fn image() -> Built {
    build(&[Tar::new().file("f", "x").end()], Packing::Gzip)
}

/// A bed whose `hosts.toml` for `registry.invalid` is this.
fn bed(text: &str) -> Bed {
    Bed::with(|config| {
        let hosts = config.root.with_extension("hosts");
        fs::create_dir_all(hosts.join("registry.invalid")).unwrap();
        fs::write(hosts.join("registry.invalid/hosts.toml"), text).unwrap();
        config.hosts = vec![hosts];
    })
}

const NAME: &str = "registry.invalid/library/x:1";

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_asked_in_their_order_for_what_they_can() {
    if !is_root() {
        return;
    }
    let (content, all, server, image) = (Registry::start(), Registry::start(), Registry::start(), image());
    for registry in [&content, &all, &server] {
        registry.put("library/x", "1", &image);
    }
    let text = format!(
        r#"
        server = "http://{}"
        [host."http://{}"]
          capabilities = ["pull"]
        [host."http://{}"]
        "#,
        server.address, content.address, all.address
    );
    let bed = bed(&text);
    let auth = Auth::Basic { username: "user".into(), password: "hunter2".into() };
    bed.images.pull(NAME, Some(auth)).await.map_err(|error| chain(&error)).unwrap();
    assert_eq!(content.count("GET", "/manifests/1"), 0, "it resolves no tags");
    assert_eq!((content.count("GET", "/blobs/"), all.count("GET", "/manifests/1")), (2, 1));
    assert_eq!((all.count("GET", "/blobs/"), server.requests().len()), (0, 0));
    assert!(
        content
            .requests()
            .iter()
            .all(|r| r.authorization.is_none() && r.path.contains("?ns=registry.invalid"))
    );
    assert_eq!(bed.get(NAME).repo_tags, [NAME], "names stay those of the registry");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_complete_addresses_are_the_hosts_own() {
    if !is_root() {
        return;
    }
    let (registry, storage, image) = (Registry::start(), Registry::start(), image());
    for (path, content) in [
        ("manifests/1".to_owned(), &image.manifest),
        (format!("blobs/{}", Digest::of(&image.config)), &image.config),
    ] {
        registry.reply(&format!("/proxy/library/x/{path}"), Reply::Body(content.clone()));
    }
    let blob = Digest::of(&image.blobs[0]);
    let location = format!("http://{}/blob", storage.address);
    registry.reply(
        &format!("/proxy/library/x/blobs/{blob}"),
        Reply::Status(307, vec![("Location", location)], vec![]),
    );
    storage.reply("/blob", Reply::Body(image.blobs[0].clone()));
    let text = format!(
        r#"
        [host."http://{0}/proxy"]
          override_path = true
          [host."http://{0}/proxy".header]
            x-key = "s3cret"
        "#,
        registry.address
    );
    bed(&text).images.pull(NAME, None).await.map_err(|error| chain(&error)).unwrap();
    let carries =
        |r: &bed::registry::Request| r.headers.iter().any(|line| line.eq_ignore_ascii_case("x-key: s3cret"));
    assert!(registry.requests().iter().all(carries) && registry.requests().len() == 3);
    assert!(
        storage.requests().len() == 1 && !storage.requests().iter().any(carries),
        "headers stay with their host"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_wrong_fails_the_pull_by_name() {
    for text in ["[host", "[host.\"ftp://x\"]", "[host.\"http://x\"]\nca = \"missing.pem\""] {
        let error = bed(text).images.pull(NAME, None).await.unwrap_err();
        let message = chain(&error);
        assert!(matches!(error.class(), Class::Internal | Class::InvalidArgument), "{text}: {message}");
        assert!(
            message.contains("hosts.toml") || message.contains("missing.pem") || message.contains("ftp://x"),
            "{message}"
        );
    }
}
