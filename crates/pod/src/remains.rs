//! What is on the node of pods that are gone, and pods that are not whole: nothing, unless something went wrong.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::pods::Pods;
use crate::state::{ContainerState, SandboxState};

/// One thing that should not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remains {
    /// A container counts as running, but its first process is gone.
    Dead {
        /// Its id.
        container: String,
        /// The process.
        pid: u32,
    },
    /// A pod counts as ready, but its shim is gone.
    WithoutShim {
        /// Its id.
        pod: String,
    },
    /// Something of a pod or container that no record knows.
    Stray {
        /// What it is: `namespace pins`, `files`, ...
        what: &'static str,
        /// Where.
        path: PathBuf,
    },
}

impl Pods {
    /// Looks for remains. Blocks for some reads of directories and of /proc.
    ///
    /// What is being made or removed at this moment may be among them: look twice.
    #[must_use]
    pub fn remains(&self) -> Vec<Remains> {
        let mut found = self.not_whole();
        let pods: HashSet<String> = self.sandboxes().iter().map(|pod| pod.id.to_string()).collect();
        let containers: HashSet<String> = self.containers().iter().map(|c| c.id().to_string()).collect();
        let (root, run) = (&self.node.config.root, &self.node.config.run);
        for (what, directory, known) in [
            ("namespace pins", run.join("ns"), &pods),
            ("files", run.join("pods"), &pods),
            ("a shim's socket", run.join("shim"), &pods),
            ("a checkpoint's images", root.join("restored"), &pods),
            ("a writable layer", root.join("containers"), &containers),
        ] {
            found.extend(strays(&directory, known).map(|path| Remains::Stray { what, path }));
        }
        let cgroups = self.node.cgroups.directories(&self.node.config.cgroup_root);
        for directory in cgroups {
            found.extend(strays(&directory, &pods).map(|path| Remains::Stray { what: "a cgroup", path }));
        }
        found
    }

    fn not_whole(&self) -> Vec<Remains> {
        let alive = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
        let shims = self.sandboxes().into_iter().filter(|pod| pod.state == SandboxState::Ready);
        let shims = shims.filter(|pod| !alive(pod.shim_pid));
        let mut found: Vec<_> = shims.map(|pod| Remains::WithoutShim { pod: pod.id.to_string() }).collect();
        for container in self.containers() {
            let pid = container.status.pid;
            if container.state() == ContainerState::Running && !alive(pid) {
                found.push(Remains::Dead { container: container.id().to_string(), pid });
            }
        }
        found
    }
}

/// Entries of `directory` that are named as pods and containers are, but are not `known`.
fn strays(directory: &Path, known: &HashSet<String>) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name();
            name.to_str().is_some_and(|name| name.parse::<api::id::PodId>().is_ok() && !known.contains(name))
        })
        .map(|entry| entry.path())
}
