//! A profile and its translation into a seccomp program: pure.
//!
//! The call's number is found by binary search over ranges, so the cost is logarithmic in the
//! length of the profile. One instruction is one word: code, jump true, jump false, operand
//! (16, 8, 8 and 32 bits from the top).

use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Allow,
    Errno(u16),
    KillProcess,
    KillThread,
    Trap,
    Trace(u16),
    Log,
}

impl Action {
    fn value(self) -> u32 {
        match self {
            Action::Allow => 0x7fff_0000,
            Action::Errno(errno) => 0x0005_0000 | u32::from(errno),
            Action::KillProcess => 0x8000_0000,
            Action::KillThread => 0,
            Action::Trap => 0x0003_0000,
            Action::Trace(data) => 0x7ff0_0000 | u32::from(data),
            Action::Log => 0x7ffc_0000,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    MaskedEqual(u64),
}

/// A test of one argument of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0..=5
    pub(super) argument: u8,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
}

/// What happens to a call when all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) action: Action,
    pub(super) conditions: Vec<Condition>,
}

#[derive(Debug, Clone)]
pub(super) struct Profile {
    pub(super) default: Action,
    /// By call number; the first rule that matches decides.
    pub(super) rules: BTreeMap<u32, Vec<Rule>>,
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
/// On x86-64, numbers from here up belong to the x32 interface.
const X32_BIT: u32 = 0x4000_0000;
/// Calls of another interface of the machine (32-bit programs) are answered as a kernel without it would.
const FOREIGN: Action = Action::Errno(libc::ENOSYS as u16);

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

fn op(code: u16, jump_true: u8, jump_false: u8, operand: u32) -> u64 {
    u64::from(code) << 48
        | u64::from(jump_true) << 40
        | u64::from(jump_false) << 32
        | u64::from(operand)
}

fn ret(action: Action) -> u64 {
    op(RETURN, 0, 0, action.value())
}

impl Profile {
    pub(super) fn assemble(&self) -> Vec<u64> {
        let mut out = vec![
            op(LOAD, 0, 0, OFFSET_ARCHITECTURE),
            op(JUMP_EQUAL, 1, 0, ARCHITECTURE),
            ret(FOREIGN),
            op(LOAD, 0, 0, OFFSET_NUMBER),
            op(JUMP_GREATER_OR_EQUAL, 0, 1, X32_BIT),
            ret(FOREIGN),
        ];
        out.extend(search(&self.ranges()));
        out
    }

    /// The whole number space as ranges that are treated alike: first number and code.
    fn ranges(&self) -> Vec<(u32, Vec<u64>)> {
        let default = vec![ret(self.default)];
        let mut out: Vec<(u32, Vec<u64>)> = vec![(0, default.clone())];
        let mut push = |start: u32, code: Vec<u64>| match out.last_mut() {
            Some((_, last)) if *last == code => {}
            Some((first, last)) if *first == start => *last = code,
            _ => out.push((start, code)),
        };
        let mut next = 0;
        for (number, rules) in &self.rules {
            if *number > next {
                push(next, default.clone());
            }
            push(*number, self.leaf(rules));
            next = number + 1;
        }
        push(next, default);
        out
    }

