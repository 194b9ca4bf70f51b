//! Root filesystems: what a container writes, with and without a user namespace.

#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "tests may fail at once and list many cases")]

mod bed;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::{Child, Command, Stdio};

use bed::registry::Registry;
use bed::tar::{Header, Tar};
use bed::{Bed, Packing, build, inside, is_root, listing};
use image::{IdMap, Image, RootfsError};
use std::sync::Arc;

async fn sample(bed: &Bed) -> Arc<Image> {
    let owned =
        Header { path: b"home/me", kind: b'5', mode: 0o700, uid: 1000, gid: 1000, ..Header::default() };
    let base = Tar::new().directory(".", 0o755).directory("etc", 0o755).file("etc/base", "base");
    let base = base.directory("home", 0o755).entry(&owned, b"").end();
    let top = Tar::new().directory("etc", 0o755).file("etc/top", "top").end();
    let registry = Registry::start();
    let name = registry.put("library/x", "1", &build(&[base, top], Packing::Gzip));
    bed.images.pull(&name, None).await.unwrap();
    bed.get(&name)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_lands_in_the_upper_directory() {
    if !is_root() {
        return;
    }
    let bed = Bed::new();
    let image = sample(&bed).await;
    let directory = bed.directory.path().join("c1");
    let rootfs = bed.images.rootfs(&image, "c1", &directory, None).unwrap();
    assert_eq!(rootfs.upper, directory.join("upper"));
    fs::write(inside(&rootfs, "etc/new"), "new").unwrap();
    fs::write(inside(&rootfs, "etc/base"), "changed").unwrap();
    fs::remove_file(inside(&rootfs, "etc/top")).unwrap();
    assert_eq!(listing(&rootfs.upper.join("etc")), ["base", "new", "top"]);
    assert_eq!(fs::symlink_metadata(rootfs.upper.join("etc/top")).unwrap().rdev(), 0);

    // Another container of the image sees nothing of it.
    let other = bed.images.rootfs(&image, "c2", &bed.directory.path().join("c2"), None).unwrap();
    assert_eq!(fs::read_to_string(inside(&other, "etc/base")).unwrap(), "base");
    assert_eq!(listing(&inside(&other, "etc")), ["base", "top"]);

    // The same directory again, as a restore does: what was written is there.
    drop(rootfs);
    let again = bed.images.rootfs(&image, "c1", &directory, None).unwrap();
    assert_eq!(fs::read_to_string(inside(&again, "etc/new")).unwrap(), "new");
    assert_eq!(listing(&inside(&again, "etc")), ["base", "new"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overlay_is_volatile_and_refers_to_nothing_else() {
    if !is_root() {
        return;
    }
    let bed = Bed::new();
    let image = sample(&bed).await;
    let rootfs = bed.images.rootfs(&image, "c", &bed.directory.path().join("c"), None).unwrap();
    let target = tempfile::tempdir().unwrap();
    sys::mount::attach_at(&rootfs.mount, target.path()).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(target.path().to_str().unwrap())).unwrap().to_owned();
    sys::mount::detach(target.path()).unwrap();
    for option in ["volatile", "redirect_dir=nofollow"] {
        assert!(line.contains(option), "{line}");
    }
    assert!(!line.contains("metacopy=on") && !line.contains("index=on"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_layers_is_an_empty_root() {
    if !is_root() {
        return;
    }
    let (registry, bed) = (Registry::start(), Bed::new());
    let name = registry.put("library/scratch", "1", &build(&[], Packing::Plain));
    bed.images.pull(&name, None).await.unwrap();
    let image = bed.get(&name);
    assert!(image.size > 0 && image.chain_id().is_none());
    let rootfs = bed.rootfs(&image);
    assert_eq!(listing(&inside(&rootfs, "")), [""; 0]);
    fs::write(inside(&rootfs, "x"), "x").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_layers_are_stacked() {
    if !is_root() {
        return;
    }
    let (registry, bed) = (Registry::start(), Bed::new());
    let layers: Vec<_> =
        (0..60).map(|n| Tar::new().file("n", &n.to_string()).file(&format!("f{n}"), "").end()).collect();
    let name = registry.put("library/deep", "1", &build(&layers, Packing::Plain));
    bed.images.pull(&name, None).await.unwrap();
    let rootfs = bed.rootfs(&bed.get(&name));
    assert_eq!(fs::read_to_string(inside(&rootfs, "n")).unwrap(), "59");
    assert_eq!(listing(&inside(&rootfs, "")).len(), 61);
    bed.assert_clean("sixty");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swept_image_is_gone() {
    if !is_root() {
        return;
    }
    let bed = Bed::new();
    let image = sample(&bed).await;
    bed.images.remove(image.id.as_str()).unwrap();
    bed.images.collect().unwrap();
    let made = bed.images.rootfs(&image, "c", &bed.directory.path().join("c"), None);
    assert!(matches!(made, Err(RootfsError::Gone { .. })));
}

/// A process in a user namespace of its own whose ids begin at 100000.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let child = Command::new("unshare")
            .args(["--user", "sh", "-c", "echo ready; exec sleep 60"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        let mut this = Self(child);
        std::io::Read::read_exact(this.0.stdout.as_mut().unwrap(), &mut ready).unwrap();
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{map}", this.0.id()), "0 100000 65536").unwrap();
        }
        this
    }

    fn file(&self) -> fs::File {
        fs::File::open(format!("/proc/{}/ns/user", self.0.id())).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_a_user_namespace_owns_its_root() {
    if !is_root() {
        return;
    }
    let bed = Bed::new();
    let image = sample(&bed).await;
    let namespace = Namespace::new();
    let user = namespace.file();
    let map = IdMap { namespace: user.as_fd(), root_uid: 100_000, root_gid: 100_000 };
    let directory = bed.directory.path().join("c");
    let rootfs = bed.images.rootfs(&image, "c", &directory, Some(map)).unwrap();

    let owner = |path: &str| {
        let status = fs::metadata(inside(&rootfs, path)).unwrap();
        (status.uid(), status.gid())
    };
    assert_eq!(owner(""), (100_000, 100_000));
    assert_eq!(owner("etc/base"), (100_000, 100_000));
    assert_eq!(owner("home/me"), (101_000, 101_000));
    // The layer itself is untouched, and unmapped pods see it as it is.
    let plain = bed.rootfs(&image);
    assert_eq!(fs::metadata(inside(&plain, "home/me")).unwrap().uid(), 1000);

    // As the container's root, inside the namespace.
    let pid = namespace.0.id();
    let script = "cd /proc/self/fd/0 && echo new > etc/new && echo x >> etc/base && rm etc/top && mkdir home/me/d && id -u";
    let shell = Command::new("nsenter")
        .args(["--user", "--target", &pid.to_string(), "--setuid=0", "--setgid=0", "sh", "-c", script])
        .stdin(Stdio::from(rootfs.mount.try_clone().unwrap()))
        .output()
        .unwrap();
    assert!(shell.status.success(), "{}", String::from_utf8_lossy(&shell.stderr));
    assert_eq!(String::from_utf8_lossy(&shell.stdout), "0\n");
    assert_eq!(owner("etc/new"), (100_000, 100_000));
    assert_eq!(fs::read_to_string(inside(&rootfs, "etc/base")).unwrap(), "basex\n");
    assert_eq!(
        fs::metadata(rootfs.upper.join("etc/new")).unwrap().uid(),
        100_000,
        "the upper holds shifted ids"
    );
    assert_eq!(listing(&rootfs.upper.join("etc")), ["base", "new", "top"]);
    chown(inside(&rootfs, "etc/new"), Some(100_001), None).unwrap();
    fs::set_permissions(inside(&rootfs, "etc/new"), fs::Permissions::from_mode(0o600)).unwrap();
}
