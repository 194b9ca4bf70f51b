//! Layers that try to get out of their directory, or to be read in two ways (hostile inputs A1 to A6).
//!
//! Every case is a layer that is pulled. It must be refused by name, or stay inside; in both cases nothing outside has
//! changed and nothing half-made is left.

#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "tests may fail at once and list many cases")]

mod bed;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use bed::registry::Registry;
use bed::tar::{Header, Tar, checksum, raw_header};
use bed::{Bed, Packing, build, chain, inside, is_root, listing};
use image::{Class, PullError, Rootfs};

/// Pulls an image of these layers.
async fn pull(bed: &Bed, layers: &[Vec<u8>]) -> Result<Rootfs, PullError> {
    let registry = Registry::start();
    let name = registry.put("hostile", "1", &build(layers, Packing::Gzip));
    let id = bed.images.pull(&name, None).await?;
    Ok(bed.rootfs(&bed.get(id.as_str())))
}

async fn refused(case: &str, layer: Vec<u8>, class: Class, message: &str) {
    let bed = Bed::new();
    let error = pull(&bed, &[layer]).await.map(|_| ()).expect_err(case);
    let text = chain(&error);
    assert_eq!(error.class(), class, "{case}: {text}");
    assert!(text.contains(message), "{case}: {text}");
    assert_eq!(listing(&bed.config.root.join("layers")), ["empty"], "{case}");
    bed.assert_clean(case);
}

async fn kept(case: &str, layers: &[Vec<u8>], check: impl FnOnce(&Rootfs)) {
    let bed = Bed::new();
    let rootfs = pull(&bed, layers).await.unwrap_or_else(|error| panic!("{case}: {}", chain(&error)));
    check(&rootfs);
    bed.assert_clean(case);
}

