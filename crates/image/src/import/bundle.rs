//! Random access to the files of a tar archive.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::ImportError;
use crate::compression::Decompressed;
use crate::content::ContentStore;
use crate::digest::{DiffId, Digest};
use crate::ingest::LayerError;
use crate::limits::{LimitExceeded, Limits};
use crate::manifest::{Layer, ManifestError};
use crate::unpack::archive::{Archive, Kind, Member};

/// Files in one archive.
const FILES: u64 = 100_000;
/// Symlinks followed on the way to a file; older `docker save` links equal layers.
const LINKS: usize = 8;

/// An archive whose files can be opened by name.
#[derive(Debug)]
pub(crate) struct Bundle {
    file: Arc<File>,
    files: BTreeMap<String, Place>,
    layers: HashMap<DiffId, String>,
}

#[derive(Debug, Clone)]
enum Place {
    Data { offset: u64, size: u64 },
    Link(String),
}

impl Bundle {
    /// Reads the archive's table of files. A compressed archive, or one that cannot be read out of order, is copied
    /// into `content`'s file system first, as a file without a name.
    pub(super) fn open(file: File, content: &ContentStore, limits: &Limits) -> Result<Self, ImportError> {
        let mut file = seekable(file, content, limits)?;
        file.rewind().map_err(ImportError::Read)?;
        let mut archive = Archive::new(BufReader::with_capacity(1 << 20, &file));
        let mut files = BTreeMap::new();
        while let Some(member) = archive.next().map_err(ImportError::Archive)? {
            let place = match member.kind {
                Kind::Regular => Place::Data { offset: archive.position(), size: member.size },
                Kind::Symlink => Place::Link(target(&member)),
                _ => continue,
            };
            let name = normal(&String::from_utf8_lossy(&member.path));
            if files.insert(name.clone(), place).is_some() {
                return Err(ImportError::Twice { name });
            }
            LimitExceeded::check("files of the archive", files.len() as u64, FILES)
                .map_err(ManifestError::Limit)?;
        }
        Ok(Self { file: Arc::new(file), files, layers: HashMap::new() })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// A small file, whole.
    pub(super) fn document(&self, name: &str, limits: &Limits) -> Result<Vec<u8>, ImportError> {
        let mut slice = self.slice(name).ok_or_else(|| ImportError::Missing { name: name.to_owned() })?;
        LimitExceeded::check("bytes of a document of the archive", slice.left, limits.document)
            .map_err(ManifestError::Limit)?;
        let mut content = Vec::new();
        slice.read_to_end(&mut content).map_err(ImportError::Read)?;
        Ok(content)
    }

    /// A small blob of an OCI layout, checked.
    pub(super) fn blob(&self, digest: &Digest, limits: &Limits) -> Result<Vec<u8>, ImportError> {
        let name = blob_name(digest);
        let content = self.document(&name, limits)?;
        if Digest::of(&content) == *digest { Ok(content) } else { Err(ImportError::Digest { name }) }
    }

    /// Notes where a layer is that has no blob digest.
    pub(super) fn note_layer(&mut self, diff_id: DiffId, name: &str) {
        self.layers.insert(diff_id, normal(name));
    }

    /// A layer's bytes, unchecked.
    pub(crate) fn layer(&self, layer: &Layer) -> Result<impl Read + Send + use<>, LayerError> {
        let name = match &layer.blob {
            Some(blob) => Some(blob_name(&blob.digest)),
            None => self.layers.get(&layer.diff_id).cloned(),
        };
        name.and_then(|name| self.slice(&name)).ok_or(LayerError::Missing)
    }

    fn slice(&self, name: &str) -> Option<Slice> {
        let mut name = name.to_owned();
        for _ in 0..LINKS {
            match self.files.get(&name)? {
                Place::Link(target) => name.clone_from(target),
                Place::Data { offset, size } => {
                    return Some(Slice { file: Arc::clone(&self.file), offset: *offset, left: *size });
                }
            }
        }
        None
    }
}

/// A part of a file.
struct Slice {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

fn seekable(file: File, content: &ContentStore, limits: &Limits) -> Result<File, ImportError> {
    let mut magic = [0; 4];
    let regular = file.metadata().map_err(ImportError::Read)?.is_file();
    if regular && file.read_at(&mut magic, 0).map_err(ImportError::Read)? == 4 && !is_compressed(magic) {
        return Ok(file);
    }
    let mut copy = content.nameless().map_err(ImportError::Read)?;
    let mut archive = Decompressed::new(file, limits).map_err(ImportError::Read)?;
    content.copy(&mut archive, &mut copy, limits).map_err(ImportError::Read)?;
    Ok(copy)
}

fn is_compressed(magic: [u8; 4]) -> bool {
    magic.starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd]
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A symlink's target as a name of the archive.
fn target(member: &Member) -> String {
    let (path, link) = (String::from_utf8_lossy(&member.path), String::from_utf8_lossy(&member.link));
    let directory = Path::new(path.as_ref()).parent().unwrap_or(Path::new(""));
    normal(&directory.join(link.as_ref()).to_string_lossy())
}

/// `./a//b/../c` -> `a/c`. Names are keys here and never reach a file system.
fn normal(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_normal() {
        for (name, normal) in [("./a//b", "a/b"), ("a/../../b", "b"), ("/a/./b/", "a/b"), ("", "")] {
            assert_eq!(super::normal(name), normal);
        }
    }
}
