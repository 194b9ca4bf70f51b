//! `ListImages`.

use api::cri::v1::{Image, ImageSpec, Int64Value, ListImagesRequest, ListImagesResponse};
use image::Images;

/// Images that pass the filter: all, or the one that it names.
pub(crate) fn list(images: &Images, request: &ListImagesRequest) -> ListImagesResponse {
    let name = request.filter.as_ref().and_then(|f| f.image.as_ref()).map(|i| i.image.as_str());
    let found = match name {
        None | Some("") => images.list(),
        Some(name) => images.get(name).into_iter().collect(),
    };
    ListImagesResponse { images: found.iter().map(|i| image(images, i)).collect() }
}

/// An image as CRI describes it.
pub(crate) fn image(images: &Images, image: &image::Image) -> Image {
    let user = image.config.config().as_ref().and_then(|c| c.user().clone()).unwrap_or_default();
    let (uid, username) = user_of(&user);
    let name = image.repo_tags.first().or(image.repo_digests.first()).cloned().unwrap_or_default();
    Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid,
        username,
        spec: Some(ImageSpec { image: name, ..Default::default() }),
        pinned: images.is_pinned(image),
    }
}

/// `USER` of an image, without its group: a number or a name.
fn user_of(user: &str) -> (Option<Int64Value>, String) {
    let user = user.split(':').next().unwrap_or_default();
    match user.parse::<i64>() {
        Ok(value) => (Some(Int64Value { value }), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name() {
        let uid = |value| Some(Int64Value { value });
        assert_eq!(user_of("1002"), (uid(1002), String::new()));
        assert_eq!(user_of("1003:1004"), (uid(1003), String::new()));
        assert_eq!(user_of("www-data:1004"), (None, "www-data".to_owned()));
        assert_eq!(user_of(""), (None, String::new()));
    }
}
