//! Checkpoint, restore and migration of pods.

pub mod clock;
pub mod criu;
pub mod tree;

#[cfg(feature = "archive")]
pub mod archive;
#[cfg(feature = "archive")]
pub mod manifest;
