//! Placeholder: see ARCHITECTURE.md; replaced by the crate's first commit.
