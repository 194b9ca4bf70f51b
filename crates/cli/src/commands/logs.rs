use std::{
    fs::File,
    io::{self, BufRead, BufReader, Seek, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use api::cri::v1::{ContainerState, ContainerStatusRequest};
use clap::Args;
use tokio::time::sleep;

use super::Context;
use crate::{client::Node, error::Error, find, output};

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Print what a container wrote
///
/// Reads the log file on this node; what the container wrote to its standard error goes to standard error.
#[derive(Debug, Args)]
pub struct Logs {
    /// Go on until the container ends
    #[arg(long, short)]
    follow: bool,
    /// Begin with the last lines only
    #[arg(long, short = 'n', value_name = "LINES")]
    tail: Option<usize>,
    /// Put the time before each line
    #[arg(long, short)]
    timestamps: bool,
    /// The container
    container: String,
}

impl Logs {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let node = cx.connect().await?;
        let id = find::container(&node, &self.container).await?.id;
        let (path, _) = status(&node, &id).await?;
        if path.as_os_str().is_empty() {
            return Err(Error::Usage(format!(
                "container {} keeps no log: it was made without a log path",
                self.container
            )));
        }
        let mut log = Log::open(path.clone())?;
        let there = match self.tail {
            Some(lines) => log.skip_to_last(lines)?,
            None => usize::MAX,
        };
        if !self.follow {
            return self.copy(&mut log, there); // not what the container has written since
        }
        loop {
            // Asked before the file is read to its end: what was written until the end is then read, too.
            let (_, ended) = status(&node, &id).await?;
            self.copy(&mut log, usize::MAX)?;
            if ended {
                return Ok(());
            }
            log.reopen_if_rotated()?;
            sleep(POLL).await;
        }
    }

    /// Prints the whole lines that are there, at most so many.
    fn copy(&self, log: &mut Log, most: usize) -> Result<(), Error> {
        for _ in 0..most {
            let Some(line) = log.next_line()? else { break };
            let Some(entry) = Entry::parse(&line) else {
                output::bytes(&mut io::stdout().lock(), &line)?;
                continue;
            };
            let mut text = Vec::with_capacity(line.len());
            if self.timestamps && log.at_line_start {
                text.extend_from_slice(entry.time);
                text.push(b' ');
            }
            text.extend_from_slice(entry.text);
            if !entry.partial {
                text.push(b'\n');
            }
            log.at_line_start = !entry.partial;
            let mut out: Box<dyn Write> =
                if entry.stderr { Box::new(io::stderr()) } else { Box::new(io::stdout()) };
            output::bytes(&mut out, &text)?;
        }
        Ok(())
    }
}

/// The log's path and whether the container has ended.
async fn status(node: &Node, id: &str) -> Result<(PathBuf, bool), Error> {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    let reply = node.runtime.clone().container_status(request).await;
    let status = reply.map_err(Error::refused(format!("look at container {id}")))?.into_inner().status;
    let status = status.unwrap_or_default();
    let ended = matches!(status.state(), ContainerState::ContainerExited | ContainerState::ContainerUnknown);
    Ok((PathBuf::from(status.log_path), ended))
}

/// A log file that may be rotated by rename while it is read.
struct Log {
    path: PathBuf,
    reader: BufReader<File>,
    at_line_start: bool,
}

impl Log {
    fn open(path: PathBuf) -> Result<Self, Error> {
        let file = File::open(&path).map_err(|source| cannot_read(&path, source))?;
        Ok(Self { reader: BufReader::new(file), path, at_line_start: true })
    }

    /// The next whole line with its newline; a line that is still being written is left for later.
    fn next_line(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let mut line = Vec::new();
        let read =
            self.reader.read_until(b'\n', &mut line).map_err(|source| cannot_read(&self.path, source))?;
        if line.last() == Some(&b'\n') {
            return Ok(Some(line));
        }
        let back = i64::try_from(read).expect("a buffer is smaller than 2^63");
        self.reader.seek_relative(-back).map_err(|source| cannot_read(&self.path, source))?;
        Ok(None)
    }

    /// Two passes: one that counts the lines, one that skips. Returns how many are left.
    fn skip_to_last(&mut self, lines: usize) -> Result<usize, Error> {
        let mut count = 0usize;
        while self.next_line()?.is_some() {
            count += 1;
        }
        self.reader.rewind().map_err(|source| cannot_read(&self.path, source))?;
        for _ in 0..count.saturating_sub(lines) {
            self.next_line()?;
        }
        Ok(count.min(lines))
    }

    /// Goes on with the new file once the path names another one than is open; the old one has been read to its end.
    fn reopen_if_rotated(&mut self) -> Result<(), Error> {
        use std::os::unix::fs::MetadataExt;
        let open = self.reader.get_ref().metadata().map_err(|source| cannot_read(&self.path, source))?;
        if let Ok(named) = std::fs::metadata(&self.path)
            && (named.dev(), named.ino()) != (open.dev(), open.ino())
        {
            let at_line_start = self.at_line_start;
            *self = Self { at_line_start, ..Self::open(self.path.clone())? };
        }
        Ok(())
    }
}

fn cannot_read(path: &Path, source: io::Error) -> Error {
    Error::File { what: "read", path: path.to_owned(), source }
}

/// One line of a CRI log: `TIME stdout|stderr P|F[:TAG...] TEXT`.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'l> {
    time: &'l [u8],
    stderr: bool,
    /// More of the same line follows.
    partial: bool,
    text: &'l [u8],
}

impl<'l> Entry<'l> {
    fn parse(line: &'l [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut parts = line.splitn(4, |b| *b == b' ');
        let (time, stream, tags, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let stderr = match stream {
            b"stdout" => false,
            b"stderr" => true,
            _ => return None,
        };
        let partial = match tags.split(|b| *b == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        Some(Self { time, stderr, partial, text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries() {
        let entry =
            Entry::parse(b"2026-11-24T05:47:00.123456789Z stderr P:x two words \n").expect("a line of a log");
        assert_eq!(entry.time, b"2026-11-24T05:47:00.123456789Z");
        assert_eq!((entry.stderr, entry.partial, entry.text), (true, true, b"two words ".as_slice()));
        assert_eq!(Entry::parse(b"t stdout F \n").expect("an empty line").text, b"");
        for other in [&b"plain text"[..], b"t stdin F x", b"t stdout X x", b""] {
            assert_eq!(Entry::parse(other), None);
        }
    }

    #[test]
    fn a_growing_and_rotating_file_is_read_line_by_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("0.log");
        std::fs::write(&path, "a\nb\nhalf").expect("written");
        let mut log = Log::open(path.clone()).expect("opened");
        log.skip_to_last(1).expect("skipped");
        let mut next = || log.next_line().expect("read").map(|l| String::from_utf8(l).expect("text"));
        assert_eq!(next().as_deref(), Some("b\n"));
        assert_eq!(next(), None, "half a line is not shown");
        let mut file = File::options().append(true).open(&path).expect("opened");
        file.write_all(b" whole\n").expect("written");
        assert_eq!(next().as_deref(), Some("half whole\n"));
        std::fs::rename(&path, dir.path().join("0.log.1")).expect("renamed");
        std::fs::write(&path, "new\n").expect("written");
        assert_eq!(next(), None);
        log.reopen_if_rotated().expect("reopened");
        assert_eq!(log.next_line().expect("read").as_deref(), Some(b"new\n".as_slice()));
    }
}
