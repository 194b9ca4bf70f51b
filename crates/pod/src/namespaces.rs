//! Which namespaces a pod's containers are in, for people.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use api::id::PodId;
use api::meridian::v1::{Member, Namespace, NamespacesResponse, TimeOffsets};
use namespaces::{NamespaceKind, identify, relate};
use sys::Pid;

use crate::container::Container;
use crate::error::LookupError;
use crate::pod::Pod;
use crate::pods::Pods;

impl Pods {
    /// The namespaces of a pod: those pinned for it and those its containers are in, by kind.
    ///
    /// A container that ends while we look is left out.
    pub fn namespaces(&self, id: &PodId) -> Result<NamespacesResponse, LookupError> {
        let handle = self.registry.pod(id)?;
        let mut found = Found::default();
        found.pins(&handle.pod);
        for container in &handle.view().containers {
            found.members(container);
        }
        let name = handle.pod.config.metadata.as_ref().map(|m| m.name.clone());
        Ok(NamespacesResponse {
            pod_id: id.to_string(),
            pod_name: name.unwrap_or_default(),
            namespaces: found.0.into_values().collect(),
        })
    }
}

/// By position of the kind in [`NamespaceKind::ALL`] and inode.
#[derive(Default)]
struct Found(BTreeMap<(usize, u64), Namespace>);

impl Found {
    fn pins(&mut self, pod: &Pod) {
        for kind in NamespaceKind::ALL {
            if let Ok(fd) = pod.node.pins.get(pod.id.as_str(), kind)
                && let Some(namespace) = self.entry(kind, fd.as_fd())
            {
                namespace.pin = pod.node.pins.path(pod.id.as_str(), kind).to_string_lossy().into_owned();
            }
        }
    }

    fn members(&mut self, container: &Container) {
        let pid = container.status.pid;
        let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
        for kind in NamespaceKind::ALL {
            let Ok(fd) = sys::namespace::of(process, kind) else { continue };
            if let Some(namespace) = self.entry(kind, fd.as_fd()) {
                namespace.members.push(Member {
                    container_id: container.id().to_string(),
                    container_name: container.name().0.to_owned(),
                    pid,
                });
                if kind == NamespaceKind::Time {
                    namespace.offsets = offsets(pid);
                }
            }
        }
    }

    fn entry(&mut self, kind: NamespaceKind, fd: std::os::fd::BorrowedFd<'_>) -> Option<&mut Namespace> {
        let identity = identify(fd).ok()?;
        let position = NamespaceKind::ALL.iter().position(|k| *k == kind)?;
        let relation = relate(fd).ok();
        let own = sys::namespace::own(kind).and_then(|own| sys::namespace::inode(&own)).ok();
        let new = Namespace {
            kind: kind.name().to_owned(),
            inode: identity.inode,
            parent: relation.as_ref().and_then(|r| r.parent).unwrap_or(0),
            owner: relation.as_ref().and_then(|r| r.owner).unwrap_or(0),
            node: own == Some(identity.inode),
            ..Namespace::default()
        };
        Some(self.0.entry((position, identity.inode)).or_insert(new))
    }
}

/// Offsets of a process's time namespace (`monotonic SECONDS NANOSECONDS`, time_namespaces(7)).
fn offsets(pid: u32) -> Option<TimeOffsets> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/timens_offsets")).ok()?;
    let clock = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        let mut numbers = line.split_whitespace().skip(1).map(str::parse::<i64>);
        let (seconds, nanoseconds) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
    };
    Some(TimeOffsets { monotonic: clock("monotonic")?, boottime: clock("boottime")? })
}