fn read(rootfs: &Rootfs, path: &str) -> String {
    fs::read_to_string(inside(rootfs, path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lead_outside_are_refused() {
    if !is_root() {
        return;
    }
    let long = "a/".repeat(2100);
    let component = "c".repeat(256);
    let deep = format!("{}x", "d/".repeat(300));
    let parent = "component \"..\"";
    for (path, message) in [
        ("../canary/file", parent),
        ("a/../../canary/file", parent),
        ("..", parent),
        ("/../canary/file", parent),
        ("./..", parent),
        ("a/..", parent),
        (".", "names no file"),
        ("//", "names no file"),
        (&long, "longer than"),
        (&component, "longer than"),
        (&deep, "nested too deep"),
        (".wh.", "whiteout of no file"),
        ("a/.wh..", "whiteout of no file"),
        (".wh...", "whiteout of no file"),
    ] {
        let short: String = path.chars().take(40).collect();
        let layer = Tar::new().pax(&[("path", path.as_bytes())]).file("harmless", "x").end();
        refused(&short, layer, Class::InvalidArgument, message).await;
    }
    let layer = Tar::new().pax(&[("path", b"a\0b")]).file("harmless", "x").end();
    refused("NUL", layer, Class::InvalidArgument, "NUL").await;
    let layer = Tar::new().file("", "x").end();
    refused("empty", layer, Class::InvalidArgument, "names no file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn absolute_names_are_names_in_the_layer() {
    if !is_root() {
        return;
    }
    let layer = Tar::new().file("/meridian-canary", "x").directory("/", 0o711).file("//etc//./y", "y").end();
    kept("absolute", &[layer], |rootfs| {
        assert_eq!(read(rootfs, "meridian-canary"), "x");
        assert_eq!(read(rootfs, "etc/y"), "y");
        assert_eq!(fs::metadata(inside(rootfs, "")).unwrap().mode() & 0o7777, 0o711);
    })
    .await;
    assert!(!std::path::Path::new("/meridian-canary").exists());
}

/// Every kind of entry, written through a symlink that leads outside.
#[tokio::test(flavor = "multi_thread")]
async fn symlinks_lead_to_places_in_the_layer() {
    if !is_root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let up = format!("{}{target}", "../".repeat(20));
    for link in [target, &up, "/proc/self/root", "/proc/self/cwd", "..", "/"] {
        let start = || Tar::new().directory("tmp", 0o755).symlink("out", link);
        let cases = [
            ("write", start().file("out/pwned", "x")),
            ("directory", start().directory("out/pwned", 0o777)),
            ("symlink", start().symlink("out/pwned", "x")),
            ("hardlink", start().file("f", "x").hardlink("out/pwned", "f")),
            ("device", start().device("out/pwned", b'3', (1, 3))),
            ("fifo", start().device("out/pwned", b'6', (0, 0))),
            ("whiteout", start().file("out/.wh.pwned", "")),
            ("opaque", start().file("out/.wh..wh..opq", "")),
            ("two links", start().symlink("next", "out").file("next/pwned", "x")),
            ("deep", start().file("out/a/b/pwned", "x")),
        ];
        for (case, tar) in cases {
            let bed = Bed::new();
            // A link to nowhere in the layer is refused, one to somewhere in it is followed: both stay inside.
            let _ = pull(&bed, &[tar.end()]).await;
            bed.assert_clean(&format!("{case} through {link}"));
            assert_eq!(listing(outside.path()), [""; 0], "{case} through {link}");
        }
    }
    assert!(!std::path::Path::new("/pwned").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_symlink_is_replaced_not_followed() {
    if !is_root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let target = secret.to_str().unwrap();
    let directory = outside.path().to_str().unwrap();
    let cases = [
        ("file", Tar::new().symlink("x", target).file("x", "mine")),
        ("directory", Tar::new().symlink("x", directory).directory("x", 0o777).file("x/secret", "mine")),
        ("hardlink to link", Tar::new().symlink("l", target).hardlink("x", "l").file("x", "mine")),
        ("device", Tar::new().symlink("x", target).device("x", b'3', (1, 3))),
        ("symlink", Tar::new().symlink("x", target).symlink("x", "y")),
    ];
    for (case, tar) in cases {
        kept(case, &[tar.end()], |_| ()).await;
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret", "{case}");
        let status = fs::metadata(&secret).unwrap();
        assert_eq!((status.mode() & 0o777, status.nlink()), (0o600, 1), "{case}");
        assert_eq!(listing(outside.path()), ["secret"], "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hardlinks_reach_only_earlier_files_of_the_layer() {
    if !is_root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let absolute = outside.path().join("secret");
    let absolute = absolute.to_str().unwrap();
    let through = Tar::new().symlink("out", outside.path().to_str().unwrap()).hardlink("x", "out/secret");
    for (case, tar, message) in [
        ("absolute", Tar::new().hardlink("x", absolute), "no earlier file"),
        ("parent", Tar::new().hardlink("x", "../../canary/file"), "component \"..\""),
        ("symlink", through, "no earlier file"),
        ("later", Tar::new().hardlink("x", "y").file("y", "y"), "no earlier file"),
        ("directory", Tar::new().directory("d", 0o755).hardlink("x", "d"), "no earlier file"),
        ("itself", Tar::new().file("x", "x").hardlink("x", "x"), "no earlier file"),
        ("empty", Tar::new().hardlink("x", ""), "names no file"),
    ] {
        refused(case, tar.end(), Class::InvalidArgument, message).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_read_in_one_way_or_not_at_all() {
    if !is_root() {
        return;
    }
    let inner = Tar::new().file("smuggled", "x").end();
    let header = |size: u64| raw_header(&Header { path: b"f", size, ..Header::default() });
    let mut negative = header(0);
    negative[124..136].fill(0xff);
    checksum(&mut negative);
    let mut wrong = header(0);
    wrong[0] = b'g';
    let mut words = header(0);
    words[124..136].copy_from_slice(b"12 34 56 78 ");
    checksum(&mut words);
    let other = |kind| Tar::new().entry(&Header { path: b"f", kind, ..Header::default() }, b"");
    let huge = Header { path: b"f", kind: b'L', size: 2 << 20, ..Header::default() };
    let refusals = [
        ("checksum", Tar::new().raw(&wrong), "checksum"),
        ("negative size", Tar::new().raw(&negative), "size is not a number"),
        ("size of words", Tar::new().raw(&words), "size is not a number"),
        ("PAX twice", Tar::new().pax(&[("path", b"a"), ("path", b"b")]).file("f", "x"), "twice"),
        ("PAX shape", Tar::new().pax_bytes(b"12 path=a\n").file("f", "x"), "PAX record"),
        ("PAX number", Tar::new().pax(&[("size", b"-1")]).file("f", "x"), "size is not a number"),
        ("PAX uid", Tar::new().pax(&[("uid", b"4294967295")]).file("f", "x"), "uid is not a number"),
        ("sparse", Tar::new().pax(&[("GNU.sparse.realsize", b"1")]).file("f", "x"), "sparse"),
        ("old sparse", other(b'S'), "sparse"),
        ("unknown type", other(b'V'), "entry type 0x56"),
        ("long name", Tar::new().entry(&huge, &vec![b'a'; 2 << 20]).file("f", "x"), "extended header"),
        ("PAX size beyond the end", Tar::new().pax(&[("size", b"99999")]).file("f", "x"), "truncated"),
        ("major number", Tar::new().device("d", b'4', (4096, 0)), "devmajor"),
        ("minor number", Tar::new().device("d", b'4', (8, 1 << 20)), "devminor"),
    ];
    for (case, tar, message) in refusals {
        refused(case, tar.end(), Class::InvalidArgument, message).await;
    }
    refused("cut", Tar::new().file("f", "content").0[..700].to_vec(), Class::InvalidArgument, "truncated")
        .await;

    // The PAX size wins over the header's, so that what follows is data of `f`, not an entry (CVE-2025-62518).
    let size = inner.len().to_string();
    let tar =
        Tar::new().pax(&[("size", size.as_bytes())]).raw(&header(0)).raw(&inner).file("after", "x").end();
    kept("PAX size", &[tar], |rootfs| {
        assert_eq!(listing(&inside(rootfs, "")), ["after", "f"]);
        assert_eq!(fs::metadata(inside(rootfs, "f")).unwrap().len(), inner.len() as u64);
    })
    .await;
    let long = Header { path: b"long", kind: b'L', size: 5, ..Header::default() };
    let both = |gnu| Tar::new().entry(&long, gnu).pax(&[("path", b"pax.")]).file("header", "x").end();
    refused("two names", both(b"gnu.\0"), Class::InvalidArgument, "both a PAX name").await;
    kept("one name twice", &[both(b"pax.\0")], |rootfs| assert_eq!(listing(&inside(rootfs, "")), ["pax."]))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whiteouts_hide_lower_layers_and_nothing_else() {
    if !is_root() {
        return;
    }
    let base = Tar::new()
        .directory("d", 0o755)
        .file("d/old", "1")
        .file("gone", "1")
        .file("both", "1")
        .directory("opaque", 0o755)
        .file("opaque/old", "1")
        .directory("turned", 0o755)
        .file("turned/old", "1")
        .end();
    let top = Tar::new()
        .file(".wh.gone", "")
        .file("both", "2")
        .file(".wh.both", "")
        .directory("d", 0o750)
        .file("d/new", "2")
        .file(".wh.d", "")
        .file("opaque/new", "2")
        .file("opaque/.wh..wh..opq", "")
        .file(".wh.turned", "")
        .file("turned/new", "2")
        .file(".wh..wh.plnk", "ignored")
        .file(".wh.never", "")
        .end();
    kept("whiteouts", &[base.clone(), top], |rootfs| {
        assert_eq!(listing(&inside(rootfs, "")), ["both", "d", "opaque", "turned"]);
        assert_eq!(read(rootfs, "both"), "2");
        for directory in ["d", "opaque", "turned"] {
            assert_eq!(listing(&inside(rootfs, directory)), ["new"], "{directory}");
        }
    })
    .await;
    let everything = Tar::new().file("new", "2").file(".wh..wh..opq", "").end();
    let last = Tar::new().file("last", "3").end();
    kept("opaque root", &[base, everything, last], |rootfs| {
        assert_eq!(listing(&inside(rootfs, "")), ["last", "new"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_attributes_are_stripped_and_others_kept() {
    if !is_root() {
        return;
    }
    let base = Tar::new().directory("d", 0o755).file("d/secret", "1").end();
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let records: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/d"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.kept", b"value"),
    ];
    let tar = Tar::new()
        .pax(records)
        .directory("d", 0o755)
        .pax(&[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.trusted.x", b"y")])
        .file("ping", "x")
        .end();
    kept("xattrs", &[base, tar], |rootfs| {
        assert_eq!(listing(&inside(rootfs, "d")), ["secret"], "the archive must not make a directory opaque");
        let mut value = [0; 64];
        let length = rustix::fs::getxattr(inside(rootfs, "d"), "user.kept", &mut value).unwrap();
        assert_eq!(&value[..length], b"value");
        let length = rustix::fs::getxattr(inside(rootfs, "ping"), "security.capability", &mut value).unwrap();
        assert_eq!(&value[..length], capability);
        assert!(rustix::fs::getxattr(inside(rootfs, "ping"), "trusted.x", &mut value).is_err());
    })
    .await;
    let many: Vec<_> = (0..20_000).map(|n| (format!("SCHILY.xattr.user.a{n}"), b"v")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(key, value)| (key.as_str(), &value[..])).collect();
    kept("many xattrs", &[Tar::new().pax(&many).file("f", "x").end()], |_| ()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_modes_times_and_devices_are_the_archives() {
    if !is_root() {
        return;
    }
    let owned = Header { path: b"bin/su", mode: 0o6755, uid: 7, gid: 8, mtime: 1234, ..Header::default() };
    let tar = Tar::new()
        .directory("bin", 0o1777)
        .pax(&[("mtime", b"1234.5"), ("uid", b"70000")])
        .entry(&owned, b"")
        .device("null", b'3', (1, 3))
        .device("disk", b'4', (259, 300))
        .device("pipe", b'6', (0, 0))
        .end();
    kept("attributes", &[tar], |rootfs| {
        let su = fs::metadata(inside(rootfs, "bin/su")).unwrap();
        assert_eq!((su.uid(), su.gid(), su.mode() & 0o7777), (70000, 8, 0o6755));
        assert_eq!((su.mtime(), su.mtime_nsec()), (1234, 500_000_000));
        let bin = fs::metadata(inside(rootfs, "bin")).unwrap();
        assert_eq!((bin.mode() & 0o7777, bin.mtime()), (0o1777, 1));
        let kind = |name: &str| fs::symlink_metadata(inside(rootfs, name)).unwrap();
        assert_eq!(kind("null").rdev(), rustix::fs::makedev(1, 3));
        assert_eq!(kind("disk").rdev(), rustix::fs::makedev(259, 300));
        assert!(kind("null").file_type().is_char_device() && kind("disk").file_type().is_block_device());
        assert!(kind("pipe").file_type().is_fifo());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_without_an_entry_looks_as_it_does_below() {
    if !is_root() {
        return;
    }
    let base =
        Header { path: b"home/me", kind: b'5', mode: 0o2750, uid: 5, gid: 6, mtime: 99, ..Header::default() };
    let base = Tar::new().directory("tmp", 0o1777).directory("home", 0o711).entry(&base, b"").end();
    let middle = Tar::new().directory("other", 0o755).end();
    let top = Tar::new().file("tmp/x", "x").file("home/me/y", "y").file("home/you/z", "z").end();
    kept("implied", &[base, middle, top], |rootfs| {
        let mode = |path: &str| fs::metadata(inside(rootfs, path)).unwrap().mode() & 0o7777;
        assert_eq!(
            (mode("tmp"), mode("home"), mode("home/me"), mode("home/you")),
            (0o1777, 0o711, 0o2750, 0o755)
        );
        let me = fs::metadata(inside(rootfs, "home/me")).unwrap();
        assert_eq!((me.uid(), me.gid(), me.mtime()), (5, 6, 99));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_end_at_their_limit_and_leave_no_trace() {
    if !is_root() {
        return;
    }
    let zeros = Header { path: b"zeros", size: 32 << 20, ..Header::default() };
    let zeros = Tar::new().entry(&zeros, &vec![0; 32 << 20]).end();
    let sparse = Tar::new().pax(&[("size", b"1099511627776")]).file("tebibyte", "x").end();
    let files = (0..3000).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), "")).end();
    for (case, layer, message) in [
        ("ratio", zeros, "per compressed byte"),
        ("size", sparse, "bytes of a layer"),
        ("entries", files, "entries"),
    ] {
        let bed = Bed::with(|config| {
            config.limits.ratio_free = 1 << 20;
            config.limits.entries = 2000;
        });
        let error = pull(&bed, &[layer]).await.map(|_| ()).expect_err(case);
        assert_eq!(error.class(), Class::ResourceExhausted, "{case}: {}", chain(&error));
        assert!(chain(&error).contains(message), "{case}: {}", chain(&error));
        bed.assert_clean(case);
    }
    let bed = Bed::with(|config| config.limits.free_space = u64::MAX / 2);
    let error = pull(&bed, &[Tar::new().file("f", "x").end()]).await.map(|_| ()).expect_err("floor");
    assert_eq!(error.class(), Class::ResourceExhausted, "{}", chain(&error));
}

/// A2 with layers in flight together: no cache carries a directory from one entry, or one layer, to another.
#[tokio::test(flavor = "multi_thread")]
async fn layers_unpacked_together_do_not_meet() {
    if !is_root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let link = Tar::new().symlink("dir", target).end();
    let write = Tar::new().file("dir/pwned", "x").end();
    for round in 0..20 {
        let layers = [link.clone(), write.clone(), link.clone(), write.clone()];
        kept(&format!("round {round}"), &layers, |rootfs| assert_eq!(read(rootfs, "dir/pwned"), "x")).await;
        assert_eq!(listing(outside.path()), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_users_of_the_host_cannot_enter_the_store() {
    if !is_root() {
        return;
    }
    let bed = Bed::new();
    let setuid = Header { path: b"su", mode: 0o4755, ..Header::default() };
    pull(&bed, &[Tar::new().entry(&setuid, b"").end()]).await.unwrap();
    for directory in ["layers", "content"] {
        let mode = fs::metadata(bed.config.root.join(directory)).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o700, "{directory}");
    }
}

/// A full disk: the pull fails as such, frees what it took, and the images that are here stay usable.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_pull_and_nothing_else() {
    if !is_root() {
        return;
    }
    let bed = Bed::new();
    let root = bed.directory.path().join("small");
    let _mounted = Small::mount(&root);
    let config = image::ImageConfig { root: root.clone(), ..bed.config.clone() };
    let images = image::Images::open(config).unwrap();
    let registry = Registry::start();
    let noise: Vec<u8> = (0..4u32 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let big = Header { path: b"big", size: noise.len() as u64, ..Header::default() };
    let big = registry.put("big", "1", &build(&[Tar::new().entry(&big, &noise).end()], Packing::Plain));
    let small = registry.put("small", "1", &build(&[Tar::new().file("kept", "x").end()], Packing::Plain));

    images.pull(&small, None).await.unwrap();
    let free = || rustix::fs::statvfs(&root).unwrap().f_bfree;
    let before = free();
    let error = images.pull(&big, None).await.unwrap_err();
    assert_eq!(error.class(), Class::ResourceExhausted, "{}", chain(&error));
    assert!(before.saturating_sub(free()) < 64, "{before} blocks were free, now {}", free());
    assert_eq!(listing(&root.join("layers")), ["1", "empty"]);
    images.remove(&small).unwrap();
    images.collect().unwrap();
}

/// A file system of 12 MiB.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(path: &std::path::Path) -> Self {
        fs::create_dir(path).unwrap();
        let tmpfs = sys::mount::Filesystem::open("tmpfs").unwrap();
        let tmpfs = tmpfs.set("size", "12m").unwrap().mount(sys::mount::Flags::empty()).unwrap();
        sys::mount::attach_at(&tmpfs, path).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        sys::mount::detach(&self.0).unwrap();
    }
}
