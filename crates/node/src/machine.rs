//! Facts about the machine, read once.

use std::path::Path;

use crate::config::NodeConfig;

#[derive(Debug, Clone, Default)]
pub(crate) struct Machine {
    pub(crate) hostname: String,
    pub(crate) cpus: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) storage_bytes: u64,
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
    pub(crate) kernel: String,
    pub(crate) os_image: String,
}

/// What pods may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allocatable {
    pub(crate) cpu_milli: i64,
    pub(crate) memory_bytes: i64,
    pub(crate) storage_bytes: i64,
}

impl Machine {
    pub(crate) fn read(storage_bytes: u64) -> Self {
        let text = |path: &str| {
            std::fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .unwrap_or_default()
        };
        let machine_id = text("/etc/machine-id");
        let uuid = text("/sys/class/dmi/id/product_uuid");
        Self {
            hostname: text("/proc/sys/kernel/hostname"),
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64),
            memory_bytes: meminfo(&text("/proc/meminfo"), "MemTotal").unwrap_or(0),
            storage_bytes,
            system_uuid: if uuid.is_empty() {
                machine_id.clone()
            } else {
                uuid
            },
            machine_id,
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel: text("/proc/sys/kernel/osrelease"),
            os_image: os_image(&text("/etc/os-release")),
        }
    }

    pub(crate) fn allocatable(&self, config: &NodeConfig) -> Allocatable {
        let whole = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        Allocatable {
            cpu_milli: whole((self.cpus * 1000).saturating_sub(config.reserved_cpu_milli)),
            memory_bytes: whole(
                self.memory_bytes
                    .saturating_sub(config.reserved_memory_bytes)
                    .saturating_sub(config.eviction_memory_available_bytes),
            ),
            storage_bytes: whole(
                self.storage_bytes / 100 * (100 - config.eviction_disk_available_percent.min(100)),
            ),
        }
    }
}

/// Memory that is available without swapping, now.
pub(crate) fn available_memory_bytes() -> Option<u64> {
    meminfo(
        &std::fs::read_to_string("/proc/meminfo").ok()?,
        "MemAvailable",
    )
}

fn meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text
        .lines()
        .find(|line| line.split(':').next() == Some(field))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

fn os_image(text: &str) -> String {
    text.lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .unwrap_or_else(|| "Linux".to_owned())
}

/// The architecture in Go's words, which node labels use.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Running processes and the most that there can be.
pub(crate) fn pids() -> Option<(u64, u64)> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let max = read(Path::new("/proc/sys/kernel/pid_max"))?
        .trim()
        .parse()
        .ok()?;
    let loadavg = read(Path::new("/proc/loadavg"))?;
    let running = loadavg
        .split_whitespace()
        .nth(3)?
        .split('/')
        .nth(1)?
        .parse()
        .ok()?;
    Some((running, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing() {
        let text = "MemTotal:       16 kB\nMemAvailable:    8 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(16 << 10));
        assert_eq!(meminfo(text, "Mem"), None);
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
    }
}
