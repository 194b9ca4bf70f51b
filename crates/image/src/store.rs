//! The node's images: catalogue in memory, its database, blobs and layers, and who may change them when.
//!
//! Two locks. A **chain lock** is held by a pull for each layer it needs, bottom first, from looking whether the layer
//! is there until it is committed: two pulls never fetch one layer twice, and a sweep never takes a layer that a pull
//! counts on. The **commit lock** is held while the catalogue changes, for milliseconds.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use tokio::sync::{Mutex as ChainLock, OwnedMutexGuard};

use crate::catalogue::{Catalogue, Garbage};
use crate::content::{ContentStore, StoreError};
use crate::digest::{ChainId, ImageId};
use crate::layers::LayerStore;
use crate::metadata::{Metadata, MetadataError};

/// Why stored images cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) content: ContentStore,
    pub(crate) layers: LayerStore,
    metadata: Metadata,
    catalogue: RwLock<Arc<Catalogue>>,
    commit: Mutex<()>,
    holds: Mutex<HashMap<ImageId, Weak<()>>>,
    chains: Mutex<HashMap<ChainId, Arc<ChainLock<()>>>>,
}

/// An image stays on the disk for as long as this value lives, even if it is removed meanwhile.
#[derive(Debug, Clone)]
pub struct Hold {
    _held: Arc<()>,
}

/// The right to change the catalogue.
#[derive(Debug)]
pub(crate) struct Commit<'a> {
    store: &'a Store,
    old: Arc<Catalogue>,
    _lock: MutexGuard<'a, ()>,
}

impl Store {
    /// Opens the store below `root`: leftovers of earlier processes go, images that miss a layer are forgotten.
    pub(crate) fn open(root: &Path) -> Result<Self, CommitError> {
        for directory in ["layers", "content"].map(|name| root.join(name)) {
            std::fs::create_dir_all(&directory).map_err(StoreError::on("make", &directory))?;
            // Layers hold set-id files and devices of other people (CVE-2021-41103).
            let private = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(&directory, private).map_err(StoreError::on("chmod", &directory))?;
        }
        let metadata = Metadata::open(&root.join("images.redb"))?;
        let stored = metadata.load()?;
        let known = |number| stored.layers.values().any(|layer| layer.directory == number);
        let layers = LayerStore::open(root, known)?;
        let content = ContentStore::open(root)?;
        let whole = complete(&stored, &layers);
        metadata.save(&stored, &whole)?;
        let documents = whole.documents();
        content.retain(|digest| documents.contains(digest))?;
        let catalogue = RwLock::new(Arc::new(whole));
        let (commit, holds, chains) = (Mutex::default(), Mutex::default(), Mutex::default());
        Ok(Self { content, layers, metadata, catalogue, commit, holds, chains })
    }

    /// What there is now.
    pub(crate) fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(&self.catalogue.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins a change. Blocks for other changes.
    pub(crate) fn begin(&self) -> Commit<'_> {
        let lock = self.commit.lock().unwrap_or_else(PoisonError::into_inner);
        Commit { store: self, old: self.catalogue(), _lock: lock }
    }

    /// Locks `chain` and everything below it, which must come in that order.
    pub(crate) async fn lock(&self, chains: impl Iterator<Item = &ChainId>) -> Vec<OwnedMutexGuard<()>> {
        let mut guards = Vec::new();
        for chain in chains {
            guards.push(self.chain(chain).lock_owned().await);
        }
        guards
    }

    /// Keeps an image, removed or not, from being swept.
    pub(crate) fn hold(&self, id: &ImageId) -> Option<Hold> {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked up under the lock: a sweep publishes under it too.
        self.catalogue().images.get(id)?;
        let held = holds.get(id).and_then(Weak::upgrade).unwrap_or_default();
        holds.insert(id.clone(), Arc::downgrade(&held));
        Some(Hold { _held: held })
    }

    /// Takes away what nothing needs. Blocks.
    pub(crate) fn sweep(&self) -> Result<(), CommitError> {
        if !self.catalogue().images.values().any(|image| image.removed) {
            return Ok(());
        }
        let commit = self.begin();
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        holds.retain(|_, held| held.strong_count() > 0);
        let mut guards = HashMap::new();
        for chain in commit.old.layers.keys() {
            if let Ok(guard) = self.chain(chain).try_lock_owned() {
                guards.insert(chain.clone(), guard);
            }
        }
        let (new, Garbage { directories, documents }) =
            commit.old.swept(|id| holds.contains_key(id), |chain| !guards.contains_key(chain));
        commit.publish(new)?;
        drop(holds);
        for number in directories {
            self.layers.remove(number)?;
        }
        Ok(documents.iter().try_for_each(|digest| self.content.remove(digest))?)
    }

    fn chain(&self, chain: &ChainId) -> Arc<ChainLock<()>> {
        let mut chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        chains.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(chains.entry(chain.clone()).or_default())
    }
}

impl Commit<'_> {
    pub(crate) fn catalogue(&self) -> &Catalogue {
        &self.old
    }

    /// Stores the new catalogue and shows it; on an error the old one stands.
    pub(crate) fn publish(&self, new: Catalogue) -> Result<(), MetadataError> {
        if *self.old != new {
            self.store.metadata.save(&self.old, &new)?;
            *self.store.catalogue.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        }
        Ok(())
    }
}

/// Without layers whose directory is lost, and without images that need one of them.
fn complete(stored: &Catalogue, layers: &LayerStore) -> Catalogue {
    let mut whole = stored.clone();
    whole.layers.retain(|_, layer| layers.exists(layer.directory));
    whole.images.retain(|id, image| {
        let complete = image.layers.iter().all(|chain| whole.layers.contains_key(chain));
        if !complete {
            tracing::warn!(image = %id, "image misses a layer and is forgotten: pull it again");
        }
        complete
    });
    whole
}
