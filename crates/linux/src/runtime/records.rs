//! What the runtime keeps on disk of sandboxes and containers, so that the next server finds it.
//!
//! `<state>/sandboxes/<id>/record.json`, `<state>/containers/<id>/{record,spec,state}.json`.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keelson_ports::{ContainerConfig, PodSandboxConfig};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::shim::protocol::RunState;
use crate::sys;

const MAX_RECORD_BYTES: u64 = 64 << 20;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    pub(super) id: String,
    pub(super) config: PodSandboxConfig,
    pub(super) created_at_ns: u64,
    pub(super) shim_pid: Option<i32>,
    /// With the pid, the shim's identity.
    pub(super) shim_start_time: Option<u64>,
    /// Pids and start times repeat after a reboot.
    pub(super) boot_id: String,
    pub(super) ips: Vec<IpAddr>,
    /// The network was released and nothing may be started any more.
    pub(super) stopped: bool,
    /// Written before the shim starts: whoever finds it so clears away what had been made.
    #[serde(default)]
    pub(super) unfinished: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub(super) id: String,
    pub(super) sandbox: String,
    pub(super) config: ContainerConfig,
    pub(super) created_at_ns: u64,
    pub(super) image_id: String,
    /// The number of the signal that asks the container to end.
    pub(super) stop_signal: i32,
    pub(super) cgroup: String,
    pub(super) log_path: PathBuf,
}

/// Replaces a record as a whole, so that a crash leaves the old or the new one.
pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec(value)?;
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(temporary, path)
}

pub(super) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&sys::read_bounded(
        path,
        MAX_RECORD_BYTES,
    )?)?)
}

pub(super) fn read_state(directory: &Path, container: &str) -> RunState {
    read(&directory.join("state.json")).unwrap_or_else(|_| RunState::created(container))
}

pub(super) fn time(ns: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(ns)
}

pub(super) fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Where everything of one runtime lies.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub(super) state: PathBuf,
    pub(super) run: PathBuf,
}

impl Paths {
    pub(super) fn sandboxes(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    pub(super) fn sandbox(&self, id: &str) -> PathBuf {
        self.sandboxes().join(id)
    }

    pub(super) fn containers(&self) -> PathBuf {
        self.state.join("containers")
    }

    pub(super) fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// A socket's whole path must stay below 108 bytes, so the id is cut.
    pub(super) fn socket(&self, sandbox: &str) -> PathBuf {
        self.run
            .join(format!("{}.sock", sandbox.get(..20).unwrap_or(sandbox)))
    }

    /// Removes the sockets of sandboxes that are not in `live`.
    pub(super) fn remove_sockets_except<'a>(&self, live: impl Iterator<Item = &'a String>) {
        let kept: HashSet<PathBuf> = live.map(|id| self.socket(id)).collect();
        for entry in std::fs::read_dir(&self.run).into_iter().flatten().flatten() {
            let path = entry.path();
            let ours = path
                .extension()
                .is_some_and(|extension| extension == "sock")
                && path
                    .file_stem()
                    .and_then(|stem| stem.to_str())
                    .is_some_and(|stem| stem.len() == 20 && is_hex(stem));
            if ours && !kept.contains(&path) {
                // It comes back as an error only to whoever would connect to it.
                let _ = std::fs::remove_file(path);
            }
        }
    }

    pub(super) fn shm(&self, sandbox: &str) -> PathBuf {
        self.sandbox(sandbox).join("shm")
    }
}

/// Directories that look like ids; anything else in there is not ours.
pub(super) fn ids(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_id(name))
        .collect()
}

/// Sandboxes and containers are named by 64 hexadecimal digits.
pub(super) fn is_id(name: &str) -> bool {
    name.len() == 64 && is_hex(name)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
