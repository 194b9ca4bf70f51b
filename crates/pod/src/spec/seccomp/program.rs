//! Verdicts by call number, as a classic BPF program.
//!
//! Neighbouring numbers with the same verdict are one range, and the ranges are searched by halves: the kernel
//! translates a filter anew for every process that loads it, so its length is paid at every start and every exec. The
//! program is written from its end to its start, where every jump's target is known.
//!
//! ```text
//! load arch; one test per ABI ─▶ load number; tree of `>=` tests ─▶ return an action, or test arguments ─▶ return
//! ```

use std::collections::{BTreeMap, HashMap};

/// `struct seccomp_data`: offsets of the number, the ABI and the low half of the first argument.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// What the kernel takes (`BPF_MAXINSNS`).
const LONGEST: usize = 4096;

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const AND: u16 = 0x54;

/// What a filter answers: `SECCOMP_RET_*` with its data.
pub(super) type Action = u32;

/// One test of an argument, over its 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Test {
    /// Which argument, 0 to 5.
    pub index: u32,
    pub operator: Operator,
    /// What is compared with; for a masked test after the mask.
    pub value: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Greater,
    AtLeast,
    Less,
    AtMost,
    /// Equal in the bits of this mask.
    Masked(u64),
}

/// What becomes of one call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Verdict {
    Always(Action),
    /// The first rule all of whose tests hold; else the last field.
    If(Vec<(Vec<Test>, Action)>, Action),
}

/// The calls of one ABI, as the kernel names it (`AUDIT_ARCH_*`).
#[derive(Debug)]
pub(super) struct Table {
    pub arch: u32,
    /// Verdict from this number on, up to the next entry's. Starts at 0.
    pub from: BTreeMap<u32, Verdict>,
}

/// The program as an array of `struct sock_filter`, little endian; `None`: longer than the kernel takes. Calls of
/// other ABIs get `foreign`.
pub(super) fn assemble(tables: &[Table], foreign: Action) -> Option<Vec<u8>> {
    let mut program = Program::default();
    let mut otherwise = program.answer(foreign);
    for table in tables.iter().rev() {
        let ranges: Vec<_> = table.from.iter().collect();
        let root = program.search(&ranges);
        if program.distance(root) > 0 {
            program.leap(root);
        }
        let found = program.push(LOAD, NUMBER);
        otherwise = program.jump(JUMP_EQUAL, table.arch, found, otherwise);
    }
    program.push(LOAD, ARCH);
    program.encode()
}

/// Where an instruction is: its distance from the end of the program.
#[derive(Debug, Clone, Copy)]
struct Label(usize);

struct Instruction {
    code: u16,
    yes: u8,
    no: u8,
    value: u32,
}

/// A program under way, last instruction first.
#[derive(Default)]
struct Program {
    reversed: Vec<Instruction>,
    /// Where verdicts that were written last are.
    known: HashMap<Verdict, Label>,
}

impl Program {
    fn push(&mut self, code: u16, value: u32) -> Label {
        self.reversed.push(Instruction { code, yes: 0, no: 0, value });
        Label(self.reversed.len() - 1)
    }

