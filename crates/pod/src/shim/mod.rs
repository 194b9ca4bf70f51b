//! The shim of a pod, seen from the daemon: starting one, connecting to one, calling one.

mod attach;
mod capture;
mod client;
mod spawn;

pub(crate) use capture::{PendingDump, PendingRestore};
pub use client::{CallError, Refused};
pub(crate) use client::{Client, ShimEvent};
pub(crate) use spawn::Launcher;
pub use spawn::{LauncherError, SpawnError};
