//! How long a restore will take: what the release of a pod is planned by.
//!
//! Too short, and the pod's clocks jump by the lateness; too long, and the pod stands still for nothing. A restore
//! costs a fixed part (processes, mounts, the kernel's work) and a part by memory. The first is learnt from what the
//! node saw last, taking the worst of a few, because a step of the clock is worse than a wait.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Bytes a second that a restore reads back: below what was measured (64 MiB in 52 ms).
const RATE: u64 = 900 << 20;
/// Assumed before anything was seen.
const FIRST: Duration = Duration::from_millis(120);
/// Never less.
const LEAST: Duration = Duration::from_millis(15);
/// How many are remembered.
const MEMORY: usize = 8;
/// For the commit's round trip, two records on disk, and luck.
const MARGIN: Duration = Duration::from_millis(20);

/// What a node's restores took beside reading memory.
#[derive(Debug, Default)]
pub struct Estimate(Mutex<Vec<Duration>>);

impl Estimate {
    /// From the planning to the release of a pod with this much memory.
    #[must_use]
    pub fn ahead(&self, bytes: u64) -> Duration {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fixed = seen.iter().copied().max().unwrap_or(FIRST).max(LEAST);
        let whole = fixed + reading(bytes);
        whole + whole / 4 + MARGIN
    }

    /// A restore of this much memory took so long, from the planning to the commit.
    pub fn saw(&self, bytes: u64, took: Duration) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() == MEMORY {
            seen.remove(0);
        }
        seen.push(took.saturating_sub(reading(bytes)));
    }
}

fn reading(bytes: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1000) / (RATE / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_worst_of_the_last_counts() {
        let estimate = Estimate::default();
        assert_eq!(estimate.ahead(0), 170 * MS);
        assert_eq!(reading(900 << 20), Duration::from_secs(1));
        estimate.saw(0, 200 * MS);
        assert_eq!(estimate.ahead(0), 270 * MS);
        for _ in 0..MEMORY {
            estimate.saw(90 << 20, 140 * MS);
        }
        assert_eq!(estimate.ahead(0), 70 * MS);
        assert_eq!(estimate.ahead(90 << 20), 195 * MS);
    }
}
