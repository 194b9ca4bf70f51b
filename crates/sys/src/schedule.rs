//! Being on time on a busy host.

use crate::{Result, check};

/// While it lives, the calling thread runs before everything that is not real-time. For moments of at most a
/// millisecond: nobody else gets this CPU meanwhile. Children do not inherit it.
#[derive(Debug)]
pub struct RealTime(());

impl RealTime {
    /// The lowest real-time priority, which is enough.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_NICE, or where the cgroup has no real-time share.
    ///
    /// # References
    /// sched(7), `SCHED_FIFO` and `SCHED_RESET_ON_FORK`.
    pub fn enter() -> Result<Self> {
        set(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1).map(|()| Self(()))
    }
}

impl Drop for RealTime {
    fn drop(&mut self) {
        let _ = set(libc::SCHED_OTHER, 0);
    }
}

fn set(policy: libc::c_int, priority: libc::c_int) -> Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: 0 is the calling thread, and the structure is live.
    let returned = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const parameters) };
    check(returned).map(drop)
}

#[cfg(test)]
mod tests {
    use super::RealTime;

    #[test]
    fn it_ends_with_the_guard() {
        let policy = || std::fs::read_to_string("/proc/thread-self/sched").unwrap_or_default();
        let is_fifo =
            |text: &str| text.lines().any(|l| l.starts_with("policy") && l.trim_end().ends_with('1'));
        match RealTime::enter() {
            Err(errno) => println!("skipped: no real-time scheduling here: {errno}"),
            Ok(guard) => {
                let within = policy();
                drop(guard);
                assert!(within.is_empty() || is_fifo(&within));
                assert!(!is_fifo(&policy()));
            }
        }
    }
}
