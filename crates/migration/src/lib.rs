//! Checkpoint, restore and migration of pods: the part that knows CRIU, clocks, archives and the other node.
//!
//! ```text
//! on one node, synchronous; the shim's forked helpers          the daemon
//!   criu      dump() and restore() of one container              manifest  meridian.json
//!   tree      root filesystem changes, /dev/shm <-> tar          archive   one tar a container, untrusted directories
//!   clock     planned release, offsets (pure)                    transport another node: protocol, commit, page stream
//! ```
//!
//! The features follow the processes: with none, the crate is small enough for the static shim (`criu`, `tree`,
//! `clock`); `archive` adds checkpoint directories; `transport` adds tokio, TLS and the moves between nodes.
//!
//! A checkpoint, in the daemon's words: start the dumps ([`criu::dump`] waits), freeze all containers at one instant,
//! read the clocks, let the dumps go on, [`tree::pack`] what changed, resume, [`archive::write`]. A restore: open and
//! extract ([`archive::Checkpoint`]), plan the release ([`clock::plan`]), make the time namespace with
//! [`clock::offsets`], [`criu::restore`] every container into a frozen cgroup, thaw at the planned instant. A move is
//! both at once with [`transport::move_pod`] and [`transport::serve`] in between, and no second copy on disk.
//!
//! What this crate must not do: know `executor` (the shim joins the two), keep the state of pods, trust anything that
//! it reads from a checkpoint or from another node, or kill CRIU while it is inside a task.

#[cfg(feature = "archive")]
pub mod archive;
pub mod clock;
pub mod criu;
pub mod fault;
#[cfg(feature = "archive")]
pub mod manifest;
#[cfg(feature = "transport")]
pub mod transport;
pub mod tree;
