//! Writing a running pod, or one of its containers, to disk at one consistent cut.
//!
//! ```text
//! dumps start ─▶ freeze ─▶ dumps + root filesystem diffs + /dev/shm ─▶ resume ─▶ archives, manifest
//!  (CRIU comes up      └──────────── frozen ───────────────────────┘
//!   meanwhile)
//! ```
//!
//! Whatever happens in between, the pod runs again before the call returns; if this daemon dies, the shim sees to it.
//! On error the destination is left as it was found: only what was made here is removed.

mod cut;
mod write;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::cri::v1::{NamespaceMode, PodSandboxConfig};
use api::id::{ContainerId, PodId};
use migration::archive::WriteError;
use migration::manifest::is_file_name;
use migration::tree::PackError;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, unlinkat};
use sys::Errno;
use tokio::time::Instant;
use tracing::{Instrument, debug_span};

use crate::check::Obstacles;
use crate::container::Container;
use crate::driver::Request;
use crate::error::{Class, Classify, LookupError};
use crate::pod::Pod;
use crate::pods::{Pods, ask};
use crate::publisher::Handle;
use crate::request::{Activity, Refusal};
use crate::sandbox::{pid_mode, user_namespace};
use crate::shim::CallError;
use crate::spec::security_context;
use crate::state::ContainerState;

/// Why a pod or container was not checkpointed. It runs on, and nothing was left in the destination.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// No such pod or container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The pod is in the wrong state.
    #[error("a checkpoint cannot be taken: {0}")]
    Refused(#[from] Refusal),
    /// This node has no CRIU.
    #[error("this node cannot checkpoint: install CRIU and set [criu] command in the configuration")]
    NoCriu,
    /// The list is not what runs.
    #[error("container_ids must be exactly the running containers of the pod: {difference}")]
    Containers {
        /// One id that is too many or missing, and which of the two.
        difference: String,
    },
    /// Restoring it is not possible with this CRIU.
    #[error("a pod with a user namespace of its own cannot be checkpointed: run it with userns_options NODE")]
    UserNamespace,
    /// Its processes are not a tree of their own.
    #[error(
        "container {name:?} has no pid namespace of its own and cannot be checkpointed: run it with pid mode CONTAINER"
    )]
    SharedPids {
        /// Its name.
        name: String,
    },
    /// What its processes have.
    #[error("a checkpoint cannot be taken: {0}")]
    Obstacles(Obstacles),
    /// Its archive's name would be ambiguous.
    #[error(
        "container name {name:?} cannot be checkpointed: names must be unique, of letters, digits, - _ ."
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The destination.
    #[error("{path}: must be {rule}")]
    Destination {
        /// As given.
        path: PathBuf,
        /// What is wrong.
        rule: &'static str,
    },
    /// A file of the checkpoint.
    #[error("{path} of the checkpoint cannot be written")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An archive.
    #[error("the checkpoint cannot be written")]
    Archive(#[from] WriteError),
    /// /dev/shm.
    #[error("the pod's /dev/shm cannot be saved")]
    Shm(#[from] PackError),
    /// The shim or CRIU.
    #[error("{step} of {object}: {source}")]
    Shim {
        /// "freeze", "dump", ...
        step: &'static str,
        /// Pod or container.
        object: String,
        /// Why.
        source: CallError,
    },
    /// Too long.
    #[error("the checkpoint was not finished within {} s; the pod runs on", .limit.as_secs_f64())]
    Deadline {
        /// The caller's limit.
        limit: Duration,
    },
    /// A bug, or the daemon is ending.
    #[error("the checkpoint ended early")]
    Interrupted,
}

impl Classify for CheckpointError {
    fn class(&self) -> Class {
        let of_errno = |errno: Option<Errno>| match errno {
            Some(Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE) => Class::ResourceExhausted,
            _ => Class::Internal,
        };
        match self {
            Self::Lookup(e) => e.class(),
            Self::Refused(_)
            | Self::NoCriu
            | Self::UserNamespace
            | Self::SharedPids { .. }
            | Self::Obstacles(_) => Class::FailedPrecondition,
            Self::Containers { .. } | Self::Name { .. } | Self::Destination { .. } => Class::InvalidArgument,
            Self::File { source, .. } => of_errno(Some(sys::errno_of(source))),
            Self::Archive(e) => of_errno(e.errno()),
            Self::Shim { source, .. } => source.class(),
            Self::Deadline { .. } => Class::DeadlineExceeded,
            Self::Shm(_) | Self::Interrupted => Class::Internal,
        }
    }
}

/// What is to be captured, and until when.
pub(crate) struct Subject {
    pub pod: Arc<Pod>,
    /// With the limits in force.
    pub config: PodSandboxConfig,
    pub containers: Vec<Arc<Container>>,
    pub deadline: Instant,
    pub limit: Duration,
}

impl Subject {
    /// Time left, at least a millisecond.
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }
}

