//! Where one instance keeps what, and who runs it. Instances are told apart by their data
//! directory; every name on the machine carries a short hash of it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) data_dir: PathBuf,
    /// `/run/keelson/<id>`, or `run` in the data directory for other users than root: sockets,
    /// mounts, network namespaces; nothing that outlives a reboot.
    pub(crate) run_dir: PathBuf,
    /// Eight hexadecimal digits.
    pub(crate) id: String,
}

/// Written by a running server for `status` and `down`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) pid: u32,
    /// When the process started, in clock ticks since boot: a pid alone may be reused.
    pub(crate) start_ticks: u64,
    pub(crate) server: String,
    pub(crate) node_name: Option<String>,
    pub(crate) data_dir: PathBuf,
}

impl Instance {
    pub(crate) fn new(data_dir: &Path) -> Result<Self, String> {
        let data_dir = std::path::absolute(data_dir)
            .map_err(|error| format!("--data-dir {}: {error}", data_dir.display()))?;
        let id = format!(
            "{:08x}",
            keelson_machinery::hash::fnv32a(data_dir.as_os_str().as_encoded_bytes())
        );
        let owner = std::fs::metadata(&data_dir)
            .map_or_else(|_| rustix::process::geteuid().as_raw(), |found| found.uid());
        let run_dir = run_dir(&data_dir, &id, owner);
        Ok(Self {
            data_dir,
            run_dir,
            id,
        })
    }

    /// Network devices have at most 15 characters.
    pub(crate) fn bridge(&self) -> String {
        format!("kl{}", self.id)
    }

    pub(crate) fn table(&self) -> String {
        format!("keelson-{}", self.id)
    }

    pub(crate) fn cgroup_root(&self) -> String {
        format!("/keelson-{}", self.id)
    }

    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.data_dir.join("admin.kubeconfig")
    }

    fn record_file(&self) -> PathBuf {
        self.run_dir.join("instance.json")
    }

    pub(crate) fn write_record(&self, record: &Record) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.run_dir.display());
        std::fs::create_dir_all(&self.run_dir).map_err(failed)?;
        let text = serde_json::to_vec(record).map_err(|error| error.to_string())?;
        std::fs::write(self.record_file(), text).map_err(failed)
    }

    pub(crate) fn remove_record(&self) {
        // A stale record is recognised, and `down` removes the whole directory. Without pods
        // nothing else is in it, and it goes at once.
        let _ = std::fs::remove_file(self.record_file());
        self.remove_empty_run_dirs();
    }

    /// The parent goes with the last instance.
    pub(crate) fn remove_empty_run_dirs(&self) {
        let _ = std::fs::remove_dir(&self.run_dir);
        if let Some(parent) = self.run_dir.parent() {
            let _ = std::fs::remove_dir(parent);
        }
    }

    fn record(&self) -> Option<Record> {
        serde_json::from_slice(&std::fs::read(self.record_file()).ok()?).ok()
    }

    /// The record of a process that still runs, and is its author's: `down` ends what it names.
    pub(crate) fn running(&self) -> Option<Record> {
        let record = self.record()?;
        let author = std::fs::metadata(self.record_file()).ok()?.uid();
        let owner = std::fs::metadata(format!("/proc/{}", record.pid))
            .ok()?
            .uid();
        (owner == author && start_ticks(record.pid) == Some(record.start_ticks)).then_some(record)
    }
}

/// A control plane alone needs no root, and only root writes in `/run`. Told by whom the instance
/// belongs to, so that root finds another user's.
fn run_dir(data_dir: &Path, id: &str, owner: u32) -> PathBuf {
    match owner {
        0 => Path::new("/run/keelson").join(id),
        _ => data_dir.join("run"),
    }
}

/// When a process started; `None` when it has ended, even if nobody has asked for its exit status
/// yet. Field 2 of `/proc/<pid>/stat`, the name, may hold spaces and parentheses; 3 is the state and
/// 22 the start.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_by_data_directory_and_fit_the_kernel() {
        let (a, b) = (
            Instance::new(Path::new("/a")).unwrap(),
            Instance::new(Path::new("/b")).unwrap(),
        );
        assert_ne!(a.bridge(), b.bridge());
        assert!(a.bridge().len() <= 15);
    }

    #[test]
    fn only_roots_instances_run_below_run() {
        let dir = |owner| run_dir(Path::new("/data"), "0123abcd", owner);
        assert_eq!(dir(0), Path::new("/run/keelson/0123abcd"));
        assert_eq!(dir(1000), Path::new("/data/run"));
    }

    #[test]
    fn this_process_has_a_start() {
        assert!(start_ticks(std::process::id()).is_some());
        assert!(start_ticks(u32::MAX).is_none());
    }
}
