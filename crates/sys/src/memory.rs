//! The heap of a process that lives for months: what a burst of work needed goes back to the kernel.

/// Gives free pages of the heap back to the kernel.
///
/// # References
/// malloc_trim(3).
pub fn release_free() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches only memory that the allocator has free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes that the allocator holds and nobody uses; 0 where it does not tell.
///
/// # References
/// `fordblks` in mallinfo2(3).
#[must_use]
pub fn free() -> usize {
    #[cfg(target_env = "gnu")]
    // SAFETY: only reads the allocator's counters, under its locks.
    let free = unsafe { libc::mallinfo2() }.fordblks;
    #[cfg(not(target_env = "gnu"))]
    let free = 0;
    free
}

/// Lets threads share `count` heaps instead of having up to eight per processor, each with its own leftovers. To be
/// called before there are threads.
///
/// # References
/// `M_ARENA_MAX` in mallopt(3).
pub fn limit_heaps(count: u16) {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number that the allocator reads when it would make another heap.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, count.into());
    }
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_env = "gnu")]
    fn what_is_dropped_is_free_until_it_is_released() {
        super::limit_heaps(1);
        let mut blocks: Vec<Vec<u8>> = (0..1000).map(|_| vec![1; 8 << 10]).collect();
        let mut number = 0;
        // What stays lies between what goes: no end of the heap becomes free.
        blocks.retain(|_| {
            number += 1;
            number % 100 == 0
        });
        assert!(super::free() > 4 << 20);
        super::release_free();
        assert!(blocks.iter().flatten().all(|byte| *byte == 1));
    }
}
