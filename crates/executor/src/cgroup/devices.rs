//! The device filter: which device numbers a container may open or make, as an eBPF program.
//!
//! The context is `struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }`, where `access_type` holds
//! the wish (mknod 1, read 2, write 4) in its upper and the type (block 1, char 2) in its lower half. Rules are
//! tried from the last to the first, the last match decides, and what matches none is refused.

use std::os::fd::OwnedFd;

use api::shim::v1::{ContainerPlan, DeviceRule};
use sys::Result;
use sys::bpf::{Instruction, attach_device_filter, load_device_filter};

use crate::error::{CreateError, plan};
use crate::rootfs::dev;

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const BLOCK: u32 = 1;
const CHAR: u32 = 2;

/// A rule in the kernel's numbers; `None`: any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

impl Rule {
    /// Whether it decides on every wish.
    fn is_for_all(&self) -> bool {
        let all = MKNOD | READ | WRITE;
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access & all == all
    }
}

/// Loaded programs by their rules: nearly all containers of a pod have the same.
#[derive(Debug, Default)]
pub struct Filters(Vec<(Vec<Rule>, OwnedFd)>);

impl Filters {
    /// Puts the program of these rules on a cgroup2 directory.
    pub fn attach(&mut self, rules: &[Rule], cgroup: &OwnedFd) -> Result<()> {
        if !self.0.iter().any(|(known, _)| known == rules) {
            self.0.push((rules.to_vec(), load_device_filter(&compile(rules))?));
        }
        let program = self.0.iter().find(|(known, _)| known == rules).map(|(_, fd)| fd);
        attach_device_filter(cgroup, program.expect("loaded just above"), None)
    }
}

/// The rules of a plan: everything when privileged, else making any node, the default devices, ptys, the plan's devices
/// and then the plan's own rules.
pub fn rules(request: &ContainerPlan) -> std::result::Result<Vec<Rule>, CreateError> {
    if request.privileged_devices {
        return Ok(vec![Rule {
            allow: true,
            kind: None,
            major: None,
            minor: None,
            access: MKNOD | READ | WRITE,
        }]);
    }
    let char_device =
        |major, minor, access| Rule { allow: true, kind: Some(CHAR), major: Some(major), minor, access };
    let mut rules = vec![
        // A node that was made still cannot be opened.
        Rule { allow: true, kind: Some(CHAR), major: None, minor: None, access: MKNOD },
        Rule { allow: true, kind: Some(BLOCK), major: None, minor: None, access: MKNOD },
    ];
    let all = MKNOD | READ | WRITE;
    rules.extend(dev::DEFAULT_NODES.iter().map(|node| char_device(node.major, Some(node.minor), all)));
    rules.extend([char_device(5, Some(1), all), char_device(5, Some(2), all), char_device(136, None, all)]);
    rules.extend(request.device_rules.iter().map(rule).collect::<std::result::Result<Vec<_>, _>>()?);
    Ok(rules)
}

fn rule(rule: &DeviceRule) -> std::result::Result<Rule, CreateError> {
    let kind = match rule.r#type.as_str() {
        "c" => Some(CHAR),
        "b" => Some(BLOCK),
        "a" => None,
        other => return Err(plan("device_rules.type", other, "must be c, b or a")),
    };
    let mut access = 0;
    for letter in rule.access.chars() {
        access |= match letter {
            'm' => MKNOD,
            'r' => READ,
            'w' => WRITE,
            _ => return Err(plan("device_rules.access", rule.access.as_str(), "must be letters of rwm")),
        };
    }
    Ok(Rule { allow: rule.allow, kind, major: rule.major, minor: rule.minor, access })
}

// Registers and operations of include/uapi/linux/bpf.h.
const R0: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const AND32_IMMEDIATE: u8 = 0x54;
const SHIFT_RIGHT32_IMMEDIATE: u8 = 0x74;
const JUMP_NOT_EQUAL_IMMEDIATE: u8 = 0x55;
const EXIT: u8 = 0x95;

fn operation(code: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate: immediate.cast_signed() }
}

