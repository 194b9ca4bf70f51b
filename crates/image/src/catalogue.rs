//! Which images, layers and proofs there are, and what a name means: pure values, no input or output.
//!
//! A catalogue is never changed in place: an operation makes a new one, [`crate::metadata`] stores the difference,
//! and only then readers see it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::digest::{ChainId, DiffId, Digest, ImageId};
use crate::reference::Reference;

/// Fewest digits of an image id that may stand for it.
const SHORTEST_PREFIX: usize = 3;

/// An image of this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of its configuration.
    pub id: ImageId,
    /// Its names with tags, sorted: `docker.io/library/busybox:1`.
    pub repo_tags: Vec<String>,
    /// Its names with digests of manifests, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes of its files and its configuration.
    pub size: u64,
    /// Its layers, bottom first.
    pub layers: Vec<ChainId>,
    /// What it says about how to run it. From the registry: checked for shape, not for sense.
    pub config: ImageConfiguration,
    /// It is an OCI artifact: its layers can be a volume, but no container's root; its id is its manifest's digest.
    #[serde(default)]
    pub artifact: bool,
    /// Blobs that belong to it: configuration and manifests.
    pub(crate) documents: BTreeSet<Digest>,
    /// Gone from the list, but perhaps still used by a container.
    pub(crate) removed: bool,
}

impl Image {
    /// The id of all its layers together; `None` for an image without layers.
    #[must_use]
    pub fn chain_id(&self) -> Option<&ChainId> {
        self.layers.last()
    }

    fn answers_to(&self, name: &str) -> bool {
        self.repo_tags.iter().chain(&self.repo_digests).any(|known| known == name)
    }
}

/// A layer's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Number of the directory below `layers`; short, because overlayfs' options are.
    pub(crate) directory: u64,
    pub(crate) diff_id: DiffId,
    /// Bytes of its files.
    pub(crate) bytes: u64,
    /// Bytes it takes on the disk, roughly.
    pub(crate) disk: u64,
    pub(crate) inodes: u64,
    /// Nothing of the layers below shows through.
    pub(crate) hides_everything: bool,
}

/// That a blob was seen, whole, and what was in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proof {
    pub(crate) diff_id: DiffId,
    /// Registries that sent it.
    pub(crate) sources: BTreeSet<String>,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Catalogue {
    pub(crate) images: BTreeMap<ImageId, Arc<Image>>,
    pub(crate) layers: BTreeMap<ChainId, LayerRecord>,
    pub(crate) proofs: BTreeMap<Digest, Proof>,
}

/// What a sweep takes away.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Garbage {
    pub(crate) directories: Vec<u64>,
    pub(crate) documents: Vec<Digest>,
}

impl Catalogue {
    /// The images that are listed.
    pub(crate) fn listed(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images.values().filter(|image| !image.removed)
    }

    /// The image that a name, an id or the beginning of exactly one id means.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<Image>> {
        if let Ok(id) = name.parse::<ImageId>() {
            return self.images.get(&id).filter(|image| !image.removed);
        }
        self.by_name(name).or_else(|| self.by_prefix(name))
    }

    fn by_name(&self, name: &str) -> Option<&Arc<Image>> {
        let name = name.parse::<Reference>().ok()?.to_string();
        self.listed().find(|image| image.answers_to(&name))
    }

    fn by_prefix(&self, prefix: &str) -> Option<&Arc<Image>> {
        let prefix = prefix.strip_prefix("sha256:").unwrap_or(prefix);
        if prefix.len() < SHORTEST_PREFIX {
            return None;
        }
        let mut found = self.listed().filter(|image| image.id.digest().hex().starts_with(prefix));
        found.next().filter(|_| found.next().is_none())
    }

    /// With `image`, merged with what is known of it already; its tags leave the images they pointed to.
    pub(crate) fn with_image(&self, image: Image) -> Self {
        let mut new = self.clone();
        for other in new.images.values_mut().filter(|other| other.id != image.id) {
            if other.repo_tags.iter().any(|tag| image.repo_tags.contains(tag)) {
                Arc::make_mut(other).repo_tags.retain(|tag| !image.repo_tags.contains(tag));
            }
        }
        let merged = match new.images.remove(&image.id) {
            Some(known) if !known.removed => merge(&known, image),
            Some(known) => Image { documents: &known.documents | &image.documents, ..image },
            None => image,
        };
        new.images.insert(merged.id.clone(), Arc::new(merged));
        new
    }

    /// Without the image that `name` means and all its names; `None` when there is no such image.
    pub(crate) fn without_image(&self, name: &str) -> Option<Self> {
        let id = self.find(name)?.id.clone();
        let mut new = self.clone();
        let image = Arc::make_mut(new.images.get_mut(&id)?);
        image.removed = true;
        image.repo_tags.clear();
        image.repo_digests.clear();
        Some(new)
    }

    /// Without what no listed image and no image in use needs. Layers for which `busy` is true stay.
    pub(crate) fn swept(
        &self,
        in_use: impl Fn(&ImageId) -> bool,
        busy: impl Fn(&ChainId) -> bool,
    ) -> (Self, Garbage) {
        let mut new = self.clone();
        new.images.retain(|id, image| !image.removed || in_use(id));
        let needed: BTreeSet<_> = new.images.values().flat_map(|image| image.layers.clone()).collect();
        new.layers.retain(|chain, _| needed.contains(chain) || busy(chain));
        let diffs: BTreeSet<_> = new.layers.values().map(|layer| layer.diff_id.clone()).collect();
        new.proofs.retain(|_, proof| diffs.contains(&proof.diff_id));
        let gone = |chain: &&ChainId| !new.layers.contains_key(*chain);
        let directories = self.layers.keys().filter(gone).map(|chain| self.layers[chain].directory).collect();
        let documents = &self.documents() - &new.documents();
        (new, Garbage { directories, documents: documents.into_iter().collect() })
    }

    /// Every blob that some image needs.
    pub(crate) fn documents(&self) -> BTreeSet<Digest> {
        self.images.values().flat_map(|image| image.documents.iter().cloned()).collect()
    }
}

