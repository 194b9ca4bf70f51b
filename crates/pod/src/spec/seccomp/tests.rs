//! Filters, run by an interpreter, beside those that libseccomp writes for the same rules.

use std::io::{Read, Seek};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccompOperator};

use super::program::{high, low};
use super::*;

/// What a program answers to a call (seccomp(2), BPF as in `linux/filter.h`).
fn run(program: &[u8], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = vec![number, arch, 0, 0];
    data.extend(arguments.iter().flat_map(|a| [low(*a), high(*a)]));
    let (mut at, mut a, mut x) = (0, 0_u32, [0_u32; 16]);
    loop {
        let i: [u8; 8] = program[at * 8..at * 8 + 8].try_into().unwrap();
        let (code, k) = (u16::from_le_bytes([i[0], i[1]]), u32::from_le_bytes([i[4], i[5], i[6], i[7]]));
        let jump = |condition: bool| usize::from(if condition { i[2] } else { i[3] });
        at += 1;
        match code {
            0x20 => a = data[k as usize / 4],
            0x05 => at += k as usize,
            0x15 => at += jump(a == k),
            0x25 => at += jump(a > k),
            0x35 => at += jump(a >= k),
            0x45 => at += jump(a & k != 0),
            0x54 => a &= k,
            0x60 => a = x[k as usize],
            0x02 => x[k as usize] = a,
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// The same rules by libseccomp; those that its version does not know are left out.
fn reference(profile: &LinuxSeccomp) -> Vec<u8> {
    let filter = |profile: &LinuxSeccomp| {
        let mut filter = ScmpFilterContext::new(theirs(profile.default_action(), None)).unwrap();
        filter.set_act_badarch(ScmpAction::Errno(1)).unwrap();
        filter
    };
    let mut whole = filter(profile);
    for (name, arch) in [(Arch::ScmpArchX86, ScmpArch::X86), (Arch::ScmpArchX32, ScmpArch::X32)] {
        if profile.architectures().iter().flatten().any(|listed| *listed == name) {
            whole.add_arch(arch).unwrap();
        }
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = theirs(rule.action(), rule.errno_ret());
        if action == whole.get_act_default().unwrap() {
            continue;
        }
        let tests: Vec<_> = rule.args().iter().flatten().map(compare).collect();
        for call in rule.names().iter().filter_map(|name| ScmpSyscall::from_name(name).ok()) {
            whole.add_rule_conditional(action, call, &tests).unwrap();
        }
    }
    let mut file = tempfile::tempfile().unwrap();
    whole.export_bpf(&file).unwrap();
    let mut program = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut program)).unwrap();
    program
}

fn theirs(action: LinuxSeccompAction, errno: Option<u32>) -> ScmpAction {
    match action {
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno.unwrap_or(1).cast_signed()),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        other => panic!("{other:?}"),
    }
}

fn compare(arg: &oci_spec::runtime::LinuxSeccompArg) -> ScmpArgCompare {
    let (operator, datum) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    ScmpArgCompare::new(u32::try_from(arg.index()).unwrap(), operator, datum)
}

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const NEW: u32 = 440;

