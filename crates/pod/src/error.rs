//! What can go wrong, one enum per family of operations, and what kind of wrong it is.

use std::path::PathBuf;

use api::id::{ContainerId, PodId};
use api::shim::v1::error::Kind;
use sys::Errno;

use crate::headroom::NoHeadroom;
use crate::limits::LimitError;
use crate::request::Refusal;
use crate::restore::StartRestoredError;
use crate::shim::{CallError, LauncherError, SpawnError};
use crate::spec::SpecError;
use crate::store;

/// The kinds of failure that callers treat differently; gRPC codes by another name, so that only crate cri knows gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The request can never work.
    InvalidArgument,
    /// What it names does not exist.
    NotFound,
    /// What it would make exists with another content.
    AlreadyExists,
    /// It could work in another state of the object or on another node.
    FailedPrecondition,
    /// Space, descriptors, addresses or processes ran out.
    ResourceExhausted,
    /// Data is damaged.
    DataLoss,
    /// It took too long.
    DeadlineExceeded,
    /// Not in this version.
    Unimplemented,
    /// An image cannot be mounted as a volume; the kubelet tells it by the text's first word, `ImageVolumeMountFailed`.
    ImageVolume,
    /// The node or Meridian is at fault.
    Internal,
}

/// An error that knows its class.
pub trait Classify: std::error::Error {
    /// Its class.
    fn class(&self) -> Class;
}

impl Classify for CallError {
    fn class(&self) -> Class {
        match self {
            Self::Refused(refused) => match refused.0.kind() {
                Kind::Internal => Class::Internal,
                Kind::Invalid => Class::InvalidArgument,
                Kind::NotFound => Class::NotFound,
                Kind::Precondition => Class::FailedPrecondition,
                Kind::Exhausted => Class::ResourceExhausted,
                Kind::Deadline => Class::DeadlineExceeded,
            },
            Self::Silent(_) => Class::DeadlineExceeded,
            Self::Gone | Self::Send(_) | Self::Protocol(_) => Class::Internal,
        }
    }
}

fn class_of(errno: Errno) -> Class {
    match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN => {
            Class::ResourceExhausted
        }
        _ => Class::Internal,
    }
}

/// Why an object cannot be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No such object.
    #[error("{kind} {id:?} not found")]
    NotFound {
        /// "pod sandbox" or "container".
        kind: &'static str,
        /// As given, shortened.
        id: String,
    },
    /// A prefix of several ids.
    #[error("{kind} id {id:?} is ambiguous: give more digits")]
    Ambiguous {
        /// "pod sandbox" or "container".
        kind: &'static str,
        /// As given, shortened.
        id: String,
    },
}

impl Classify for LookupError {
    fn class(&self) -> Class {
        match self {
            Self::NotFound { .. } => Class::NotFound,
            Self::Ambiguous { .. } => Class::InvalidArgument,
        }
    }
}

