//! Checkpoint, restore and migration of pods.

pub mod clock;
pub mod criu;
pub mod fault;
pub mod tree;

#[cfg(feature = "archive")]
pub mod archive;
#[cfg(feature = "archive")]
pub mod manifest;
#[cfg(feature = "transport")]
pub mod transport;
