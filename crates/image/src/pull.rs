//! A reference -> an image of this node, out of a registry.

use std::sync::Arc;

use crate::artifact;
use crate::digest::ImageId;
use crate::install::{self, InstallError, Origin, Recipe};
use crate::limits::Limits;
use crate::manifest::{self, Descriptor, Manifest, ManifestError};
use crate::reference::{Reference, ReferenceError};
use crate::registry::{Auth, FetchError, Registries, Repository};
use crate::store::Store;

/// Indexes on the way to a manifest: an index may hold an index, no one writes more.
const NESTED: usize = 3;

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The registry.
    #[error("cannot pull {reference}")]
    Fetch {
        /// The image's full name.
        reference: String,
        /// What failed.
        #[source]
        source: FetchError,
    },
    /// What the registry has under that name.
    #[error("cannot pull {reference}")]
    Manifest {
        /// The image's full name.
        reference: String,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// Its layers, or this node.
    #[error("cannot pull {reference}")]
    Install {
        /// The image's full name.
        reference: String,
        /// What failed.
        #[source]
        source: InstallError,
    },
}

/// What fails before layers are fetched.
enum DescribeError {
    Fetch(FetchError),
    Manifest(ManifestError),
}

impl From<FetchError> for DescribeError {
    fn from(error: FetchError) -> Self {
        Self::Fetch(error)
    }
}

impl From<ManifestError> for DescribeError {
    fn from(error: ManifestError) -> Self {
        Self::Manifest(error)
    }
}

pub(crate) async fn pull(
    store: &Arc<Store>,
    registries: &Registries,
    name: &str,
    auth: Option<Auth>,
    limits: &Limits,
) -> Result<ImageId, PullError> {
    let reference: Reference = name.parse()?;
    let text = reference.to_string();
    let repository = registries
        .repository(&reference, auth)
        .map_err(|source| PullError::Fetch { reference: text.clone(), source })?;
    let recipe = describe(&repository, &reference, limits).await.map_err(|error| match error {
        DescribeError::Fetch(source) => PullError::Fetch { reference: text.clone(), source },
        DescribeError::Manifest(source) => PullError::Manifest { reference: text.clone(), source },
    })?;
    let installed = install::install(store, recipe, &Origin::Registry(repository), limits).await;
    installed.map_err(|source| PullError::Install { reference: text, source })
}

/// Follows a reference to manifest and configuration.
async fn describe(
    repository: &Repository,
    reference: &Reference,
    limits: &Limits,
) -> Result<Recipe, DescribeError> {
    let top = repository.manifest(reference.target()).await?;
    let digests = vec![reference.with_digest(&top.digest)];
    let (mut kind, mut manifests) = (top.kind, vec![top.content]);
    let tags = reference.tagged().into_iter().collect();
    let (config, layers) = loop {
        let newest = manifests.last().expect("holds the top document");
        let next = match Manifest::parse_served(newest, &kind, limits)? {
            Manifest::Image { config, layers } => break (config, layers),
            Manifest::Artifact { layers } => return Ok(artifact::recipe(manifests, layers, tags, digests)),
            Manifest::Index { manifests } => manifest::choose(&manifests)?.clone(),
        };
        if manifests.len() > NESTED {
            return Err(ManifestError::Nested.into());
        }
        let document = repository.manifest(next.digest.as_str()).await?;
        check_length(&next, &document.content)?;
        kind = document.kind;
        manifests.push(document.content);
    };
    let document = repository.small_blob(&config.digest).await?;
    check_length(&config, &document.content)?;
    let config = manifest::parse_config(&document.content, limits)?;
    let layers = manifest::layers(&config, layers.into_iter().map(Some).collect())?;
    let config_document = document.content;
    Ok(Recipe { config, layers, config_document, manifests, tags, digests, artifact: false })
}

fn check_length(descriptor: &Descriptor, content: &[u8]) -> Result<(), FetchError> {
    let actual = content.len() as u64;
    match actual == descriptor.size {
        true => Ok(()),
        false => {
            Err(FetchError::Length { digest: descriptor.digest.clone(), expected: descriptor.size, actual })
        }
    }
}
