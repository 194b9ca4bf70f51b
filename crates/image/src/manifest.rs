//! Manifests, indexes and configurations: what an image says about itself, read strictly.
//!
//! A document that could be read as two things is refused (GHSA-5j5w-g665-5m35), as are schema 1, duplicate keys and
//! digests of other algorithms. Labels and annotations are never read as control data, `urls` of descriptors never
//! followed (CVE-2020-15157). A manifest whose configuration is not an image's is an artifact, see [`crate::artifact`].

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use crate::digest::{ChainId, DiffId, Digest};
use crate::limits::{LimitExceeded, Limits};

/// The platform whose images run here.
const OS: &str = "linux";
const ARCHITECTURE: &str = "amd64";
/// Parts of the media types, OCI's and Docker's, of a manifest and of an index.
const IMAGE: &str = "image.manifest distribution.manifest.v2";
const INDEX: &str = "image.index distribution.manifest.list";

/// Why a document does not describe an image that can run here.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not JSON of the expected shape.
    #[error("{document} is malformed")]
    Json {
        /// Which document.
        document: &'static str,
        /// What the parser met.
        #[source]
        source: serde_json::Error,
    },
    /// It is both a manifest and an index, or neither.
    #[error("the manifest must have either config and layers, or manifests")]
    Ambiguous,
    /// A schema that is not version 2.
    #[error("schema version {version} is not supported, version 2 is")]
    Schema {
        /// Its version.
        version: u64,
    },
    /// A media type that is not an image's.
    #[error("media type {kind:?} is not that of a container image")]
    MediaType {
        /// The type, shortened.
        kind: String,
    },
    /// The registry calls it something else (CVE-2021-41190).
    #[error("the registry serves the manifest as {kind:?}, which it is not")]
    ServedAs {
        /// The type in the reply's header.
        kind: String,
    },
    /// No image for this platform.
    #[error("the image has no variant for {OS}/{ARCHITECTURE}")]
    Platform,
    /// Indexes nested deeper than anyone writes them, or a cycle.
    #[error("the image's indexes are nested too deep")]
    Nested,
    /// Layers and diff ids do not match.
    #[error("the manifest has {layers} layers, the configuration {diff_ids}")]
    Layers {
        /// Layers in the manifest.
        layers: usize,
        /// Diff ids in the configuration.
        diff_ids: usize,
    },
    /// A diff id is not a digest.
    #[error("the configuration has an unusable diff id")]
    DiffId(#[from] crate::digest::InvalidDigest),
    /// More than allowed.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
}

/// Where some content is found, and how long it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

/// One image, or a choice of images.
#[derive(Debug)]
pub(crate) enum Manifest {
    Image { config: Descriptor, layers: Vec<Descriptor> },
    Artifact { layers: Vec<Descriptor> },
    Index { manifests: Vec<Descriptor> },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    media_type: String,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Manifest {
    /// Parses what a registry serves as `kind`. Many serve it as something of no meaning here; only a registry that
    /// calls an index a manifest, or the reverse, contradicts the document.
    pub(crate) fn parse_served(content: &[u8], kind: &str, limits: &Limits) -> Result<Self, ManifestError> {
        let manifest = Self::parse(content, limits)?;
        let kind = kind.split(';').next().unwrap_or_default().trim();
        let known = is_one_of(kind, IMAGE) || is_one_of(kind, INDEX);
        match !known || is_one_of(kind, manifest.kinds()) {
            true => Ok(manifest),
            false => Err(ManifestError::ServedAs { kind: shorten(kind) }),
        }
    }

    pub(crate) fn parse(content: &[u8], limits: &Limits) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            schema_version: u64,
        }
        let json = |source| ManifestError::Json { document: "the manifest", source };
        let Version { schema_version } = serde_json::from_slice(content).map_err(json)?;
        if schema_version != 2 {
            return Err(ManifestError::Schema { version: schema_version });
        }
        let raw: Raw = serde_json::from_slice(content).map_err(json)?;
        let manifest = match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) => {
                LimitExceeded::check("layers of the image", layers.len() as u64, limits.layers as u64)?;
                match is_image_config(&config.media_type) {
                    true => Self::Image { config, layers },
                    false => Self::Artifact { layers },
                }
            }
            (None, None, Some(manifests)) => Self::Index { manifests },
            _ => return Err(ManifestError::Ambiguous),
        };
        let matches = raw.media_type.is_empty() || is_one_of(&raw.media_type, manifest.kinds());
        if matches { Ok(manifest) } else { Err(ManifestError::MediaType { kind: shorten(&raw.media_type) }) }
    }

    fn kinds(&self) -> &'static str {
        match self {
            Self::Image { .. } | Self::Artifact { .. } => IMAGE,
            Self::Index { .. } => INDEX,
        }
    }
}

fn is_one_of(kind: &str, kinds: &str) -> bool {
    kinds.split(' ').any(|part| kind.contains(part))
}

/// The manifest of an index for this platform: the first that names it, else a lone one that names none.
pub(crate) fn choose(manifests: &[Descriptor]) -> Result<&Descriptor, ManifestError> {
    let here =
        |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| p.os == OS && p.architecture == ARCHITECTURE);
    match (manifests.iter().find(here), manifests) {
        (Some(found), _) => Ok(found),
        (None, [only]) if only.platform.is_none() => Ok(only),
        _ => Err(ManifestError::Platform),
    }
}

/// True for the configuration of a container image; some old tools name no type.
fn is_image_config(kind: &str) -> bool {
    ["", "application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"]
        .contains(&kind)
}

