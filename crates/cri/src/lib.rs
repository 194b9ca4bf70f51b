//! The kubelet's front door: `runtime.v1` on the daemon's socket.
//!
//! ```text
//! request ── check (fields) ── find (ids) ── pod / image (the work) ── message ── reply
//!                │                │                  │
//!                └────────────────┴──────────────────┴── error: the one place that knows gRPC codes
//! ```
//!
//! One RPC, one file, named as the field names it: `sandbox_run`, `container_create`, `image_pull`. A file checks its
//! request, turns ids into objects, calls crates `pod`, `image` and `streaming`, and words the reply; policy lives below.
//!
//! - [`runtime_service()`] and [`image_service()`] are the two tonic services that the daemon adds to its server.
//! - [`Abilities`] is what the daemon's start-up probe found, told by `Status`.
//! - `check` holds every rule about a field, pure and table-tested; an error names the field as a path into the
//!   request, quotes the value and says what would be right (code InvalidArgument).
//! - [`error::status`] gives other services of the daemon the same codes for the same errors.
//!
//! This crate holds no state, writes no file, and touches neither the kernel nor the network. What may run when is
//! decided by the driver of each pod, and a handler that is dropped because its client went away leaves no trace:
//! the driver finishes or undoes what it began.

mod attach;
mod check;
mod container_checkpoint;
mod container_create;
mod container_events;
mod container_exec;
mod container_list;
mod container_remove;
mod container_reopen_log;
mod container_start;
mod container_stats;
mod container_status;
mod container_stop;
mod container_update;
pub mod deadline;
pub mod error;
mod exec;
mod filter;
mod find;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod image_fs_info;
mod image_list;
mod image_pull;
mod image_remove;
mod image_service;
mod image_status;
mod info;
mod metrics;
mod port_forward;
mod runtime_config;
mod runtime_config_update;
mod sandbox_checkpoint;
mod sandbox_list;
mod sandbox_remove;
mod sandbox_restore;
mod sandbox_run;
mod sandbox_stats;
mod sandbox_status;
mod sandbox_stop;
mod sandbox_update;
mod service;
mod signal;
mod span;
mod status;
mod stream;
mod version;

use std::sync::Arc;

use api::cri::v1::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer};
use image::Images;
use pod::Pods;
use streaming::Streaming;

pub use status::{Abilities, Problem};

/// Most that a request may take. Replies have no limit here: what is too much for a client, it refuses itself.
const REQUEST_MAX: usize = 16 << 20;

/// The runtime service over the node's pods; `streaming` makes the URLs of Exec, Attach and PortForward.
#[must_use]
pub fn runtime_service(
    pods: Pods,
    images: Images,
    streaming: Streaming,
    abilities: Abilities,
) -> RuntimeServiceServer<impl api::cri::v1::runtime_service_server::RuntimeService> {
    let runtime = service::Runtime { pods, images, streaming, abilities: Arc::new(abilities) };
    RuntimeServiceServer::new(runtime).max_decoding_message_size(REQUEST_MAX)
}

/// The image service over the node's images; the pods tell which of them are in use.
#[must_use]
pub fn image_service(
    pods: Pods,
    images: Images,
) -> ImageServiceServer<impl api::cri::v1::image_service_server::ImageService> {
    let store = image_service::ImageStore { pods, images };
    ImageServiceServer::new(store).max_decoding_message_size(REQUEST_MAX)
}
