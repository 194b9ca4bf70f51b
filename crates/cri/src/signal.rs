//! Signal numbers of Linux as CRI names them (signal(7), KEP-4960).

use api::cri::v1::Signal;

/// Signals 1 to 31 of x86-64 and arm64, in order.
const STANDARD: [Signal; 31] = [
    Signal::Sighup,
    Signal::Sigint,
    Signal::Sigquit,
    Signal::Sigill,
    Signal::Sigtrap,
    Signal::Sigabrt,
    Signal::Sigbus,
    Signal::Sigfpe,
    Signal::Sigkill,
    Signal::Sigusr1,
    Signal::Sigsegv,
    Signal::Sigusr2,
    Signal::Sigpipe,
    Signal::Sigalrm,
    Signal::Sigterm,
    Signal::Sigstkflt,
    Signal::Sigchld,
    Signal::Sigcont,
    Signal::Sigstop,
    Signal::Sigtstp,
    Signal::Sigttin,
    Signal::Sigttou,
    Signal::Sigurg,
    Signal::Sigxcpu,
    Signal::Sigxfsz,
    Signal::Sigvtalrm,
    Signal::Sigprof,
    Signal::Sigwinch,
    Signal::Sigio,
    Signal::Sigpwr,
    Signal::Sigsys,
];

/// The name of a number; the numbers that libc keeps for itself (32, 33) have none.
pub(crate) fn name(number: u32) -> Signal {
    match number {
        1..=31 => STANDARD[number as usize - 1],
        // CRI counts the real-time signals on without a gap: SIGRTMIN (34) is 35, SIGRTMAX (64) is 65.
        34..=64 => i32::try_from(number + 1).ok().and_then(|n| Signal::try_from(n).ok()).unwrap_or_default(),
        _ => Signal::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names() {
        for (number, expected) in [
            (0, Signal::RuntimeDefault),
            (1, Signal::Sighup),
            (9, Signal::Sigkill),
            (15, Signal::Sigterm),
            (31, Signal::Sigsys),
            (33, Signal::RuntimeDefault),
            (34, Signal::Sigrtmin),
            (37, Signal::Sigrtminplus3),
            (49, Signal::Sigrtminplus15),
            (50, Signal::Sigrtmaxminus14),
            (64, Signal::Sigrtmax),
            (65, Signal::RuntimeDefault),
        ] {
            assert_eq!(name(number), expected, "{number}");
        }
    }
}
