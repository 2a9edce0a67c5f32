//! What the kernel says of the subject's processes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The processes of one instance, by what they are for.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    pub(crate) server: u32,
    /// Which the shims are cloned from; at most one.
    pub(crate) template: Vec<u32>,
    /// One for each pod.
    pub(crate) shims: Vec<u32>,
    /// Everything that runs in pods.
    pub(crate) contained: Vec<u32>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Shared pages counted in parts, so that a sum over processes is true.
    pub(crate) pss_kib: u64,
    /// What would be free if this process alone ended.
    pub(crate) private_kib: u64,
}

impl Processes {
    /// Everything below the server. A shim is told by its first argument and by its parent.
    pub(crate) fn below(server: u32) -> Self {
        let parents = parents();
        let mut found = Self {
            server,
            ..Self::default()
        };
        let mut known = BTreeSet::from([server]);
        // Parents usually have smaller ids, but ids wrap: repeat until nothing is added.
        loop {
            let before = known.len();
            for (pid, parent) in &parents {
                if known.contains(parent) {
                    known.insert(*pid);
                }
            }
            if known.len() == before {
                break;
            }
        }
        known.remove(&server);
        for pid in known {
            let parent = parents.get(&pid).copied().unwrap_or_default();
            let shim = is_shim(pid);
            if shim && parent == server {
                found.template.push(pid);
            } else if shim && is_shim(parent) && parents.get(&parent) == Some(&server) {
                found.shims.push(pid);
            } else {
                found.contained.push(pid);
            }
        }
        found
    }
}

fn is_shim(pid: u32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).nth(1) == Some(b"__shim")
}

fn parents() -> BTreeMap<u32, u32> {
    all()
        .filter_map(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, field(&stat, 4)?.try_into().ok()?))
        })
        .collect()
}

fn all() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// How many processes still run this very file.
pub(crate) fn running(executable: &Path) -> usize {
    all()
        .filter(|pid| {
            std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == executable)
        })
        .count()
}

/// Field `n`, counted from 1, of `/proc/<pid>/stat`. The second, the name, may hold spaces and
/// parentheses.
fn field(stat: &str, n: usize) -> Option<u64> {
    let rest = stat.rsplit_once(')')?.1;
    rest.split_whitespace().nth(n.checked_sub(3)?)?.parse().ok()
}

/// The sum over these processes; one that has ended counts nothing.
pub(crate) fn memory(pids: &[u32]) -> Memory {
    pids.iter().fold(Memory::default(), |sum, pid| {
        let rollup =
            std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let one = parse_rollup(&rollup);
        Memory {
            pss_kib: sum.pss_kib + one.pss_kib,
            private_kib: sum.private_kib + one.private_kib,
        }
    })
}

fn parse_rollup(text: &str) -> Memory {
    let mut memory = Memory::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(kib)) = (words.next(), words.next()) else {
            continue;
        };
        let kib: u64 = kib.parse().unwrap_or_default();
        match key {
            "Pss:" => memory.pss_kib += kib,
            "Private_Clean:" | "Private_Dirty:" => memory.private_kib += kib,
            _ => {}
        }
    }
    memory
}

/// CPU time used so far, in milliseconds; user and system.
pub(crate) fn cpu_ms(pids: &[u32]) -> u64 {
    /// `USER_HZ`, which every architecture that Linux runs containers on has at 100.
    const TICK_MS: u64 = 10;
    pids.iter()
        .filter_map(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((field(&stat, 14)? + field(&stat, 15)?) * TICK_MS)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_shift_the_fields() {
        let stat = "42 (a) b)) S 7 42 42 0 -1 4194560 1 0 0 0 250 50 0 0";
        assert_eq!(field(stat, 4), Some(7));
        assert_eq!((field(stat, 14), field(stat, 15)), (Some(250), Some(50)));
        assert_eq!(field("", 4), None);
    }

    #[test]
    fn a_rollup_counts_both_kinds_of_private_pages() {
        let memory = parse_rollup(
            "00400000-7ffc ---p 00000000 00:00 0 [rollup]\nRss: 900 kB\nPss: 500 kB\n\
             Pss_Anon: 400 kB\nPrivate_Clean: 30 kB\nPrivate_Dirty: 200 kB\n",
        );
        assert_eq!((memory.pss_kib, memory.private_kib), (500, 230));
    }
}
