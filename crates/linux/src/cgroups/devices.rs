//! Which device nodes the processes of a container may open.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DeviceKind {
    Block,
    Character,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceRule {
    pub(crate) kind: DeviceKind,
    /// `None` is any number.
    pub(crate) major: Option<u32>,
    pub(crate) minor: Option<u32>,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) make: bool,
}

impl DeviceRule {
    pub(crate) fn new(
        kind: DeviceKind,
        major: Option<u32>,
        minor: Option<u32>,
        permissions: &str,
    ) -> DeviceRule {
        DeviceRule {
            kind,
            major,
            minor,
            read: permissions.contains('r'),
            write: permissions.contains('w'),
            make: permissions.contains('m'),
        }
    }

    /// The line that version 1 reads.
    pub(crate) fn render(&self) -> String {
        let kind = match self.kind {
            DeviceKind::Block => 'b',
            DeviceKind::Character => 'c',
        };
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let mut line = format!("{kind} {}:{} ", number(self.major), number(self.minor));
        for (allowed, letter) in [(self.read, 'r'), (self.write, 'w'), (self.make, 'm')] {
            if allowed {
                line.push(letter);
            }
        }
        line
    }
}

/// What every container may use: making nodes (which alone opens nothing) and the standard ones.
pub(crate) fn default_rules() -> Vec<DeviceRule> {
    use DeviceKind::{Block, Character};
    let mut rules = vec![
        DeviceRule::new(Character, None, None, "m"),
        DeviceRule::new(Block, None, None, "m"),
    ];
    // null, zero, full, random, urandom, tty, console, ptmx
    let standard = [
        (1, 3),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (5, 0),
        (5, 1),
        (5, 2),
    ];
    rules.extend(
        standard.map(|(major, minor)| DeviceRule::new(Character, Some(major), Some(minor), "rwm")),
    );
    rules.push(DeviceRule::new(Character, Some(136), None, "rwm"));
    rules
}

/// The rules as the eBPF program that version 2 wants: allowed if any rule matches.
///
/// The context is three words: access and type, major, minor
/// (`struct bpf_cgroup_dev_ctx` in the kernel's `linux/bpf.h`).
pub(crate) fn program(rules: &[DeviceRule]) -> Vec<u64> {
    const LOAD_WORD: u8 = 0x61;
    const AND: u8 = 0x57;
    const SHIFT_RIGHT: u8 = 0x77;
    const MOVE: u8 = 0xb7;
    const MOVE_REGISTER: u8 = 0xbf;
    const JUMP_NOT_EQUAL: u8 = 0x55;
    const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
    const EXIT: u8 = 0x95;

    fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> u64 {
        u64::from(code)
            | u64::from(destination) << 8
            | u64::from(source) << 12
            | u64::from(offset as u16) << 16
            | u64::from(immediate) << 32
    }

    let mut out = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(MOVE_REGISTER, 3, 2, 0, 0),
        op(AND, 2, 0, 0, 0xffff),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let kind = match rule.kind {
            DeviceKind::Block => 1,
            DeviceKind::Character => 2,
        };
        let access = u32::from(rule.make) | u32::from(rule.read) << 1 | u32::from(rule.write) << 2;
        // Tests first, each a jump whose distance is known only when all are there.
        let mut tests = vec![(op(JUMP_NOT_EQUAL, 2, 0, 0, kind), true)];
        if access != 7 {
            tests.push((op(MOVE_REGISTER, 1, 3, 0, 0), false));
            tests.push((op(AND, 1, 0, 0, access), false));
            tests.push((op(JUMP_NOT_EQUAL_REGISTER, 1, 3, 0, 0), true));
        }
        tests.extend(
            rule.major
                .map(|major| (op(JUMP_NOT_EQUAL, 4, 0, 0, major), true)),
        );
        tests.extend(
            rule.minor
                .map(|minor| (op(JUMP_NOT_EQUAL, 5, 0, 0, minor), true)),
        );
        let count = tests.len();
        for (index, (instruction, jump)) in tests.into_iter().enumerate() {
            let distance = (count - index - 1 + 2) as u64;
            out.push(if jump {
                instruction | distance << 16
            } else {
                instruction
            });
        }
        out.push(op(MOVE, 0, 0, 0, 1));
        out.push(op(EXIT, 0, 0, 0, 0));
    }
    out.push(op(MOVE, 0, 0, 0, 0));
    out.push(op(EXIT, 0, 0, 0, 0));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_render_for_version_1() {
        let lines: Vec<_> = default_rules().iter().map(DeviceRule::render).collect();
        assert_eq!(lines[0], "c *:* m");
        assert_eq!(lines[2], "c 1:3 rwm");
        assert_eq!(lines.last().unwrap(), "c 136:* rwm");
    }

    /// Runs the program as the kernel would, for the few instructions it uses.
    fn allowed(program: &[u64], access: u32, kind: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0usize;
        loop {
            let word = program[at];
            let (dst, src) = ((word >> 8 & 15) as usize, (word >> 12 & 15) as usize);
            let (offset, immediate) = ((word >> 16) as u16 as usize, word >> 32);
            at += 1;
            match word as u8 {
                0x61 => registers[dst] = u64::from(context[offset / 4]),
                0xbf => registers[dst] = registers[src],
                0x57 => registers[dst] &= immediate,
                0x77 => registers[dst] >>= immediate,
                0xb7 => registers[dst] = immediate,
                0x55 if registers[dst] != immediate => at += offset,
                0x5d if registers[dst] != registers[src] => at += offset,
                0x55 | 0x5d => {}
                0x95 => return registers[0] == 1,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_decides_as_the_rules_do() {
        let mut rules = default_rules();
        rules.push(DeviceRule::new(DeviceKind::Block, Some(8), Some(1), "r"));
        let program = program(&rules);
        let (make, read, write) = (1, 2, 4);
        assert!(allowed(&program, read | write, 2, 1, 3));
        assert!(allowed(&program, make, 1, 99, 99));
        assert!(!allowed(&program, read, 2, 10, 200));
        assert!(allowed(&program, read, 2, 136, 7));
        assert!(allowed(&program, read, 1, 8, 1));
        assert!(!allowed(&program, read | write, 1, 8, 1));
    }

    /// Only a kernel's verifier knows whether it takes the program.
    #[test]
    fn the_kernel_takes_the_program() {
        use std::os::fd::AsFd;
        let mounts = crate::mountinfo::read().unwrap();
        let Some(mount) = mounts.iter().find(|mount| mount.fstype == "cgroup2") else {
            eprintln!("skipped: cgroup2 is not mounted");
            return;
        };
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: attaching needs root");
            return;
        }
        let group = mount
            .target
            .join(format!("keelson-devices-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        let directory = std::fs::File::open(&group).unwrap();
        let attached =
            crate::sys::attach_device_program(directory.as_fd(), &program(&default_rules()));
        let look = |path: &str| {
            let script = format!(
                "echo $$ > {}/cgroup.procs && head -c 1 {path} > /dev/null",
                group.display()
            );
            std::process::Command::new("sh")
                .args(["-c", &script])
                .status()
                .unwrap()
                .success()
        };
        let (zero, kmsg) = (look("/dev/zero"), look("/dev/kmsg"));
        std::fs::remove_dir(&group).unwrap();
        attached.unwrap();
        assert!(zero);
        assert!(!kmsg);
    }
}
