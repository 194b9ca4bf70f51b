//! Images out of a file: an OCI image layout in a tar, or what `docker save` writes.
//!
//! The archive is as hostile as a registry: every digest is checked, names are taken only from its index, and a layer
//! that is here already must be in the archive too, whole, before it is used.

mod bundle;
mod docker;
mod oci;

use std::fs::File;
use std::sync::Arc;

pub(crate) use bundle::Bundle;

use crate::install::{self, InstallError, Origin, Recipe, blocking};
use crate::limits::Limits;
use crate::manifest::ManifestError;
use crate::reference::{Reference, ReferenceError};
use crate::store::Store;
use crate::unpack::Malformed;

/// Why an archive was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be read, or copied to where it can be.
    #[error("cannot read the archive")]
    Read(#[source] std::io::Error),
    /// It is not a tar that can be read in exactly one way.
    #[error("the archive is malformed")]
    Archive(#[source] Malformed),
    /// It holds no image.
    #[error("the archive is neither an OCI layout (index.json) nor a docker-save archive (manifest.json)")]
    Format,
    /// It names a file twice.
    #[error("the archive holds {name:?} twice")]
    Twice {
        /// The file.
        name: String,
    },
    /// A file it refers to is not in it.
    #[error("the archive does not hold {name:?}")]
    Missing {
        /// The file.
        name: String,
    },
    /// A document is not the one its digest says.
    #[error("{name:?} in the archive does not have the digest it is named by")]
    Digest {
        /// The file.
        name: String,
    },
    /// A document makes no sense.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A name that an image cannot have.
    #[error("the archive names an image in a way that is not allowed")]
    Reference(#[from] ReferenceError),
    /// A layer, or this node.
    #[error("cannot import {image}")]
    Install {
        /// The image: its first name, else its id.
        image: String,
        /// What failed.
        #[source]
        source: InstallError,
    },
}

/// Imports every image of the archive that can run here; the names by which each can be found, id if it has none.
/// `name` is for an archive of one image that has none.
pub(crate) async fn import(
    store: &Arc<Store>,
    archive: File,
    name: Option<&Reference>,
    limits: &Limits,
) -> Result<Vec<String>, ImportError> {
    let (opened, bounds) = (Arc::clone(store), limits.clone());
    let (bundle, mut recipes) = blocking(move || {
        let mut bundle = Bundle::open(archive, &opened.content, &bounds)?;
        let recipes = describe(&mut bundle, &bounds)?;
        Ok::<_, ImportError>((bundle, recipes))
    })
    .await?;
    if let [recipe] = recipes.as_mut_slice()
        && recipe.tags.is_empty()
    {
        recipe.tags.extend(name.and_then(Reference::tagged));
    }
    let origin = Origin::Archive(bundle);
    let mut names = Vec::new();
    for recipe in recipes {
        let tags = recipe.tags.clone();
        let image = tags.first().cloned().unwrap_or_else(|| "an image without a name".to_owned());
        let installed = install::install(store, recipe, &origin, limits).await;
        let id = installed.map_err(|source| ImportError::Install { image, source })?;
        if tags.is_empty() { names.push(id.to_string()) } else { names.extend(tags) }
    }
    Ok(names)
}

/// An archive that is both kinds, as newer `docker save` writes them, is read as a layout: that has the digests.
fn describe(bundle: &mut Bundle, limits: &Limits) -> Result<Vec<Recipe>, ImportError> {
    if bundle.has(oci::INDEX) {
        oci::describe(bundle, limits)
    } else if bundle.has(docker::MANIFEST) {
        docker::describe(bundle, limits)
    } else {
        Err(ImportError::Format)
    }
}
