//! What CRIU's images say of system calls and timers that a freeze interrupted, put right before they leave the dump.
//!
//! - A call that the kernel resumes by itself (restart_syscall(2): a sleep, a poll, a futex with a timeout) is recorded as
//!   failed with EINTR, which a program that handles no signals never sees: a plain `sleep` ends. It is made again
//!   instead, a sleep for what was left of it if the program gave room for that.
//! - A periodic timerfd that ran out during the freeze is recorded as disarmed, for nobody has read it yet.
//! - An absolute timerfd is set again to whole seconds, up to one too early. What is left of it is exact.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Dir, Mode, OFlags, openat};

use super::wire::{Message, edit_image};

/// Larger ones are none of these.
const LARGEST: u64 = 64 << 20;

/// Mends the images of a dump. What cannot be read is left as CRIU wrote it.
pub(super) fn mend(images: BorrowedFd<'_>) -> std::io::Result<()> {
    for entry in Dir::read_from(images)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"files.img" {
            rewrite(images, entry.file_name(), timers)?;
        } else if name.starts_with(b"core-") {
            rewrite(images, entry.file_name(), calls)?;
        }
    }
    Ok(())
}

fn rewrite(
    images: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    edit: impl FnMut(&mut Message) -> bool,
) -> std::io::Result<()> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(images.as_fd(), name, flags, Mode::empty())?);
    let mut image = Vec::new();
    (&file).take(LARGEST).read_to_end(&mut image)?;
    let Some(edited) = edit_image(&image, edit) else { return Ok(()) };
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(&edited)
}

/// Fields of `file_entry` and `timerfd_entry`.
const TIMERFD: u32 = 12;
const CLOCK: u32 = 4;
const SETTIME_FLAGS: u32 = 6;
const VALUE: [u32; 2] = [7, 8];
const INTERVAL: [u32; 2] = [9, 10];

const CLOCK_MONOTONIC: u64 = 1;
/// `TFD_TIMER_ABSTIME`.
const ABSOLUTE: u64 = 1;

fn timers(file: &mut Message) -> bool {
    file.edit(TIMERFD, |timer| {
        let is_zero =
            |timer: &Message, [seconds, ns]: [u32; 2]| timer.get(seconds) == 0 && timer.get(ns) == 0;
        let mut changed = false;
        if is_zero(timer, VALUE) && !is_zero(timer, INTERVAL) {
            for (value, interval) in VALUE.into_iter().zip(INTERVAL) {
                timer.set(value, timer.get(interval));
            }
            changed = true;
        }
        let flags = timer.get(SETTIME_FLAGS);
        if timer.get(CLOCK) == CLOCK_MONOTONIC && flags & ABSOLUTE != 0 {
            timer.set(SETTIME_FLAGS, flags & !ABSOLUTE);
            changed = true;
        }
        changed
    })
}

/// Fields of `core_entry`, `thread_info_x86` and `user_x86_regs_entry`.
const MACHINE: u32 = 1;
const THREAD_INFO: u32 = 2;
const REGISTERS: u32 = 2;
const R10: u32 = 8;
const AX: u32 = 11;
const DX: u32 = 13;
const SI: u32 = 14;
const DI: u32 = 15;
const ORIG_AX: u32 = 16;
const IP: u32 = 17;
const MODE: u32 = 28;

const X86_64: u64 = 1;
const COMPAT: u64 = 2;
const EINTR: u64 = (-4_i64).cast_unsigned();
/// Length of the `syscall` instruction.
const SYSCALL: u64 = 2;

const POLL: u64 = 7;
const NANOSLEEP: u64 = 35;
const FUTEX: u64 = 202;
const RESTART: u64 = 219;
const CLOCK_NANOSLEEP: u64 = 230;
/// `TIMER_ABSTIME`.
const ABSOLUTE_SLEEP: u64 = 1;

fn calls(core: &mut Message) -> bool {
    core.get(MACHINE) == X86_64 && core.edit(THREAD_INFO, |info| info.edit(REGISTERS, make_again))
}

