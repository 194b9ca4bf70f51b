//! How long a restore will take: what the release of a pod is planned by.
//!
//! Too short, and the pod's clocks jump by the lateness; too long, and the pod stands still for nothing. The node
//! learns it from what it saw: of the latest restores of about this much memory the second slowest, so that one bad
//! moment does not slow the next ones down, and a margin of a little more than they differ by.
//!
//! ```text
//! took   24 22 [61] 25 23 22  ->  25 + margin 4 = 29 ms     the worst is left out, once there are enough
//! took   24 [61]              ->  61 + margin 15 = 76 ms
//! ```

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Bytes a second that a restore reads back, where only other sizes were seen: below what was measured.
const RATE: u64 = 900 << 20;
/// Assumed of an empty pod before anything was seen.
const FIRST: Duration = Duration::from_millis(80);
/// Never less.
const LEAST: Duration = Duration::from_millis(5);
/// A container's processes and mounts take as long as so many bytes.
const CONTAINER: u64 = 8 << 20;
/// How many are remembered.
const MEMORY: usize = 64;
/// How many of these count, those of the nearest size and the latest of them first.
const NEAREST: usize = 16;
/// From so many on the slowest does not count.
const ENOUGH: usize = 3;
/// Least margin.
const MARGIN: Duration = Duration::from_millis(3);

/// What a node's restores took.
#[derive(Debug, Default)]
pub struct Estimate(Mutex<Vec<Seen>>);

#[derive(Debug, Clone, Copy)]
struct Seen {
    bytes: u64,
    took: Duration,
}

impl Seen {
    /// What it would have taken with this much memory.
    fn scaled(self, bytes: u64) -> Duration {
        (self.took + reading(bytes)).saturating_sub(reading(self.bytes)).max(LEAST)
    }
}

/// A pod as the estimate sees it: bytes of memory, and so many for each container's processes and mounts.
#[must_use]
pub fn weight(bytes: u64, containers: usize) -> u64 {
    bytes + CONTAINER * containers as u64
}

impl Estimate {
    /// From the planning to the release of a pod of this [`weight`].
    #[must_use]
    pub fn ahead(&self, bytes: u64) -> Duration {
        let mut took: Vec<Duration> = self.nearest(bytes).iter().map(|seen| seen.scaled(bytes)).collect();
        took.sort_unstable();
        let (Some(&fastest), Some(&slowest)) = (took.first(), took.last()) else {
            let whole = FIRST + 2 * reading(bytes);
            return whole + whole / 4;
        };
        if took.len() < ENOUGH {
            return slowest + (slowest / 4).max(MARGIN);
        }
        let most = took[took.len() - 2];
        most + (most / 16).max((most - fastest) / 4).max(MARGIN)
    }

    /// A restore of this [`weight`] took so long, from the planning to where it could be released.
    pub fn saw(&self, bytes: u64, took: Duration) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() == MEMORY {
            seen.remove(0);
        }
        seen.push(Seen { bytes, took });
    }

    fn nearest(&self, bytes: u64) -> Vec<Seen> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        seen.reverse();
        // By powers of two: what differs by less is the same size, and then the latest comes first.
        seen.sort_by_key(|seen| seen.bytes.max(1).ilog2().abs_diff(bytes.max(1).ilog2()));
        seen.truncate(NEAREST);
        seen
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
    fn before_anything_was_seen_it_is_generous() {
        assert_eq!(reading(900 << 20), Duration::from_secs(1));
        assert_eq!(Estimate::default().ahead(0), 100 * MS);
        assert_eq!(Estimate::default().ahead(90 << 20), 350 * MS);
    }

    #[test]
    fn one_bad_moment_counts_only_while_little_is_known() {
        let estimate = Estimate::default();
        estimate.saw(0, 60 * MS);
        assert_eq!(estimate.ahead(0), 75 * MS);
        estimate.saw(0, 24 * MS);
        estimate.saw(0, 24 * MS);
        assert_eq!(estimate.ahead(0), 27 * MS);
    }

    #[test]
    fn a_restless_node_gets_a_wider_margin() {
        let estimate = Estimate::default();
        for took in [20, 24, 28, 32, 36, 40] {
            estimate.saw(0, took * MS);
        }
        assert_eq!(estimate.ahead(0), 40 * MS);
    }

    #[test]
    fn like_sizes_are_asked_first_and_others_scaled() {
        let estimate = Estimate::default();
        for _ in 0..NEAREST {
            estimate.saw(90 << 20, 150 * MS);
        }
        assert_eq!(estimate.ahead(0), 53 * MS + Duration::from_nanos(125_000));
        for _ in 0..NEAREST {
            estimate.saw(4096, 20 * MS);
        }
        assert_eq!(estimate.ahead(4096), 23 * MS);
        assert_eq!(estimate.ahead(90 << 20), 150 * MS + Duration::from_nanos(9_375_000));
    }

    #[test]
    fn it_forgets() {
        let estimate = Estimate::default();
        (0..2 * MEMORY).for_each(|_| estimate.saw(0, MS));
        assert_eq!(estimate.0.lock().unwrap().len(), MEMORY);
    }
}
