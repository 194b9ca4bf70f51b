//! Why a request failed, and how the daemon hears it: step, errno, object, kind.

use api::shim::v1::{self as proto, error::Kind};
use executor::{CreateError, ExecError, StartError};
use migration::{
    criu::{CriuError, DumpError, EnterError, RestoreError},
    tree::PackError,
};
use rustix::io::Errno;

use crate::task::PhaseName;

/// A request that was not done. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("the frame holds no request of protocol 1")]
    Malformed,
    #[error("field {field} is missing")]
    Missing { field: &'static str },
    #[error("the sandbox exists already")]
    SandboxExists,
    #[error("create the sandbox first")]
    NoSandbox,
    #[error("container exists already")]
    ContainerExists { id: String },
    #[error("no such container in this pod")]
    NoContainer { id: String },
    #[error("the container is {is} and must be {needed}")]
    Phase { id: String, is: PhaseName, needed: PhaseName },
    #[error("the container has no terminal")]
    NoTerminal { id: String },
    #[error("{signal} is not a signal number")]
    Signal { id: String, signal: u32 },
    #[error("the pod is frozen")]
    Frozen,
    #[error("the pod is not frozen; freeze it first")]
    NotFrozen,
    #[error("not all tasks froze within {waited_ms} ms; they run again")]
    FreezeTimeout { waited_ms: u64 },
    #[error("a {work} of this container is under way")]
    Busy { id: String, work: &'static str },
    #[error("no CRIU on this node: set [criu] command")]
    NoCriu,
    #[error("descriptors.json must be an array of three strings")]
    Descriptors,
    #[error("a deleted file's name is not UTF-8, which deleted.files cannot hold")]
    DeletedName,
    #[error(transparent)]
    Diff(#[from] PackError),
    #[error(transparent)]
    Enter(#[from] EnterError),
    #[error(transparent)]
    Dump(#[from] DumpError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error("the helper for {work} ended without a word; see the shim's log")]
    HelperDied { work: &'static str, id: String },
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error("{step}")]
    System {
        step: &'static str,
        object: String,
        #[source]
        errno: Errno,
    },
}

impl RequestError {
    /// For `map_err`: `step` failed on `object`.
    pub fn system(step: &'static str, object: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let object = object.into();
        move |errno| Self::System { step, object, errno }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Malformed | Self::Missing { .. } | Self::Signal { .. } | Self::Descriptors => Kind::Invalid,
            Self::NoContainer { .. } => Kind::NotFound,
            Self::SandboxExists
            | Self::NoSandbox
            | Self::ContainerExists { .. }
            | Self::Phase { .. }
            | Self::NoTerminal { .. }
            | Self::Busy { .. }
            | Self::NoCriu
            | Self::Frozen
            | Self::NotFrozen
            | Self::Dump(DumpError::NotFrozen) => Kind::Precondition,
            Self::FreezeTimeout { .. }
            | Self::Dump(DumpError::Criu(CriuError::Deadline))
            | Self::Restore(RestoreError::Criu(CriuError::Deadline)) => Kind::Deadline,
            Self::HelperDied { .. } => Kind::Internal,
            Self::Create(error) if error.is_invalid() => Kind::Invalid,
            Self::Exec(error) if error.is_invalid() => Kind::Invalid,
            Self::Start(_) | Self::Exec(_) if self.container_ended() => Kind::Precondition,
            _ => match self.failure() {
                ("limit", errno, _) => kind_of_limit(errno),
                (executor::cgroup::PRIVILEGED, ..) => Kind::Precondition,
                (_, errno, _) => kind_of(errno),
            },
        }
    }

    /// Whether the container's process was killed under our hands: its namespaces or its end of the channel are gone.
    fn container_ended(&self) -> bool {
        let (step, errno, _) = self.failure();
        // A pid namespace without its process 1 takes no more of them: ENOMEM, says clone(2).
        let closed = step.starts_with("clone3") && errno == Errno::NOMEM.raw_os_error();
        closed || [Errno::SRCH, Errno::PIPE, Errno::CONNRESET].iter().any(|gone| gone.raw_os_error() == errno)
    }

    /// Step, errno (0: not a system call) and object.
    fn failure(&self) -> (&str, i32, &str) {
        match self {
            Self::ContainerExists { id }
            | Self::NoContainer { id }
            | Self::Phase { id, .. }
            | Self::NoTerminal { id }
            | Self::HelperDied { id, .. }
            | Self::Busy { id, .. }
            | Self::Signal { id, .. } => ("", 0, id),
            Self::Missing { field } => ("", 0, field),
            Self::Create(error) => error.failure(),
            Self::Start(error) => error.failure(),
            Self::Exec(error) => error.failure(),
            Self::Enter(error) => (error.step, error.source.raw_os_error(), &error.object),
            Self::Diff(PackError::Read { step, source, .. }) => {
                (step, source.raw_os_error(), "upper directory")
            }
            Self::Diff(PackError::Write { source, .. }) => {
                ("write", source.raw_os_error().unwrap_or(0), "rootfs-diff.tar")
            }
            Self::Dump(DumpError::Criu(error)) => of_criu("criu dump", error),
            Self::Restore(RestoreError::Criu(error)) => of_criu("criu restore", error),
            Self::Restore(RestoreError::Freeze(errno)) => {
                ("freeze the restored container", errno.raw_os_error(), "")
            }
            Self::System { step, object, errno } => (step, errno.raw_os_error(), object),
            _ => ("", 0, ""),
        }
    }
}

fn of_criu<'a>(step: &'a str, error: &'a CriuError) -> (&'a str, i32, &'a str) {
    match error {
        CriuError::Step { step, source } => (step, source.raw_os_error(), "criu"),
        _ => (step, 0, ""),
    }
}

/// What the refusal of a limit means: a number that makes no sense here, or one below what is in use.
fn kind_of_limit(errno: i32) -> Kind {
    if errno == Errno::INVAL.raw_os_error() {
        Kind::Invalid
    } else if errno == Errno::BUSY.raw_os_error() {
        Kind::Precondition
    } else {
        kind_of(errno)
    }
}

/// What the kernel's refusal means for the caller; 0: it was not the kernel's.
fn kind_of(errno: i32) -> Kind {
    let exhausted =
        [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::USERS];
    let is = |known: &Errno| known.raw_os_error() == errno;
    if exhausted.iter().any(is) {
        Kind::Exhausted
    } else if [Errno::RANGE, Errno::TOOBIG, Errno::NOEXEC].iter().any(is) {
        // A limit beyond what this node has, such as a CPU that is not there; variables and arguments too long for
        // execve(2); a program of another machine.
        Kind::Invalid
    } else if is(&Errno::NODEV) {
        Kind::Precondition // a controller or device that this node does not have
    } else if is(&Errno::TIMEDOUT) {
        Kind::Deadline
    } else {
        Kind::Internal
    }
}

impl From<RequestError> for proto::Error {
    fn from(error: RequestError) -> Self {
        let (step, errno, object) = error.failure();
        // A system call's failure is told by the three; anything else needs its sentence.
        let message = if errno == 0 { error.to_string() } else { String::new() };
        Self { step: step.to_owned(), errno, object: object.to_owned(), message, kind: error.kind().into() }
    }
}
