//! A container as readers see it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use api::cri::v1::{ContainerConfig, LinuxContainerResources};
use api::id::{ContainerId, PodId};
use api::shim::v1 as shim;

use image::Hold;

use crate::state::ContainerState;

/// What never changes in a container after it was created.
#[derive(Debug)]
pub struct Metadata {
    /// Its id.
    pub id: ContainerId,
    /// The pod it lives in.
    pub pod: PodId,
    /// What was asked for, unchanged.
    pub config: ContainerConfig,
    /// Id of its image, `sha256:...`: what `PullImage` returned.
    pub image_id: String,
    /// Name of the image for people: a tag or digest reference, else the id.
    pub image_name: String,
    /// Ids of images that are volumes, by the path in the container.
    pub volume_images: BTreeMap<String, String>,
    /// ns since the epoch.
    pub created_at: i64,
    /// Its CRI log, absolute; empty when it has none.
    pub log_path: PathBuf,
    /// The OCI runtime specification it was made from, as JSON.
    pub spec: Vec<u8>,
    /// Signal number that asks it to stop.
    pub stop_signal: u32,
    /// Credentials its first process starts with.
    pub user: User,
    /// Whether it came out of a checkpoint.
    pub restored: bool,
    /// Keeps its images on the disk.
    #[expect(dead_code, reason = "it is there to be dropped")]
    pub(crate) holds: Vec<Hold>,
    /// Its process as an exec takes it over, with its seccomp program. After a restart of the daemon made anew, at the
    /// first exec.
    pub(crate) exec: OnceLock<ExecTemplate>,
}

/// `None`: the specification cannot be read back.
pub(crate) type ExecTemplate = Option<(shim::Process, Option<Arc<[u8]>>)>;

/// Credentials, numbers inside the container's user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// What changes while a container lives.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// What it is doing.
    pub state: ContainerState,
    /// Host process id of its first process, 0 before and after.
    pub pid: u32,
    /// ns since the epoch, 0: not yet.
    pub started_at: i64,
    /// ns since the epoch, 0: not yet.
    pub finished_at: i64,
    /// Exit code, or 128 + signal.
    pub exit_code: i32,
    /// CamelCase word: `Completed`, `Error`, `OOMKilled`, `StartError`; empty before the end.
    pub reason: String,
    /// A sentence for people, may be empty.
    pub message: String,
    /// Limits in force when they were changed since it was created; else those of its configuration are.
    pub resources: Option<Box<LinuxContainerResources>>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            state: ContainerState::Created,
            pid: 0,
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            resources: None,
        }
    }
}

/// One published state of a container; never changes, the next state is another value.
#[derive(Debug, Clone)]
pub struct Container {
    /// What never changes.
    pub metadata: Arc<Metadata>,
    /// What it is doing.
    pub status: Status,
}

impl Container {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.metadata.id
    }

    /// The pod it lives in.
    #[must_use]
    pub fn pod(&self) -> &PodId {
        &self.metadata.pod
    }

    /// Its name within the pod and the attempt.
    #[must_use]
    pub fn name(&self) -> (&str, u32) {
        name(&self.metadata.config)
    }

    /// The limits in force.
    #[must_use]
    pub fn resources(&self) -> Option<&LinuxContainerResources> {
        let given = || self.metadata.config.linux.as_ref()?.resources.as_ref();
        self.status.resources.as_deref().or_else(given)
    }

    /// Its configuration with the limits in force: what makes it again as it is.
    pub(crate) fn current_config(&self) -> ContainerConfig {
        let mut config = self.metadata.config.clone();
        if let Some(resources) = self.status.resources.as_deref() {
            config.linux.get_or_insert_default().resources = Some(resources.clone());
        }
        config
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> ContainerState {
        self.status.state
    }
}

/// Name and attempt of a configuration; empty when the metadata is missing, which admission refuses.
pub(crate) fn name(config: &ContainerConfig) -> (&str, u32) {
    config.metadata.as_ref().map_or(("", 0), |m| (m.name.as_str(), m.attempt))
}