fn make_again(registers: &mut Message) -> bool {
    if registers.get(AX) != EINTR || registers.get(MODE) == COMPAT {
        return false;
    }
    let call = match registers.get(ORIG_AX) {
        // It had been resumed once before: only its arguments tell what it was.
        RESTART => resumed(registers),
        other => Some(other),
    };
    // Where a sleep begins, and where the kernel has written what is left of it.
    let (request, left) = match call {
        Some(POLL | FUTEX) => (DI, 0),
        Some(NANOSLEEP) => (DI, registers.get(SI)),
        Some(CLOCK_NANOSLEEP) if registers.get(SI) & ABSOLUTE_SLEEP == 0 => (DX, registers.get(R10)),
        Some(CLOCK_NANOSLEEP) => (DX, 0),
        _ => return false,
    };
    if left != 0 {
        registers.set(request, left);
    }
    registers.set(AX, call.unwrap_or_default());
    registers.set(IP, registers.get(IP).wrapping_sub(SYSCALL));
    true
}

fn resumed(registers: &Message) -> Option<u64> {
    // Clocks are small numbers, and nothing is mapped where they would point to.
    let is_pointer = |register| registers.get(register) >= 1 << 16;
    if is_pointer(DI) && (registers.get(SI) == 0 || is_pointer(SI)) {
        Some(NANOSLEEP)
    } else if !is_pointer(DI) && registers.get(SI) <= ABSOLUTE_SLEEP && is_pointer(DX) {
        Some(CLOCK_NANOSLEEP)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::wire::tests::{around, image, of};

    fn core(registers: &[(u32, u64)]) -> Vec<u8> {
        let info = around(REGISTERS, &of(registers), of(&[(1, 0)]));
        image(&[around(THREAD_INFO, &info, of(&[(MACHINE, X86_64)]))])
    }

    #[test]
    fn sleeps_go_on_for_what_is_left() {
        let interrupted = |call, di, si, dx, r10| {
            core(&[(R10, r10), (AX, EINTR), (DX, dx), (SI, si), (DI, di), (ORIG_AX, call), (IP, 0x1002)])
        };
        let again = |call, was, di, si, dx, r10| {
            core(&[(R10, r10), (AX, call), (DX, dx), (SI, si), (DI, di), (ORIG_AX, was), (IP, 0x1000)])
        };
        let (a, b) = (0x7fff_0000, 0x7fff_0010);
        for (before, after) in [
            (interrupted(NANOSLEEP, a, b, 0, 0), again(NANOSLEEP, NANOSLEEP, b, b, 0, 0)),
            (interrupted(NANOSLEEP, a, 0, 0, 0), again(NANOSLEEP, NANOSLEEP, a, 0, 0, 0)),
            (interrupted(RESTART, a, b, 0, 0), again(NANOSLEEP, RESTART, b, b, 0, 0)),
            (interrupted(CLOCK_NANOSLEEP, 1, 0, a, b), again(CLOCK_NANOSLEEP, CLOCK_NANOSLEEP, 1, 0, b, b)),
            (interrupted(CLOCK_NANOSLEEP, 1, 1, a, b), again(CLOCK_NANOSLEEP, CLOCK_NANOSLEEP, 1, 1, a, b)),
            (interrupted(RESTART, 0, 0, a, b), again(CLOCK_NANOSLEEP, RESTART, 0, 0, b, b)),
            (interrupted(POLL, a, 3, 5000, 0), again(POLL, POLL, a, 3, 5000, 0)),
        ] {
            assert_eq!(edit_image(&before, calls), Some(after));
        }
    }

    #[test]
    fn other_calls_stay_interrupted() {
        let read = [(AX, EINTR), (ORIG_AX, 0), (IP, 0x1002)];
        assert_eq!(edit_image(&core(&read), calls), None);
        let done = [(AX, 0), (DI, 0), (SI, 0), (ORIG_AX, NANOSLEEP), (IP, 0x1002)];
        assert_eq!(edit_image(&core(&done), calls), None);
        let futex_resumed = [(AX, EINTR), (DI, 1 << 20), (SI, 128), (ORIG_AX, RESTART), (IP, 0x1002)];
        assert_eq!(edit_image(&core(&futex_resumed), calls), None);
    }

    #[test]
    fn periodic_timers_stay_armed_and_absolute_ones_exact() {
        let timer = |flags, value: u64, interval: u64| {
            let timer = of(&[(CLOCK, 1), (SETTIME_FLAGS, flags), (7, 0), (8, value), (9, 0), (10, interval)]);
            image(&[around(TIMERFD, &timer, of(&[(1, 17)]))])
        };
        assert_eq!(edit_image(&timer(0, 0, 50), timers), Some(timer(0, 50, 50)));
        assert_eq!(edit_image(&timer(0, 7, 50), timers), None);
        assert_eq!(edit_image(&timer(0, 0, 0), timers), None);
        assert_eq!(edit_image(&timer(1, 7, 0), timers), Some(timer(0, 7, 0)));
    }
}
