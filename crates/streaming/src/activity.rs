//! When something last passed over a connection: what nobody uses is closed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The last time of use, shared by both directions.
#[derive(Debug)]
pub(crate) struct Activity {
    since: Instant,
    /// ms after `since`.
    last: AtomicU64,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), last: AtomicU64::new(0) }
    }

    pub(crate) fn touch(&self) {
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Waits until nothing has passed for `limit`.
    pub(crate) async fn idle(&self, limit: Duration) {
        loop {
            let end = self.since + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn use_puts_the_end_off() {
        let activity = Activity::new();
        let begin = Instant::now();
        let used = async {
            tokio::time::sleep(Duration::from_secs(40)).await;
            activity.touch();
        };
        tokio::join!(activity.idle(Duration::from_secs(60)), used);
        assert_eq!(begin.elapsed().as_secs(), 100);
    }
}
