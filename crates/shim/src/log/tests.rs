//! The framing against a file that is read back.

use std::{
    fs::File,
    io::{Read, Seek},
};

use super::*;

struct Bed {
    log: Log,
    out: Line,
    file: File,
}

fn bed(limit: usize) -> Bed {
    let file = File::from(
        rustix::fs::memfd_create(
            "log",
            rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING,
        )
        .unwrap(),
    );
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::APPEND).unwrap();
    Bed { log: Log::new(Some(file.try_clone().unwrap().into()), limit), out: Line::new(Stream::Stdout), file }
}

impl Bed {
    fn write(&mut self, text: &[u8]) {
        self.log.write(&mut self.out, text, 1);
    }

    /// The records without their timestamps, `|` for the newline.
    fn read(&mut self) -> String {
        let mut text = String::new();
        self.file.rewind().unwrap();
        self.file.read_to_string(&mut text).unwrap();
        text.replace("1970-01-01T00:00:00.000000001Z ", "").replace('\n', "|")
    }
}

#[test]
fn whole_lines() {
    let mut bed = bed(100);
    bed.write(b"one\ntwo\n\nthree\n");
    assert_eq!(bed.read(), "stdout F one|stdout F two|stdout F |stdout F three|");
}

#[test]
fn single_bytes_make_one_record() {
    let mut bed = bed(100);
    for byte in b"hello\nyou\n" {
        bed.write(&[*byte]);
    }
    assert_eq!(bed.read(), "stdout F hello|stdout F you|");
}

#[test]
fn the_last_line_without_newline_is_written_at_the_end() {
    let mut bed = bed(100);
    bed.write(b"one\ntw");
    assert_eq!(bed.read(), "stdout F one|");
    bed.write(b"o");
    bed.log.finish(&mut bed.out, 1);
    bed.log.finish(&mut bed.out, 1);
    assert_eq!(bed.read(), "stdout F one|stdout F two|");
}

#[test]
fn long_lines_are_cut_at_the_limit_however_they_arrive() {
    let text = b"0123456789\n012345\n012\n3";
    let expected = "stdout P 012|stdout P 345|stdout P 678|stdout F 9|stdout P 012|stdout F 345|stdout F 012|stdout F 3|";
    for piece in 1..=text.len() {
        let mut bed = bed(3);
        for part in text.chunks(piece) {
            bed.write(part);
        }
        bed.log.finish(&mut bed.out, 1);
        assert_eq!(bed.read(), expected, "pieces of {piece}");
    }
}

#[test]
fn more_records_than_one_batch_holds() {
    let mut bed = bed(100);
    let lines = 1000;
    bed.write("x\n".repeat(lines).as_bytes());
    assert_eq!(bed.read(), "stdout F x|".repeat(lines));
}

#[test]
fn streams_keep_their_own_lines() {
    let mut bed = bed(100);
    let mut err = Line::new(Stream::Stderr);
    bed.write(b"a");
    bed.log.write(&mut err, b"b\n", 1);
    bed.write(b"c\n");
    assert_eq!(bed.read(), "stderr F b|stdout F ac|");
}

#[test]
fn a_file_that_takes_nothing_drops_records_and_counts_them() {
    let mut bed = bed(100);
    bed.write(b"before\n");
    rustix::fs::fcntl_add_seals(&bed.file, rustix::fs::SealFlags::GROW).unwrap();
    bed.write(b"one\ntwo\n");
    assert_eq!(bed.log.dropped(), 2);
    assert_eq!(bed.read(), "stdout F before|");
}

#[test]
fn no_file_drops_silently() {
    let mut log = Log::new(None, 10);
    let mut line = Line::new(Stream::Stdout);
    log.write(&mut line, b"one\ntwo", 1);
    log.finish(&mut line, 1);
    assert_eq!(log.dropped(), 0);
}
