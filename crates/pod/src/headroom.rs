//! Descriptors that new pods and containers leave unused, so that what exists can still be stopped, removed and undone:
//! each of these opens directories, pidfds and connections.

use crate::error::{Class, Classify};

/// The daemon is close to its limit of open descriptors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{open} of the daemon's {limit} descriptors are open: remove pods, or raise its limit (systemd: LimitNOFILE)"
)]
pub struct NoHeadroom {
    /// Descriptors open now.
    pub open: u64,
    /// `RLIMIT_NOFILE`, getrlimit(2).
    pub limit: u64,
}

impl Classify for NoHeadroom {
    fn class(&self) -> Class {
        Class::ResourceExhausted
    }
}

/// Refuses when fewer descriptors than the reserve are left.
pub(crate) fn check() -> Result<(), NoHeadroom> {
    let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current else {
        return Ok(());
    };
    judge(open(), limit)
}

/// Whether descriptors may be spent on what works without them, only slower: while half of the limit is left.
pub(crate) fn is_plenty() -> bool {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.is_none_or(|limit| open() < limit / 2)
}

/// A quarter of the limit, at most 1024.
fn judge(open: u64, limit: u64) -> Result<(), NoHeadroom> {
    let reserve = (limit / 4).min(1024);
    if open.saturating_add(reserve) > limit { Err(NoHeadroom { open, limit }) } else { Ok(()) }
}

/// Since Linux 6.2 the size of the directory is the number of its entries (proc_pid_fd(5)); before, it is 0.
fn open() -> u64 {
    match std::fs::metadata("/proc/self/fd").map(|directory| directory.len()) {
        Ok(0) | Err(_) => {
            std::fs::read_dir("/proc/self/fd").map_or(u64::MAX, |entries| entries.count() as u64)
        }
        Ok(count) => count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_is_kept_but_no_more_than_a_thousand() {
        assert_eq!(judge(384, 512), Ok(()));
        assert_eq!(judge(385, 512), Err(NoHeadroom { open: 385, limit: 512 }));
        assert_eq!(judge(1_047_000, 1_048_576), Ok(()));
        assert!(judge(1_048_000, 1_048_576).is_err());
        assert!(judge(u64::MAX, 512).is_err());
    }

    #[test]
    fn an_opened_file_counts() {
        let before = open();
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        assert!(open() >= before + 25, "{before}, then {}", open()); // other tests close files meanwhile
        drop(files);
        check().unwrap();
    }
}
