//! Checkpoint, restore and migration of pods.

pub mod clock;
pub mod criu;
pub mod tree;
