//! What people type: an id, the start of one, a name, or a name with its namespace or pod before a slash.

use api::cri::v1::{
    Container, ContainerState, ListContainersRequest, ListPodSandboxRequest, PodSandbox, PodSandboxState,
};

use crate::{client::Node, error::Error, format};

/// A pod or a container.
#[derive(Debug)]
pub enum Object {
    Pod(PodSandbox),
    Container(Container),
}

/// One thing with an id and names.
trait Named {
    fn id(&self) -> &str;
    fn is_called(&self, name: &str) -> bool;
    /// Preferred over others of the same name.
    fn is_live(&self) -> bool;
}

impl Named for PodSandbox {
    fn id(&self) -> &str {
        &self.id
    }

    fn is_called(&self, name: &str) -> bool {
        let Some(own) = &self.metadata else { return false };
        own.name == name
            || name.strip_suffix(&own.name).is_some_and(|start| start == format!("{}/", own.namespace))
    }

    fn is_live(&self) -> bool {
        self.state() == PodSandboxState::SandboxReady
    }
}

impl Named for InPod {
    fn id(&self) -> &str {
        &self.container.id
    }

    fn is_called(&self, name: &str) -> bool {
        let Some(own) = &self.container.metadata else { return false };
        own.name == name
            || name.strip_suffix(&own.name).is_some_and(|start| start == format!("{}/", self.pod))
    }

    fn is_live(&self) -> bool {
        self.container.state() == ContainerState::ContainerRunning
    }
}

/// A container with its pod's name.
struct InPod {
    container: Container,
    pod: String,
}

/// All pods, newest last.
pub async fn pods(node: &Node) -> Result<Vec<PodSandbox>, Error> {
    let list = node.runtime.clone().list_pod_sandbox(ListPodSandboxRequest::default()).await;
    let mut pods = list.map_err(Error::refused("list pods"))?.into_inner().items;
    pods.sort_by_key(|p| p.created_at);
    Ok(pods)
}

/// All containers, newest last.
pub async fn containers(node: &Node) -> Result<Vec<Container>, Error> {
    let list = node.runtime.clone().list_containers(ListContainersRequest::default()).await;
    let mut containers = list.map_err(Error::refused("list containers"))?.into_inner().containers;
    containers.sort_by_key(|c| c.created_at);
    Ok(containers)
}

pub async fn pod(node: &Node, name: &str) -> Result<PodSandbox, Error> {
    pick(pods(node).await?, name)?.ok_or_else(|| missing("pod", name, "meridian pods"))
}

pub async fn container(node: &Node, name: &str) -> Result<Container, Error> {
    let found = pick(named(node).await?, name)?.map(|n| n.container);
    found.ok_or_else(|| missing("container", name, "meridian ps --all"))
}

/// A pod or a container. A name that both share means the pod.
pub async fn any(node: &Node, name: &str) -> Result<Object, Error> {
    if let Some(pod) = pick(pods(node).await?, name)? {
        return Ok(Object::Pod(pod));
    }
    let container = pick(named(node).await?, name)?.map(|n| n.container);
    container
        .map(Object::Container)
        .ok_or_else(|| missing("pod or container", name, "meridian pods, meridian ps --all"))
}

async fn named(node: &Node) -> Result<Vec<InPod>, Error> {
    let pods = pods(node).await?;
    let pod_name = |id: &str| {
        let pod = pods.iter().find(|p| p.id == id).and_then(|p| p.metadata.as_ref());
        pod.map(|m| m.name.clone()).unwrap_or_default()
    };
    let containers = containers(node).await?;
    Ok(containers
        .into_iter()
        .map(|container| InPod { pod: pod_name(&container.pod_sandbox_id), container })
        .collect())
}

/// The one that is meant: by full id, by name (a live one before a dead one), by the start of its id.
fn pick<T: Named>(list: Vec<T>, name: &str) -> Result<Option<T>, Error> {
    let by =
        |test: &dyn Fn(&T) -> bool| -> Vec<usize> { (0..list.len()).filter(|&i| test(&list[i])).collect() };
    let steps = [
        by(&|t| t.id() == name),
        by(&|t| t.is_called(name) && t.is_live()),
        by(&|t| t.is_called(name)),
        by(&|t| !name.is_empty() && t.id().starts_with(name)),
    ];
    let Some(found) = steps.into_iter().find(|found| !found.is_empty()) else { return Ok(None) };
    if let [one] = found[..] {
        return Ok(list.into_iter().nth(one));
    }
    let candidates: Vec<&str> = found.iter().map(|&i| format::short(list[i].id())).collect();
    Err(Error::Ambiguous { name: name.to_owned(), candidates: candidates.join(", ") })
}

fn missing(kind: &'static str, name: &str, list: &'static str) -> Error {
    Error::NotFound { kind, name: name.to_owned(), list }
}

#[cfg(test)]
mod tests {
    use api::cri::v1::PodSandboxMetadata;

    use super::*;

    fn a_pod(id: &str, namespace: &str, name: &str, state: PodSandboxState) -> PodSandbox {
        let metadata =
            PodSandboxMetadata { name: name.into(), namespace: namespace.into(), ..Default::default() };
        PodSandbox { id: id.into(), metadata: Some(metadata), state: state as i32, ..Default::default() }
    }

    fn found(name: &str) -> String {
        use PodSandboxState::{SandboxNotready, SandboxReady};
        let list = vec![
            a_pod("aa11", "shop", "web", SandboxReady),
            a_pod("aa22", "shop", "web", SandboxNotready),
            a_pod("bb33", "bank", "web2", SandboxReady),
            a_pod("cc44", "bank", "db", SandboxReady),
            a_pod("cc55", "shop", "db", SandboxReady),
        ];
        match pick(list, name) {
            Ok(Some(pod)) => pod.id,
            Ok(None) => "none".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn ids_names_and_starts_of_ids() {
        assert_eq!(found("aa22"), "aa22");
        assert_eq!(found("web"), "aa11", "the live one of two");
        assert_eq!(found("bank/db"), "cc44");
        assert_eq!(found("b"), "bb33");
        assert_eq!(found("nothing"), "none");
        assert_eq!(found(""), "none");
        assert_eq!(found("db"), "\"db\" could be any of cc44, cc55: give more of the id");
        assert_eq!(found("aa"), "\"aa\" could be any of aa11, aa22: give more of the id");
    }
}
