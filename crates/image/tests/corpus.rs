//! The corpus of hostile archives (hostile inputs A1 to A6): tables that are multiplied out, each row an image of its
//! own that is pulled, and refused or kept inside.
//!
//! After each row nothing outside has changed, no layer and no blob is left, and a good image can still be pulled.

#![allow(clippy::unwrap_used, reason = "tests may fail at once")]

mod bed;

use bed::registry::Registry;
use bed::tar::{Header, Tar, checksum, raw_header};
use bed::{Bed, Built, Packing, build, chain, is_root, listing, manifest};
use image::Class;

/// What must become of a row.
#[derive(Clone, Copy, PartialEq)]
enum Want {
    /// As no valid archive.
    Refused,
    /// That, or taken without harm.
    Harmless,
}

/// Pulls rows from one registry into one store.
struct Corpus {
    bed: Bed,
    registry: Registry,
    rows: usize,
}

impl Corpus {
    fn new() -> Self {
        Self { bed: Bed::new(), registry: Registry::start(), rows: 0 }
    }

    async fn archive(&mut self, row: &str, layer: Vec<u8>, want: Want) {
        self.image(row, &build(&[layer], Packing::Plain), want).await;
    }

    async fn image(&mut self, row: &str, image: &Built, want: Want) {
        self.rows += 1;
        let name = self.registry.put("hostile", &self.rows.to_string(), image);
        match self.bed.images.pull(&name, None).await {
            Ok(_) => {
                assert!(want == Want::Harmless, "{row}: was taken");
                drop(self.bed.rootfs(&self.bed.get(&name)));
                self.bed.images.remove(&name).unwrap();
                self.bed.images.collect().unwrap();
            }
            Err(error) => {
                let refusal = match error.class() {
                    Class::InvalidArgument | Class::DataLoss => true,
                    // What damage happens to look like.
                    class => want == Want::Harmless && class == Class::ResourceExhausted,
                };
                assert!(refusal, "{row}: {:?}: {}", error.class(), chain(&error));
            }
        }
        assert_eq!(listing(&self.bed.config.root.join("layers")), ["empty"], "{row}");
        self.bed.assert_clean(row);
    }

    /// Ends a table of at least so many rows.
    async fn finish(self, least: usize) {
        eprintln!("{} cases", self.rows);
        assert!(self.rows >= least, "{} rows", self.rows);
        let good = build(&[Tar::new().file("good", "x").end()], Packing::Gzip);
        self.bed.images.pull(&self.registry.put("good", "1", &good), None).await.unwrap();
    }
}

const KINDS: [(&str, u8); 6] = [
    ("file", b'0'),
    ("hardlink", b'1'),
    ("symlink", b'2'),
    ("device", b'3'),
    ("directory", b'5'),
    ("fifo", b'6'),
];