/// The program of these rules.
fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        operation(LOAD_WORD, KIND, CONTEXT, 0, 0),
        operation(AND32_IMMEDIATE, KIND, 0, 0, 0xffff),
        operation(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        operation(SHIFT_RIGHT32_IMMEDIATE, ACCESS, 0, 0, 16),
        operation(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        operation(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        program.extend(block(*rule));
        if rule.is_for_all() {
            return program; // the verifier refuses instructions that are never reached
        }
    }
    program.extend(answer(false));
    program
}

/// One rule: a row of comparisons, each of which skips to the next rule, then the answer.
fn block(rule: Rule) -> Vec<Instruction> {
    let mut tests = Vec::new();
    for (register, wanted) in [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)] {
        tests.extend(wanted.map(|value| vec![operation(JUMP_NOT_EQUAL_IMMEDIATE, register, 0, 0, value)]));
    }
    let refused = (MKNOD | READ | WRITE) & !rule.access;
    if refused != 0 {
        // An allowance must cover the whole wish; a refusal is met by any part of it.
        tests.push(if rule.allow { covers(refused) } else { touches(rule.access) });
    }
    let mut block: Vec<_> = tests.concat();
    let end = block.len() + 2;
    for (at, instruction) in block.iter_mut().enumerate() {
        // Jumps with the offset already set stay within their own test.
        if instruction.code == JUMP_NOT_EQUAL_IMMEDIATE && instruction.offset == 0 {
            instruction.offset = i16::try_from(end - at - 1).unwrap_or(i16::MAX);
        }
    }
    block.extend(answer(rule.allow));
    block
}

/// Goes on only if the wish has none of `refused`.
fn covers(refused: u32) -> Vec<Instruction> {
    vec![
        operation(MOVE, SCRATCH, ACCESS, 0, 0),
        operation(AND32_IMMEDIATE, SCRATCH, 0, 0, refused),
        operation(JUMP_NOT_EQUAL_IMMEDIATE, SCRATCH, 0, 0, 0),
    ]
}

/// Goes on only if the wish has one of `access`.
fn touches(access: u32) -> Vec<Instruction> {
    vec![
        operation(MOVE, SCRATCH, ACCESS, 0, 0),
        operation(AND32_IMMEDIATE, SCRATCH, 0, 0, access),
        // Not zero: over the next jump, whose condition always holds (kinds start at 1).
        operation(JUMP_NOT_EQUAL_IMMEDIATE, SCRATCH, 0, 1, 0),
        operation(JUMP_NOT_EQUAL_IMMEDIATE, KIND, 0, 0, 0),
    ]
}

fn answer(allow: bool) -> [Instruction; 2] {
    [operation(MOVE_IMMEDIATE, R0, 0, 0, u32::from(allow)), operation(EXIT, 0, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small machine for the operations above.
    fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u32; 10];
        let mut at = 0usize;
        loop {
            let i = program[at];
            let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            let immediate = i.immediate.cast_unsigned();
            at += 1;
            match i.code {
                LOAD_WORD => registers[to] = context[usize::try_from(i.offset).unwrap() / 4],
                MOVE => registers[to] = registers[from],
                MOVE_IMMEDIATE => registers[to] = immediate,
                AND32_IMMEDIATE => registers[to] &= immediate,
                SHIFT_RIGHT32_IMMEDIATE => registers[to] >>= immediate,
                JUMP_NOT_EQUAL_IMMEDIATE if registers[to] != immediate => {
                    at += usize::try_from(i.offset).unwrap()
                }
                JUMP_NOT_EQUAL_IMMEDIATE => {}
                EXIT => return registers[0] == 1,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    #[test]
    fn defaults() {
        let program = compile(&rules(&ContainerPlan::default()).unwrap());
        assert!(run(&program, CHAR, READ | WRITE, 1, 3), "null");
        assert!(run(&program, CHAR, READ | WRITE, 136, 17), "a pty");
        assert!(!run(&program, CHAR, READ, 1, 1), "mem");
        assert!(!run(&program, BLOCK, READ, 8, 0), "a disk");
        assert!(run(&program, BLOCK, MKNOD, 8, 0), "a node of a disk");
        assert!(!run(&program, BLOCK, MKNOD | READ, 8, 0));
    }

    #[test]
    fn the_last_matching_rule_decides() {
        let rule = |allow, access: &str| DeviceRule {
            allow,
            r#type: "b".into(),
            major: Some(8),
            minor: Some(1),
            access: access.into(),
        };
        let request = ContainerPlan {
            device_rules: vec![rule(true, "rwm"), rule(false, "w")],
            ..ContainerPlan::default()
        };
        let program = compile(&rules(&request).unwrap());
        assert!(run(&program, BLOCK, READ, 8, 1));
        assert!(!run(&program, BLOCK, READ | WRITE, 8, 1));
        assert!(!run(&program, BLOCK, READ, 8, 2));
        let open = ContainerPlan { privileged_devices: true, ..ContainerPlan::default() };
        assert!(run(&compile(&rules(&open).unwrap()), BLOCK, READ | WRITE | MKNOD, 8, 2));
    }

    #[test]
    fn bad_rules_name_their_field() {
        for (kind, access) in [("x", "r"), ("c", "rx")] {
            let device_rules =
                vec![DeviceRule { r#type: kind.into(), access: access.into(), ..DeviceRule::default() }];
            assert!(rules(&ContainerPlan { device_rules, ..ContainerPlan::default() }).is_err());
        }
    }
}
