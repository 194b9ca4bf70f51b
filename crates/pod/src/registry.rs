//! Which pods and containers there are, and which names are taken.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use api::cri::v1::PodSandboxConfig;
use api::id::{ContainerId, PodId};
use tokio::sync::watch;

use crate::error::LookupError;
use crate::publisher::Handle;

/// A pod's name: four fields that stay four, so that no separator can be forged.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub attempt: u32,
}

impl Name {
    pub(crate) fn of(config: &PodSandboxConfig) -> Self {
        let metadata = config.metadata.clone().unwrap_or_default();
        Self {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            attempt: metadata.attempt,
        }
    }
}

/// Who has a name.
#[derive(Debug, Clone)]
enum Claim {
    /// Somebody is making the pod; the channel closes when that is decided.
    Making(watch::Receiver<()>),
    Made(PodId),
}

/// The answer to asking for a name.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// It is ours until the token is dropped; then the name is free unless the pod was registered.
    Ours(Token),
    /// Somebody is making it: wait, then ask again.
    Wait(watch::Receiver<()>),
    /// The pod exists.
    Made(Arc<Handle>),
}

/// The right to make the pod of a name.
#[derive(Debug)]
pub(crate) struct Token {
    registry: Arc<Registry>,
    name: Name,
    /// Dropping it wakes those who wait.
    _decided: watch::Sender<()>,
}

impl Drop for Token {
    fn drop(&mut self) {
        let mut tables = self.registry.write();
        if matches!(tables.names.get(&self.name), Some(Claim::Making(_))) {
            tables.names.remove(&self.name);
        }
    }
}

#[derive(Debug, Default)]
struct Tables {
    pods: BTreeMap<String, Arc<Handle>>,
    containers: BTreeMap<String, PodId>,
    names: HashMap<Name, Claim>,
}

/// The tables. Locks are held for lookups only, never across a system call.
#[derive(Debug, Default)]
pub(crate) struct Registry(RwLock<Tables>);

impl Registry {
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a name.
    pub(crate) fn claim(self: &Arc<Self>, name: &Name) -> Claimed {
        let mut tables = self.write();
        match tables.names.get(name) {
            Some(Claim::Making(decided)) => Claimed::Wait(decided.clone()),
            Some(Claim::Made(id)) => match tables.pods.get(id.as_str()) {
                Some(handle) => Claimed::Made(Arc::clone(handle)),
                None => self.grant(&mut tables, name),
            },
            None => self.grant(&mut tables, name),
        }
    }

    fn grant(self: &Arc<Self>, tables: &mut Tables, name: &Name) -> Claimed {
        let (sender, receiver) = watch::channel(());
        tables.names.insert(name.clone(), Claim::Making(receiver));
        Claimed::Ours(Token { registry: Arc::clone(self), name: name.clone(), _decided: sender })
    }

    /// Lists a pod and its containers; its name is taken from now on.
    pub(crate) fn insert(&self, handle: Arc<Handle>) {
        let view = handle.view();
        let mut tables = self.write();
        let id = handle.id().clone();
        tables.names.insert(Name::of(&view.sandbox.config), Claim::Made(id.clone()));
        for container in &view.containers {
            tables.containers.insert(container.id().as_str().to_owned(), id.clone());
        }
        tables.pods.insert(id.as_str().to_owned(), handle);
    }

    /// Forgets a pod; its name is free.
    pub(crate) fn remove(&self, id: &PodId) {
        let mut tables = self.write();
        tables.pods.remove(id.as_str());
        tables.names.retain(|_, claim| !matches!(claim, Claim::Made(made) if made == id));
        tables.containers.retain(|_, pod| pod != id);
    }

    pub(crate) fn insert_container(&self, id: &ContainerId, pod: &PodId) {
        self.write().containers.insert(id.as_str().to_owned(), pod.clone());
    }

    pub(crate) fn remove_container(&self, id: &ContainerId) {
        self.write().containers.remove(id.as_str());
    }

    pub(crate) fn pod(&self, id: &PodId) -> Result<Arc<Handle>, LookupError> {
        let found = self.read().pods.get(id.as_str()).cloned();
        found.ok_or_else(|| not_found("pod sandbox", id.as_str()))
    }

    pub(crate) fn pod_of(&self, id: &ContainerId) -> Result<Arc<Handle>, LookupError> {
        let tables = self.read();
        let pod = tables.containers.get(id.as_str()).and_then(|pod| tables.pods.get(pod.as_str()));
        pod.cloned().ok_or_else(|| not_found("container", id.as_str()))
    }

    pub(crate) fn pods(&self) -> Vec<Arc<Handle>> {
        self.read().pods.values().cloned().collect()
    }

    /// The pod whose id starts with `prefix`.
    pub(crate) fn find_pod(&self, prefix: &str) -> Result<PodId, LookupError> {
        let id = find(&self.read().pods, prefix, "pod sandbox")?;
        id.parse().map_err(|_| not_found("pod sandbox", prefix))
    }

    /// The container whose id starts with `prefix`.
    pub(crate) fn find_container(&self, prefix: &str) -> Result<ContainerId, LookupError> {
        let id = find(&self.read().containers, prefix, "container")?;
        id.parse().map_err(|_| not_found("container", prefix))
    }
}

/// The only key that starts with `prefix`, which must not be empty.
fn find<V>(map: &BTreeMap<String, V>, prefix: &str, kind: &'static str) -> Result<String, LookupError> {
    if prefix.is_empty() {
        return Err(not_found(kind, prefix));
    }
    let mut from = map.range(prefix.to_owned()..).map(|(id, _)| id).take_while(|id| id.starts_with(prefix));
    match (from.next(), from.next()) {
        (None, _) => Err(not_found(kind, prefix)),
        (Some(id), None) => Ok(id.clone()),
        (Some(id), Some(_)) if id == prefix => Ok(id.clone()),
        (Some(_), Some(_)) => Err(LookupError::Ambiguous { kind, id: short(prefix) }),
    }
}

fn not_found(kind: &'static str, id: &str) -> LookupError {
    LookupError::NotFound { kind, id: short(id) }
}

fn short(id: &str) -> String {
    id.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_must_mean_one_object() {
        let map: BTreeMap<_, _> = ["abc1", "abc2", "b"].map(|id| (id.to_owned(), ())).into();
        assert_eq!(find(&map, "abc1", "container").unwrap(), "abc1");
        assert_eq!(find(&map, "b", "container").unwrap(), "b");
        assert!(matches!(find(&map, "abc", "container"), Err(LookupError::Ambiguous { .. })));
        for absent in ["", "c", "abc11"] {
            assert!(
                matches!(find(&map, absent, "container"), Err(LookupError::NotFound { .. })),
                "{absent:?}"
            );
        }
    }

    #[test]
    fn a_name_is_given_once_and_comes_back() {
        let registry = Arc::new(Registry::default());
        let name = Name { name: "a".into(), namespace: "b".into(), uid: "c".into(), attempt: 0 };
        let Claimed::Ours(token) = registry.claim(&name) else { panic!("the first claim is ours") };
        assert!(matches!(registry.claim(&name), Claimed::Wait(_)));
        let other = Name { name: "a_b".into(), namespace: String::new(), ..name.clone() };
        assert!(matches!(registry.claim(&other), Claimed::Ours(_)));
        drop(token);
        assert!(matches!(registry.claim(&name), Claimed::Ours(_)));
    }
}
