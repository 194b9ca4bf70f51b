//! What a move came to.

use bytes::Bytes;

use super::phase::Record;

/// A move that is over. Times in ns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The move's id.
    pub migration: String,
    /// The pod's id where it was.
    pub source_pod: String,
    /// Its id where it is.
    pub destination_pod: String,
    /// Both sides' phases, in the order in which they began.
    pub phases: Vec<Record>,
    /// CLOCK_REALTIME from the first freeze to the release; two nodes' wall clocks.
    pub downtime: u64,
    /// What CLOCK_MONOTONIC gained beyond the policy.
    pub monotonic_jump: i64,
    /// What CLOCK_BOOTTIME gained beyond the policy.
    pub boottime_jump: i64,
    /// From the planned release to the release.
    pub late: i64,
    /// Sent by the source.
    pub bytes: u64,
    /// The pod's namespaces there: encoded `meridian.v1.Namespace`.
    pub namespaces: Vec<Bytes>,
}