    fn leaf(&self, rules: &[Rule]) -> Vec<u64> {
        let mut out = Vec::new();
        for rule in rules {
            if rule.conditions.is_empty() {
                out.push(ret(rule.action));
                return out;
            }
            let mut steps: Vec<Step> = Vec::new();
            for condition in &rule.conditions {
                condition.steps(&mut steps);
            }
            out.extend(resolve(&steps));
            out.push(ret(rule.action));
        }
        out.push(ret(self.default));
        out
    }
}

fn search(ranges: &[(u32, Vec<u64>)]) -> Vec<u64> {
    if let [(_, code)] = ranges {
        return code.clone();
    }
    let middle = ranges.len() / 2;
    let (left, right) = (search(&ranges[..middle]), search(&ranges[middle..]));
    let first = ranges[middle].0;
    let mut out = match u8::try_from(left.len()) {
        Ok(distance) => vec![op(JUMP_GREATER_OR_EQUAL, distance, 0, first)],
        Err(_) => vec![
            op(JUMP_GREATER_OR_EQUAL, 0, 1, first),
            op(JUMP, 0, 0, left.len() as u32),
        ],
    };
    out.extend(left);
    out.extend(right);
    out
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Next,
    /// Past the end of this condition: it holds.
    Holds(usize),
    /// Past the action of this rule.
    Fails,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Plain(u16, u32),
    Test(u16, u32, Target, Target),
}

impl Condition {
    fn steps(&self, out: &mut Vec<Step>) {
        use Comparison::{
            Equal, Greater, GreaterOrEqual, Less, LessOrEqual, MaskedEqual, NotEqual,
        };
        use Target::{Fails, Holds, Next};
        let low_offset = OFFSET_ARGUMENTS + 8 * u32::from(self.argument.min(5));
        let (high_offset, value) = (low_offset + 4, self.value);
        let (high, low) = ((value >> 32) as u32, value as u32);
        let load_high = Step::Plain(LOAD, high_offset);
        let load_low = Step::Plain(LOAD, low_offset);
        let start = out.len();
        match self.comparison {
            Equal => out.extend([
                load_high,
                Step::Test(JUMP_EQUAL, high, Next, Fails),
                load_low,
                Step::Test(JUMP_EQUAL, low, Next, Fails),
            ]),
            NotEqual => out.extend([
                load_high,
                Step::Test(JUMP_EQUAL, high, Next, Holds(start + 4)),
                load_low,
                Step::Test(JUMP_EQUAL, low, Fails, Next),
            ]),
            MaskedEqual(mask) => out.extend([
                load_high,
                Step::Plain(AND, (mask >> 32) as u32),
                Step::Test(JUMP_EQUAL, high, Next, Fails),
                load_low,
                Step::Plain(AND, mask as u32),
                Step::Test(JUMP_EQUAL, low, Next, Fails),
            ]),
            Greater | GreaterOrEqual => out.extend([
                load_high,
                Step::Test(JUMP_GREATER, high, Holds(start + 5), Next),
                Step::Test(JUMP_EQUAL, high, Next, Fails),
                load_low,
                if self.comparison == Greater {
                    Step::Test(JUMP_GREATER, low, Next, Fails)
                } else {
                    Step::Test(JUMP_GREATER_OR_EQUAL, low, Next, Fails)
                },
            ]),
            Less | LessOrEqual => out.extend([
                load_high,
                Step::Test(JUMP_GREATER, high, Fails, Next),
                Step::Test(JUMP_EQUAL, high, Next, Holds(start + 5)),
                load_low,
                if self.comparison == Less {
                    Step::Test(JUMP_GREATER_OR_EQUAL, low, Fails, Next)
                } else {
                    Step::Test(JUMP_GREATER, low, Fails, Next)
                },
            ]),
        }
    }
}

/// Turns targets into distances. `Fails` goes past the return that follows the steps. A rule has
/// at most six arguments of six steps, so every distance fits.
fn resolve(steps: &[Step]) -> Vec<u64> {
    let end = steps.len();
    steps
        .iter()
        .enumerate()
        .map(|(at, step)| {
            let distance = |target: Target| match target {
                Target::Next => 0,
                Target::Holds(to) => to.saturating_sub(at + 1).min(255) as u8,
                Target::Fails => (end - at).min(255) as u8,
            };
            match *step {
                Step::Plain(code, operand) => op(code, 0, 0, operand),
                Step::Test(code, operand, yes, no) => {
                    op(code, distance(yes), distance(no), operand)
                }
            }
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Runs a program as the kernel would.
    pub(in crate::seccomp) fn run(program: &[u64], number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [0u32; 16];
        data[0] = number;
        data[1] = ARCHITECTURE;
        for (index, argument) in arguments.iter().enumerate() {
            data[4 + 2 * index] = *argument as u32;
            data[5 + 2 * index] = (*argument >> 32) as u32;
        }
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let word = program[at];
            let (yes, no, operand) = ((word >> 40) as u8, (word >> 32) as u8, word as u32);
            at += 1;
            let test = match (word >> 48) as u16 {
                LOAD => {
                    accumulator = data[operand as usize / 4];
                    continue;
                }
                AND => {
                    accumulator &= operand;
                    continue;
                }
                JUMP => {
                    at += operand as usize;
                    continue;
                }
                RETURN => return operand,
                JUMP_EQUAL => accumulator == operand,
                JUMP_GREATER => accumulator > operand,
                JUMP_GREATER_OR_EQUAL => accumulator >= operand,
                other => panic!("{other:#x}"),
            };
            at += usize::from(if test { yes } else { no });
        }
    }

    fn profile(rules: Vec<(u32, Vec<Rule>)>) -> Vec<u64> {
        Profile {
            default: Action::Errno(1),
            rules: rules.into_iter().collect(),
        }
        .assemble()
    }

    #[test]
    fn every_number_gets_its_action() {
        let allow = || {
            vec![Rule {
                action: Action::Allow,
                conditions: vec![],
            }]
        };
        let numbers: Vec<u32> = (0..400).filter(|n| n % 3 != 0 && n % 7 != 0).collect();
        let program = profile(numbers.iter().map(|n| (*n, allow())).collect());
        for number in 0..500 {
            let expected = if numbers.contains(&number) {
                Action::Allow
            } else {
                Action::Errno(1)
            };
            assert_eq!(run(&program, number, [0; 6]), expected.value(), "{number}");
        }
        assert_eq!(run(&program, X32_BIT + 1, [0; 6]), FOREIGN.value());
    }

    #[test]
    fn comparisons_are_of_64_bits() {
        use Comparison::*;
        let big = 5 << 32 | 7;
        let values = [
            0,
            7,
            big - 1,
            big,
            big + 1,
            6 << 32,
            5 << 32 | 8,
            4 << 32 | 9,
            u64::MAX,
        ];
        let cases: [(Comparison, fn(u64, u64) -> bool); 7] = [
            (Equal, |a, b| a == b),
            (NotEqual, |a, b| a != b),
            (Greater, |a, b| a > b),
            (GreaterOrEqual, |a, b| a >= b),
            (Less, |a, b| a < b),
            (LessOrEqual, |a, b| a <= b),
            (MaskedEqual(0xffff_ffff_0000_000f), |a, b| {
                a & 0xffff_ffff_0000_000f == b
            }),
        ];
        for (comparison, holds) in cases {
            let conditions = vec![
                Condition {
                    argument: 1,
                    comparison,
                    value: big,
                },
                Condition {
                    argument: 2,
                    comparison: Equal,
                    value: 3,
                },
            ];
            let program = profile(vec![(
                9,
                vec![Rule {
                    action: Action::Allow,
                    conditions,
                }],
            )]);
            for value in values {
                let expected = if holds(value, big) {
                    Action::Allow
                } else {
                    Action::Errno(1)
                };
                assert_eq!(
                    run(&program, 9, [0, value, 3, 0, 0, 0]),
                    expected.value(),
                    "{comparison:?} {value:#x}"
                );
                assert_eq!(
                    run(&program, 9, [0, value, 4, 0, 0, 0]),
                    Action::Errno(1).value()
                );
            }
        }
    }
}
