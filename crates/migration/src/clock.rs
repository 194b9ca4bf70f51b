//! What a pod's clocks read after a move: pure arithmetic, no clock is read here (only [`own_offsets`] looks at /proc).
//!
//! A pod's time namespace has offsets against the **initial** namespace of its host. They are fixed before CRIU's
//! tasks enter, which is before their memory is back; so they are made for a *planned* instant R, and the tasks are
//! held until R:
//!
//! ```text
//! source       frozen reading F ─┐
//! destination                    └─> offset = F − (initial clock at R) ── restore, hold ── R: release
//! ```
//!
//! At R the pod's clock reads exactly F. Released later, it has run on for the lateness: that is the jump. Released
//! earlier it would read less than F, a step back, so an early restore waits.
//!
//! Worked example: F = 100 s; the destination's daemon sits in a time namespace 5,000,000 s ahead and reads
//! 5,000,200 s; R is planned 0.4 s from now. The initial clock at R is 200.4 s, so the offset is −100.4 s.
//!
//! # References
//! time_namespaces(7); rules measured: offsets are absolute against the initial namespace even from a nested one.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sys::timens::{Clocks, Offsets};

/// What the clocks do about the time the pod was not running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Both clocks resume where they stopped.
    #[default]
    Freeze,
    /// CLOCK_MONOTONIC resumes where it stopped, CLOCK_BOOTTIME advances by the wall-clock gap, as over a suspend.
    Suspend,
}

/// The clocks at the cut, in ns: the first two as the pod saw them, the last the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockReading {
    /// CLOCK_MONOTONIC inside the pod.
    pub monotonic: i64,
    /// CLOCK_BOOTTIME inside the pod.
    pub boottime: i64,
    /// CLOCK_REALTIME.
    pub realtime: i64,
}

/// The instant at which a pod is to be released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// CLOCK_MONOTONIC as the caller of [`plan`] sees it, in ns: what a shim of the same daemon waits for.
    pub at: i64,
    initial_monotonic: i64,
    initial_boottime: i64,
    realtime: i64,
}

/// What a release came to, in ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Achieved {
    /// From the planned instant to the last task let go.
    pub late: i64,
    /// What CLOCK_MONOTONIC gained beyond the policy, at most: lateness, and the time the freeze itself took.
    pub monotonic_jump: i64,
    /// The same of CLOCK_BOOTTIME.
    pub boottime_jump: i64,
}

/// The numbers cannot be those of clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// Outside what the kernel accepts (0 to 146 years).
    #[error("{clock} of {value} ns is outside 0 to 146 years")]
    Range {
        /// Which one.
        clock: &'static str,
        /// Its value.
        value: i64,
    },
    /// The sum does not fit.
    #[error("clock arithmetic overflows")]
    Overflow,
}

/// Half of the kernel's `KTIME_SEC_MAX`, in ns: it refuses offsets that put a clock beyond (`ERANGE`).
const LONGEST: i64 = i64::MAX / 2;

/// Plans a release `ahead` of `now`.
///
/// `own` are the offsets of the caller's own time namespace, zero for one in the initial namespace.
pub fn plan(now: Clocks, own: Offsets, ahead: Duration) -> Result<Release, ClockError> {
    let ahead = i64::try_from(ahead.as_nanos()).map_err(|_| ClockError::Overflow)?;
    let at = |clock: i64, own: i64| clock.checked_add(ahead)?.checked_sub(own);
    let release = || {
        Some(Release {
            at: at(now.monotonic, 0)?,
            initial_monotonic: at(now.monotonic, own.monotonic)?,
            initial_boottime: at(now.boottime, own.boottime)?,
            realtime: at(now.realtime, 0)?,
        })
    };
    release().ok_or(ClockError::Overflow)
}

/// The offsets with which the pod's clocks read, at `release`, what `policy` says they should after `frozen`.
pub fn offsets(frozen: &ClockReading, release: &Release, policy: Policy) -> Result<Offsets, ClockError> {
    check("CLOCK_MONOTONIC", frozen.monotonic)?;
    check("CLOCK_BOOTTIME", frozen.boottime)?;
    let asleep = match policy {
        Policy::Freeze => 0,
        // The wall clock may have been set back, or the two hosts may disagree: then no time has passed.
        Policy::Suspend => release.realtime.checked_sub(frozen.realtime).ok_or(ClockError::Overflow)?.max(0),
    };
    let boottime = frozen.boottime.checked_add(asleep).ok_or(ClockError::Overflow)?;
    check("CLOCK_BOOTTIME", boottime)?;
    let offset = |target: i64, initial: i64| target.checked_sub(initial).ok_or(ClockError::Overflow);
    Ok(Offsets {
        monotonic: offset(frozen.monotonic, release.initial_monotonic)?,
        boottime: offset(boottime, release.initial_boottime)?,
    })
}

/// The offsets of the calling process's own time namespace, for [`plan`].
#[must_use]
pub fn own_offsets() -> Offsets {
    if crate::fault::is_set("ignore-time-namespace") {
        return Offsets::default();
    }
    // A kernel without time namespaces has no such file, and no offsets.
    sys::timens::read_offsets(sys::process::id()).unwrap_or_default()
}