/// A layer of an image, bottom first.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) diff_id: DiffId,
    pub(crate) chain_id: ChainId,
    /// Where its blob is; unknown for docker-save archives.
    pub(crate) blob: Option<Descriptor>,
    pub(crate) content: Content,
}

/// What a layer's blob is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// An archive whose digest, uncompressed, is the layer's diff id.
    Listed,
    /// An archive of an artifact, which lists no diff ids: its blob's digest is proof enough.
    Unlisted,
    /// One file of this path.
    File(String),
}

/// Parses a configuration, which must be for this platform.
pub(crate) fn parse_config(content: &[u8], limits: &Limits) -> Result<ImageConfiguration, ManifestError> {
    let json = |source| ManifestError::Json { document: "the image's configuration", source };
    let config: ImageConfiguration = serde_json::from_slice(content).map_err(json)?;
    let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
    if (os.as_str(), architecture.as_str()) != (OS, ARCHITECTURE) {
        return Err(ManifestError::Platform);
    }
    LimitExceeded::check(
        "layers of the image",
        config.rootfs().diff_ids().len() as u64,
        limits.layers as u64,
    )?;
    Ok(config)
}

/// Pairs the layers of a manifest with the diff ids of the configuration.
pub(crate) fn layers(
    config: &ImageConfiguration,
    blobs: Vec<Option<Descriptor>>,
) -> Result<Vec<Layer>, ManifestError> {
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != blobs.len() {
        return Err(ManifestError::Layers { layers: blobs.len(), diff_ids: diff_ids.len() });
    }
    let mut layers: Vec<Layer> = Vec::with_capacity(blobs.len());
    for (diff_id, blob) in diff_ids.iter().zip(blobs) {
        let diff_id: DiffId = diff_id.parse()?;
        let chain_id = ChainId::on(layers.last().map(|below| &below.chain_id), &diff_id);
        if let Some(blob) = &blob {
            check_layer_type(&blob.media_type)?;
        }
        layers.push(Layer { diff_id, chain_id, blob, content: Content::Listed });
    }
    Ok(layers)
}

/// A layer is a tar, plain or compressed; encrypted ones and other artifacts are told apart by their types.
fn check_layer_type(kind: &str) -> Result<(), ManifestError> {
    match is_layer(kind) {
        true => Ok(()),
        false => Err(ManifestError::MediaType { kind: shorten(kind) }),
    }
}

/// True for the media types of layers that can be unpacked.
pub(crate) fn is_layer(kind: &str) -> bool {
    let known = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."];
    known.iter().any(|prefix| kind.starts_with(prefix)) && !kind.contains("encrypted")
}

fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(extra: &str) -> String {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":1{extra}}}"#,
            Digest::of(b"")
        )
    }

    fn parse(text: &str) -> Result<Manifest, ManifestError> {
        Manifest::parse(text.as_bytes(), &Limits::default())
    }

    #[test]
    fn a_manifest_is_one_thing() {
        let d = descriptor("");
        let image =
            |config: &str| parse(&format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{d}]}}"#));
        let config = d.replace("image.layer.v1.tar", "image.config.v1+json");
        assert!(matches!(image(&config), Ok(Manifest::Image { .. })));
        assert!(matches!(image(&d), Ok(Manifest::Artifact { .. })));
        assert!(matches!(
            parse(&format!(r#"{{"schemaVersion":2,"manifests":[{d}]}}"#)),
            Ok(Manifest::Index { .. })
        ));
        for bad in [
            format!(r#"{{"schemaVersion":2,"config":{d},"layers":[],"manifests":[]}}"#),
            format!(r#"{{"schemaVersion":2,"layers":[{d}]}}"#),
            r#"{"schemaVersion":2}"#.into(),
            r#"{"schemaVersion":1,"fsLayers":[]}"#.into(),
            format!(r#"{{"schemaVersion":2,"manifests":[{d}],"manifests":[]}}"#),
            format!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","config":{d},"layers":[]}}"#
            ),
            format!(r#"{{"schemaVersion":2,"config":{d},"layers":[{}]}}"#, vec![d.as_str(); 257].join(",")),
            "[".repeat(100_000),
            r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:../..","size":1}]}"#.into(),
        ] {
            assert!(parse(&bad).is_err(), "{:.100}", bad);
        }
    }

    #[test]
    fn a_registry_does_not_contradict_the_document() {
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, descriptor(""));
        let parse = |kind: &str| Manifest::parse_served(text.as_bytes(), kind, &Limits::default());
        for kind in ["", "text/plain", "application/vnd.oci.image.index.v1+json; charset=utf-8"] {
            assert!(parse(kind).is_ok(), "{kind}");
        }
        for kind in [
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v2+json",
        ] {
            assert!(matches!(parse(kind), Err(ManifestError::ServedAs { .. })), "{kind}");
        }
    }

    #[test]
    fn the_index_entry_of_this_platform_is_chosen() {
        let parse = |text: &str| serde_json::from_str::<Descriptor>(text).unwrap();
        let arm = parse(&descriptor(r#","platform":{"os":"linux","architecture":"arm64"}"#));
        let amd = parse(&descriptor(r#","platform":{"os":"linux","architecture":"amd64"}"#));
        let none = parse(&descriptor(""));
        assert_eq!(choose(&[arm.clone(), amd.clone()]).unwrap(), &amd);
        assert_eq!(choose(std::slice::from_ref(&none)).unwrap(), &none);
        assert!(choose(&[arm]).is_err());
        assert!(choose(&[]).is_err());
        assert!(choose(&[none.clone(), none]).is_err());
    }
}