fn entry(kind: u8, link: &[u8]) -> Header<'_> {
    Header { path: b"x", kind, link, device: (1, 3), ..Header::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_targets_that_lead_outside() {
    if !is_root() {
        return;
    }
    let mut corpus = Corpus::new();
    for (kind, flag) in KINDS {
        for path in [
            "../x",
            "a/../../x",
            "/../x",
            "..",
            "a/..",
            "./../x",
            ".wh.",
            ".wh..",
            ".wh...",
            "a/.wh.",
            "a/../x",
        ] {
            let tar =
                Tar::new().file("f", "f").pax(&[("path", path.as_bytes())]).entry(&entry(flag, b"f"), b"");
            corpus.archive(&format!("{kind} {path}"), tar.end(), Want::Refused).await;
        }
    }
    for target in ["../f", "/../f", "a/../../f", "", "nonesuch", "/etc/passwd", "..", ".", "/", "f/f", "x"] {
        let tar = Tar::new().file("f", "f").entry(&entry(b'1', target.as_bytes()), b"");
        corpus.archive(&format!("link to {target:?}"), tar.end(), Want::Refused).await;
    }
    for target in ["/etc/passwd", "../../etc", "/proc/self/root", "/dev/null", "x", ""] {
        let tar = Tar::new().entry(&entry(b'2', target.as_bytes()), b"").file("x/pwned", "x");
        corpus.archive(&format!("below a link to {target:?}"), tar.end(), Want::Harmless).await;
    }
    corpus.finish(80).await;
}

/// Fields of a header that hold numbers.
const FIELDS: [(&str, std::ops::Range<usize>); 5] =
    [("mode", 100..108), ("uid", 108..116), ("gid", 116..124), ("size", 124..136), ("mtime", 136..148)];

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_are_none() {
    if !is_root() {
        return;
    }
    let mut corpus = Corpus::new();
    let with = |field: &std::ops::Range<usize>, value: &[u8]| {
        let mut block = raw_header(&entry(b'0', b""));
        block[field.clone()].fill(0);
        block[field.start..field.start + value.len()].copy_from_slice(value);
        checksum(&mut block);
        Tar::new().raw(&block).end()
    };
    for (name, field) in &FIELDS {
        for value in ["99999999", "-1", "0x10", "1 2 3 4", "1,5", "eight"] {
            corpus.archive(&format!("{name} {value}"), with(field, value.as_bytes()), Want::Refused).await;
        }
        let negative = vec![0xff; field.len()];
        let want = if *name == "mtime" { Want::Harmless } else { Want::Refused };
        corpus.archive(&format!("{name} negative"), with(field, &negative), want).await;
        let huge: Vec<u8> = [0x80].into_iter().chain(vec![0xff; field.len() - 1]).collect();
        let want = if *name == "mode" { Want::Harmless } else { Want::Refused };
        corpus.archive(&format!("{name} huge"), with(field, &huge), want).await;
    }
    for key in ["size", "uid", "gid"] {
        for value in ["-1", "+1", "1e3", "", " 1", "99999999999999999999", "0x1", "a"] {
            let tar = Tar::new().pax(&[(key, value.as_bytes())]).file("f", "x");
            corpus.archive(&format!("PAX {key} {value:?}"), tar.end(), Want::Refused).await;
        }
    }
    for value in ["1e3", "", " 1", "99999999999999999999", "a", "1.x", "1.-1"] {
        let tar = Tar::new().pax(&[("mtime", value.as_bytes())]).file("f", "x");
        corpus.archive(&format!("PAX mtime {value:?}"), tar.end(), Want::Refused).await;
    }
    corpus.finish(70).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_two_readers_read_differently() {
    if !is_root() {
        return;
    }
    let mut corpus = Corpus::new();
    for flag in [b'8', b'9', b'A', b'D', b'M', b'N', b'S', b'V', b'X', b'Z', 0x80, 0xff] {
        let tar = Tar::new().entry(&entry(flag, b""), b"");
        corpus.archive(&format!("type {flag:#x}"), tar.end(), Want::Refused).await;
    }
    for record in [
        &b"11 path=ab"[..],
        b"99 path=ab\n",
        b"path=ab\n",
        b" 11 path=ab\n",
        b"6 =ab\n",
        b"5 ab\n",
        b"0 a=b\n",
        b"99999999999999999999999 a=b\n",
        b"-1 a=b\n",
        b"11 path=ab\n\0",
    ] {
        let tar = Tar::new().pax_bytes(record).file("f", "x");
        corpus.archive(&format!("record {}", record.escape_ascii()), tar.end(), Want::Refused).await;
    }
    for key in ["path", "linkpath", "size", "uid", "gid", "mtime", "SCHILY.xattr.user.a", "comment"] {
        let tar = Tar::new().pax(&[(key, b"1"), (key, b"2")]).file("f", "x");
        corpus.archive(&format!("twice {key}"), tar.end(), Want::Refused).await;
    }
    for key in ["GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.realsize", "GNU.sparse.name"] {
        let tar = Tar::new().pax(&[(key, b"1")]).file("f", "x");
        corpus.archive(key, tar.end(), Want::Refused).await;
    }
    for record in [&b"11 path=ab\n"[..], b"15 linkpath=ab\n", b"10 size=1\n", b"22 GNU.sparse.major=1\n"] {
        let global = Header { path: b"g", kind: b'g', size: record.len() as u64, ..Header::default() };
        let tar = Tar::new().entry(&global, record).file("f", "x");
        corpus.archive(&format!("global {}", record.escape_ascii()), tar.end(), Want::Refused).await;
    }
    let whole = Tar::new().file("f", "content").file("g", "more").0;
    for length in [1, 100, 511, 512, 513, 600, 1023, 1025, 1536, 1600] {
        corpus.archive(&format!("cut at {length}"), whole[..length].to_vec(), Want::Refused).await;
    }
    corpus.finish(45).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_streams_that_are_damaged() {
    if !is_root() {
        return;
    }
    let mut corpus = Corpus::new();
    let noise: String = (0..20_000u32).map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761))).collect();
    let archive = Tar::new().file("f", &noise).end();
    for (kind, packing) in [("gzip", Packing::Gzip), ("zstd", Packing::Zstd)] {
        let good = build(std::slice::from_ref(&archive), packing);
        let blob = &good.blobs[0];
        let length = blob.len();
        let mut rows: Vec<(String, Vec<u8>, Want)> = Vec::new();
        for part in 1..8 {
            rows.push((format!("cut {part}/8"), blob[..length * part / 8].to_vec(), Want::Refused));
            let mut flipped = blob.clone();
            flipped[length * part / 8] ^= 0x10;
            rows.push((format!("flipped {part}/8"), flipped, Want::Harmless));
        }
        rows.push(("one byte short".into(), blob[..length - 1].to_vec(), Want::Refused));
        rows.push(("twice".into(), [&blob[..], blob].concat(), Want::Refused));
        rows.push(("garbage behind".into(), [&blob[..], b"garbage"].concat(), Want::Harmless));
        rows.push(("zeros behind".into(), [&blob[..], &[0; 4096]].concat(), Want::Harmless));
        rows.push(("magic alone".into(), blob[..4].to_vec(), Want::Refused));
        rows.push(("nothing".into(), Vec::new(), Want::Refused));
        for (row, blob, want) in rows {
            let blobs = vec![blob];
            let image = Built { manifest: manifest(&good.config, &blobs), blobs, ..good.clone() };
            corpus.image(&format!("{kind} {row}"), &image, want).await;
        }
    }
    corpus.finish(40).await;
}