/// The union of what two pulls said about one image.
fn merge(known: &Image, new: Image) -> Image {
    let union = |a: &[String], b: Vec<String>| {
        a.iter().cloned().chain(b).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    Image {
        repo_tags: union(&known.repo_tags, new.repo_tags),
        repo_digests: union(&known.repo_digests, new.repo_digests),
        documents: &known.documents | &new.documents,
        ..new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(content: &str, tags: &[&str], layers: &[&str]) -> Image {
        let id = ImageId::from(Digest::of(content.as_bytes()));
        Image {
            documents: [id.digest().clone()].into(),
            id,
            repo_tags: tags.iter().map(|t| t.parse::<Reference>().unwrap().to_string()).collect(),
            repo_digests: vec![format!("docker.io/library/x@{}", Digest::of(content.as_bytes()))],
            size: 1,
            layers: layers.iter().map(|l| ChainId::from(Digest::of(l.as_bytes()))).collect(),
            config: ImageConfiguration::default(),
            artifact: false,
            removed: false,
        }
    }

    fn with_layers(mut catalogue: Catalogue, layers: &[&str]) -> Catalogue {
        for (directory, layer) in (1..).zip(layers) {
            let digest = Digest::of(layer.as_bytes());
            let record = LayerRecord {
                directory,
                diff_id: digest.clone().into(),
                bytes: 0,
                disk: 0,
                inodes: 0,
                hides_everything: false,
            };
            let proof = Proof { diff_id: digest.clone().into(), sources: ["r".to_owned()].into() };
            catalogue.proofs.insert(Digest::of(format!("blob {layer}").as_bytes()), proof);
            catalogue.layers.insert(digest.into(), record);
        }
        catalogue
    }

    #[test]
    fn an_image_answers_to_tag_digest_id_and_unique_prefix() {
        let (a, b) = (image("a", &["x:1", "y"], &[]), image("b", &["x:2"], &[]));
        let catalogue = Catalogue::default().with_image(a.clone()).with_image(b.clone());
        let hex = a.id.digest().hex().to_owned();
        let digest = format!("x@{}", a.id);
        for name in
            ["x:1", "y", "y:latest", "docker.io/library/x:1", a.id.as_str(), &hex, &hex[..12], &digest]
        {
            assert_eq!(catalogue.find(name).map(|i| &i.id), Some(&a.id), "{name}");
        }
        for name in ["x", "z", "", "sha256:", "x:1 ", &hex[..2], &digest.replace("x@", "y@")] {
            assert_eq!(catalogue.find(name), None, "{name}");
        }
    }

    #[test]
    fn a_tag_moves_and_an_image_gathers_names() {
        let (a, b) = (image("a", &["x:1"], &[]), image("b", &["x:1"], &[]));
        let again = image("a", &["y:1"], &[]);
        let catalogue = Catalogue::default().with_image(a.clone()).with_image(again).with_image(b.clone());
        assert_eq!(catalogue.find("x:1").unwrap().id, b.id);
        assert_eq!(catalogue.find("y:1").unwrap().id, a.id);
        assert_eq!(catalogue.images[&a.id].repo_tags, ["docker.io/library/y:1"]);
    }

    #[test]
    fn removing_one_name_removes_the_image_with_all_names() {
        let a = image("a", &["x:1", "y:1"], &["l"]);
        let catalogue = Catalogue::default().with_image(a.clone()).without_image("y:1").unwrap();
        for name in ["x:1", "y:1", a.id.as_str(), &a.id.digest().hex()[..12]] {
            assert_eq!(catalogue.find(name), None);
        }
        assert_eq!(catalogue.listed().count(), 0);
        assert!(catalogue.without_image("x:1").is_none());
        assert_eq!(
            catalogue.with_image(image("a", &["x:1"], &["l"])).find("x:1").unwrap().repo_tags.len(),
            1
        );
    }

    #[test]
    fn a_sweep_spares_what_is_listed_in_use_or_being_pulled() {
        let (a, b) = (image("a", &["a"], &["base", "a"]), image("b", &["b"], &["base", "b"]));
        let full = with_layers(Catalogue::default(), &["base", "a", "b", "pull"])
            .with_image(a)
            .with_image(b.clone());
        let pulling = |chain: &ChainId| *chain.digest() == Digest::of(b"pull");
        assert_eq!(full.swept(|_| false, pulling).1, Garbage::default());

        let removed = full.without_image("b").unwrap();
        assert_eq!(removed.swept(|id| *id == b.id, pulling).1, Garbage::default());
        let (swept, garbage) = removed.swept(|_| false, pulling);
        assert_eq!(garbage, Garbage { directories: vec![3], documents: vec![b.id.digest().clone()] });
        assert_eq!((swept.images.len(), swept.layers.len(), swept.proofs.len()), (1, 3, 3));
        assert_eq!(swept.swept(|_| false, |_| false).1.directories, [4]);
    }
}
