//! How much a registry or an archive may make this node store, read or remember.

/// Upper bounds on untrusted input. The defaults let every image of the public registries through.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of one manifest, index or configuration; as containerd's.
    pub document: u64,
    /// Bytes of one token or error reply.
    pub reply: u64,
    /// Layers of one image; overlayfs takes 500 lower directories.
    pub layers: usize,
    /// Entries of one layer.
    pub entries: u64,
    /// Bytes of one layer's uncompressed archive.
    pub layer: u64,
    /// Uncompressed bytes per compressed byte, once `ratio_free` bytes were passed.
    pub ratio: u64,
    /// Uncompressed bytes to which `ratio` is not applied.
    pub ratio_free: u64,
    /// Components of one path.
    pub depth: usize,
    /// Base-2 logarithm of the zstd window, which is this node's memory: 2^25 is 32 MiB per layer in flight.
    pub zstd_window_log: u32,
    /// Bytes of file system space that an image never takes: a pull that would, fails.
    pub free_space: u64,
    /// Seconds without one byte from a registry until the transfer has failed.
    pub stall: std::time::Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            document: 4 << 20,
            reply: 1 << 20,
            layers: 256,
            entries: 2_000_000,
            layer: 64 << 30,
            ratio: 200,
            ratio_free: 256 << 20,
            depth: 256,
            zstd_window_log: 25,
            free_space: 64 << 20,
            stall: std::time::Duration::from_secs(60),
        }
    }
}

/// A bound that was hit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} exceeds the limit of {limit}")]
pub struct LimitExceeded {
    /// What was counted, with its unit.
    pub what: &'static str,
    /// The bound.
    pub limit: u64,
}

impl LimitExceeded {
    /// `Ok` while `value <= limit`.
    pub(crate) fn check(what: &'static str, value: u64, limit: u64) -> Result<(), Self> {
        if value <= limit { Ok(()) } else { Err(Self { what, limit }) }
    }
}
