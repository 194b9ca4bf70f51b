//! One layer blob -> one directory, checked against every digest on the way.
//!
//! The blob is hashed, decompressed, hashed again and unpacked in one pass, so that a layer is written once and its
//! compressed form never. Nothing of it counts until both digests were right; the caller throws the directory away
//! otherwise.

use std::io::{self, BufReader, Read};
use std::os::fd::BorrowedFd;

use crate::compression::Decompressed;
use crate::content::StoreError;
use crate::digest::{DiffId, Digest, Hashing};
use crate::limits::{LimitExceeded, Limits};
use crate::registry::FetchError;
use crate::unpack::{self, UnpackError, Unpacked};

/// Bytes of content that are read ahead.
const BUFFER: usize = 64 << 10;

/// What a blob must turn out to be.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// Digest and length of the blob; unknown for docker-save archives, which have only diff ids.
    pub(crate) blob: Option<(Digest, u64)>,
    /// Digest of the uncompressed archive, from the image's configuration; artifacts list none.
    pub(crate) diff_id: Option<DiffId>,
}

/// Why a layer's content was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It could not be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The blob is shorter or longer than its descriptor says.
    #[error("the blob has {actual} bytes or more, its descriptor says {expected}")]
    Size {
        /// Length in the descriptor.
        expected: u64,
        /// Length seen.
        actual: u64,
    },
    /// The blob is another one.
    #[error("the blob's digest is {actual}, its descriptor says {expected}")]
    Digest {
        /// Digest in the descriptor.
        expected: Digest,
        /// Digest seen.
        actual: Digest,
    },
    /// The uncompressed content is not what the image's configuration lists.
    #[error("the content's digest is {actual}, the image's configuration says {expected}")]
    DiffId {
        /// Diff id in the configuration.
        expected: DiffId,
        /// Digest seen.
        actual: Digest,
    },
    /// The compressed stream is damaged.
    #[error("cannot decompress the blob")]
    Compression(#[source] io::Error),
    /// The content cannot be a layer.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// It is larger than allowed.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// An archive does not hold it.
    #[error("the archive does not hold it")]
    Missing,
    /// This node cannot store it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LayerError {
    /// An error of reading: the registry's, a limit's, else the compressed stream's.
    fn reading(source: io::Error) -> Self {
        let source = match source.downcast::<FetchError>() {
            Ok(fetch) => return Self::Fetch(fetch),
            Err(source) => source,
        };
        match source.downcast::<LimitExceeded>() {
            Ok(limit) => Self::Limit(limit),
            Err(source) => Self::Compression(source),
        }
    }

    /// Refines what unpacking says about a failed read.
    fn unpacking(error: UnpackError) -> Self {
        match error {
            UnpackError::Archive { source: unpack::Malformed::Read(source), .. } => Self::reading(source),
            UnpackError::Limit(limit) => Self::Limit(limit),
            error => Self::Unpack(error),
        }
    }
}

/// Unpacks a blob into the empty directory `root`.
pub(crate) fn unpack(
    blob: impl Read,
    expected: &Expected,
    root: BorrowedFd<'_>,
    limits: &Limits,
) -> Result<Unpacked, LayerError> {
    consume(blob, expected, limits, |content| unpack::unpack(content, root, limits))
}

/// Writes a blob as it is, as the file `path`, into the empty directory `root`.
pub(crate) fn file(
    blob: impl Read,
    expected: &Expected,
    path: &str,
    root: BorrowedFd<'_>,
    limits: &Limits,
) -> Result<Unpacked, LayerError> {
    let (_, size) = expected.blob.as_ref().ok_or(LayerError::Missing)?;
    let mut blob = Hashing::new(blob.take(most(expected)));
    let outcome = unpack::file(&mut blob, path, *size, root, limits).map_err(LayerError::unpacking);
    match outcome {
        Err(error @ (LayerError::Fetch(_) | LayerError::Limit(_))) => Err(error),
        outcome => check_blob(blob, expected).and(outcome),
    }
}

/// Checks a blob whose content is here already.
pub(crate) fn verify(blob: impl Read, expected: &Expected, limits: &Limits) -> Result<(), LayerError> {
    match &expected.diff_id {
        Some(_) => consume(blob, expected, limits, |_| Ok(())),
        None => check_blob(Hashing::new(blob.take(most(expected))), expected),
    }
}

/// Bytes that are read of a blob: one more than it should have.
fn most(expected: &Expected) -> u64 {
    expected.blob.as_ref().map_or(u64::MAX, |(_, size)| size.saturating_add(1))
}

fn consume<R: Read, T>(
    blob: R,
    expected: &Expected,
    limits: &Limits,
    consumer: impl FnOnce(&mut dyn Read) -> Result<T, UnpackError>,
) -> Result<T, LayerError> {
    let content = Decompressed::new(blob.take(most(expected)), limits).map_err(LayerError::reading)?;
    let mut content = Hashing::new(content);
    // Headers are read from here, so that decompressing and hashing go by large pieces; so do files without it.
    let mut buffered = BufReader::with_capacity(BUFFER, &mut content);
    let outcome = consumer(&mut buffered).map_err(LayerError::unpacking);
    let outcome = outcome.and_then(|made| Ok((made, content.drain().map_err(LayerError::reading)?)));
    match outcome {
        Ok((made, diff)) => {
            check_blob(content.into_inner().into_blob(), expected)?;
            match &expected.diff_id {
                Some(expected) if diff != *expected.digest() => {
                    Err(LayerError::DiffId { expected: expected.clone(), actual: diff })
                }
                _ => Ok(made),
            }
        }
        Err(error @ (LayerError::Fetch(_) | LayerError::Limit(_))) => Err(error),
        // A damaged blob is reported as what it is rather than by what was stumbled over in it.
        Err(error) => Err(check_blob(content.into_inner().into_blob(), expected).err().unwrap_or(error)),
    }
}

fn check_blob<R: Read>(mut blob: Hashing<R>, expected: &Expected) -> Result<(), LayerError> {
    let Some((digest, size)) = &expected.blob else { return Ok(()) };
    let left = size.saturating_sub(blob.count()).saturating_add(1);
    io::copy(&mut (&mut blob).take(left), &mut io::sink()).map_err(LayerError::reading)?;
    if blob.count() != *size {
        return Err(LayerError::Size { expected: *size, actual: blob.count() });
    }
    match blob.digest() {
        actual if actual == *digest => Ok(()),
        actual => Err(LayerError::Digest { expected: digest.clone(), actual }),
    }
}
