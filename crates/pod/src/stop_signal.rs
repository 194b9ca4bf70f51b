//! The stop signal, sent when it can be taken.
//!
//! The kernel drops a signal to the first process of a pid namespace that neither handles nor blocks it: pid_namespaces(7),
//! `sig_task_ignored` in kernel/signal.c. A program that was started a moment ago may not have come to installing its handler,
//! and would sit out the whole grace period. So the signal waits until it has one, and is then sent once: many programs take
//! a second one as the order to drop everything.

use std::time::Duration;

use api::id::ContainerId;
use tokio::time::Instant;

use crate::shim::{CallError, Client};

/// Between the first looks; each pause is longer by a quarter, so that a program waits little longer than it took itself.
const FIRST: Duration = Duration::from_millis(1);
/// Longest pause between two looks.
const LONGEST: Duration = Duration::from_secs(1);

/// Sends `signal` to the container's first process, `pid` on the node, unless it would be dropped until `grace` is over.
pub(crate) async fn send(
    client: &Client,
    id: &ContainerId,
    pid: u32,
    signal: u32,
    grace: Duration,
) -> Result<(), CallError> {
    let begun = Instant::now();
    let mut pause = FIRST;
    while is_dropped(pid, signal) {
        if begun.elapsed() >= grace {
            return Ok(());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 5 / 4).min(LONGEST);
    }
    client.kill(id.as_str(), signal, false).await
}

/// Whether the kernel would drop it now. What cannot be seen is taken as a no.
fn is_dropped(pid: u32, signal: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|status| drops(&status, signal).unwrap_or(false))
}

/// From NSpid, SigCgt and SigBlk of proc_pid_status(5).
fn drops(status: &str, signal: u32) -> Option<bool> {
    const KILL: u32 = 9;
    const STOP: u32 = 19;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mask = |name| u64::from_str_radix(field(name)?, 16).ok();
    let is_first = field("NSpid:")?.split_whitespace().last() == Some("1");
    let taken = (mask("SigCgt:")? | mask("SigBlk:")?).checked_shr(signal.checked_sub(1)?)? & 1 == 1;
    Some(is_first && !taken && signal != KILL && signal != STOP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_process_drops_what_it_neither_handles_nor_blocks() {
        let of = |nspid: &str| {
            format!(
                "NSpid:\t{nspid}\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000000004\nSigCgt:\t0000000000004002\n"
            )
        };
        for (signal, dropped) in
            [(15, false), (2, false), (1, false), (3, true), (10, true), (64, true), (9, false), (19, false)]
        {
            assert_eq!(drops(&of("4711\t1"), signal), Some(dropped), "{signal}");
            assert_eq!(drops(&of("4711\t7"), signal), Some(false), "{signal}");
        }
        assert_eq!(drops(&of("4711\t1"), 0), None);
        assert_eq!(drops("", 15), None);
    }
}