impl Pods {
    /// Writes the running containers `ids` of a pod to the empty directory `dir` at one consistent cut, within `limit`.
    ///
    /// All run again when this returns. The work goes on when the caller goes away.
    pub async fn checkpoint_pod(
        &self,
        pod: &PodId,
        ids: &[ContainerId],
        dir: &Path,
        limit: Duration,
    ) -> Result<(), CheckpointError> {
        let handle = self.registry.pod(pod)?;
        let containers = exactly_running(&handle, ids)?;
        let directory = empty_directory(dir)?;
        let subject = subject(&handle, containers, limit)?;
        let dir = dir.to_owned();
        let work = async move {
            let _claim = Claim::new(handle).await?;
            let written = write_pod(&subject, &directory, &dir).await;
            if written.is_err() {
                empty(&directory);
            }
            written
        };
        tokio::spawn(work.in_current_span()).await.unwrap_or(Err(CheckpointError::Interrupted))
    }

    /// Writes one running container to the new tar archive `path`, within `limit`. It runs on.
    pub async fn checkpoint_container(
        &self,
        id: &ContainerId,
        path: &Path,
        limit: Duration,
    ) -> Result<(), CheckpointError> {
        let handle = self.registry.pod_of(id)?;
        let container = self.container(id)?;
        if container.state() != ContainerState::Running {
            return Err(Refusal::Container(container.state()).into());
        }
        let subject = subject(&handle, vec![container], limit)?;
        let path = path.to_owned();
        let work = async move {
            let _claim = Claim::new(handle).await?;
            write_container(&subject, &path).await
        };
        tokio::spawn(work.in_current_span()).await.unwrap_or(Err(CheckpointError::Interrupted))
    }
}

fn subject(
    handle: &Handle,
    containers: Vec<Arc<Container>>,
    limit: Duration,
) -> Result<Subject, CheckpointError> {
    let pod = Arc::clone(&handle.pod);
    if pod.node.config.criu.is_empty() {
        return Err(CheckpointError::NoCriu);
    }
    if user_namespace(&pod.config).is_some() {
        return Err(CheckpointError::UserNamespace);
    }
    let mut names = std::collections::HashSet::new();
    for container in &containers {
        let name = container.name().0;
        if !is_file_name(name) || !names.insert(name.to_owned()) {
            return Err(CheckpointError::Name { name: name.chars().take(80).collect() });
        }
        let context = security_context(&container.metadata.config);
        if pid_mode(&pod.config, context.namespace_options.as_ref()) != NamespaceMode::Container {
            return Err(CheckpointError::SharedPids { name: name.to_owned() });
        }
    }
    let config = handle.view().sandbox.current_config();
    Ok(Subject { pod, config, containers, deadline: Instant::now() + limit, limit })
}

/// The pod is ours until this is dropped.
struct Claim(Arc<Handle>);

impl Claim {
    async fn new(handle: Arc<Handle>) -> Result<Self, CheckpointError> {
        let begin = |reply| Request::BeginCapture { activity: Activity::Checkpointing, reply };
        ask(&handle, begin).await.ok_or(CheckpointError::Interrupted)??;
        Ok(Self(handle))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = self.0.ask(Request::EndCapture);
    }
}

async fn write_pod(subject: &Subject, directory: &OwnedFd, path: &Path) -> Result<(), CheckpointError> {
    let work = Work::new(directory, path)?;
    let cut = cut::take(subject, &work).instrument(debug_span!("cut")).await?;
    let (subject_pod, target) = (Arc::clone(&subject.pod), directory.try_clone());
    let target = target.map_err(|source| CheckpointError::File { path: path.to_owned(), source })?;
    let (config, limit, path) = (subject.config.clone(), subject.limit, path.to_owned());
    let write = tokio::task::spawn_blocking(move || {
        let written = write::directory(&subject_pod, &config, &cut, &target, &path);
        drop(work);
        written
    });
    // The pod runs again; only the caller's patience is at stake. The writer is waited for: it must not write on
    // into a directory that is being emptied.
    let written = write.instrument(debug_span!("write")).await.unwrap_or(Err(CheckpointError::Interrupted));
    if Instant::now() > subject.deadline { Err(CheckpointError::Deadline { limit }) } else { written }
}

