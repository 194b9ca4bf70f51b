//! A profile's rules by the numbers of one ABI's calls.
//!
//! libseccomp gives the numbers. It also knows i386's `socketcall` and `ipc`, which carry many calls in one: a rule for
//! such a call holds for its direct number and for the carrier with that call in its first argument.

use std::collections::BTreeMap;

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};

use super::ProfileError;
use super::program::{Action, Operator, Table, Test, Verdict};
use crate::spec::default_seccomp;

const EPERM: u32 = 1;
/// What calls of an ABI that the profile does not list get: `SECCOMP_RET_ERRNO` with EPERM.
pub(super) const FOREIGN: Action = ERRNO | EPERM;
const ERRNO: Action = 0x0005_0000;

/// Numbers of x32's calls start here; they share x86-64's ABI.
const X32: u32 = 0x4000_0000;
const SOCKETCALL: u32 = 102;
const IPC: u32 = 117;

/// i386: call within `socketcall`, and the number of the same call since Linux 4.3.
const SOCKET_CALLS: [(u32, u32); 19] = [
    (1, 359),
    (2, 361),
    (3, 362),
    (4, 363),
    (6, 367),
    (7, 368),
    (8, 360),
    (11, 369),
    (12, 371),
    (13, 373),
    (14, 366),
    (15, 365),
    (16, 370),
    (17, 372),
    (18, 364),
    (19, 337),
    (20, 345),
    // accept, send and recv have none: they are accept4, sendto and recvfrom with less.
    (5, 0),
    (9, 0),
];
/// i386: call within `ipc`, and the number of the same call since Linux 5.1.
const IPC_CALLS: [(u32, u32); 10] = [
    (2, 393),
    (3, 394),
    (11, 400),
    (12, 401),
    (13, 399),
    (14, 402),
    (21, 397),
    (22, 398),
    (23, 395),
    (24, 396),
];

/// What the rules say about one call; without tests they win over those with.
#[derive(Default)]
struct Call {
    always: Option<Action>,
    tested: Vec<(Vec<Test>, Action)>,
}

/// One table per ABI of this machine that the profile is for.
pub(super) fn tables(profile: &LinuxSeccomp) -> Result<Vec<Table>, ProfileError> {
    let native = ScmpArch::native();
    let mut listed: Vec<_> = profile.architectures().iter().flatten().filter_map(|a| arch(*a)).collect();
    listed.push(native);
    let has = |arch| listed.contains(&arch);
    match native {
        ScmpArch::X8664 => {
            let mut own = calls(profile, native, native)?;
            let x32 = has(ScmpArch::X32);
            if x32 {
                own.append(&mut calls(profile, ScmpArch::X32, native)?);
            }
            let own = table(profile, 0xc000_003e, own, (!x32).then_some(X32))?;
            let i386 = has(ScmpArch::X86).then(|| calls(profile, ScmpArch::X86, native));
            let i386 = i386.transpose()?.map(|calls| table(profile, 0x4000_0003, calls, None));
            Ok(std::iter::once(own).chain(i386.transpose()?).collect())
        }
        ScmpArch::Aarch64 => {
            let own = table(profile, 0xc000_00b7, calls(profile, native, native)?, None)?;
            let arm = has(ScmpArch::Arm).then(|| calls(profile, ScmpArch::Arm, native));
            let arm = arm.transpose()?.map(|calls| table(profile, 0x4000_0028, calls, None));
            Ok(std::iter::once(own).chain(arm.transpose()?).collect())
        }
        other => Err(ProfileError::Unsupported(format!("{other:?} machines"))),
    }
}

/// Ranges of equal verdicts. From `end` on, calls belong to an ABI that is not listed.
fn table(
    profile: &LinuxSeccomp,
    arch: u32,
    calls: BTreeMap<u32, Call>,
    end: Option<u32>,
) -> Result<Table, ProfileError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut from = BTreeMap::from([(0, Verdict::Always(default))]);
    for (number, call) in calls {
        let verdict = match call.always {
            Some(action) => Verdict::Always(action),
            None => Verdict::If(call.tested, default),
        };
        from.insert(number, verdict);
        from.entry(number + 1).or_insert(Verdict::Always(default));
    }
    if let Some(end) = end {
        from.insert(end, Verdict::Always(FOREIGN));
    }
    let mut last = None;
    from.retain(|_, verdict| last.replace(verdict.clone()).as_ref() != Some(verdict));
    Ok(Table { arch, from })
}

