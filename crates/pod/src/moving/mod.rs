//! Pods that leave for another node or come from one: what crate `migration` asks of them.
//!
//! ```text
//! source:       begin_move ── MovingPod ── dumps wait ── freeze ── dumps, diffs, /dev/shm ── hold ── retire
//!                                                             └──────────── thaw <── any failure ──┘
//! destination:  Destination::receive ── ReceivedPod ── apply ── clocks ── restore, held ── release
//!                                                             └──── abort <── any failure ──┘
//! ```
//!
//! Meanwhile the pod's activity is `Moving`: nothing starts or is made in it, and it can still be removed. From the
//! hold on a file in the pod's directory says that recovery must leave it frozen: only the other node knows whether
//! it may run.

mod destination;
mod source;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use api::id::PodId;
use migration::transport::{Failure, FailureKind};
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::check::Obstacles;
use crate::error::{Class, Classify, LookupError};
use crate::node::make_dir;
use crate::pod::Pod;
use crate::pods::Pods;
use crate::request::Refusal;
use crate::shim::CallError;

pub use destination::{NodePods, ReceivedPod};
pub use source::MovingPod;

/// File in a pod's directory: it is held, recovery must not thaw it.
pub(crate) const HELD: &str = "held";

/// Why a pod cannot leave this node.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// No such pod.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// It is doing something else.
    #[error("pod {pod} cannot be moved")]
    Refused {
        /// Which.
        pod: PodId,
        /// Why not.
        source: Refusal,
    },
    /// This node has no CRIU.
    #[error("this node cannot move pods: set [criu] command in the configuration")]
    NoCriu,
    /// Nothing to move.
    #[error("pod {0} has no running container")]
    Empty(PodId),
    /// A kind of pod that CRIU cannot restore under a time namespace and processes of its own.
    #[error("pod {pod} cannot be moved: {reason}")]
    Unsupported {
        /// Which.
        pod: PodId,
        /// What of it.
        reason: String,
    },
    /// What its processes have.
    #[error("pod {pod} cannot be moved: {obstacles}")]
    Obstacles {
        /// Which.
        pod: PodId,
        /// What, and the cures.
        obstacles: Obstacles,
    },
    /// Its shim does not tell.
    #[error("look at the processes of pod {pod}")]
    Shim {
        /// Which.
        pod: PodId,
        /// Why.
        source: CallError,
    },
    /// It ended meanwhile.
    #[error("pod {0} ended")]
    Gone(PodId),
}

impl Classify for MoveError {
    fn class(&self) -> Class {
        match self {
            Self::Lookup(error) => error.class(),
            Self::Shim { source, .. } => source.class(),
            _ => Class::FailedPrecondition,
        }
    }
}

impl Pods {
    /// A pod whose move was left undecided by a daemon that ended: lets it run again, for the other node gave it up.
    pub async fn thaw_held(&self, id: &PodId) -> Result<(), LookupError> {
        let handle = self.registry.pod(id)?;
        source::thaw(&handle.pod).await;
        let _ended_with_its_pod = handle.ask(crate::driver::Request::EndCapture);
        Ok(())
    }

    /// A pod that came and was committed by a daemon that ended: lets it go if that was not done yet.
    pub async fn release_received(&self, id: &PodId) -> Result<(), LookupError> {
        let handle = self.registry.pod(id)?;
        destination::release_now(&handle).await;
        Ok(())
    }
}

/// The other node and the user are told whose fault it is.
fn failure(error: impl Classify + Send + Sync + 'static) -> Failure {
    let kind = match error.class() {
        Class::InvalidArgument => FailureKind::Invalid,
        Class::ResourceExhausted => FailureKind::Exhausted,
        Class::DeadlineExceeded => FailureKind::Deadline,
        Class::NotFound | Class::FailedPrecondition | Class::AlreadyExists => FailureKind::Precondition,
        _ => FailureKind::Internal,
    };
    Failure::new(kind, error)
}

fn called(error: CallError) -> Failure {
    use api::shim::v1::error::Kind;
    let kind = match &error {
        CallError::Refused(refused) => match refused.0.kind() {
            Kind::Invalid => FailureKind::Invalid,
            Kind::Exhausted => FailureKind::Exhausted,
            Kind::Deadline => FailureKind::Deadline,
            Kind::NotFound | Kind::Precondition => FailureKind::Precondition,
            Kind::Internal => FailureKind::Internal,
        },
        CallError::Silent(_) => FailureKind::Deadline,
        CallError::Gone => FailureKind::Precondition,
        CallError::Send(_) | CallError::Protocol(_) => FailureKind::Internal,
    };
    Failure::new(kind, error)
}

fn io_failure(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => FailureKind::Exhausted,
        _ => FailureKind::Internal,
    };
    Failure::new(kind, format!("{what} {}: {error}", path.display()))
}

/// Directory of CRIU's images while a pod leaves or comes, on RUN, so that memory is written to it once.
fn images_dir(pod: &Pod) -> PathBuf {
    pod.node.pod_dir(&pod.id).join("images")
}

/// Makes an empty directory below [`images_dir`].
fn make_images(dir: &Path, index: usize) -> Result<OwnedFd, Failure> {
    let path = dir.join(index.to_string());
    let made = make_dir(&path, 0o700).and_then(|()| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat(CWD, &path, flags, Mode::empty())?)
    });
    made.map_err(|error| io_failure("make", &path, &error))
}

async fn remove_images(dir: PathBuf) {
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir)).await;
    match removed {
        Ok(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, "the images of a move stay behind");
        }
        _ => {}
    }
}

/// A file without a name.
fn temporary(dir: &Path) -> Result<File, Failure> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let opened = openat(CWD, dir, flags, Mode::from_raw_mode(0o600));
    opened.map(File::from).map_err(|error| io_failure("make a temporary file in", dir, &error.into()))
}
