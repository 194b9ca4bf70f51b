//! Why something could not be done: always a step, an errno (0: none) and an object.

use namespaces::{ChannelError, Failure, MakeError};
use sys::Errno;

/// Why a sandbox or a container could not be made. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The plan can never work.
    #[error("{field} is {value:?}: {rule}")]
    Plan {
        /// Field of the plan.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What would be right.
        rule: &'static str,
    },
    /// A descriptor is missing or named twice.
    #[error("{field} names descriptor {index}, which is missing or was named before")]
    Descriptor {
        /// Field of the plan.
        field: &'static str,
        /// The index it holds.
        index: u32,
    },
    /// The pod's namespaces could not be made.
    #[error(transparent)]
    Namespaces(#[from] MakeError),
    /// A step before the child existed failed.
    #[error(transparent)]
    Prepare(#[from] Failure),
    /// The child failed, or ended without a word.
    #[error(transparent)]
    Child(#[from] ChannelError),
}

/// Why a created container did not start. It has ended; its exit arrives as any other.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StartError(#[from] pub ChannelError);

/// Why an exec did not start. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ExecError(#[from] pub CreateError);

impl CreateError {
    /// Step, errno (0: not a system call) and object, for `shim.v1.Error`.
    #[must_use]
    pub fn failure(&self) -> (&str, i32, &str) {
        match self {
            Self::Plan { field, value, .. } => {
                ("check the plan", 0, if value.is_empty() { field } else { value })
            }
            Self::Descriptor { field, .. } => ("take a descriptor", 0, field),
            Self::Namespaces(MakeError::Fork(errno)) => ("fork", errno.raw_os_error(), "namespace helper"),
            Self::Namespaces(MakeError::Map { map, source, .. }) => {
                ("write id map", source.raw_os_error().unwrap_or(0), map)
            }
            Self::Prepare(failure) => parts(failure),
            Self::Namespaces(MakeError::Helper(error)) | Self::Child(error) => of_channel(error),
        }
    }

    /// Whether no retry of the same request can succeed.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        match self {
            Self::Plan { .. } | Self::Descriptor { .. } | Self::Namespaces(MakeError::Map { .. }) => true,
            Self::Prepare(failure) | Self::Child(ChannelError::Failed(failure)) => is_invalid(failure),
            _ => false,
        }
    }
}

impl StartError {
    /// Step, errno (0: not a system call) and object, for `shim.v1.Error`.
    #[must_use]
    pub fn failure(&self) -> (&str, i32, &str) {
        of_channel(&self.0)
    }
}

impl ExecError {
    /// Step, errno (0: not a system call) and object, for `shim.v1.Error`.
    #[must_use]
    pub fn failure(&self) -> (&str, i32, &str) {
        self.0.failure()
    }

    /// Whether no retry of the same request can succeed.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        self.0.is_invalid()
    }
}

fn parts(failure: &Failure) -> (&str, i32, &str) {
    (&failure.step, failure.errno.raw_os_error(), &failure.object)
}

fn of_channel(error: &ChannelError) -> (&str, i32, &str) {
    match error {
        ChannelError::Failed(failure) => parts(failure),
        ChannelError::Closed => ("wait for the child", 0, "ended without a word"),
        ChannelError::Io(errno) => ("talk to the child", errno.raw_os_error(), ""),
        ChannelError::Unexpected(_) => ("talk to the child", 0, "unexpected message"),
    }
}

/// The image or the request is at fault: a mount target that is a symlink, a file where a directory must be, a
/// program that is not there, a working directory below one that cannot hold it (/proc/self/fd, CVE-2024-21626).
fn is_invalid(failure: &Failure) -> bool {
    let at_fault = [Errno::LOOP, Errno::NOTDIR, Errno::ISDIR, Errno::NAMETOOLONG, Errno::INVAL];
    match &*failure.step {
        "find program" => true,
        "open working directory" => {
            at_fault.contains(&failure.errno) || [Errno::NOENT, Errno::ACCESS].contains(&failure.errno)
        }
        step => step.starts_with("mount ") && at_fault.contains(&failure.errno),
    }
}

/// For checks of plan fields.
pub(crate) fn plan(field: &'static str, value: impl Into<String>, rule: &'static str) -> CreateError {
    let mut value: String = value.into();
    if value.len() > 200 {
        value = value.chars().take(200).collect();
    }
    CreateError::Plan { field, value, rule }
}