fn calls(
    profile: &LinuxSeccomp,
    arch: ScmpArch,
    native: ScmpArch,
) -> Result<BTreeMap<u32, Call>, ProfileError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut calls = BTreeMap::<u32, Call>::new();
    for rule in profile.syscalls().iter().flatten() {
        let verdict = action(rule.action(), rule.errno_ret())?;
        if verdict == default {
            continue;
        }
        let tests: Vec<_> = rule.args().iter().flatten().map(test).collect::<Result<_, _>>()?;
        for name in rule.names() {
            for (number, carried) in numbers(name, arch, native) {
                let call = calls.entry(number).or_default();
                let within = carried.map(|value| Test { index: 0, operator: Operator::Equal, value });
                match (tests.as_slice(), within) {
                    ([], None) => drop(call.always.get_or_insert(verdict)),
                    ([], Some(within)) => call.tested.push((vec![within], verdict)),
                    (tests, None) => call.tested.push((tests.to_vec(), verdict)),
                    // The arguments of a carried call are behind a pointer.
                    (_, Some(_)) => {}
                }
            }
        }
    }
    calls.retain(|_, call| call.always.is_some() || !call.tested.is_empty());
    Ok(calls)
}

/// The numbers of a call, each with the first argument that selects it. None: this ABI has no such call.
fn numbers(name: &str, arch: ScmpArch, native: ScmpArch) -> Vec<(u32, Option<u64>)> {
    let known = ScmpSyscall::from_name_by_arch(name, arch).ok().map(i32::from);
    let newer = || default_seccomp::newer(name).filter(|_| arch == native);
    let Some(number) = known.or_else(newer) else { return Vec::new() };
    if let Ok(number) = u32::try_from(number) {
        return vec![(number, None)];
    }
    // Pseudo numbers: -100 - N for call N of socketcall, -200 - N for call N of ipc.
    let (carrier, carried, direct) = match number.unsigned_abs() {
        n @ 101..=120 => (SOCKETCALL, n - 100, SOCKET_CALLS.as_slice()),
        n @ 201..=224 => (IPC, n - 200, IPC_CALLS.as_slice()),
        _ => return Vec::new(),
    };
    if arch != ScmpArch::X86 {
        return Vec::new();
    }
    let direct = direct.iter().find(|(call, number)| *call == carried && *number != 0);
    let direct = direct.map(|(_, number)| (*number, None));
    direct.into_iter().chain([(carrier, Some(carried.into()))]).collect()
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Action, ProfileError> {
    // MAX_ERRNO is the most that a filter may answer.
    let data = errno.unwrap_or(EPERM).min(4095);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
        LinuxSeccompAction::ScmpActKillProcess => 0x8000_0000,
        LinuxSeccompAction::ScmpActTrap => 0x0003_0000,
        LinuxSeccompAction::ScmpActErrno => ERRNO | data,
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | data,
        LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
        LinuxSeccompAction::ScmpActAllow => 0x7fff_0000,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(ProfileError::Unsupported("SCMP_ACT_NOTIFY".to_owned()));
        }
    })
}

fn test(arg: &LinuxSeccompArg) -> Result<Test, ProfileError> {
    let (operator, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (Operator::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (Operator::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (Operator::AtMost, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (Operator::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (Operator::AtLeast, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (Operator::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (Operator::Masked(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    let index = u32::try_from(arg.index()).ok().filter(|i| *i < 6);
    let index = index.ok_or_else(|| ProfileError::Unsupported(format!("argument {}", arg.index())))?;
    Ok(Test { index, operator, value })
}

fn arch(arch: Arch) -> Option<ScmpArch> {
    Some(match arch {
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        _ => return None,
    })
}
