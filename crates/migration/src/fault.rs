//! Faults that tests ask for in the environment variable `MERIDIAN_FAULT`, a list separated by commas.
//!
//! `ignore-time-namespace`: the daemon takes itself to be in the initial time namespace (the clock tests must see it).
//! `die-at=POINT`: it kills itself at a named point. Nothing else reads the variable, and no configuration sets it.

use rustix::process::{Signal, getpid, kill_process};

/// Whether a fault is asked for.
#[must_use]
pub fn is_set(fault: &str) -> bool {
    std::env::var("MERIDIAN_FAULT").is_ok_and(|list| list.split(',').any(|one| one.trim() == fault))
}

/// Ends the process, as `kill -9` would, if that is asked for at this point.
pub fn die_at(point: &str) {
    if is_set(&format!("die-at={point}")) {
        let _never_fails = kill_process(getpid(), Signal::KILL);
    }
}
