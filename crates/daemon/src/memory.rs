//! Keeping the daemon small: it is on every node, and what a pull or a hundred pods at once needed is not needed after.

use std::time::Duration;

/// How often leftovers are looked at.
const PERIOD: Duration = Duration::from_secs(5);
/// Leftovers up to this, in bytes, are what the next calls will use.
const LEFTOVERS: usize = 2 << 20;

/// Two heaps for all threads, as there are two workers. To be called before there are threads.
pub fn share_heaps() {
    sys::memory::limit_heaps(2);
}

/// Hands what is left over back to the kernel, for ever.
pub async fn keep_small() {
    loop {
        tokio::time::sleep(PERIOD).await;
        if sys::memory::free() > LEFTOVERS {
            // Walks the whole heap: some 100 us per MB.
            let _ = tokio::task::spawn_blocking(sys::memory::release_free).await;
        }
    }
}