/// Why the pods of this node cannot be taken over at start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory.
    #[error("directory {path} cannot be made")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] store::OpenError),
    /// The shim program.
    #[error(transparent)]
    Launcher(#[from] LauncherError),
    /// The cgroup hierarchies.
    #[error("the cgroup hierarchies cannot be read")]
    Cgroup(#[source] Errno),
    /// Where namespaces are pinned.
    #[error("namespaces cannot be pinned")]
    Pins(#[source] namespaces::PinError),
}

/// Why a pod sandbox was not made. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another pod has the name.
    #[error("a pod {namespace}/{name} with this uid and attempt exists as {id} with another configuration")]
    NameTaken {
        /// The pod's namespace in the cluster.
        namespace: String,
        /// Its name.
        name: String,
        /// Who has it.
        id: PodId,
    },
    /// The same pod was made before, and has ended since.
    #[error(
        "pod {namespace}/{name} with this uid and attempt exists as {id}, but is not up any more: remove it first"
    )]
    Ended {
        /// The pod's namespace in the cluster.
        namespace: String,
        /// Its name.
        name: String,
        /// Its id.
        id: PodId,
    },
    /// The configuration.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// What the pod may use.
    #[error(transparent)]
    Limits(#[from] LimitError),
    /// A file or directory of the pod.
    #[error("{what} {path} of the pod cannot be made")]
    File {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// Too many open descriptors.
    #[error("the pod cannot be made: {0}")]
    Headroom(#[from] NoHeadroom),
    /// Its shim does not start.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Its shim refuses.
    #[error("the pod's namespaces cannot be made: {0}")]
    Shim(#[source] CallError),
    /// A namespace cannot be pinned.
    #[error("the pod's namespaces cannot be kept")]
    Pin(#[from] namespaces::PinError),
    /// No address.
    #[error(transparent)]
    Address(#[from] network::AllocateError),
    /// No network.
    #[error(transparent)]
    Attach(#[from] network::AttachError),
    /// No network by plugins.
    #[error("the pod cannot be connected: {0}")]
    Cni(#[source] network::cni::CniError),
    /// No host ports.
    #[error(transparent)]
    Ports(#[from] network::PortError),
    /// Not durable.
    #[error(transparent)]
    Store(#[from] store::CommitError),
    /// A bug, or the daemon is ending.
    #[error("the task that makes the pod ended early")]
    Interrupted,
}

impl Classify for RunError {
    fn class(&self) -> Class {
        match self {
            Self::NameTaken { .. } | Self::Ended { .. } => Class::AlreadyExists,
            Self::Spec(e) => e.class(),
            Self::Limits(e) => e.class(),
            Self::File { source, .. } => class_of(*source),
            Self::Headroom(e) => e.class(),
            Self::Spawn(SpawnError::Spawn(errno) | SpawnError::Socket { source: errno, .. }) => {
                class_of(*errno)
            }
            Self::Spawn(SpawnError::Log { source, .. }) => class_of(sys::errno_of(source)),
            Self::Shim(e) => e.class(),
            Self::Address(network::AllocateError::Exhausted { .. }) => Class::ResourceExhausted,
            Self::Ports(network::PortError::Taken { .. }) => Class::FailedPrecondition,
            _ => Class::Internal,
        }
    }
}

/// What stayed behind when a pod was torn down; everything else is gone.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// No such pod: only for callers that must know, `StopPodSandbox` itself is idempotent.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// Processes that do not die.
    #[error("pod {pod:?}: processes are left in its cgroup, although they were killed")]
    Alive {
        /// The pod.
        pod: PodId,
    },
    /// Objects that cannot be removed.
    #[error("pod {pod:?}: {} could not be removed", .left.join(", "))]
    Left {
        /// The pod.
        pod: PodId,
        /// What, and why.
        left: Vec<String>,
    },
    /// The removal is not durable.
    #[error(transparent)]
    Store(#[from] store::CommitError),
    /// A bug, or the daemon is ending.
    #[error("the pod's driver ended early")]
    Interrupted,
}

impl Classify for StopError {
    fn class(&self) -> Class {
        match self {
            Self::Lookup(e) => e.class(),
            Self::Alive { .. } => Class::DeadlineExceeded,
            _ => Class::Internal,
        }
    }
}

/// Why a container was not made. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// No such pod.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The pod is in the wrong state.
    #[error("a container cannot be created: {0}")]
    Refused(#[from] Refusal),
    /// Another container of the pod has the name.
    #[error("a container {name:?} with attempt {attempt} exists as {id} with another configuration")]
    NameTaken {
        /// Its name.
        name: String,
        /// Its attempt.
        attempt: u32,
        /// Who has it.
        id: ContainerId,
    },
    /// The image is not on this node.
    #[error("image {image:?} is not on this node: pull it first")]
    NoImage {
        /// As given.
        image: String,
    },
    /// Too many open descriptors.
    #[error("the container cannot be made: {0}")]
    Headroom(#[from] NoHeadroom),
    /// The image has no root filesystem.
    #[error("image {image:?} is an artifact: it can be a volume, not a container")]
    Artifact {
        /// As given.
        image: String,
    },
    /// The root filesystem.
    #[error(transparent)]
    Rootfs(#[from] image::RootfsError),
    /// The configuration.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The log.
    #[error("log {path} cannot be opened")]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The checkpoint's difference does not apply to the image.
    #[error("the checkpoint's root filesystem cannot be restored: {reason}")]
    Diff {
        /// Why.
        reason: String,
    },
    /// The shim refuses.
    #[error("{0}")]
    Shim(#[source] CallError),
    /// The pod's user namespace is not there.
    #[error("the pod's user namespace cannot be opened")]
    Pin(#[from] namespaces::PinError),
    /// Not durable.
    #[error(transparent)]
    Store(#[from] store::CommitError),
    /// A bug, or the daemon is ending.
    #[error("the pod's driver ended early")]
    Interrupted,
}

impl Classify for CreateError {
    fn class(&self) -> Class {
        match self {
            Self::Lookup(e) => e.class(),
            Self::Refused(_) => Class::FailedPrecondition,
            Self::Headroom(e) => e.class(),
            Self::NameTaken { .. } => Class::AlreadyExists,
            Self::NoImage { .. } => Class::NotFound,
            Self::Artifact { .. } => Class::InvalidArgument,
            Self::Spec(e) => e.class(),
            Self::Log {
                source: Errno::LOOP | Errno::NOTDIR | Errno::ISDIR | Errno::NXIO | Errno::INVAL,
                ..
            } => Class::InvalidArgument,
            Self::Log { source, .. } => class_of(*source),
            Self::Shim(e) => e.class(),
            Self::Diff { .. } => Class::DataLoss,
            Self::Rootfs(_) | Self::Pin(_) | Self::Store(_) | Self::Interrupted => Class::Internal,
        }
    }
}

/// Why a request about one container failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// No such container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// It, or its pod, is in the wrong state.
    #[error("container {id:?}: {source}")]
    Refused {
        /// The container.
        id: ContainerId,
        /// Why.
        source: Refusal,
    },
    /// It must run for that.
    #[error("container {id:?} is not running")]
    NotRunning {
        /// The container.
        id: ContainerId,
    },
    /// The shim refuses.
    #[error("container {id:?}: {source}")]
    Shim {
        /// The container.
        id: ContainerId,
        /// Why.
        source: CallError,
    },
    /// Limits that cannot be set.
    #[error("container {id:?}: {source}")]
    Resources {
        /// The container.
        id: ContainerId,
        /// Which, and why.
        source: crate::spec::SpecError,
    },
    /// It cannot be brought back from its checkpoint.
    #[error("container {id:?} cannot be restored: {source}")]
    Restore {
        /// The container.
        id: ContainerId,
        /// Why.
        source: StartRestoredError,
    },
    /// It was killed and does not die.
    #[error("container {id:?}: its processes do not die, although they were killed")]
    Alive {
        /// The container.
        id: ContainerId,
    },
    /// Its log.
    #[error("log {path} cannot be opened")]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// Objects that cannot be removed.
    #[error("container {id:?}: {} could not be removed", .left.join(", "))]
    Left {
        /// The container.
        id: ContainerId,
        /// What, and why.
        left: Vec<String>,
    },
    /// Not durable.
    #[error(transparent)]
    Store(#[from] store::CommitError),
    /// A bug, or the daemon is ending.
    #[error("the pod's driver ended early")]
    Interrupted,
}

impl Classify for ContainerError {
    fn class(&self) -> Class {
        match self {
            Self::Lookup(e) => e.class(),
            Self::Refused { .. } | Self::NotRunning { .. } => Class::FailedPrecondition,
            Self::Shim { source, .. } | Self::Restore { source: StartRestoredError::Shim(source), .. } => {
                source.class()
            }
            Self::Resources { source, .. } => source.class(),
            Self::Restore { .. } => Class::Internal,
            Self::Alive { .. } => Class::DeadlineExceeded,
            Self::Log { source, .. } => class_of(*source),
            Self::Left { .. } | Self::Store(_) | Self::Interrupted => Class::Internal,
        }
    }
}

/// Why an exec brought no result.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The container.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// Nothing to execute.
    #[error("cmd is missing: it must name a program")]
    NoCommand,
    /// It took too long and was killed.
    #[error("command {command:?} timed out after {} s", .limit.as_secs_f64())]
    Timeout {
        /// The program.
        command: String,
        /// The limit.
        limit: std::time::Duration,
    },
    /// Its pipes.
    #[error("pipes for the command cannot be made")]
    Pipe(#[source] std::io::Error),
}

impl Classify for ExecError {
    fn class(&self) -> Class {
        match self {
            Self::Container(e) => e.class(),
            Self::NoCommand => Class::InvalidArgument,
            Self::Timeout { .. } => Class::DeadlineExceeded,
            Self::Pipe(e) => class_of(sys::errno_of(e)),
        }
    }
}

/// Why a pod's network cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No such pod.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// It has none any more.
    #[error("pod sandbox {id:?} is not ready")]
    NotReady {
        /// The pod.
        id: PodId,
    },
    /// Its namespace.
    #[error("pod sandbox {id:?}: its network namespace cannot be opened")]
    Pin {
        /// The pod.
        id: PodId,
        /// Why.
        #[source]
        source: namespaces::PinError,
    },
}

impl Classify for NetworkError {
    fn class(&self) -> Class {
        match self {
            Self::Lookup(e) => e.class(),
            Self::NotReady { .. } => Class::FailedPrecondition,
            Self::Pin { .. } => Class::Internal,
        }
    }
}
