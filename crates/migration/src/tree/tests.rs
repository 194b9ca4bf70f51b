//! Round trips, and archives that nobody of good will writes.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::*;

fn open(path: &Path) -> File {
    File::open(path).unwrap()
}

fn unpacked(tar: &[u8], limits: Limits) -> (tempfile::TempDir, Result<(), UnpackError>) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("root")).unwrap();
    let result = unpack(open(&dir.path().join("root")).as_fd(), tar, limits);
    (dir, result)
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let from = tempfile::tempdir().unwrap();
    let at = |name: &str| from.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/file"), "text").unwrap();
    fs::set_permissions(at("dir/file"), fs::Permissions::from_mode(0o4711)).unwrap();
    rustix::fs::setxattr(at("dir/file"), "user.kept", b"v", rustix::fs::XattrFlags::empty()).unwrap();
    fs::hard_link(at("dir/file"), at("same")).unwrap();
    symlink("/etc/passwd", at("link")).unwrap();
    let long = "n".repeat(200);
    fs::write(at(&long), "").unwrap();
    let hole = File::create(at("hole")).unwrap();
    hole.set_len(64 << 20).unwrap();
    fs::set_permissions(at("dir"), fs::Permissions::from_mode(0o700)).unwrap();
    let old = fs::File::options().write(true).open(at("dir/file")).unwrap();
    old.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000)).unwrap();

    let mut tar = Vec::new();
    let packed = pack(open(from.path()), &mut tar, Source::Plain).unwrap();
    assert_eq!((packed.entries, packed.deleted.len()), (6, 0));
    assert!(tar.len() < 1 << 20, "{} bytes: the hole was filled", tar.len());

    let (to, result) = unpacked(&tar, Limits::default());
    result.unwrap();
    let at = |name: &str| to.path().join("root").join(name);
    assert_eq!(fs::read(at("dir/file")).unwrap(), b"text");
    let meta = fs::metadata(at("dir/file")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.nlink()), (0o4711, 1000, 2));
    assert_eq!(fs::metadata(at("dir")).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(at("same")).unwrap().ino(), meta.ino());
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::metadata(at("hole")).unwrap().len(), 64 << 20);
    assert!(at(&long).exists());
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(at("dir/file"), "user.kept", &mut value).unwrap(), 1);

    let mut again = Vec::new();
    pack(open(&to.path().join("root")), &mut again, Source::Plain).unwrap();
    assert!(tar == again, "packing is not reproducible");
}

fn entry(path: &str, kind: tar::EntryType, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(rustix::process::getuid().as_raw().into());
    header.set_gid(rustix::process::getgid().as_raw().into());
    header.set_mtime(0);
    // Past the checks of the library: an attacker has none.
    let raw = header.as_mut_bytes();
    raw[..path.len()].copy_from_slice(path.as_bytes());
    raw[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.write_all(data).unwrap();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn hostile_archives_change_nothing_outside() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    type Entries<'a> = &'a [(&'a str, tar::EntryType, &'a str)];
    let cases: [(Entries<'_>, &str); 8] = [
        (&[("../out", Regular, "")], "without \"..\""),
        (&[("a/../../out", Regular, "")], "without \"..\""),
        (&[("../out", Directory, "")], "without \"..\""),
        (&[("x", Link, "../canary")], "without \"..\""),
        (&[("x", Link, "/canary")], "link"),
        (&[("s", Symlink, "../canary"), ("h", Link, "s")], "link"),
        (&[("d", tar::EntryType::GNULongName, "")], ""),
        (&[("odd", tar::EntryType::new(b'Z'), "")], "not allowed"),
    ];
    for (entries, message) in cases {
        let tar: Vec<u8> = entries.iter().flat_map(|(p, k, l)| entry(p, *k, l, b"")).collect();
        let (dir, result) = unpacked(&tar, Limits::default());
        fs::write(dir.path().join("canary"), "alive").unwrap();
        let error = result.expect_err(&format!("{entries:?}")).to_string();
        assert!(error.contains(message), "{entries:?}: {error}");
        assert!(!dir.path().join("out").exists());
    }
}

#[test]
fn symlinks_lead_nowhere_outside() {
    use tar::EntryType::{Regular, Symlink};
    // Written through a symlink to the outside: lands inside the root, whatever the link says.
    for target in ["..", "../..", "/", "../outside"] {
        let tar = [entry("l", Symlink, target, b""), entry("l/pwned", Regular, "", b"x")].concat();
        let (dir, _either) = unpacked(&tar, Limits::default());
        assert!(!dir.path().join("pwned").exists() && !Path::new("/pwned").exists(), "{target}");
        assert!(!dir.path().join("outside").exists(), "{target}");
    }
    // Replaced, not followed.
    let tar = [entry("l", Symlink, "../victim", b""), entry("l", Regular, "", b"x")].concat();
    let (dir, result) = unpacked(&tar, Limits::default());
    result.unwrap();
    assert!(!dir.path().join("victim").exists());
    assert!(fs::symlink_metadata(dir.path().join("root/l")).unwrap().is_file());
}

#[test]
fn limits_hold() {
    use tar::EntryType::Regular;
    let tar = [entry("a", Regular, "", &[1; 600]), entry("b", Regular, "", &[1; 600])].concat();
    let (_dir, result) = unpacked(&tar, Limits { entries: 2, bytes: 1199 });
    assert!(matches!(result, Err(UnpackError::Limit(path)) if path == Path::new("b")));
    let (_dir, result) = unpacked(&tar, Limits { entries: 1, bytes: 5000 });
    assert!(matches!(result, Err(UnpackError::Limit(_))));
    let mut lie = entry("a", Regular, "", b"");
    lie[124..136].copy_from_slice(b"77777777777\0"); // 8 GiB announced
    let (_dir, result) = unpacked(&lie, Limits { entries: 9, bytes: 1 << 20 });
    assert!(matches!(result, Err(UnpackError::Limit(_) | UnpackError::Read(_))));
}

#[test]
fn deletions_stay_inside_and_forgive() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("d/e")).unwrap();
    fs::write(root.join("d/e/f"), "").unwrap();
    fs::write(dir.path().join("canary"), "").unwrap();
    symlink("..", root.join("up")).unwrap();
    let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
    remove(open(&root).as_fd(), &paths(&["/d", "never/was", "/up/canary"])).unwrap();
    assert!(!root.join("d").exists() && dir.path().join("canary").exists());
    remove(open(&root).as_fd(), &paths(&["up"])).unwrap();
    assert!(fs::symlink_metadata(root.join("up")).is_err());
    for bad in ["../canary", "d/../../canary", "/"] {
        assert!(matches!(remove(open(&root).as_fd(), &paths(&[bad])), Err(UnpackError::Name(_))), "{bad}");
    }
}
