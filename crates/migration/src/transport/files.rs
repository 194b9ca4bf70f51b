//! Files over the connection, each with its digest.

use std::fs::File as StdFile;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;

use api::peer::v1::{Data, File, FileEnd, file::Kind, frame::Body};
use bytes::Bytes;
use rustix::fs::{Dir, FileType, Mode, OFlags, openat};
use sha2::{Digest, Sha256};
use tokio::fs::File as TokioFile;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::connection::Outgoing;
use super::error::MoveError;
use super::protocol::PIECE;

/// All digests of one direction, in order, hashed: one number that says that everything arrived.
#[derive(Debug, Default, Clone)]
pub(super) struct Total(Sha256);

impl Total {
    pub fn add(&mut self, digest: &[u8]) {
        self.0.update(digest);
    }

    pub fn finish(self) -> Bytes {
        Bytes::copy_from_slice(&self.0.finalize())
    }
}

/// Sends one file from its start.
pub(super) async fn send_file(
    out: &Outgoing,
    total: &mut Total,
    header: File,
    file: StdFile,
) -> Result<u64, MoveError> {
    let mut file = TokioFile::from_std(file);
    let size = file.metadata().await.map_err(MoveError::file("stat"))?.len();
    file.rewind().await.map_err(MoveError::file("rewind"))?;
    out.send(Body::File(File { size, ..header }), "send").await?;
    let mut hash = Sha256::new();
    let mut left = file.take(size);
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let read = (&mut left).take(PIECE as u64).read_to_end(&mut piece).await;
        if read.map_err(MoveError::file("read"))? == 0 {
            break;
        }
        hash.update(&piece);
        out.send(Body::Data(Data { data: piece.into() }), "send").await?;
    }
    let digest = Bytes::copy_from_slice(&hash.finalize());
    total.add(&digest);
    out.send(Body::FileEnd(FileEnd { sha256: digest }), "send").await?;
    Ok(size)
}

/// Sends bytes as a file.
pub(super) async fn send_bytes(
    out: &Outgoing,
    total: &mut Total,
    header: File,
    bytes: Vec<u8>,
) -> Result<u64, MoveError> {
    let size = bytes.len() as u64;
    let digest = Bytes::copy_from_slice(&Sha256::digest(&bytes));
    total.add(&digest);
    out.send(Body::File(File { size, ..header }), "send").await?;
    let bytes = Bytes::from(bytes);
    for start in (0..bytes.len()).step_by(PIECE) {
        let data = bytes.slice(start..bytes.len().min(start + PIECE));
        out.send(Body::Data(Data { data }), "send").await?;
    }
    out.send(Body::FileEnd(FileEnd { sha256: digest }), "send").await?;
    Ok(size)
}

/// The image files of a dump: everything but CRIU's log and numbers.
pub(super) fn images(dir: &OwnedFd) -> std::io::Result<Vec<(String, StdFile)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type() == FileType::RegularFile && is_image(&name) {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            found.push((name.clone(), openat(dir, name.as_str(), flags, Mode::empty())?.into()));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

fn is_image(name: &str) -> bool {
    name.ends_with(".img") && crate::archive::is_image(name)
}

/// Where the bytes of a file go.
#[derive(Debug)]
enum Sink {
    File(StdFile),
    Memory(Vec<u8>),
}

/// A file that is arriving.
#[derive(Debug)]
pub(super) struct Incoming {
    header: File,
    sink: Sink,
    hash: Sha256,
    size: u64,
}

/// One that has arrived.
#[derive(Debug)]
pub(super) struct Arrived {
    /// Of which container.
    pub container: usize,
    /// What it is.
    pub kind: Kind,
    /// A file at its start, unless it is small.
    pub file: Option<StdFile>,
    /// The contents of small ones.
    pub bytes: Vec<u8>,
}

/// Largest list of paths, in bytes.
const SMALL: u64 = 64 << 20;

impl Incoming {
    /// `images`: of the container, for its image files.
    pub fn new(out: &Outgoing, header: File, images: Option<&OwnedFd>) -> Result<Self, MoveError> {
        let sink = match header.kind() {
            Kind::Image => {
                let dir = images.ok_or_else(|| out.malformed("a file of no container"))?;
                if !is_image(&header.name) {
                    return Err(out.malformed(format!("an image file called {:?}", header.name)));
                }
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = openat(dir, header.name.as_str(), flags, Mode::from_raw_mode(0o600));
                Sink::File(made.map_err(|errno| MoveError::file("make image file")(errno.into()))?.into())
            }
            Kind::RootfsDiff | Kind::Shm => {
                let dir = images.ok_or_else(|| out.malformed("a file of no container"))?;
                // Beside the images, on the same filesystem, without a name.
                let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
                let made = openat(dir, ".", flags, Mode::from_raw_mode(0o600));
                Sink::File(made.map_err(|errno| MoveError::file("make temporary file")(errno.into()))?.into())
            }
            Kind::Deleted if header.size <= SMALL => Sink::Memory(Vec::new()),
            Kind::Deleted => {
                return Err(out.malformed(format!("a list of {} bytes", header.size)));
            }
        };
        Ok(Self { header, sink, hash: Sha256::new(), size: 0 })
    }

    pub fn data(&mut self, out: &Outgoing, data: &[u8]) -> Result<(), MoveError> {
        self.size += data.len() as u64;
        if self.size > self.header.size {
            return Err(out.malformed("more of a file than it announced"));
        }
        self.hash.update(data);
        match &mut self.sink {
            Sink::Memory(bytes) => bytes.extend_from_slice(data),
            Sink::File(file) => file.write_all(data).map_err(MoveError::file("write received file"))?,
        }
        Ok(())
    }

    pub fn end(self, out: &Outgoing, end: &FileEnd, total: &mut Total) -> Result<Arrived, MoveError> {
        if self.size != self.header.size {
            return Err(out.malformed("less of a file than it announced"));
        }
        let digest = self.hash.finalize();
        if digest[..] != end.sha256[..] {
            return Err(MoveError::Digest { what: format!("file {:?}", self.header.name) });
        }
        total.add(&digest);
        let (file, bytes) = match self.sink {
            Sink::File(mut file) => {
                file.rewind().map_err(MoveError::file("rewind received file"))?;
                (Some(file), Vec::new())
            }
            Sink::Memory(bytes) => (None, bytes),
        };
        let container = usize::try_from(self.header.container).unwrap_or(usize::MAX);
        Ok(Arrived { container, kind: self.header.kind(), file, bytes })
    }
}
