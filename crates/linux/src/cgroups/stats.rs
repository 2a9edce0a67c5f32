//! Usage, read from the files of either version.

use std::path::Path;

use keelson_ports::CgroupStats;

/// Anything above is "no limit": version 1 shows the largest page-aligned number.
const UNLIMITED_V1_BYTES: u64 = 0x7fff_ffff_ffff_0000;

/// The value of `key` in a file of `key value` lines.
pub(crate) fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn number(path: &Path) -> u64 {
    text(path).trim().parse().unwrap_or(0)
}

/// `directory` gives the group's directory in the hierarchy of a controller.
pub(crate) fn read_v1<'a>(directory: impl Fn(&str) -> Option<&'a Path>) -> CgroupStats {
    let mut out = CgroupStats::default();
    if let Some(cpuacct) = directory("cpuacct") {
        out.cpu_usage_ns = number(&cpuacct.join("cpuacct.usage"));
    }
    if let Some(cpu) = directory("cpu") {
        out.cpu_throttled_ns = keyed(&text(&cpu.join("cpu.stat")), "throttled_time");
    }
    if let Some(memory) = directory("memory") {
        let stat = text(&memory.join("memory.stat"));
        out.memory_usage_bytes = number(&memory.join("memory.usage_in_bytes"));
        out.memory_working_set_bytes = out
            .memory_usage_bytes
            .saturating_sub(keyed(&stat, "total_inactive_file"));
        out.memory_rss_bytes = keyed(&stat, "total_rss");
        out.memory_page_faults = keyed(&stat, "total_pgfault");
        out.memory_major_page_faults = keyed(&stat, "total_pgmajfault");
        out.memory_limit_bytes = Some(number(&memory.join("memory.limit_in_bytes")))
            .filter(|limit| (1..UNLIMITED_V1_BYTES).contains(limit));
        out.oom_kills = keyed(&text(&memory.join("memory.oom_control")), "oom_kill");
    }
    if let Some(pids) = directory("pids") {
        out.pids = number(&pids.join("pids.current"));
    }
    out
}

pub(crate) fn read_v2(directory: &Path) -> CgroupStats {
    let cpu = text(&directory.join("cpu.stat"));
    let memory = text(&directory.join("memory.stat"));
    let usage = number(&directory.join("memory.current"));
    CgroupStats {
        cpu_usage_ns: keyed(&cpu, "usage_usec").saturating_mul(1_000),
        cpu_throttled_ns: keyed(&cpu, "throttled_usec").saturating_mul(1_000),
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(keyed(&memory, "inactive_file")),
        memory_rss_bytes: keyed(&memory, "anon"),
        memory_limit_bytes: text(&directory.join("memory.max")).trim().parse().ok(),
        memory_page_faults: keyed(&memory, "pgfault"),
        memory_major_page_faults: keyed(&memory, "pgmajfault"),
        pids: number(&directory.join("pids.current")),
        oom_kills: keyed(&text(&directory.join("memory.events")), "oom_kill"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_whole_words() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(keyed(text, "oom_kill"), 3);
        assert_eq!(keyed(text, "missing"), 0);
    }
}