/// What the tasks see of a release at `released` (on the clock of [`Release::at`]), after a freeze that took
/// `freezing` from its first write to the reading of the clocks.
#[must_use]
pub fn achieved(release: &Release, released: i64, freezing: Duration) -> Achieved {
    let late = released.saturating_sub(release.at);
    let jump = late.saturating_add(i64::try_from(freezing.as_nanos()).unwrap_or(i64::MAX));
    Achieved { late, monotonic_jump: jump, boottime_jump: jump }
}

fn check(clock: &'static str, value: i64) -> Result<(), ClockError> {
    if (0..=LONGEST).contains(&value) { Ok(()) } else { Err(ClockError::Range { clock, value }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000_000;
    const MS: i64 = 1_000_000;

    fn clocks(monotonic: i64, boottime: i64, realtime: i64) -> Clocks {
        Clocks { monotonic, boottime, realtime }
    }

    #[test]
    fn the_worked_example() {
        let own = Offsets { monotonic: 5_000_000 * S, boottime: 5_000_000 * S };
        let now = clocks(5_000_200 * S, 5_000_300 * S, 1_000 * S);
        let release = plan(now, own, Duration::from_millis(400)).unwrap();
        assert_eq!(release.at, 5_000_200 * S + 400 * MS);
        let frozen = ClockReading { monotonic: 100 * S, boottime: 150 * S, realtime: 990 * S };
        let freeze = offsets(&frozen, &release, Policy::Freeze).unwrap();
        assert_eq!(freeze, Offsets { monotonic: -100 * S - 400 * MS, boottime: -150 * S - 400 * MS });
        let suspend = offsets(&frozen, &release, Policy::Suspend).unwrap();
        assert_eq!(suspend, Offsets { monotonic: -100 * S - 400 * MS, boottime: -140 * S });
    }

    #[test]
    fn at_the_release_the_pod_reads_what_the_policy_says() {
        // (frozen, host at plan, own offsets)
        let cases = [
            (ClockReading { monotonic: 0, boottime: 0, realtime: 0 }, clocks(0, 0, 0), Offsets::default()),
            (
                ClockReading { monotonic: 7, boottime: 9, realtime: 5 * S },
                clocks(90 * S, 95 * S, 4 * S), // wall clock behind the source's
                Offsets { monotonic: -3 * S, boottime: 8 * S },
            ),
            (
                ClockReading { monotonic: LONGEST, boottime: 3, realtime: S },
                clocks(S, 2 * S, 900 * S),
                Offsets { monotonic: 1, boottime: 1 },
            ),
        ];
        for (frozen, now, own) in cases {
            for ahead in [0, 1, 400 * MS, 3600 * S] {
                let wait = Duration::from_nanos(ahead.unsigned_abs());
                let release = plan(now, own, wait).unwrap();
                let gap = (now.realtime + ahead - frozen.realtime).max(0);
                for (policy, asleep) in [(Policy::Freeze, 0), (Policy::Suspend, gap)] {
                    let offset = offsets(&frozen, &release, policy).unwrap();
                    // What a task reads at R: initial clock + offset.
                    let initial =
                        (now.monotonic + ahead - own.monotonic, now.boottime + ahead - own.boottime);
                    assert_eq!(initial.0 + offset.monotonic, frozen.monotonic);
                    assert_eq!(initial.1 + offset.boottime, frozen.boottime + asleep);
                }
            }
        }
    }

    #[test]
    fn absurd_readings_are_refused() {
        let release = plan(clocks(S, S, S), Offsets::default(), Duration::ZERO).unwrap();
        let frozen = |monotonic, boottime, realtime| ClockReading { monotonic, boottime, realtime };
        let range = |clock, value| Err(ClockError::Range { clock, value });
        for policy in [Policy::Freeze, Policy::Suspend] {
            assert_eq!(offsets(&frozen(-1, 0, 0), &release, policy), range("CLOCK_MONOTONIC", -1));
            assert_eq!(offsets(&frozen(0, i64::MAX, 0), &release, policy), range("CLOCK_BOOTTIME", i64::MAX));
        }
        let ages_ago = frozen(0, 0, i64::MIN);
        assert_eq!(offsets(&ages_ago, &release, Policy::Suspend), Err(ClockError::Overflow));
        assert!(offsets(&ages_ago, &release, Policy::Freeze).is_ok());
        assert_eq!(
            plan(clocks(i64::MAX, 0, 0), Offsets::default(), Duration::from_nanos(1)),
            Err(ClockError::Overflow)
        );
        assert_eq!(plan(clocks(0, 0, 0), Offsets::default(), Duration::MAX), Err(ClockError::Overflow));
    }

    #[test]
    fn the_lateness_is_the_jump() {
        let release = plan(clocks(S, S, S), Offsets::default(), Duration::ZERO).unwrap();
        let late = achieved(&release, S + 2 * MS, Duration::from_micros(300));
        assert_eq!((late.late, late.monotonic_jump, late.boottime_jump), (2 * MS, 2_300_000, 2_300_000));
    }
}
