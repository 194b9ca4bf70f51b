//! Images out of files: OCI layouts and docker-save archives, of tools and of liars.

#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "tests may fail at once and list many cases")]

mod bed;

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::Path;
use std::process::Command;

use bed::registry::{Real, Registry};
use bed::tar::Tar;
use bed::{Bed, Built, Packing, build, chain, descriptor, inside, is_root, listing, pack};
use image::{Class, Digest, ImportError};

fn sample(packing: Packing) -> Built {
    let base = Tar::new().file("base", "base").end();
    let top = Tar::new().file("top", "top").end();
    build(&[base, top], packing)
}

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    file
}

fn bytes(tar: Tar, path: &str, content: &[u8]) -> Tar {
    let size = content.len() as u64;
    tar.entry(&bed::tar::Header { path: path.as_bytes(), size, ..Default::default() }, content)
}

/// An OCI layout of the image under this annotation.
fn layout(image: &Built, key: &str, name: &str) -> Tar {
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &image.manifest);
    entry["annotations"] = serde_json::json!({ key: name });
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let mut tar = bytes(Tar::new(), "./oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    tar = bytes(tar, "./index.json", index.as_bytes()).directory("blobs/", 0o755);
    for blob in image.blobs.iter().chain([&image.config, &image.manifest]) {
        tar = bytes(tar, &format!("blobs/sha256/{}", Digest::of(blob).hex()), blob);
    }
    tar
}

/// A docker-save archive of the image.
fn saved(image: &Built, tags: &str) -> Tar {
    let layers: Vec<_> = (0..image.archives.len()).map(|n| format!("{n}/layer.tar")).collect();
    let config = format!("{}.json", Digest::of(&image.config).hex());
    let tags: serde_json::Value = serde_json::from_str(tags).unwrap();
    let manifest = serde_json::json!([{"Config": config, "RepoTags": tags, "Layers": layers}]).to_string();
    let mut tar = bytes(Tar::new(), &config, &image.config);
    for (name, archive) in layers.iter().zip(&image.archives) {
        tar = bytes(tar, name, archive);
    }
    bytes(tar, "manifest.json", manifest.as_bytes())
}

