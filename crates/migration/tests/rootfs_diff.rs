//! What a container changed, taken from a real overlay and applied on a fresh one. Needs root.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use migration::tree::{Limits, Source, pack, remove, unpack};
use sys::mount::{Filesystem, Flags};

/// An overlay over `base/lower` with an upper directory of its own, mounted nowhere.
struct Overlay {
    mount: OwnedFd,
    upper: PathBuf,
}

impl Overlay {
    fn new(base: &Path, name: &str) -> Self {
        let (upper, work) = (base.join(name).join("upper"), base.join(name).join("work"));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir_all(&work).unwrap();
        let overlay = Filesystem::open("overlay").unwrap();
        overlay.set("lowerdir", base.join("lower")).unwrap();
        overlay.set("upperdir", &upper).unwrap().set("workdir", &work).unwrap();
        Self { mount: overlay.mount(Flags::empty()).unwrap(), upper }
    }

    fn path(&self, inside: &str) -> PathBuf {
        Path::new("/proc/self/fd").join(self.mount.as_raw_fd().to_string()).join(inside)
    }
}

/// Path -> what a process in the container can tell about it.
fn contents(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let path = dir.join(entry.unwrap().file_name());
            let full = root.join(&path);
            let meta = fs::symlink_metadata(&full).unwrap();
            let body = match meta.file_type() {
                kind if kind.is_file() => String::from_utf8_lossy(&fs::read(&full).unwrap()).into_owned(),
                kind if kind.is_symlink() => fs::read_link(&full).unwrap().display().to_string(),
                kind if kind.is_dir() => {
                    todo.push(path.clone());
                    String::new()
                }
                kind => format!("fifo {} device {}", kind.is_fifo(), meta.rdev()),
            };
            let links = if meta.is_dir() { 0 } else { meta.nlink() };
            let about =
                format!("{:o} {}:{} {links} {} {body}", meta.mode(), meta.uid(), meta.gid(), meta.mtime());
            seen.insert(path, about);
        }
    }
    seen
}

#[test]
fn a_changed_root_filesystem_comes_back_over_the_same_image() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: mounting overlays needs root");
        return;
    }
    // Not on tmpfs, whose files have no file handles; any disk does.
    let base = tempfile::tempdir_in("/var/tmp").unwrap();
    let lower = base.path().join("lower");
    for dir in ["etc/conf.d", "var/cache/deep/er", "usr"] {
        fs::create_dir_all(lower.join(dir)).unwrap();
    }
    for file in
        ["etc/passwd", "etc/conf.d/a", "etc/conf.d/b", "var/cache/deep/er/x", "usr/tool", "gone", "kept"]
    {
        fs::write(lower.join(file), file).unwrap();
    }

    let source = Overlay::new(base.path(), "source");
    let at = |path: &str| source.path(path);
    fs::write(at("etc/passwd"), "changed").unwrap();
    fs::remove_file(at("gone")).unwrap();
    fs::remove_dir_all(at("var/cache")).unwrap();
    // A replaced directory is opaque: nothing of the image's shows through.
    fs::remove_dir_all(at("etc/conf.d")).unwrap();
    fs::create_dir(at("etc/conf.d")).unwrap();
    fs::write(at("etc/conf.d/new"), "new").unwrap();
    // A file where a directory was, and the other way round.
    fs::remove_file(at("usr/tool")).unwrap();
    fs::create_dir(at("usr/tool")).unwrap();
    fs::write(at("var/cache"), "a file now").unwrap();
    symlink("/kept", at("link")).unwrap();
    fs::write(at("one"), "twice").unwrap();
    fs::hard_link(at("one"), at("two")).unwrap();
    std::os::unix::fs::chown(at("one"), Some(1000), Some(2000)).unwrap();
    fs::set_permissions(at("one"), fs::Permissions::from_mode(0o6755)).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();

    let mut tar = Vec::new();
    let packed = pack(File::open(&source.upper).unwrap(), &mut tar, Source::OverlayUpper).unwrap();
    let deleted: Vec<&str> = packed.deleted.iter().map(|p| p.to_str().unwrap()).collect();
    assert_eq!(deleted, ["/etc/conf.d", "/gone", "/usr/tool"]);

    let target = Overlay::new(base.path(), "target");
    remove(target.mount.as_fd(), &packed.deleted).unwrap();
    unpack(target.mount.as_fd(), tar.as_slice(), Limits::default()).unwrap();
    assert_eq!(contents(&source.path("")), contents(&target.path("")));
    assert!(target.path("kept").exists() && !target.path("gone").exists());
}
