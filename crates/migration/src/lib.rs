//! Checkpoint, restore and migration of pods.

pub mod criu;