/// Compares both programs over every number that libseccomp knows, with arguments around `values`.
fn assert_same(profile: &LinuxSeccomp, values: &[u64]) {
    let (ours, reference) = (compile(profile).unwrap(), reference(profile));

    let around = values.iter().flat_map(|v| [v.wrapping_sub(1), *v, v.wrapping_add(1), v | 1 << 32]);
    let around: Vec<_> = around.chain([0, u64::MAX]).collect();
    for (arch, base) in [(X86_64, 0), (X86_64, 0x4000_0000), (I386, 0), (0xc000_00b7, 0)] {
        for number in base..base + NEW {
            for value in &around {
                // libseccomp compares 32 bits for ABIs whose arguments have no more.
                let value = if arch == I386 || base != 0 { *value & 0xffff_ffff } else { *value };
                let call = |program: &[u8]| run(program, arch, number, [value; 6]);
                let (ours, theirs) = (call(&ours), call(&reference));
                assert_eq!(
                    ours, theirs,
                    "call {number:#x} of {arch:#x} with {value:#x}: {ours:#x}, {theirs:#x}"
                );
            }
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_default_profile_says_what_libseccomp_says() {
    assert_same(&default_seccomp::profile(Set::default()), &[8, 38, 40, 0x20000, 0x7e02_0000, 0xffff_ffff]);
    assert_same(&default_seccomp::profile(Set(1 << 21)), &[8, 38]);
    let filter = compile(&default_seccomp::profile(Set::default())).unwrap();
    let sockets = |families: &mut dyn Iterator<Item = u64>| -> Vec<u64> {
        families.filter(|f| run(&filter, X86_64, 41, [*f, 0, 0, 0, 0, 0]) != 0x7fff_0000).collect()
    };
    assert_eq!(sockets(&mut (0..47)), [38, 40, 46]);
    assert_eq!(sockets(&mut [1 << 32 | 38, 1 << 32 | 2].into_iter()).len(), 2, "no high bits");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn every_comparison_says_what_libseccomp_says() {
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],"syscalls":[
        {"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":5,"args":[{"index":1,"value":7,"op":"SCMP_CMP_EQ"}]},
        {"names":["rmdir"],"action":"SCMP_ACT_ERRNO","args":[{"index":1,"value":7,"op":"SCMP_CMP_NE"}]},
        {"names":["chdir"],"action":"SCMP_ACT_TRAP","args":[{"index":2,"value":4294967303,"op":"SCMP_CMP_GT"}]},
        {"names":["fchdir"],"action":"SCMP_ACT_LOG","args":[{"index":3,"value":7,"op":"SCMP_CMP_GE"}]},
        {"names":["chown"],"action":"SCMP_ACT_ERRNO","args":[{"index":4,"value":7,"op":"SCMP_CMP_LT"}]},
        {"names":["link"],"action":"SCMP_ACT_ERRNO","args":[{"index":5,"value":4294967303,"op":"SCMP_CMP_LE"}]},
        {"names":["sync"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":6,"valueTwo":2,"op":"SCMP_CMP_MASKED_EQ"}]},
        {"names":["getpid"],"action":"SCMP_ACT_ERRNO","args":[
            {"index":0,"value":6,"op":"SCMP_CMP_GT"},{"index":1,"value":9,"op":"SCMP_CMP_LT"}]},
        {"names":["semget","no_such_call"],"action":"SCMP_ACT_ERRNO"},
        {"names":["kill"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#;
    let mut profile: LinuxSeccomp = serde_json::from_str(text).unwrap();
    let values = [2, 6, 7, 8, 9, 23, 4_294_967_303];
    let wide = compile(&profile).unwrap();
    let semget = |number, first| run(&wide, I386, number, [first, 0, 0, 0, 0, 0]);
    assert_eq!([semget(117, 2), semget(393, 9)], [0x0005_0001; 2], "by ipc and by itself");
    assert_eq!([semget(117, 3), semget(394, 2)], [0x7fff_0000; 2], "semctl is another call");
    // libseccomp compares 32 bits where arguments have no more, and so do we where the profile's value has no more.
    let narrow = |v: &LinuxSyscall| v.args().iter().flatten().all(|a| a.value() < 1 << 32);
    let (own, all) = (vec![Arch::ScmpArchX86_64], profile.syscalls().clone().unwrap());
    profile.set_syscalls(Some(all.iter().filter(|v| narrow(v)).cloned().collect()));
    assert_same(&profile, &values);
    profile.set_syscalls(Some(all));
    profile.set_architectures(Some(own));
    assert_same(&profile, &values);
}

fn profile(kind: ProfileType, path: &str) -> SecurityProfile {
    SecurityProfile { profile_type: kind as i32, localhost_ref: path.to_owned() }
}

#[test]
fn the_default_profile_compiles_to_a_short_program_once() {
    let filters = Filters::default();
    let default = profile(ProfileType::RuntimeDefault, "");
    let filter = filters.of(Some(&default), false, Set::default()).unwrap().unwrap();
    let instructions = filter.program.len() / 8;
    assert_eq!(filter.program.len() % 8, 0);
    assert!((50..500).contains(&instructions), "{instructions}");
    let again = filters.of(Some(&default), false, Set(1)).unwrap().unwrap();
    assert!(Arc::ptr_eq(&filter.program, &again.program), "CAP_CHOWN changes nothing in it");
    let admin = filters.of(Some(&default), false, Set(1 << 21)).unwrap().unwrap();
    assert_ne!(filter.program, admin.program);
}

#[test]
fn no_profile_unconfined_and_privileged_have_no_filter() {
    let filters = Filters::default();
    let default = profile(ProfileType::RuntimeDefault, "");
    let unconfined = profile(ProfileType::Unconfined, "");
    assert!(filters.of(None, false, Set::default()).unwrap().is_none());
    assert!(filters.of(Some(&unconfined), false, Set::default()).unwrap().is_none());
    assert!(filters.of(Some(&default), true, Set::default()).unwrap().is_none());
}

#[test]
fn profiles_from_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.json");
    let path_text = path.to_str().unwrap();
    let filters = Filters::default();
    let localhost = profile(ProfileType::Localhost, path_text);
    let of = || filters.of(Some(&localhost), false, Set::default());
    assert!(matches!(of(), Err(ProfileError::Read { .. })));
    std::fs::write(&path, "{").unwrap();
    assert!(matches!(of(), Err(ProfileError::Format { .. })));
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],
        "syscalls":[{"names":["mkdir","no_such_call"],"action":"SCMP_ACT_ERRNO","errnoRet":5,
        "args":[{"index":1,"value":7,"valueTwo":0,"op":"SCMP_CMP_EQ"}]}]}"#;
    std::fs::write(&path, text).unwrap();
    assert!(!of().unwrap().unwrap().program.is_empty());
    std::fs::write(&path, text.replace("ERRNO\"", "NOTIFY\"")).unwrap();
    assert!(matches!(of(), Err(ProfileError::Unsupported(_))));
}
