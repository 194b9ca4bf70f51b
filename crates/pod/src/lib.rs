//! The pods of a node: their state, and everything that may change it.
//!
//! ```text
//!  cri, daemon ──▶ Pods ──Request──▶ driver (one task per pod) ──▶ start, create, stop, checkpoint, restore
//!                   │                  │ publishes                     │
//!                   │ reads            ▼                               ▼
//!                   └──────────────▶ View                   shim::Client ──shim.v1──▶ meridian-shim
//!                                      ▲                               │
//!                  store (redb) ◀──────┴───────── exits, events ◀──────┘
//! ```
//!
//! [`Pods`] is the way in. Reading ([`Pods::sandboxes`], [`Pods::container`], ...) looks at values that the drivers
//! publish and never waits. Changing goes through the pod's driver, the only writer of its state; operations that take
//! time run beside it, so that nobody waits for an object he did not ask about.
//!
//! From a request to a running process: [`start`] sets a pod up in stages that can be undone; [`spec`] turns a
//! container's request into an OCI specification and opens what it names; [`plan`] lowers that to what the shim takes;
//! the shim executes. The daemon mounts, clones and opens; the shim and its children only attach.
//!
//! What is true after a crash is in [`store`]: records are durable before a call returns, and are committed while the
//! work is done. What runs is known by the shims, which outlive the daemon: [`recover`] asks them.
//!
//! This crate must not: fork or enter a namespace other than through `sys::netns`, write a container's log, know
//! about gRPC, or trust anything in a checkpoint or an image.

mod captures;
mod cgroup;
mod check;
mod checkpoint;
mod cni;
mod container;
mod create;
mod dial;
mod driver;
mod error;
mod events;
mod exec;
mod files;
mod headroom;
mod interfaces;
mod limits;
mod log;
pub mod metrics;
mod moving;
mod namespaces;
mod node;
mod plan;
mod pod;
mod pod_cidr;
mod pod_stats;
mod pods;
mod ports;
mod publisher;
mod recover;
mod registry;
mod remains;
mod request;
mod restore;
mod sandbox;
mod shim;
mod spec;
mod start;
mod state;
mod stats;
mod stop;
mod stop_signal;
mod store;
mod streams;
mod update;
mod usage;

pub use captures::Captures;
pub use check::{CheckError, Obstacle, Obstacles};
pub use checkpoint::CheckpointError;
pub use cni::CniStatus;
pub use container::{Container, Metadata, Status, User};
pub use dial::PodNetwork;
pub use error::{
    Class, Classify, ContainerError, CreateError, ExecError, LookupError, NetworkError, OpenError, RunError,
    StopError,
};
pub use events::{BACKLOG as EVENT_BACKLOG, Event, EventKind};
pub use exec::{ExecOutput, OUTPUT_LIMIT};
pub use headroom::NoHeadroom;
pub use limits::{LimitError, PodLimits};
pub use moving::{MoveError, MovingPod, NodePods, ReceivedPod};
pub use node::PodsConfig;
pub use pod_cidr::{InvalidPodCidr, PodCidr, PodCidrError};
pub use pods::Pods;
pub use remains::Remains;
pub use request::{Activity, Refusal};
pub use restore::{Mismatch, RestoreError, StartRestoredError};
pub use sandbox::Sandbox;
pub use shim::{CallError, LauncherError, Refused, SpawnError};
pub use spec::{ProfileError, SpecError};
pub use state::{ContainerEvent, ContainerState, Impossible, SandboxState};
pub use store::{CommitError, OpenError as StoreError, SCHEMA};
pub use streams::{Attached, Execution, Wanted};
