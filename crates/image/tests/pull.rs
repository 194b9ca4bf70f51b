//! Pulls from the real docker-registry: what arrives is what was pushed.

#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "tests may fail at once and list many cases")]

mod bed;

use std::fs;
use std::os::unix::fs::MetadataExt;

use bed::registry::Real;
use bed::{Bed, inside, is_root, listing};
use image::{Mirror, Rootfs};

fn start() -> Option<Real> {
    if is_root() { Real::start() } else { None }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_packing_gives_the_same_files() {
    let Some(registry) = start() else { return };
    let bed = Bed::new();
    let mut ids = Vec::new();
    for tag in ["1", "zstd", "plain"] {
        let name = registry.image(&format!("busybox:{tag}"));
        let id = bed.images.pull(&name, None).await.unwrap();
        let image = bed.get(&name);
        assert_eq!(image.id, id);
        assert!(image.repo_tags.contains(&name), "{:?}", image.repo_tags);
        assert!(image.repo_digests[0].starts_with(&format!("{}/meridian/busybox@sha256:", registry.address)));
        let rootfs = bed.rootfs(&image);
        let shell = fs::metadata(inside(&rootfs, "bin/sh")).unwrap();
        assert_eq!((shell.mode() & 0o7777, shell.uid()), (0o755, 0));
        assert!(image.size > 500_000, "{}", image.size);
        ids.push(id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "one configuration, one image, whatever its layers are packed in");
    assert_eq!(bed.images.list()[0].repo_tags.len(), 3);
    bed.assert_clean("packings");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_stacked_as_their_whiteouts_say() {
    let Some(registry) = start() else { return };
    for tag in ["1", "zstd"] {
        let bed = Bed::new();
        let name = registry.image(&format!("layers:{tag}"));
        bed.images.pull(&name, None).await.unwrap();
        let image = bed.get(&name);
        assert_eq!(image.layers.len(), 5);
        let rootfs = bed.rootfs(&image);
        check_layers(&rootfs);
        bed.assert_clean("layers");
    }
}

/// The tree that the layers of `hack/images` make together; keep both in step.
fn check_layers(rootfs: &Rootfs) {
    let data = |name: &str| inside(rootfs, &format!("data/{name}"));
    assert_eq!(
        listing(&data("")),
        ["back", "hard", "kept", "link", "opaque", "owned", "removed", "replaced", "setuid", "turns"]
    );
    assert_eq!(listing(&data("opaque")), ["new"]);
    assert_eq!(listing(&data("kept")), ["both"]);
    for (name, content) in [
        ("removed", "4"),
        ("replaced", "3"),
        ("turns", "now a file"),
        ("opaque/new", "2"),
        ("link", "1"),
        ("back", "3"),
    ] {
        assert_eq!(fs::read_to_string(data(name)).unwrap(), content, "{name}");
    }
    assert_eq!(fs::read_link(data("link")).unwrap().to_str(), Some("kept/both"));
    let (back, hard) = (fs::metadata(data("back")).unwrap(), fs::metadata(data("hard")).unwrap());
    assert_eq!((back.ino(), back.nlink(), hard.ino()), (hard.ino(), 2, back.ino()));
    assert_eq!(fs::metadata(data("setuid")).unwrap().mode() & 0o7777, 0o4755);
    let owned = fs::metadata(data("owned")).unwrap();
    assert_eq!(
        (owned.uid(), owned.gid(), owned.mode() & 0o7777, owned.mtime()),
        (1000, 33, 0o640, 1_735_689_600)
    );
    assert_eq!(
        fs::metadata(data("")).unwrap().mtime(),
        1_735_689_600,
        "also a directory's time is the archive's"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn by_digest_and_by_mirror_names_stay_as_written() {
    let Some(registry) = start() else { return };
    let bed = Bed::with(|config| {
        let endpoint = format!("http://{}", registry.address);
        config.mirrors = vec![
            Mirror { host: "registry.example".into(), endpoint: "http://127.0.0.1:1".into() },
            Mirror { host: "registry.example".into(), endpoint },
        ];
    });
    let tagged = "registry.example/meridian/pause:1";
    let id = bed.images.pull(tagged, None).await.unwrap();
    let image = bed.get(tagged);
    assert_eq!(image.repo_tags, [tagged]);
    let by_digest = image.repo_digests[0].clone();
    assert!(by_digest.starts_with("registry.example/meridian/pause@sha256:"));

    let other = Bed::new();
    let digest = by_digest.split('@').nth(1).unwrap();
    let name = format!("{}@{digest}", registry.image("pause"));
    assert_eq!(other.images.pull(&name, None).await.unwrap(), id);
    assert_eq!(other.get(&name).repo_tags, [""; 0]);
    assert_eq!(other.get(id.as_str()).repo_digests, [name]);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_survive_a_restart_and_leave_when_removed() {
    let Some(registry) = start() else { return };
    let bed = Bed::with(|config| config.pinned = vec![registry.image("config:1")]);
    let (busybox, config) = (registry.image("busybox:1"), registry.image("config:1"));
    bed.images.pull(&busybox, None).await.unwrap();
    let id = bed.images.pull(&config, None).await.unwrap();
    let before = bed.images.list();
    let half = bed.config.root.join("layers/new-77");
    fs::create_dir_all(half.join("fs/x")).unwrap();
    let orphan = bed.config.root.join("layers/78");
    fs::create_dir_all(&orphan).unwrap();

    let bed = bed.reopened();
    assert_eq!(bed.images.list(), before);
    assert!(!half.exists() && !orphan.exists());
    let image = bed.get(&config);
    assert_eq!(image.config.config().as_ref().unwrap().stop_signal().as_deref(), Some("SIGUSR1"));
    assert!(bed.images.is_pinned(&image) && !bed.images.is_pinned(&bed.get(&busybox)));
    let usage = bed.images.fs_info();
    assert!(usage.used_bytes > 500_000 && usage.inodes_used > 10, "{usage:?}");

    bed.images.remove(&config).unwrap();
    assert!(bed.images.get(&config).is_none() && bed.images.get(id.as_str()).is_none());
    let held = bed.images.hold(&id).unwrap();
    bed.images.collect().unwrap();
    let rootfs = bed.rootfs(&image);
    assert!(inside(&rootfs, "bin/sh").exists(), "an image in use keeps its layers");
    drop(held);
    bed.images.collect().unwrap();
    bed.assert_clean("removed");
    bed.images.remove(&busybox).unwrap();
    bed.images.collect().unwrap();
    assert_eq!(listing(&bed.config.root.join("layers")), ["empty"]);
    assert_eq!(listing(&bed.config.root.join("content/blobs/sha256")), [""; 0]);
    assert_eq!(bed.images.fs_info().used_bytes, 0);
}
