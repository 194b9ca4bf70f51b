//! A directory as it is written, and every way to spoil one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::*;
use crate::manifest::{self, MANIFEST, Manifest, POD_OPTIONS};

fn facts() -> ContainerFacts {
    let text = str::to_owned;
    ContainerFacts {
        id: text("0123"),
        name: text("app"),
        attempt: 0,
        pod_id: text("4567"),
        pod_name: text("pod"),
        pod_namespace: text("default"),
        pod_uid: text("uid"),
        image: manifest::tests::sample().containers[0].image.clone(),
        created_at: 1_700_000_000_000_000_000,
        started_at: 1_700_000_001_000_000_000,
        checkpointed_at: 1_700_000_002_000_000_000,
        pid: 42,
        log_path: text("/var/log/pods/app.log"),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        bind_mounts: vec![BindMount {
            source: "/srv".into(),
            destination: "/data".into(),
            directory: true,
            permissions: 0o755,
        }],
        spec: json!({ "ociVersion": "1.2.0", "process": { "args": ["app"] } }),
    }
}

/// A directory with one container's archive in it, and its manifest.
fn written() -> (tempfile::TempDir, Manifest) {
    let dir = tempfile::tempdir().unwrap();
    let images = tempfile::tempdir().unwrap();
    for name in ["inventory.img", "pages-1.img", "stats-dump", "dump.log"] {
        fs::write(images.path().join(name), name.repeat(1000)).unwrap();
    }
    let mut diff = tempfile::tempfile().unwrap();
    diff.write_all(b"a tar").unwrap();
    let (facts, images) = (facts(), File::open(images.path()).unwrap());
    let parts = Parts {
        facts: &facts,
        images: images.as_fd(),
        descriptors: &["pipe:[1]".into()],
        rootfs_diff: &diff,
        deleted: &["/gone".into()],
        shm: None,
    };
    let archive = write(File::create(dir.path().join("app.tar")).unwrap(), &parts).unwrap();
    let options = File::create(dir.path().join(POD_OPTIONS)).unwrap();
    let options = write_pod_options(options, ["app"].into_iter()).unwrap();
    fs::create_dir(dir.path().join("pod")).unwrap();
    fs::write(dir.path().join(manifest::SHM), "").unwrap();
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".to_owned();
    let shm = FileDigest { size: 0, sha256: empty };
    let files = [("app.tar".into(), archive), (POD_OPTIONS.into(), options), (manifest::SHM.into(), shm)];
    let manifest = Manifest { files: files.into(), ..manifest::tests::sample() };
    fs::write(dir.path().join(MANIFEST), manifest.to_json()).unwrap();
    (dir, manifest)
}

fn open_and_extract(dir: &Path) -> Result<tempfile::TempDir, CheckpointError> {
    let into = tempfile::tempdir().unwrap();
    let mut checkpoint = Checkpoint::open(dir)?;
    checkpoint.extract("app", File::open(into.path()).unwrap().as_fd())?;
    assert!(checkpoint.extract_shm(&mut tempfile::tempfile().unwrap())?);
    Ok(into)
}

#[test]
fn what_is_written_is_read() {
    let (dir, _) = written();
    let into = open_and_extract(dir.path()).unwrap();
    let read = |name: &str| fs::read_to_string(into.path().join(name)).unwrap();
    assert_eq!(read("checkpoint/pages-1.img"), "pages-1.img".repeat(1000));
    assert_eq!(read("checkpoint/descriptors.json"), "[\"pipe:[1]\"]");
    assert_eq!(read(ROOTFS_DIFF), "a tar");
    assert_eq!(read(DELETED), "[\"/gone\"]");
    assert_eq!(read("dump.log"), "dump.log".repeat(1000));
    let config: serde_json::Value = serde_json::from_str(&read("config.dump")).unwrap();
    assert_eq!(config["createdTime"], "2023-11-14T22:13:20Z");
    let spec: serde_json::Value = serde_json::from_str(&read("spec.dump")).unwrap();
    assert_eq!(spec["annotations"]["io.kubernetes.cri.sandbox-name"], "pod");
}

