//! Offsets of a time namespace, and the clocks they apply to.

use std::fs;

use rustix::time::{ClockId, clock_gettime};

use crate::{Errno, Pid, Result, errno_of};

const SECOND: i64 = 1_000_000_000;

/// The three clocks, read one right after the other, in ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// CLOCK_MONOTONIC as the calling process sees it.
    pub monotonic: i64,
    /// CLOCK_BOOTTIME as the calling process sees it.
    pub boottime: i64,
    /// CLOCK_REALTIME, which no namespace changes.
    pub realtime: i64,
}

/// Offsets in ns against the **initial** time namespace, even from within another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offsets {
    /// Added to CLOCK_MONOTONIC.
    pub monotonic: i64,
    /// Added to CLOCK_BOOTTIME.
    pub boottime: i64,
}

/// Reads the clocks.
#[must_use]
pub fn clocks() -> Clocks {
    Clocks {
        monotonic: now(ClockId::Monotonic),
        boottime: now(ClockId::Boottime),
        realtime: now(ClockId::Realtime),
    }
}

/// CLOCK_MONOTONIC in ns.
#[must_use]
pub fn monotonic() -> i64 {
    now(ClockId::Monotonic)
}

/// CLOCK_REALTIME in ns since the epoch.
#[must_use]
pub fn realtime() -> i64 {
    now(ClockId::Realtime)
}

/// Sets the offsets of the time namespace that the caller made with `unshare` and has not entered. The first entry
/// fixes them.
///
/// # Errors
/// `EACCES` after the first entry, `ERANGE` when a clock would leave 0..146 years.
///
/// # References
/// time_namespaces(7).
pub fn write_offsets(offsets: Offsets) -> Result<()> {
    let line =
        |clock: &str, ns: i64| format!("{clock} {} {}\n", ns.div_euclid(SECOND), ns.rem_euclid(SECOND));
    let text = line("monotonic", offsets.monotonic) + &line("boottime", offsets.boottime);
    fs::write("/proc/self/timens_offsets", text).map_err(|e| errno_of(&e))
}

/// Reads the offsets of a process's time namespace.
pub fn read_offsets(pid: Pid) -> Result<Offsets> {
    let path = format!("/proc/{}/timens_offsets", pid.as_raw_nonzero());
    let text = fs::read_to_string(path).map_err(|e| errno_of(&e))?;
    parse(&text).ok_or(Errno::INVAL)
}

fn parse(text: &str) -> Option<Offsets> {
    let mut offsets = Offsets::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (clock, seconds, ns) = (words.next()?, words.next()?, words.next()?);
        let total = seconds.parse::<i64>().ok()?.checked_mul(SECOND)?.checked_add(ns.parse().ok()?)?;
        match clock {
            "monotonic" => offsets.monotonic = total,
            "boottime" => offsets.boottime = total,
            _ => {}
        }
    }
    Some(offsets)
}

fn now(clock: ClockId) -> i64 {
    let t = clock_gettime(clock);
    t.tv_sec.saturating_mul(SECOND).saturating_add(t.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_as_the_kernel_prints_them() {
        let text = "monotonic           5         1\nboottime           -2 500000000\n";
        assert_eq!(parse(text), Some(Offsets { monotonic: 5 * SECOND + 1, boottime: -SECOND - SECOND / 2 }));
        assert_eq!(parse("monotonic x 1"), None);
    }
}
