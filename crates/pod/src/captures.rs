//! How many checkpoints there were, and for how long pods were frozen for them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::pods::Pods;

/// Since the daemon began; checkpoints that froze a pod and got what they wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captures {
    /// How many.
    pub count: u64,
    /// For how long pods were frozen, in all.
    pub frozen: Duration,
}

/// Where they are counted.
#[derive(Debug, Default)]
pub(crate) struct Captured {
    count: AtomicU64,
    frozen_ns: AtomicU64,
}

impl Captured {
    /// One more.
    pub(crate) fn add(&self, frozen: Duration) {
        self.count.fetch_add(1, Relaxed);
        self.frozen_ns.fetch_add(u64::try_from(frozen.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }
}

impl Pods {
    /// The checkpoints that there were.
    #[must_use]
    pub fn captures(&self) -> Captures {
        let counted = &self.node.captures;
        let frozen = Duration::from_nanos(counted.frozen_ns.load(Relaxed));
        Captures { count: counted.count.load(Relaxed), frozen }
    }
}