#[test]
fn a_spoiled_directory_is_refused_by_file_and_rule() {
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil, &str); 14] = [
        (
            "missing manifest",
            |d| fs::remove_file(d.join(MANIFEST)).unwrap(),
            "meridian.json: the file is missing",
        ),
        ("manifest link", |d| link(d, MANIFEST), "meridian.json: only regular files"),
        ("manifest too large", |d| grow(&d.join(MANIFEST)), "meridian.json: larger than"),
        ("archive link", |d| link(d, "app.tar"), "app.tar: only regular files"),
        ("missing archive", |d| fs::remove_file(d.join("app.tar")).unwrap(), "app.tar: the file is missing"),
        ("fifo", |d| fifo(&d.join("app.tar")), "app.tar: only regular files"),
        ("directory", |d| directory(&d.join("app.tar")), "app.tar: only regular files"),
        ("extra file", |d| fs::write(d.join("extra"), "").unwrap(), "extra: the manifest does not name"),
        ("extra directory", |d| fs::create_dir(d.join("more")).unwrap(), "more: the manifest does not name"),
        ("extra in pod", |d| fs::write(d.join("pod/x"), "").unwrap(), "pod/x: the manifest does not name"),
        ("pod link", |d| link(d, "pod"), "pod: only regular files"),
        ("cut short", |d| cut(&d.join("app.tar")), "app.tar: 4096 bytes, the manifest says"),
        (
            "missing shm",
            |d| fs::remove_file(d.join(manifest::SHM)).unwrap(),
            "pod/devshm-checkpoint.tar: the file is",
        ),
        ("no directory", |d| fs::remove_dir_all(d).unwrap(), "open checkpoint directory"),
    ];
    for (name, spoil, message) in cases {
        let (dir, _) = written();
        spoil(dir.path());
        let error = open_and_extract(dir.path()).expect_err(name).to_string();
        assert!(error.starts_with(message), "{name}: {error}");
    }
}

fn link(dir: &Path, name: &str) {
    let elsewhere = dir.with_extension("elsewhere");
    fs::rename(dir.join(name), &elsewhere).unwrap();
    symlink(&elsewhere, dir.join(name)).unwrap();
}

fn grow(path: &Path) {
    File::options().write(true).open(path).unwrap().set_len(64 << 20).unwrap();
}

fn cut(path: &Path) {
    File::options().write(true).open(path).unwrap().set_len(4096).unwrap();
}

fn fifo(path: &Path) {
    fs::remove_file(path).unwrap();
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn directory(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::create_dir(path).unwrap();
}

/// One bit in each of many positions of the archive, those of the tar's structure among them.
#[test]
fn a_flipped_bit_is_found() {
    let (dir, _) = written();
    let path = dir.path().join("app.tar");
    let good = fs::read(&path).unwrap();
    for position in (0..good.len()).step_by(509).chain([good.len() - 1]) {
        let mut bad = good.clone();
        bad[position] ^= 1 << (position % 8);
        fs::write(&path, &bad).unwrap();
        assert!(open_and_extract(dir.path()).is_err(), "bit at byte {position}");
    }
    fs::write(&path, &good).unwrap();
    open_and_extract(dir.path()).unwrap();
}

/// An archive made by an enemy who also wrote a matching manifest.
#[test]
fn hostile_entries_are_refused() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let cases = [
        ("../out", Regular, "no checkpoint has"),
        ("/etc/cron.d/x", Regular, "no checkpoint has"),
        ("checkpoint/../../out", Regular, "no checkpoint has"),
        ("checkpoint/a/b.img", Regular, "no checkpoint has"),
        ("checkpoint/criu.conf", Regular, "no checkpoint has"),
        ("checkpoint", Symlink, "only regular files"),
        ("checkpoint/pages-1.img", Link, "only regular files"),
        ("dump.log", tar::EntryType::Fifo, "only regular files"),
        ("other", Directory, "no checkpoint has"),
    ];
    for (name, kind, message) in cases {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        let raw = header.as_mut_bytes();
        raw[..name.len()].copy_from_slice(name.as_bytes());
        raw[157..161].copy_from_slice(b"/etc");
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(2048, 0);
        let (dir, mut manifest) = written();
        fs::write(dir.path().join("app.tar"), &bytes).unwrap();
        let mut hashing = Hashing::new(io::sink());
        hashing.write_all(&bytes).unwrap();
        manifest.files.insert("app.tar".into(), hashing.digest());
        fs::write(dir.path().join(MANIFEST), manifest.to_json()).unwrap();
        let error = open_and_extract(dir.path()).expect_err(name).to_string();
        assert!(error.starts_with("app.tar: entry ") && error.contains(message), "{name}: {error}");
    }
}
