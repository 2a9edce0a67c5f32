//! Finding again what an earlier process of this runtime made, and clearing away what it left
//! half made: it may have ended at any instruction.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keelson_ports::{Cgroups, Result};
use tokio::sync::watch;

use super::records::{self, ContainerRecord, SandboxRecord};
use super::sandbox::{remove_directory, shim_pid, subscribe, watch_shim};
use super::{Container, Inner, Known, SHIM_CGROUP, Sandbox, blocking, lock};
use crate::sys;

/// How long stray shims may take to be gone after their kill.
const STRAY_TIMEOUT: Duration = Duration::from_secs(10);
const STRAY_POLL: Duration = Duration::from_millis(5);

impl Inner {
    /// Finds everything that an earlier process of this runtime made.
    pub(super) async fn recover(self: &Arc<Inner>) -> Result<()> {
        let ruins = self.read_sandboxes();
        // Before the files go that a shim in the making would still read.
        self.end_strays().await;
        for id in ruins {
            tracing::warn!(sandbox = id, "removing an unfinished sandbox");
            self.remove_sandbox_files(&id).await?;
        }
        let holders = self.read_containers().await?;
        let all: Vec<_> = lock(&self.sandboxes).values().cloned().collect();
        for sandbox in &all {
            self.remove_stray_groups(sandbox).await?;
            self.reconnect(Arc::clone(sandbox)).await;
        }
        let live: Vec<String> = all.iter().map(|sandbox| sandbox.id.clone()).collect();
        self.paths.remove_sockets_except(live.iter());
        self.network.retain(&live).await?;
        self.rootfs.retain(holders).await
    }

    /// Takes the finished sandboxes in; gives the ids of those whose creation was interrupted, so
    /// that nobody knows them.
    fn read_sandboxes(&self) -> Vec<String> {
        let mut ruins = Vec::new();
        for id in records::ids(&self.paths.sandboxes()) {
            let path = self.paths.sandbox(&id).join("record.json");
            match records::read::<SandboxRecord>(&path) {
                Ok(record) if !record.unfinished => {
                    let sandbox = Arc::new(Sandbox::new(record, false));
                    lock(&self.sandboxes).insert(id, sandbox);
                }
                _ => ruins.push(id),
            }
        }
        ruins
    }

    /// Takes the containers in; gives the names under which they hold images.
    async fn read_containers(&self) -> Result<Vec<String>> {
        let mut holders = Vec::new();
        for id in records::ids(&self.paths.containers()) {
            let directory = self.paths.container(&id);
            match records::read::<ContainerRecord>(&directory.join("record.json")) {
                Ok(record) if lock(&self.sandboxes).contains_key(&record.sandbox) => {
                    holders.extend(super::container::holders(&record));
                    let known = Known {
                        run: records::read_state(&directory, &id),
                        lost: false,
                    };
                    let container = Container {
                        record,
                        state: watch::Sender::new(known),
                        ending: tokio::sync::Mutex::new(()),
                    };
                    lock(&self.containers).insert(id, Arc::new(container));
                }
                record => {
                    tracing::warn!(container = id, "removing a container without a sandbox");
                    if let Ok(record) = record {
                        self.cgroups.remove(&record.cgroup).await?;
                    }
                    blocking(move || remove_directory(&directory)).await?;
                }
            }
        }
        Ok(holders)
    }

    /// Kills every process in the shims' group that is neither a recorded shim nor a child of one:
    /// a shim lives on when its server ends between its start and its record.
    async fn end_strays(&self) {
        let shims: HashSet<sys::Pid> = lock(&self.sandboxes)
            .values()
            .filter_map(|sandbox| {
                let record = lock(&sandbox.record);
                shim_pid(&record).filter(|_| !record.stopped)
            })
            .collect();
        let deadline = Instant::now() + STRAY_TIMEOUT;
        let mut told = false;
        loop {
            let mut strays = Vec::new();
            let mut unsettled = false;
            for pid in self.cgroups.processes(SHIM_CGROUP) {
                match descent(pid, &shims, sys::parent) {
                    Descent::Claimed => {}
                    Descent::Stray => strays.push(pid),
                    Descent::Unsettled => unsettled = true,
                }
            }
            if strays.is_empty() && !unsettled {
                return;
            }
            if !told && !strays.is_empty() {
                tracing::warn!(?strays, "ending processes of shims that no sandbox has");
                told = true;
            }
            for pid in &strays {
                // Gone in the meantime is what is wanted.
                let _ = sys::kill(*pid, libc::SIGKILL);
            }
            if Instant::now() > deadline {
                tracing::error!(?strays, "processes of former shims do not die");
                return;
            }
            tokio::time::sleep(STRAY_POLL).await;
        }
    }

    /// Removes the groups of containers whose creation was interrupted before their record.
    async fn remove_stray_groups(&self, sandbox: &Sandbox) -> Result<()> {
        let parent = sandbox.config().cgroup_parent;
        if parent.is_empty() {
            return Ok(());
        }
        for name in self.cgroups.children(&parent).await? {
            if records::is_id(&name) && !lock(&self.containers).contains_key(&name) {
                tracing::warn!(
                    container = name,
                    "removing the cgroup of an unfinished container"
                );
                let path = format!("{}/{name}", parent.trim_end_matches('/'));
                self.cgroups.remove(&path).await?;
            }
        }
        Ok(())
    }

    async fn reconnect(self: &Arc<Inner>, sandbox: Arc<Sandbox>) {
        let record = lock(&sandbox.record).clone();
        if record.stopped {
            return;
        }
        match subscribe(&self.paths.socket(&sandbox.id)).await {
            Ok((connection, states)) => {
                sandbox.alive.send_replace(true);
                states.into_iter().for_each(|state| self.apply(state));
                tokio::spawn(watch_shim(Arc::downgrade(self), sandbox, connection));
            }
            Err(_) => {
                if let Some(pid) = shim_pid(&record) {
                    let _ = sys::kill(pid, libc::SIGKILL);
                }
                self.lose(&sandbox).await;
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Descent {
    /// A recorded shim, below one, or gone.
    Claimed,
    Stray,
    /// A process between it and its shim, if it has one, is just ending: to be looked at again
    /// when the kernel has given it another parent.
    Unsettled,
}

fn descent(
    pid: sys::Pid,
    shims: &HashSet<sys::Pid>,
    parent: impl Fn(sys::Pid) -> Option<sys::Pid>,
) -> Descent {
    let mut at = pid;
    while at > 1 {
        if shims.contains(&at) {
            return Descent::Claimed;
        }
        at = match parent(at) {
            Some(above) => above,
            None if at == pid => return Descent::Claimed,
            None => return Descent::Unsettled,
        };
    }
    Descent::Stray
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_descends_from_a_recorded_shim_is_kept() {
        // 10 and 20 are shims, 20 is recorded; 30 has ended, and so has 40's parent.
        let parent = |pid| match pid {
            10 | 20 => Some(1),
            11 => Some(10),
            21 => Some(20),
            22 => Some(21),
            40 => Some(39),
            _ => None,
        };
        let shims = HashSet::from([20]);
        let cases = [
            (10, Descent::Stray),
            (11, Descent::Stray),
            (20, Descent::Claimed),
            (22, Descent::Claimed),
            (30, Descent::Claimed),
            (40, Descent::Unsettled),
        ];
        for (pid, expected) in cases {
            assert_eq!(descent(pid, &shims, parent), expected, "{pid}");
        }
    }
}
