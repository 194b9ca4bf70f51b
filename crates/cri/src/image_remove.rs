//! `RemoveImage`.

use api::cri::v1::{RemoveImageRequest, RemoveImageResponse};
use image::{Images, RemoveError};
use tokio::task;

use crate::{error::Failure, image_status::image_name};

/// Forgets an image under all its names, and frees what no container needs of it; one that is not there is forgotten.
pub(crate) async fn remove(
    images: &Images,
    request: RemoveImageRequest,
) -> Result<RemoveImageResponse, Failure> {
    let name = image_name(request.image.as_ref())?.to_owned();
    let images = images.clone();
    let removal = task::spawn_blocking(move || match images.remove(&name) {
        Err(error @ RemoveError::Commit { .. }) => Err(Failure::of_image_store(&error)),
        Err(RemoveError::NotFound { .. }) => Ok(()),
        Ok(()) => images.collect().map_err(|error| Failure::of_image_store(&error)),
    });
    removal.await.map_err(|error| Failure::of_image_store(&error))??;
    Ok(RemoveImageResponse {})
}