async fn write_container(subject: &Subject, path: &Path) -> Result<(), CheckpointError> {
    let wrong = |rule| CheckpointError::Destination { path: path.to_owned(), rule };
    let parent = path.parent().ok_or_else(|| wrong("a file in an existing directory"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent_fd =
        openat(CWD, parent, flags, Mode::empty()).map_err(|_| wrong("a file in an existing directory"))?;
    let name = path.file_name().ok_or_else(|| wrong("a file in an existing directory"))?.to_owned();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let archive =
        openat(&parent_fd, name.as_os_str(), flags, Mode::from_raw_mode(0o600)).map_err(|e| match e {
            Errno::EXIST => wrong("a file that does not exist yet"),
            errno => CheckpointError::File { path: path.to_owned(), source: errno.into() },
        })?;
    let captured = match Work::new(&parent_fd, parent) {
        Ok(work) => cut::take(subject, &work).instrument(debug_span!("cut")).await.map(|cut| (work, cut)),
        Err(error) => Err(error),
    };
    let written = match captured {
        Ok((work, cut)) => {
            let pod = Arc::clone(&subject.pod);
            let write = move || {
                let written = write::container(&pod, &cut, &File::from(archive));
                drop(work);
                written
            };
            tokio::task::spawn_blocking(write).await.unwrap_or(Err(CheckpointError::Interrupted))
        }
        Err(error) => Err(error),
    };
    if written.is_err() {
        let _ = unlinkat(&parent_fd, name.as_os_str(), AtFlags::empty());
    }
    written
}

/// The containers `ids`, if they are all that run.
fn exactly_running(handle: &Handle, ids: &[ContainerId]) -> Result<Vec<Arc<Container>>, CheckpointError> {
    let view = handle.view();
    let running: Vec<_> = view.containers.iter().filter(|c| c.state() == ContainerState::Running).collect();
    let differ =
        |what: &str, id: &ContainerId| CheckpointError::Containers { difference: format!("{id} {what}") };
    if let Some(extra) = ids.iter().find(|id| !running.iter().any(|c| c.id() == *id)) {
        return Err(differ("is not one", extra));
    }
    if let Some(missing) = running.iter().find(|c| !ids.contains(c.id())) {
        return Err(differ("is missing", missing.id()));
    }
    if running.is_empty() {
        return Err(CheckpointError::Containers { difference: "none runs".to_owned() });
    }
    Ok(running.into_iter().cloned().collect())
}

/// The caller's directory: absolute, there, empty, and no symlink.
fn empty_directory(path: &Path) -> Result<OwnedFd, CheckpointError> {
    let wrong = |rule| CheckpointError::Destination { path: path.to_owned(), rule };
    if !path.is_absolute() {
        return Err(wrong("an absolute path"));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(CWD, path, flags, Mode::empty())
        .map_err(|_| wrong("an existing directory, and no symbolic link"))?;
    if names(&directory).is_empty() { Ok(directory) } else { Err(wrong("empty")) }
}

fn names(directory: &OwnedFd) -> Vec<std::ffi::CString> {
    let entries = Dir::read_from(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_owned());
    names.filter(|name| !matches!(name.to_bytes(), b"." | b"..")).collect()
}

/// Removes what a failed checkpoint left in a directory that was empty before.
fn empty(directory: &OwnedFd) {
    for name in names(directory) {
        if unlinkat(directory, name.as_c_str(), AtFlags::empty()) == Err(Errno::ISDIR) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(below) = openat(directory, name.as_c_str(), flags, Mode::empty()) {
                empty(&below);
            }
            let _ = unlinkat(directory, name.as_c_str(), AtFlags::REMOVEDIR);
        }
    }
}

/// A private directory for CRIU's images and other pieces, beside where the checkpoint goes; removed when dropped.
pub(crate) struct Work {
    parent: OwnedFd,
    name: String,
    pub directory: OwnedFd,
    pub path: PathBuf,
}

impl Work {
    fn new(parent: &OwnedFd, path: &Path) -> Result<Self, CheckpointError> {
        let name = format!(".{}", ContainerId::random().short());
        let path = path.join(&name);
        let failed = |source: io::Error| CheckpointError::File { path: path.clone(), source };
        let made = rustix::fs::mkdirat(parent, name.as_str(), Mode::RWXU).and_then(|()| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(parent, name.as_str(), flags, Mode::empty())
        });
        let directory = made.map_err(|e| failed(e.into()))?;
        let parent = parent.as_fd().try_clone_to_owned().map_err(failed)?;
        Ok(Self { parent, name, directory, path })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        empty(&self.directory);
        let _ = unlinkat(&self.parent, self.name.as_str(), AtFlags::REMOVEDIR);
    }
}
