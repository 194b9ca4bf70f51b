//! Whether the kernel's clock is steered.

use crate::{Result, check};

/// Whether something (an NTP client, the hypervisor's clock) keeps CLOCK_REALTIME right: what `timedatectl` calls
/// synchronized.
///
/// # References
/// adjtimex(2): STA_UNSYNC.
pub fn is_synchronised() -> Result<bool> {
    // SAFETY: all fields are integers, for which zero is a value; modes 0 means that nothing is set.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole timex of ours, which the kernel fills in.
    check(unsafe { libc::adjtimex(&raw mut timex) }.into())?;
    Ok(timex.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_answers() {
        super::is_synchronised().unwrap();
    }
}
