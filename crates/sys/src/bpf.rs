//! eBPF programs on cgroups: just what a device filter needs.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::{Result, check};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_F_REPLACE: u32 = 4;

/// One eBPF instruction in the kernel's layout.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low four bits, source in the high.
    pub registers: u8,
    /// Offset, in instructions for jumps and bytes for loads.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

/// Start of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// Start of `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

/// Loads a `BPF_PROG_TYPE_CGROUP_DEVICE` program; the kernel's verifier checks it.
pub fn load_device_filter(instructions: &[Instruction]) -> Result<OwnedFd> {
    let mut name = [0; 16];
    name[..7].copy_from_slice(b"devices");
    let attr = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        name,
        ..Load::default()
    };
    // SAFETY: `attr` is a prefix of union bpf_attr of the size given; its pointers are to live memory of `count`
    // instructions and a C string, which the kernel copies.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<Load>()) })?;
    let fd = i32::try_from(fd).map_err(|_| crate::Errno::BADF)?;
    // SAFETY: a new descriptor that nobody else owns (BPF descriptors are close-on-exec).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts the filter on a cgroup2 directory, beside those above it (all must allow). `replaces`: the program that
/// this one takes the place of, atomically.
pub fn attach_device_filter(cgroup: impl AsFd, program: impl AsFd, replaces: Option<&OwnedFd>) -> Result<()> {
    let raw = |fd: i32| fd.cast_unsigned();
    let attr = Attach {
        target: raw(cgroup.as_fd().as_raw_fd()),
        program: raw(program.as_fd().as_raw_fd()),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI | if replaces.is_some() { BPF_F_REPLACE } else { 0 },
        replaced: replaces.map_or(0, |fd| raw(fd.as_raw_fd())),
    };
    // SAFETY: `attr` is a prefix of union bpf_attr of the size given and holds live descriptors.
    check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attr, size_of::<Attach>()) })?;
    Ok(())
}
