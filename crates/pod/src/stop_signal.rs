//! The stop signal, sent when it can be taken.
//!
//! The kernel drops a signal to the first process of a pid namespace that neither handles nor blocks it: pid_namespaces(7),
//! `sig_task_ignored` in kernel/signal.c. A program that was started a moment ago may not have come to installing its handler,
//! and would sit out the whole grace period. So the signal waits until it has one, and is then sent once: many programs take
//! a second one as the order to drop everything.
//!
//! Blocking is less than handling. Whoever waits by sigwait(3) or signalfd(2) blocks for good; but so does every fork(3) of
//! glibc, for some microseconds, and what came meanwhile is dropped when they are over.

use std::time::Duration;

use api::id::ContainerId;
use tokio::time::Instant;

use crate::shim::{CallError, Client};

/// Between the first looks; each pause is longer by a quarter, so that a program waits little longer than it took itself.
const FIRST: Duration = Duration::from_millis(1);
/// Longest pause between two looks.
const LONGEST: Duration = Duration::from_secs(1);

/// What becomes of a signal that is sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Taken,
    /// Until it is waited for, or no longer blocked.
    Queued,
    /// One is queued already.
    Pending,
    Dropped,
}

/// Sends `signal` to the container's first process, `pid` on the node, unless it would be dropped until `grace` is over.
pub(crate) async fn send(
    client: &Client,
    id: &ContainerId,
    pid: u32,
    signal: u32,
    grace: Duration,
) -> Result<(), CallError> {
    let (begun, mut pause) = (Instant::now(), FIRST);
    let (mut sent, mut last) = (false, Fate::Dropped);
    loop {
        let fate = fate(pid, signal);
        match fate {
            Fate::Taken if !sent => return client.kill(id.as_str(), signal, false).await,
            Fate::Queued if !sent && last == Fate::Queued => {
                client.kill(id.as_str(), signal, false).await?;
                sent = true;
            }
            // It was queued and is no more: taken.
            Fate::Taken | Fate::Queued if sent => return Ok(()),
            Fate::Dropped => sent = false,
            _ => {}
        }
        if begun.elapsed() >= grace {
            return Ok(());
        }
        tokio::time::sleep(pause).await;
        (last, pause) = (fate, (pause * 5 / 4).min(LONGEST));
    }
}

/// What cannot be seen takes it.
fn fate(pid: u32, signal: u32) -> Fate {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    status.ok().and_then(|status| told(&status, signal)).unwrap_or(Fate::Taken)
}

/// By proc_pid_status(5).
fn told(status: &str, signal: u32) -> Option<Fate> {
    const KILL: u32 = 9;
    const STOP: u32 = 19;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let has = |name| {
        let mask = u64::from_str_radix(field(name)?, 16).ok()?;
        Some(mask.checked_shr(signal.checked_sub(1)?)? & 1 == 1)
    };
    let (pending, blocked, handled) = (has("ShdPnd:")?, has("SigBlk:")?, has("SigCgt:")?);
    let is_first = field("NSpid:")?.split_whitespace().last() == Some("1");
    Some(match () {
        () if !is_first || signal == KILL || signal == STOP => Fate::Taken,
        () if pending => Fate::Pending,
        () if handled => Fate::Taken,
        () if blocked => Fate::Queued,
        () => Fate::Dropped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_process_drops_what_it_neither_handles_nor_blocks() {
        let of = |nspid: &str| {
            format!(
                "NSpid:\t{nspid}\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000800\nSigBlk:\t0000000000000801\n\
                 SigIgn:\t0000000000000004\nSigCgt:\t0000000000004002\n"
            )
        };
        for (signal, fate) in [
            (15, Fate::Taken),
            (2, Fate::Taken),
            (1, Fate::Queued),
            (12, Fate::Pending),
            (3, Fate::Dropped),
            (64, Fate::Dropped),
            (9, Fate::Taken),
            (19, Fate::Taken),
        ] {
            assert_eq!(told(&of("4711\t1"), signal), Some(fate), "{signal}");
            assert_eq!(told(&of("4711\t7"), signal), Some(Fate::Taken), "{signal}");
        }
        assert_eq!(told(&of("4711\t1"), 0), None);
        assert_eq!(told("", 15), None);
    }
}
