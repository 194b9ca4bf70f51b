//! ImportImage: an archive arrives in pieces, becomes a file without a name, and is imported from there.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use api::meridian::v1::{ImportImageRequest, ImportImageResponse};
use image::{Class, Images, Reference, ReferenceError};
use rustix::fs::{Mode, OFlags};
use tonic::{Code, Status, Streaming};

use crate::chain;

/// Of one archive; the disk is usually smaller.
const ARCHIVE_LIMIT: u64 = 64 << 30;

pub async fn import_image(
    images: &Images,
    root: &Path,
    mut pieces: Streaming<ImportImageRequest>,
) -> Result<ImportImageResponse, Status> {
    let mut archive = nameless(root).map_err(|error| cannot("make a file for the archive", &error))?;
    let (mut total, mut name) = (0, None);
    while let Some(piece) = pieces.message().await? {
        if total == 0 && !piece.reference.is_empty() {
            name = Some(reference(&piece.reference)?);
        }
        total += piece.data.len() as u64;
        if total > ARCHIVE_LIMIT {
            return Err(Status::resource_exhausted(format!(
                "data: the archive is larger than {ARCHIVE_LIMIT} bytes"
            )));
        }
        archive = blocking(move || archive.write_all(&piece.data).map(|()| archive))
            .await?
            .map_err(|error| cannot("store the archive", &error))?;
    }
    let imported = match name {
        Some(name) => images.import_as(archive, &name).await,
        None => images.import(archive).await,
    };
    let references = imported.map_err(|error| Status::new(code(error.class()), chain(&error)))?;
    tracing::info!(references = references.join(" "), bytes = total, "imported images");
    Ok(ImportImageResponse { references })
}

fn reference(text: &str) -> Result<Reference, Status> {
    text.parse()
        .map_err(|error: ReferenceError| Status::invalid_argument(format!("reference: {}", chain(&error))))
}

/// A file on the file system of images that is gone when it is closed: open(2), O_TMPFILE.
fn nameless(root: &Path) -> std::io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open(root, flags, Mode::RUSR | Mode::WUSR)?.into())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|panic| Status::internal(panic.to_string()))
}

fn cannot(what: &str, error: &std::io::Error) -> Status {
    let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
    let code = if full { Code::ResourceExhausted } else { Code::Internal };
    Status::new(code, format!("{what}: {}", chain(error as &dyn Error)))
}

fn code(class: Class) -> Code {
    match class {
        Class::InvalidArgument => Code::InvalidArgument,
        Class::NotFound => Code::NotFound,
        Class::PermissionDenied => Code::PermissionDenied,
        Class::ResourceExhausted => Code::ResourceExhausted,
        Class::DataLoss => Code::DataLoss,
        Class::Unavailable => Code::Unavailable,
        Class::Internal => Code::Internal,
    }
}
