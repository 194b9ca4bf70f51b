//! From a description of an image to an image of this node: fetch the layers that are missing, then commit all.
//!
//! ```text
//! lock chains -> for each layer: have it, or fetch + hash + unpack (3 at a time) -> name directories -> one transaction
//! ```
//! A layer that is here already is used only after *this* installation has shown that it may: the registry that once
//! sent the blob says that it would send it again, or the blob is fetched and hashed all over. A configuration that
//! merely lists the diff ids of someone else's layers gains nothing.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use oci_spec::image::ImageConfiguration;
use tokio::sync::OwnedMutexGuard;

use crate::catalogue::{Catalogue, Image, LayerRecord, Proof};
use crate::content::StoreError;
use crate::digest::{Digest, ImageId};
use crate::import::Bundle;
use crate::ingest::{self, Expected, LayerError};
use crate::layers::{self, NewLayer};
use crate::limits::Limits;
use crate::manifest::{Content, Layer};
use crate::registry::Repository;
use crate::store::{CommitError, Store};
use crate::unpack::Unpacked;

/// Layers of one image in flight, as in containerd.
const CONCURRENT: usize = 3;
/// Bytes from which on a layer is written to the disk while the next ones are unpacked.
const LARGE: u64 = 16 << 20;

/// Why an image that was described well did not get here.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// One of its layers.
    #[error("layer {layer}")]
    Layer {
        /// Digest of the blob, else its diff id.
        layer: Digest,
        /// What is wrong with it.
        #[source]
        source: LayerError,
    },
    /// This node's disk or database.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl From<StoreError> for InstallError {
    fn from(error: StoreError) -> Self {
        Self::Commit(error.into())
    }
}

/// Where layers come from.
#[derive(Debug)]
pub(crate) enum Origin {
    Registry(Repository),
    Archive(Bundle),
}

/// An image to be.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) config: ImageConfiguration,
    pub(crate) layers: Vec<Layer>,
    /// The configuration, as it came; its digest is the image's id.
    pub(crate) config_document: Vec<u8>,
    /// Manifests and indexes, as they came.
    pub(crate) manifests: Vec<Vec<u8>>,
    pub(crate) tags: Vec<String>,
    pub(crate) digests: Vec<String>,
    pub(crate) artifact: bool,
}

/// A layer that was not here, and the place that sent it.
#[derive(Debug)]
struct Fetched {
    made: Option<(NewLayer, Unpacked)>,
    source: Option<String>,
}

/// Installs an image. Dropping the future leaves nothing behind.
pub(crate) async fn install(
    store: &Arc<Store>,
    recipe: Recipe,
    origin: &Origin,
    limits: &Limits,
) -> Result<ImageId, InstallError> {
    let locks = store.lock(recipe.layers.iter().map(|layer| &layer.chain_id)).await;
    let layers: Vec<_> = recipe.layers.iter().map(|layer| obtain(store, layer, origin, limits)).collect();
    let fetched: Vec<Fetched> = stream::iter(layers).buffered(CONCURRENT).try_collect().await?;
    let store = Arc::clone(store);
    blocking(move || {
        // Before the commit, which holds the store's lock.
        if let Some(new) = fetched.iter().find_map(large) {
            new.write_out()?;
        }
        commit(&store, recipe, fetched, locks)
    })
    .await
}

/// The layer, if it is new and large.
fn large(fetched: &Fetched) -> Option<&NewLayer> {
    fetched.made.as_ref().filter(|(_, unpacked)| unpacked.bytes >= LARGE).map(|(new, _)| new)
}

/// Makes sure that a layer is here, or makes it.
async fn obtain(
    store: &Arc<Store>,
    layer: &Layer,
    origin: &Origin,
    limits: &Limits,
) -> Result<Fetched, InstallError> {
    let blob = layer.blob.as_ref().map(|blob| &blob.digest);
    let name = || blob.unwrap_or(layer.diff_id.digest()).clone();
    let fetched = obtain_from(store, layer, origin, limits).await;
    let fetched = fetched.map_err(|source| InstallError::Layer { layer: name(), source })?;
    if let Some(new) = large(&fetched)
        && let Ok(root) = new.root().try_clone()
    {
        // Meanwhile the next layers are unpacked. What fails here fails again when the layer gets its name.
        drop(tokio::task::spawn_blocking(move || rustix::fs::syncfs(root)));
    }
    Ok(fetched)
}

async fn obtain_from(
    store: &Arc<Store>,
    layer: &Layer,
    origin: &Origin,
    limits: &Limits,
) -> Result<Fetched, LayerError> {
    let catalogue = store.catalogue();
    let here = catalogue.layers.contains_key(&layer.chain_id);
    match origin {
        Origin::Archive(bundle) => {
            let blob = bundle.layer(layer)?;
            let made = ingest_blob(store, layer, here, blob, limits).await?;
            Ok(Fetched { made, source: None })
        }
        Origin::Registry(repository) => {
            let blob =
                &layer.blob.as_ref().expect("a registry's manifest has a descriptor for every layer").digest;
            if here && may_reuse(repository, catalogue.proofs.get(blob), layer, blob).await {
                return Ok(Fetched { made: None, source: None });
            }
            fetch(store, layer, here, repository, blob, limits).await
        }
    }
}