    /// Instructions that a jump written now would skip to get there.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - 1 - label.0
    }

    /// A conditional jump; these reach 255 instructions far, so that a longer way gets a jump of its own.
    fn jump(&mut self, code: u16, value: u32, mut yes: Label, mut no: Label) -> Label {
        loop {
            match (u8::try_from(self.distance(yes)), u8::try_from(self.distance(no))) {
                (Ok(yes), Ok(no)) => {
                    self.reversed.push(Instruction { code, yes, no, value });
                    return Label(self.reversed.len() - 1);
                }
                (Err(_), _) => yes = self.leap(yes),
                (_, Err(_)) => no = self.leap(no),
            }
        }
    }

    fn leap(&mut self, label: Label) -> Label {
        let distance = u32::try_from(self.distance(label)).unwrap_or(u32::MAX);
        self.push(JUMP, distance)
    }

    fn answer(&mut self, action: Action) -> Label {
        self.verdict(&Verdict::Always(action))
    }

    /// The code of a verdict, written once per reach of a jump.
    fn verdict(&mut self, verdict: &Verdict) -> Label {
        if let Some(known) = self.known.get(verdict).filter(|label| self.distance(**label) < 200) {
            return *known;
        }
        let label = match verdict {
            Verdict::Always(action) => self.push(RETURN, *action),
            Verdict::If(rules, otherwise) => {
                let mut next = self.answer(*otherwise);
                for (tests, action) in rules.iter().rev() {
                    let mut passed = self.answer(*action);
                    for test in tests.iter().rev() {
                        passed = self.test(*test, passed, next);
                    }
                    next = passed;
                }
                next
            }
        };
        self.known.insert(verdict.clone(), label);
        label
    }

    /// Loads an argument's halves and compares.
    fn test(&mut self, test: Test, yes: Label, no: Label) -> Label {
        let Test { index, operator, value } = test;
        match operator {
            Operator::NotEqual => self.test(Test { operator: Operator::Equal, ..test }, no, yes),
            Operator::Less => self.test(Test { operator: Operator::AtLeast, ..test }, no, yes),
            Operator::AtMost => self.test(Test { operator: Operator::Greater, ..test }, no, yes),
            Operator::Equal => self.equal(index, u64::MAX, value, yes, no),
            Operator::Masked(mask) => self.equal(index, mask, value, yes, no),
            Operator::Greater => self.ordered(JUMP_GREATER, index, value, yes, no),
            Operator::AtLeast => self.ordered(JUMP_AT_LEAST, index, value, yes, no),
        }
    }

    fn equal(&mut self, index: u32, mask: u64, value: u64, yes: Label, no: Label) -> Label {
        let mut matched = yes;
        let halves = [(0, low(mask), low(value & mask)), (4, high(mask), high(value & mask))];
        for (offset, mask, value) in halves.into_iter().filter(|(_, mask, _)| *mask != 0) {
            self.jump(JUMP_EQUAL, value, matched, no);
            if mask != u32::MAX {
                self.push(AND, mask);
            }
            matched = self.push(LOAD, ARGUMENTS + 8 * index + offset);
        }
        matched
    }

    fn ordered(&mut self, code: u16, index: u32, value: u64, yes: Label, no: Label) -> Label {
        self.jump(code, low(value), yes, no);
        let equal = self.push(LOAD, ARGUMENTS + 8 * index);
        let not_above = self.jump(JUMP_EQUAL, high(value), equal, no);
        self.jump(JUMP_GREATER, high(value), yes, not_above);
        self.push(LOAD, ARGUMENTS + 8 * index + 4)
    }

    /// The search for a number among sorted ranges.
    fn search(&mut self, ranges: &[(&u32, &Verdict)]) -> Label {
        match ranges {
            [] => self.answer(0),
            [(_, verdict)] => self.verdict(verdict),
            _ => {
                let (lower, upper) = ranges.split_at(ranges.len() / 2);
                let first = *upper[0].0;
                let above = self.search(upper);
                let below = self.search(lower);
                self.jump(JUMP_AT_LEAST, first, above, below)
            }
        }
    }

    fn encode(self) -> Option<Vec<u8>> {
        (self.reversed.len() <= LONGEST).then(|| {
            let encode = |i: Instruction| {
                let [code, value] = [i.code.to_le_bytes().to_vec(), i.value.to_le_bytes().to_vec()];
                [code, vec![i.yes, i.no], value].concat()
            };
            self.reversed.into_iter().rev().flat_map(encode).collect()
        })
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
pub(super) fn low(value: u64) -> u32 {
    value as u32
}

pub(super) fn high(value: u64) -> u32 {
    low(value >> 32)
}
