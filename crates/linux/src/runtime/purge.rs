//! Removing everything a runtime made, without one running.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keelson_ports::{Error, Result};

use super::blocking;
use super::records::{self, Paths, SandboxRecord};
use super::sandbox::{remove_directory, shim_pid, unmount};
use crate::{LinuxCgroups, mountinfo, sys};

const SHIM_TIMEOUT: Duration = Duration::from_secs(5);

/// What was found and removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PurgeReport {
    pub sandboxes: usize,
    pub containers: usize,
    pub mounts: usize,
}

/// The runtime's part of a data directory.
const STATE_DIR: &str = "runtime";

/// Kills every shim and container of an instance, removes its cgroups, unmounts everything below
/// `run_dir` and `data_dir` (volumes), and removes records, writable layers and sockets. Images
/// and other data stay. Needs no running server. Idempotent.
pub async fn purge(run_dir: &Path, cgroup_root: &str, data_dir: &Path) -> Result<PurgeReport> {
    let paths = Paths {
        state: data_dir.join(STATE_DIR),
        run: run_dir.to_path_buf(),
    };
    let cgroups = LinuxCgroups::open(cgroup_root)?;
    let mut report = PurgeReport::default();
    let sandboxes = records::ids(&paths.sandboxes());
    report.sandboxes = sandboxes.len();
    report.containers = records::ids(&paths.containers()).len();
    for id in &sandboxes {
        if let Ok(record) = records::read::<SandboxRecord>(&paths.sandbox(id).join("record.json"))
            && let Some(pid) = shim_pid(&record)
        {
            end(pid).await;
        }
    }
    // The groups hold whatever a record does not name.
    cgroups.remove_all().await?;
    let roots = vec![run_dir.to_path_buf(), data_dir.to_path_buf()];
    report.mounts = blocking(move || unmount_below(&roots)).await?;
    let run = paths.run.clone();
    blocking(move || {
        remove_directory(&paths.containers())?;
        remove_directory(&paths.sandboxes())?;
        let Ok(entries) = std::fs::read_dir(&run) else {
            return Ok(());
        };
        for entry in entries
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|e| e == "sock"))
        {
            let _ = std::fs::remove_file(entry.path());
        }
        Ok(())
    })
    .await?;
    Ok(report)
}

/// Kills a shim; its containers die with it.
async fn end(pid: sys::Pid) {
    let start = sys::start_time(pid);
    let _ = sys::kill(pid, libc::SIGKILL);
    let deadline = Instant::now() + SHIM_TIMEOUT;
    while start.is_some() && sys::start_time(pid) == start && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn unmount_below(roots: &[PathBuf]) -> Result<usize> {
    let mounts = mountinfo::read()
        .map_err(|error| Error::Failed(format!("reading the mount table: {error}")))?;
    let mut targets: Vec<PathBuf> = mounts
        .into_iter()
        .map(|mount| mount.target)
        .filter(|target| {
            roots
                .iter()
                .any(|root| target.starts_with(root) && target != root)
        })
        .collect();
    targets.sort_by_key(|target| std::cmp::Reverse(target.components().count()));
    targets.dedup();
    targets.iter().try_for_each(|target| unmount(target))?;
    Ok(targets.len())
}
