//! The eight namespace kinds: made, pinned, identified, related.
//!
//! ```text
//! shim ── make() ── forked helper: [user] net ipc uts time, offsets, hostname, lo, sysctls ── fds ──┐
//! daemon ── Pins ── bind mounts RUN/ns/POD/{net,ipc,uts,time,user} <────────────────────────────────┘
//! doctor, `meridian ns` ── identify(), relate()
//! ```
//!
//! A pod's net, ipc, uts and time namespaces are made by one short-lived child that exits without having run
//! anything in them; from then on descriptors and bind mounts keep them, and no pause process exists. A pid
//! namespace cannot be kept that way (it dies with its process 1), mount and cgroup namespaces belong to one
//! container each; all three are made by the executor's `clone3`.
//!
//! A time namespace's offsets are fixed at the first entry. The helper therefore writes them and never enters;
//! moving a pod means a new namespace, never an edited one.
//!
//! Entry points: [`make()`], [`Pins`], [`identify`], [`relate()`]. [`channel`] is how a forked child of ours reports:
//! (step, errno, object), or descriptors.
//!
//! What this crate must not do: know about containers, choose offsets, or enter a namespace in the calling process.

pub mod channel;
mod make;
mod pin;
mod relate;

pub use channel::{Channel, ChannelError, Failure};
pub use make::{IdMapping, IdMaps, MakeError, Request, User, make};
pub use pin::{PinError, Pins};
pub use relate::{Identity, Relation, identify, relate};
pub use sys::namespace::{Kind as NamespaceKind, Kinds};
pub use sys::timens::Offsets as ClockOffsets;
