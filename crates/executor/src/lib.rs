//! From a launch plan to a running container.
//!
//! ```text
//! shim                                                  container's process 1
//!  │ create(): cgroup, limits, device filter, /dev
//!  ├── clone3 NEWNS NEWPID NEWCGROUP INTO_CGROUP PIDFD ──► join net ipc uts time, mounts, devices, masks, pivot,
//!  │      (through a helper when a user or an existing         ids, find the program
//!  │       pid namespace must be joined first)                 │
//!  │ <──────────────── ready, or (step, errno, object) ────────┤
//!  │ start(): go ──────────────────────────────────────────► seccomp, execve
//!  │ <──────────────── end of the channel ─────────────────────┘
//! ```
//!
//! Entry points: [`Sandbox::create`], [`create()`] and [`Created::start`], [`exec()`], [`stage`] for a restore by CRIU,
//! [`Cgroup`] and the functions of [`cgroup`]. The plan and its descriptors come from the daemon as
//! `shim.v1.ContainerPlan`; everything that can be checked or allocated is, before the child exists.
//!
//! Rules that hold throughout:
//! - A path inside a root filesystem is looked up by `openat2` from a descriptor, mounts go from descriptor to
//!   descriptor. The image, and any process that shares a volume, is an adversary while this runs.
//! - Whatever needs the host's rights is done before the user namespace is joined; whatever an untrusted file could
//!   redirect is done through descriptors opened before the root changes.
//! - The child writes to its channel only. It is not dumpable, and holds no descriptor of its siblings.
//! - A half-made container is killed and its cgroup removed before the error is returned.
//!
//! What this crate must not do: keep state of containers, write logs, talk to the daemon, know about images or CRIU.
//! The calling process is single-threaded.

pub mod cgroup;
mod create;
mod descriptors;
mod error;
mod exec;
mod helper;
mod init;
mod pod_init;
mod program;
mod rootfs;
mod sandbox;
mod stdio;

pub use cgroup::Cgroup;
pub use create::{Created, create};
pub use descriptors::Descriptors;
pub use error::{CreateError, ExecError, StartError};
pub use exec::{Executed, exec};
pub use namespaces::{Channel, ChannelError, ClockOffsets, Failure, NamespaceKind};
pub use rootfs::stage::{External, Staged, external_keys, stage};
pub use sandbox::Sandbox;
pub use stdio::Stdio;