/// True if a registry that sent this very blob before would send it to this pull too.
async fn may_reuse(repository: &Repository, proof: Option<&Proof>, layer: &Layer, blob: &Digest) -> bool {
    let Some(proof) = proof.filter(|proof| proof.diff_id == layer.diff_id) else { return false };
    for source in repository.sources().filter(|source| proof.sources.contains(source.name())) {
        if source.has(blob).await {
            return true;
        }
    }
    false
}

/// Fetches a blob from the first place that sends the right bytes.
async fn fetch(
    store: &Arc<Store>,
    layer: &Layer,
    here: bool,
    repository: &Repository,
    blob: &Digest,
    limits: &Limits,
) -> Result<Fetched, LayerError> {
    let mut failure = None;
    for source in repository.sources() {
        let outcome = match source.open(blob).await {
            Ok((reader, _transfer)) => ingest_blob(store, layer, here, reader, limits).await,
            Err(error) => Err(error.into()),
        };
        match outcome {
            Ok(made) => return Ok(Fetched { made, source: Some(source.name().to_owned()) }),
            Err(error) => {
                tracing::debug!(source = source.name(), %blob, %error, "blob did not arrive");
                failure = Some(error);
            }
        }
    }
    Err(failure.expect("a repository has at least one source"))
}

/// Unpacks a blob, or only checks it when its content is here.
async fn ingest_blob(
    store: &Arc<Store>,
    layer: &Layer,
    here: bool,
    blob: impl Read + Send + 'static,
    limits: &Limits,
) -> Result<Option<(NewLayer, Unpacked)>, LayerError> {
    let expected = Expected {
        blob: layer.blob.as_ref().map(|blob| (blob.digest.clone(), blob.size)),
        diff_id: (layer.content == Content::Listed).then(|| layer.diff_id.clone()),
    };
    let (store, limits, content) = (Arc::clone(store), limits.clone(), layer.content.clone());
    blocking(move || {
        if here {
            return ingest::verify(blob, &expected, &limits).map(|()| None);
        }
        let new = store.layers.begin()?;
        let unpacked = match content {
            Content::File(title) => ingest::file(blob, &expected, &title, new.root().as_fd(), &limits),
            _ => ingest::unpack(blob, &expected, new.root().as_fd(), &limits),
        };
        Ok(Some((new, unpacked?)))
    })
    .await
}

/// Gives everything its name, then writes one transaction.
fn commit(
    store: &Store,
    recipe: Recipe,
    fetched: Vec<Fetched>,
    locks: Vec<OwnedMutexGuard<()>>,
) -> Result<ImageId, InstallError> {
    let commit = store.begin();
    let mut catalogue = commit.catalogue().clone();
    let mut fresh = Vec::new();
    // Top first, as far as it is known yet.
    let mut below: Vec<OwnedFd> = Vec::new();
    for (layer, fetched) in recipe.layers.iter().zip(fetched) {
        if let Some(source) = fetched.source {
            let proof = Proof { diff_id: layer.diff_id.clone(), sources: [source].into() };
            prove(&mut catalogue, layer, proof);
        }
        match fetched.made {
            Some((new, unpacked)) => {
                new.inherit(&unpacked.implied, &below)?;
                catalogue.layers.insert(layer.chain_id.clone(), record(layer, &new, &unpacked));
                below.insert(0, new.root().try_clone().map_err(StoreError::on("open", "layers".as_ref()))?);
                fresh.push(new);
            }
            None => {
                let known = &catalogue.layers[&layer.chain_id];
                below.insert(0, layers::open(&store.layers.directory(known.directory))?);
            }
        }
    }
    let numbers: Vec<_> = fresh.iter().map(NewLayer::number).collect();
    store.layers.keep(&fresh)?;
    let image = image(store, recipe, &catalogue)?;
    let id = image.id.clone();
    if let Err(error) = commit.publish(catalogue.with_image(image)) {
        numbers.into_iter().try_for_each(|number| store.layers.remove(number))?;
        return Err(CommitError::from(error).into());
    }
    drop(locks);
    tracing::info!(image = %id, "image is here");
    Ok(id)
}

fn prove(catalogue: &mut Catalogue, layer: &Layer, proof: Proof) {
    let Some(blob) = &layer.blob else { return };
    let known = catalogue.proofs.entry(blob.digest.clone()).or_insert_with(|| proof.clone());
    known.sources.extend(proof.sources);
}

fn record(layer: &Layer, new: &NewLayer, unpacked: &Unpacked) -> LayerRecord {
    LayerRecord {
        directory: new.number(),
        diff_id: layer.diff_id.clone(),
        bytes: unpacked.bytes,
        disk: unpacked.disk,
        inodes: unpacked.inodes,
        hides_everything: unpacked.hides_everything,
    }
}

fn image(store: &Store, recipe: Recipe, catalogue: &Catalogue) -> Result<Image, StoreError> {
    let id = store.content.put(&recipe.config_document)?;
    let mut documents = std::collections::BTreeSet::from([id.clone()]);
    for manifest in &recipe.manifests {
        documents.insert(store.content.put(manifest)?);
    }
    let layers: Vec<_> = recipe.layers.into_iter().map(|layer| layer.chain_id).collect();
    let files: u64 = layers.iter().map(|chain| catalogue.layers[chain].bytes).sum();
    Ok(Image {
        id: id.into(),
        repo_tags: recipe.tags,
        repo_digests: recipe.digests,
        size: files + recipe.config_document.len() as u64,
        layers,
        config: recipe.config,
        artifact: recipe.artifact,
        documents,
        removed: false,
    })
}

/// Runs `work` where it may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
