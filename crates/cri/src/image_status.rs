//! `ImageStatus`.

use std::collections::HashMap;

use api::cri::v1::{ImageSpec, ImageStatusRequest, ImageStatusResponse};
use image::Images;
use serde_json::json;

use crate::{
    check::{Field, Invalid, required},
    error::Failure,
    image_list, span,
};

/// One image, or none where the node has none of that name.
pub(crate) fn status(images: &Images, request: &ImageStatusRequest) -> Result<ImageStatusResponse, Failure> {
    let name = image_name(request.image.as_ref())?;
    let Some(image) = images.get(name) else { return Ok(ImageStatusResponse::default()) };
    let info = if request.verbose { info(&image) } else { HashMap::new() };
    Ok(ImageStatusResponse { image: Some(image_list::image(images, &image)), info })
}

/// The name or id in a request's `image`; the RPC's span gets it.
pub(crate) fn image_name(spec: Option<&ImageSpec>) -> Result<&str, Invalid> {
    let field = Field::of("image");
    let name = required(field, spec)?.image.as_str();
    if name.is_empty() {
        return Err(field.at("image").missing("an image name or id"));
    }
    span::image(name);
    Ok(name)
}

/// The keys that crictl and the scripts around it read.
fn info(image: &image::Image) -> HashMap<String, String> {
    let info = json!({
        "chainID": image.chain_id().map(ToString::to_string),
        "imageSpec": image.config,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}
