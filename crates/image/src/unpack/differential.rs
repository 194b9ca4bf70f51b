//! Two readers, one archive: what this crate accepts, Python's `tarfile` reads the same way.
//!
//! Valid archives are damaged at random, mostly in header fields and with the checksum put right again, so that the
//! damage gets past the first check. Each must be refused or read as Python reads it: same names, kinds and sizes.

use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::process::Command;

use super::archive::{Archive, Kind};
use crate::layers;
use crate::limits::Limits;

#[path = "../../tests/bed/tar.rs"]
#[allow(dead_code, reason = "shared with the integration tests")]
mod tar;

use tar::{Header, Tar, checksum};

const CASES: u32 = 4000;

const PYTHON: &str = r#"
import os, sys, tarfile
for name in sorted(os.listdir(sys.argv[1])):
    try:
        kinds = {b"0": "f", b"\0": "f", b"7": "f", b"1": "h", b"2": "l", b"3": "c", b"4": "b", b"5": "d", b"6": "p"}
        with tarfile.open(os.path.join(sys.argv[1], name), "r:", encoding="latin-1", errors="strict") as t:
            list = [f"{kinds[m.type]} {m.name.rstrip('/').encode('latin-1').hex()} {m.size if m.isreg() else 0}" for m in t]
        print(name, *list, sep=";")
    except Exception as error:
        print(name, "error", type(error).__name__, sep=";")
"#;

/// A generator of numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("smaller than a usize")
    }
}

fn valid() -> Vec<u8> {
    let long = Header { path: b"././@LongLink", kind: b'L', size: 130, ..Header::default() };
    Tar::new()
        .directory("etc/", 0o755)
        .file("etc/passwd", "root")
        .pax(&[("path", b"pax"), ("mtime", b"12.5"), ("SCHILY.xattr.user.x", b"y")])
        .file("short", "content")
        .pax(&[("size", b"600")])
        .entry(&Header { path: b"big", size: 600, ..Header::default() }, &[b'x'; 600])
        .entry(&long, &[&[b'n'; 129][..], b"\0"].concat())
        .file("n", "long name")
        .symlink("link", "etc/passwd")
        .hardlink("hard", "etc/passwd")
        .device("null", b'3', (1, 3))
        .device("pipe", b'6', (0, 0))
        .file("last", "x")
        .end()
}

fn damage(archive: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let blocks = archive.len() / 512;
        let at = random.below(blocks) * 512;
        match random.below(8) {
            0 => drop(archive.drain(at..at + 512)),
            1 => {
                let block = archive[at..at + 512].to_vec();
                let to = random.below(blocks) * 512;
                archive.splice(to..to, block);
            }
            2 => archive[at + random.below(512)] ^= 1 << random.below(8),
            // Size, type flag, magic and prefix are where readers differ.
            kind => {
                let fields = [0..100, 124..136, 124..136, 156..157, 157..257, 257..265, 345..500];
                let field = fields[random.below(fields.len())].clone();
                let interesting = b"\x00\x80\xff 012789-+/.xgLKSV=\n";
                let byte = match kind {
                    3 => u8::try_from(random.below(256)).expect("below 256"),
                    _ => interesting[random.below(interesting.len())],
                };
                archive[at + field.start + random.below(field.len())] = byte;
                let block: &mut [u8; 512] = (&mut archive[at..at + 512]).try_into().expect("512 bytes");
                checksum(block);
            }
        }
    }
}

/// What this crate reads, in the form that the Python script prints; `None` when it refuses.
fn list(archive: &[u8]) -> Option<String> {
    let mut archive = Archive::new(archive);
    let mut text = String::new();
    while let Some(member) = archive.next().ok()? {
        let kind = match member.kind {
            Kind::Regular => 'f',
            Kind::Hardlink => 'h',
            Kind::Symlink => 'l',
            Kind::Character => 'c',
            Kind::Block => 'b',
            Kind::Directory => 'd',
            Kind::Fifo => 'p',
        };
        let slashes = member.path.iter().rev().take_while(|b| **b == b'/').count();
        let name = hex::encode(&member.path[..member.path.len() - slashes]);
        write!(text, ";{kind} {name} {}", member.size).expect("a string takes everything");
    }
    Some(text)
}

#[test]
fn what_is_accepted_python_reads_the_same_way() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut ours = Vec::new();
    for case in 0..CASES {
        let mut archive = valid();
        if case > 0 {
            damage(&mut archive, &mut random);
        }
        std::fs::write(directory.path().join(format!("{case:05}")), &archive).unwrap();
        ours.push(list(&archive));
    }
    assert!(ours[0].is_some(), "the undamaged archive is fine");
    let Ok(python) = Command::new("python3").args(["-c", PYTHON]).arg(directory.path()).output() else {
        eprintln!("SKIPPED: no python3 to compare with");
        return;
    };
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let theirs = String::from_utf8(python.stdout).unwrap();
    let mut accepted = 0;
    let mut wrong = Vec::new();
    for ((case, ours), line) in ours.iter().enumerate().zip(theirs.lines()) {
        let theirs = line.strip_prefix(&format!("{case:05}")).unwrap();
        let Some(ours) = ours else { continue };
        accepted += 1;
        if !theirs.starts_with(";error") && theirs != ours {
            wrong.push(format!("case {case}\n ours   {ours}\n theirs {theirs}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {accepted} differ:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(12)].join("\n")
    );
    assert!(accepted > CASES / 20, "only {accepted} of {CASES} were accepted");
}

#[test]
fn damaged_archives_neither_panic_nor_leave_the_layer() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(0x0123_4567_89ab_cdef);
    for case in 0..300 {
        let mut archive = valid();
        damage(&mut archive, &mut random);
        let layer = directory.path().join(case.to_string());
        std::fs::create_dir(&layer).unwrap();
        let root = layers::open(&layer).unwrap();
        let _ = super::unpack(&archive[..], root.as_fd(), &Limits::default());
        std::fs::remove_dir_all(&layer).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "case {case}");
    }
}
