//! The conversation, version 1.
//!
//! ```text
//! source                                   destination
//! Hello{version, offer, needs, clock} ──>   knows the version? has the CPU? ticket = 32 random bytes
//!                                     <──  Accepted{ticket}
//!                                          image, sandbox, network, containers
//!                                     <──  Prepared
//! CRIU started, freeze
//! Cut{clocks}                         ──>
//! Pages{container, bytes}*            ──>  CRIU's page-server protocol, into image files
//!                                     <──  PageReply{container, bytes}*
//! PagesEnd{size, sha256}              ──>  one a container
//! File, Data*, FileEnd{sha256}        ──>  CRIU's other images, root filesystem changes, /dev/shm
//! Sent{sha256 of all digests}         ──>  apply; CRIU up; R = now + estimate; time namespace; restore, hold
//!                                     <──  Restored
//! hold; journal: committing
//! Commit{ticket}                      ──>  journal: committed; release at R
//!                                     <──  Confirmed{what it came to}
//! journal: committed
//! Done                                ──>  forgets the move
//! kill, remove
//! ```
//!
//! Either side ends it before Commit with Abort{reason}. A frame is `u32 length (big endian), peer.v1.Frame`, at most
//! 8 MiB. A frame that is not due ends the conversation. A destination that loses the connection before Commit gives
//! the move up.
//!
//! After a lost confirmation the source connects again: `Resolve{migration, ticket}` -> `Resolved{committed}`. The
//! question is a decision: a move that was not committed when it is asked never will be.
//!
//! Versions: only this one. A destination refuses another by number, before anything is made.

use api::peer::v1::{ClockPolicy, Needs as WireNeeds, Phase as WirePhase};
use std::time::Duration;

use super::phase::{Record, Role};
use crate::clock::Policy;
use crate::manifest::Needs;

/// Of this protocol.
pub(super) const VERSION: u32 = 1;
/// Bytes of file contents or pages in one frame.
pub(super) const PIECE: usize = 256 << 10;

pub(super) fn policy_to_wire(policy: Policy) -> ClockPolicy {
    match policy {
        Policy::Freeze => ClockPolicy::Freeze,
        Policy::Suspend => ClockPolicy::Suspend,
    }
}

pub(super) fn policy_from_wire(policy: ClockPolicy) -> Policy {
    match policy {
        ClockPolicy::Freeze => Policy::Freeze,
        ClockPolicy::Suspend => Policy::Suspend,
    }
}

pub(super) fn needs_to_wire(needs: Needs) -> WireNeeds {
    let Needs { architecture, kernel, cpu } = needs;
    WireNeeds { architecture, kernel, cpu: cpu.into_iter().collect() }
}

pub(super) fn needs_from_wire(needs: WireNeeds) -> Needs {
    let WireNeeds { architecture, kernel, cpu } = needs;
    Needs { architecture, kernel, cpu: cpu.into_iter().collect() }
}

pub(super) fn phase_to_wire(record: Record) -> WirePhase {
    WirePhase {
        name: record.name,
        start_ns: nanoseconds(record.start),
        duration_ns: nanoseconds(record.duration),
        frozen: record.frozen,
    }
}

/// `began`: when the destination heard Hello, on the source's clock of phases.
pub(super) fn phase_from_wire(phase: WirePhase, began: Duration) -> Record {
    Record {
        role: Role::Destination,
        name: phase.name,
        start: began.saturating_add(Duration::from_nanos(phase.start_ns)),
        duration: Duration::from_nanos(phase.duration_ns),
        frozen: phase.frozen,
    }
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
