//! OCI image layouts (OCI image specification, "Image Layout").

use std::collections::BTreeMap;

use super::{Bundle, ImportError};
use crate::artifact;
use crate::install::Recipe;
use crate::limits::Limits;
use crate::manifest::{self, Descriptor, Manifest, ManifestError};
use crate::reference::Reference;

pub(super) const INDEX: &str = "index.json";
/// Full name, as containerd and Docker write it.
const NAME: &str = "io.containerd.image.name";
/// Name of the specification, by some tools the full name, by others only the tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const NESTED: usize = 3;

/// The images of the layout that can run here.
pub(super) fn describe(bundle: &Bundle, limits: &Limits) -> Result<Vec<Recipe>, ImportError> {
    let index = bundle.document(INDEX, limits)?;
    let Manifest::Index { manifests } = Manifest::parse(&index, limits)? else {
        return Err(ManifestError::Ambiguous.into());
    };
    let mut recipes = Vec::new();
    let mut foreign = None;
    for descriptor in manifests {
        match image(bundle, &descriptor, limits) {
            Ok(recipe) => recipes.push(recipe),
            // An index may list one image per platform.
            Err(ImportError::Manifest(error @ ManifestError::Platform)) => foreign = Some(error),
            Err(error) => return Err(error),
        }
    }
    match (recipes.is_empty(), foreign) {
        (true, Some(error)) => Err(error.into()),
        (true, None) => Err(ImportError::Format),
        _ => Ok(recipes),
    }
}

fn image(bundle: &Bundle, top: &Descriptor, limits: &Limits) -> Result<Recipe, ImportError> {
    let mut manifests = vec![bundle.blob(&top.digest, limits)?];
    let name = name(&top.annotations)?;
    let tags = name.iter().filter_map(Reference::tagged).collect();
    let digests = name.iter().map(|name| name.with_digest(&top.digest)).collect();
    let (config, layers) = loop {
        let newest = manifests.last().expect("holds the top document");
        let next = match Manifest::parse(newest, limits)? {
            Manifest::Image { config, layers } => break (config, layers),
            Manifest::Artifact { layers } => return Ok(artifact::recipe(manifests, layers, tags, digests)),
            Manifest::Index { manifests } => manifest::choose(&manifests)?.clone(),
        };
        if manifests.len() > NESTED {
            return Err(ManifestError::Nested.into());
        }
        manifests.push(bundle.blob(&next.digest, limits)?);
    };
    let config_document = bundle.blob(&config.digest, limits)?;
    let config = manifest::parse_config(&config_document, limits)?;
    let layers = manifest::layers(&config, layers.into_iter().map(Some).collect())?;
    Ok(Recipe { config, layers, config_document, manifests, tags, digests, artifact: false })
}

fn name(annotations: &BTreeMap<String, String>) -> Result<Option<Reference>, ImportError> {
    // A lone tag names no image.
    let full = annotations.get(REF_NAME).filter(|name| name.contains([':', '/']));
    let name = annotations.get(NAME).or(full).map(|name| name.parse()).transpose();
    Ok(name?)
}