async fn imported(bed: &Bed, archive: Vec<u8>, image: &Built, names: &[&str]) {
    assert_eq!(bed.images.import(file(&archive)).await.map_err(|error| chain(&error)).unwrap(), names);
    let found = bed.get(names[0]);
    assert_eq!(*found.id.digest(), Digest::of(&image.config));
    assert_eq!(listing(&inside(&bed.rootfs(&found), "")), ["base", "top"]);
    bed.assert_clean(names[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn layouts_and_saved_images_of_all_packings_are_imported() {
    if !is_root() {
        return;
    }
    let annotations = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
    for (inner, outer) in
        [(Packing::Plain, Packing::Gzip), (Packing::Gzip, Packing::Plain), (Packing::Zstd, Packing::Zstd)]
    {
        let image = sample(inner);
        for key in annotations {
            let archive = pack(&layout(&image, key, "registry.example/x:1").end(), outer);
            let bed = Bed::new();
            imported(&bed, archive, &image, &["registry.example/x:1"]).await;
            let digest = format!("registry.example/x@{}", Digest::of(&image.manifest));
            assert_eq!(bed.get(&digest).repo_digests, [digest]);
        }
        let archive = pack(&saved(&image, r#"["x:1", "x:2"]"#).end(), outer);
        imported(&Bed::new(), archive, &image, &["docker.io/library/x:1", "docker.io/library/x:2"]).await;
        let bed = Bed::new();
        let id = Digest::of(&image.config).to_string();
        imported(&bed, saved(&image, "null").end(), &image, &[&id]).await;
        imported(&bed, layout(&image, annotations[0], "1").end(), &image, &[&id]).await;
        assert_eq!(bed.images.list().len(), 1);
        imported(&bed.reopened(), saved(&image, r#"["x"]"#).end(), &image, &["docker.io/library/x:latest"])
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_and_links_between_layers_are_read() {
    if !is_root() {
        return;
    }
    let layer = Tar::new().file("base", "base").end();
    let image = build(&[layer.clone(), Tar::new().file("top", "top").end()], Packing::Plain);
    let config = "c.json";
    let manifest =
        serde_json::json!([{"Config": config, "RepoTags": ["x"], "Layers": ["a/layer.tar", "b/layer.tar"]}]);
    let tar = bytes(Tar::new(), "shared/layer.tar", &layer).symlink("a/layer.tar", "../shared/layer.tar");
    let tar = bytes(tar, "b/layer.tar", &image.archives[1]);
    let tar =
        bytes(bytes(tar, config, &image.config), "manifest.json", manifest.to_string().as_bytes()).end();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let feeder = std::thread::spawn(move || writer.write_all(&tar));
    let bed = Bed::new();
    let names = bed.images.import(File::from(std::os::fd::OwnedFd::from(reader))).await.unwrap();
    feeder.join().unwrap().unwrap();
    assert_eq!(names, ["docker.io/library/x:latest"]);
    bed.assert_clean("pipe");
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_lie_import_nothing() {
    if !is_root() {
        return;
    }
    let key = "io.containerd.image.name";
    let image = sample(Packing::Gzip);
    let replaced = |at: usize, with: &[u8]| {
        let mut image = image.clone();
        image.blobs[at] = with.to_vec();
        image
    };
    let wrong_layer = {
        // The right name with the wrong content.
        let mut archive = layout(&image, key, "x:1").0;
        let at = archive.windows(image.blobs[1].len()).position(|part| part == image.blobs[1]).unwrap();
        archive[at + 20] ^= 1;
        Tar(archive)
    };
    let mut other_archive = image.clone();
    other_archive.archives[1] = Tar::new().file("other", "x").end();
    let both = bytes(layout(&image, key, "x:1"), "index.json", b"{}");
    let loops = Tar::new().symlink("manifest.json", "a").symlink("a", "manifest.json");
    let foreign = build(&[], Packing::Plain);
    let foreign = Built {
        config: String::from_utf8(foreign.config).unwrap().replace("amd64", "s390x").into_bytes(),
        ..foreign
    };
    let huge = bytes(Tar::new(), "manifest.json", &vec![b' '; 5 << 20]);
    for (case, archive, class, message) in [
        ("nothing", Tar::new().end(), Class::InvalidArgument, "neither"),
        ("no archive", vec![b'x'; 2000], Class::InvalidArgument, "malformed"),
        ("cut", saved(&image, "null").0[..3000].to_vec(), Class::InvalidArgument, "truncated"),
        (
            "missing layer",
            layout(&replaced(1, b"y"), key, "x:1").end(),
            Class::InvalidArgument,
            "does not hold it",
        ),
        ("flipped bit", wrong_layer.end(), Class::DataLoss, "descriptor says"),
        (
            "other layer",
            saved(&other_archive, r#"["x:1"]"#).end(),
            Class::InvalidArgument,
            "configuration says",
        ),
        ("two indexes", both.end(), Class::InvalidArgument, "twice"),
        ("links in a circle", loops.end(), Class::InvalidArgument, "manifest.json"),
        ("bad name", layout(&image, key, "../x").end(), Class::InvalidArgument, "names an image"),
        ("bad tag", saved(&image, r#"["x:1 2"]"#).end(), Class::InvalidArgument, "names an image"),
        ("platform", saved(&foreign, r#"["x"]"#).end(), Class::NotFound, "linux/amd64"),
        ("huge document", huge.end(), Class::ResourceExhausted, "exceeds"),
        (
            "traversal in names",
            bytes(Tar::new(), "../../manifest.json", b"[]").end(),
            Class::InvalidArgument,
            "",
        ),
    ] {
        let bed = Bed::new();
        let error: ImportError = bed.images.import(file(&archive)).await.expect_err(case);
        let text = chain(&error);
        assert_eq!(error.class(), class, "{case}: {text}");
        assert!(text.contains(message), "{case}: {text}");
        assert_eq!(bed.images.list(), [], "{case}");
        bed.assert_clean(case);
    }
}

/// A layer that is here already is not lent to an archive that does not hold it (A12).
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_must_hold_what_it_lists() {
    if !is_root() {
        return;
    }
    let (registry, bed) = (Registry::start(), Bed::new());
    let image = sample(Packing::Gzip);
    bed.images.pull(&registry.put("library/x", "1", &image), None).await.unwrap();
    let mut empty = image.clone();
    empty.archives = vec![Tar::new().end(), Tar::new().end()];
    let error = bed.images.import(file(&saved(&empty, r#"["thief"]"#).end())).await.unwrap_err();
    assert!(chain(&error).contains("configuration says"), "{}", chain(&error));
    assert!(bed.images.get("thief").is_none());
    imported(&bed, saved(&image, r#"["owner"]"#).end(), &image, &["docker.io/library/owner:latest"]).await;
    assert_eq!(listing(&bed.config.root.join("layers")).len(), 3, "no second copy");
}

/// What skopeo writes, both kinds.
#[tokio::test(flavor = "multi_thread")]
async fn archives_of_skopeo_are_imported() {
    if !is_root() {
        return;
    }
    let Some(registry) = Real::start() else { return };
    let Some(skopeo) = skopeo() else {
        eprintln!("SKIPPED: no skopeo");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    for (kind, name) in
        [("oci-archive", "registry.example/layers:1"), ("docker-archive", "docker.io/library/layers:1")]
    {
        let path = directory.path().join(kind);
        let target = format!("{kind}:{}:{name}", path.display());
        let source = format!("docker://{}", registry.image("layers:1"));
        let copied = Command::new(&skopeo)
            .args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", &source, &target])
            .output()
            .unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let bed = Bed::new();
        let names =
            bed.images.import(File::open(&path).unwrap()).await.map_err(|error| chain(&error)).unwrap();
        assert_eq!(names, [name]);
        let pulled = bed.images.pull(&registry.image("layers:1"), None).await.unwrap();
        assert_eq!(bed.get(name).id, pulled, "{kind}: the same image, wherever it comes from");
        let rootfs = bed.rootfs(&bed.get(name));
        assert_eq!(fs::read_to_string(inside(&rootfs, "data/turns")).unwrap(), "now a file");
        bed.assert_clean(kind);
    }
}

fn skopeo() -> Option<std::path::PathBuf> {
    let env = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../hack/env");
    let script = format!(". {} && command -v skopeo || ls $MERIDIAN_CACHE/bin/skopeo", env.display());
    let found = Command::new("bash").args(["-c", &script]).output().ok()?;
    let path = String::from_utf8(found.stdout).ok()?.trim().to_owned();
    (found.status.success() && !path.is_empty()).then(|| path.into())
}
