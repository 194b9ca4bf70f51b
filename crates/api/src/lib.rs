//! Everything that crosses a process boundary, in one place.
//!
//! ```text
//! kubelet, crictl ── cri::v1 ──┐
//! meridian (CLI) ─ meridian::v1 ┴─ meridiand ── shim::v1 ── meridian-shim
//!                                     │
//!                                     └──────── peer::v1 ── another node's meridiand
//! ```
//!
//! The messages are generated from `proto/`; each proto is one feature of this crate, so that a program links only
//! the protocols it speaks: the shim has `shim` alone (plain prost, no HTTP). The ids that all of them carry are
//! newtypes in [`id`]. Nothing here has behaviour beyond encoding and checking.

pub mod id;

/// The Kubernetes Container Runtime Interface, wire-identical to k8s.io/cri-api v0.37.2.
#[cfg(feature = "cri")]
pub mod cri {
    /// Package `runtime.v1`.
    #[allow(missing_docs, clippy::all, clippy::pedantic)]
    pub mod v1 {
        tonic::include_proto!("runtime.v1");
    }

    /// The encoded `FileDescriptorSet` of the proto: names and types, for those who print messages.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.fds"));
}

/// What the `meridian` command asks the daemon for beyond CRI.
#[cfg(feature = "meridian")]
pub mod meridian {
    /// Package `meridian.v1`.
    #[allow(missing_docs, clippy::all, clippy::pedantic)]
    pub mod v1 {
        tonic::include_proto!("meridian.v1");
    }

    /// The encoded `FileDescriptorSet` of the proto.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/meridian.fds"));
}

/// Between the daemons of two nodes, inside mutual TLS.
#[cfg(feature = "peer")]
pub mod peer {
    /// Package `peer.v1`.
    #[allow(missing_docs, clippy::all, clippy::pedantic)]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/peer.v1.rs"));
    }
}

/// Between the daemon and the shim of one pod, over SEQPACKET with fds beside it.
#[cfg(feature = "shim")]
pub mod shim {
    /// Package `shim.v1`.
    #[allow(missing_docs, clippy::all, clippy::pedantic)]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/shim.v1.rs"));
    }
}
