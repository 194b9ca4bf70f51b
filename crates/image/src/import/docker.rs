//! What `docker save` writes: `manifest.json`, a configuration per image, a tar per layer.

use serde::Deserialize;

use super::{Bundle, ImportError};
use crate::install::Recipe;
use crate::limits::Limits;
use crate::manifest::{self, ManifestError};
use crate::reference::Reference;

pub(super) const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The images of the archive.
pub(super) fn describe(bundle: &mut Bundle, limits: &Limits) -> Result<Vec<Recipe>, ImportError> {
    let json = |source| ManifestError::Json { document: MANIFEST, source };
    let entries: Vec<Entry> = serde_json::from_slice(&bundle.document(MANIFEST, limits)?).map_err(json)?;
    if entries.is_empty() {
        return Err(ImportError::Format);
    }
    entries.into_iter().map(|entry| image(bundle, entry, limits)).collect()
}

fn image(bundle: &mut Bundle, entry: Entry, limits: &Limits) -> Result<Recipe, ImportError> {
    let config_document = bundle.document(&entry.config, limits)?;
    let config = manifest::parse_config(&config_document, limits)?;
    let layers = manifest::layers(&config, vec![None; entry.layers.len()])?;
    for (layer, name) in layers.iter().zip(&entry.layers) {
        bundle.note_layer(layer.diff_id.clone(), name);
    }
    let names: Vec<Reference> =
        entry.repo_tags.unwrap_or_default().iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
    Ok(Recipe {
        config,
        layers,
        config_document,
        manifests: Vec::new(),
        tags: names.iter().filter_map(Reference::tagged).collect(),
        digests: Vec::new(),
        artifact: false,
    })
}
