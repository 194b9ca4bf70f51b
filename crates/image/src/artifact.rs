//! OCI artifacts: content that is no root filesystem, kept as layers so that it can be a volume.
//!
//! ```text
//! layer with a title                          -> a file of that name, as ORAS writes it
//! ... and `io.deis.oras.content.unpack: true` -> a directory, packed by ORAS
//! layer without, of an image layer's type     -> unpacked
//! layer without, of another type              -> a file named by the digest's digits
//! ```
//! Later layers win over earlier ones, as in an image. An artifact has no configuration of its own (many share the empty
//! one), so that its id is the digest of its manifest. It can be no container's root.

use oci_spec::image::ImageConfiguration;

use crate::digest::{ChainId, DiffId, Digest};
use crate::install::Recipe;
use crate::manifest::{Content, Descriptor, Layer, is_layer};

/// Name of a file (OCI image specification, "Pre-Defined Annotation Keys").
const TITLE: &str = "org.opencontainers.image.title";
/// The file is an archive of a directory.
const UNPACK: &str = "io.deis.oras.content.unpack";

/// The artifact that the last of `manifests` describes.
pub(crate) fn recipe(
    manifests: Vec<Vec<u8>>,
    layers: Vec<Descriptor>,
    tags: Vec<String>,
    digests: Vec<String>,
) -> Recipe {
    Recipe {
        config: ImageConfiguration::default(),
        layers: stack(layers),
        config_document: manifests.last().cloned().unwrap_or_default(),
        manifests,
        tags,
        digests,
        artifact: true,
    }
}

fn stack(blobs: Vec<Descriptor>) -> Vec<Layer> {
    let mut layers: Vec<Layer> = Vec::with_capacity(blobs.len());
    for blob in blobs {
        let content = content(&blob);
        let diff_id = identity(&content, &blob.digest);
        let chain_id = ChainId::on(layers.last().map(|below| &below.chain_id), &diff_id);
        layers.push(Layer { diff_id, chain_id, blob: Some(blob), content });
    }
    layers
}

fn content(blob: &Descriptor) -> Content {
    let unpack = blob.annotations.get(UNPACK).is_some_and(|value| value == "true");
    match blob.annotations.get(TITLE) {
        Some(title) if !unpack => Content::File(title.clone()),
        None if !unpack && !is_layer(&blob.media_type) => Content::File(blob.digest.hex().to_owned()),
        _ => Content::Unlisted,
    }
}

/// Stands for the diff id that an artifact does not list: what becomes of a blob depends on its title too.
fn identity(content: &Content, blob: &Digest) -> DiffId {
    let text = match content {
        Content::File(title) => format!("artifact file {blob} {title}"),
        Content::Listed | Content::Unlisted => format!("artifact archive {blob}"),
    };
    Digest::of(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_become_files_or_directories() {
        let blob = |kind: &str, annotations: &str| {
            let digest = Digest::of(b"");
            let text = format!(
                r#"{{"mediaType":"{kind}","digest":"{digest}","size":1,"annotations":{{{annotations}}}}}"#
            );
            content(&serde_json::from_str(&text).unwrap())
        };
        let (tar, json) = ("application/vnd.oci.image.layer.v1.tar+gzip", "application/json");
        let title = r#""org.opencontainers.image.title":"a/b""#;
        let unpack = r#""io.deis.oras.content.unpack":"true""#;
        assert_eq!(blob(json, title), Content::File("a/b".into()));
        assert_eq!(blob(tar, title), Content::File("a/b".into()), "ORAS calls every file a layer");
        assert_eq!(blob(tar, &format!("{title},{unpack}")), Content::Unlisted);
        assert_eq!(blob(tar, ""), Content::Unlisted);
        assert_eq!(blob(json, ""), Content::File(Digest::of(b"").hex().into()));
    }
}
