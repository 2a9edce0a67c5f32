//! Containers: creating, starting, ending and describing them.

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keelson_ports::{
    CgroupResources, Cgroups, ContainerConfig, ContainerState, ContainerStats, ContainerStatus,
    Error, ImageInfo, PodSandboxConfig, Result,
};
use tokio::sync::watch;

use super::records::{self, ContainerRecord};
use super::sandbox::{hostname, remove_directory};
use super::{Container, Inner, Known, blocking, io_error, lock, new_id, plan, shim_client};
use crate::cgroups::{DeviceKind, DeviceRule, default_rules};
use crate::seccomp;
use crate::shim::protocol::{Phase, Reply, Request, RunState, StartRequest};
use crate::spec::CgroupView;

/// How long a killed container may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_TERMINATION_MESSAGE_BYTES: u64 = 4096;

/// The names under which a container holds images: its own, and one for each image volume.
pub(super) fn holders(record: &ContainerRecord) -> Vec<String> {
    let volumes = record
        .config
        .mounts
        .iter()
        .filter(|mount| mount.image.is_some())
        .count();
    std::iter::once(record.id.clone())
        .chain((0..volumes).map(|index| format!("{}.{index}", record.id)))
        .collect()
}

impl Container {
    pub(super) fn known(&self) -> Known {
        self.state.borrow().clone()
    }

    pub(super) fn status(&self) -> ContainerStatus {
        let (record, known) = (&self.record, self.known());
        let run = known.run;
        let state = match run.phase {
            _ if known.lost => ContainerState::Unknown,
            Phase::Created => ContainerState::Created,
            Phase::Running => ContainerState::Running,
            Phase::Exited => ContainerState::Exited,
        };
        let reason = match (state, &run.start_error, run.oom_killed, run.exit_code) {
            (ContainerState::Unknown, ..) => "Unknown",
            (ContainerState::Created | ContainerState::Running, ..) => "",
            (_, Some(_), ..) => "StartError",
            (_, _, true, _) => "OOMKilled",
            (_, _, _, Some(0)) => "Completed",
            _ => "Error",
        };
        let message = match (state, run.start_error) {
            (ContainerState::Exited, None) => self.termination_message(),
            (_, error) => error.unwrap_or_default(),
        };
        let config = &record.config;
        ContainerStatus {
            id: record.id.clone(),
            sandbox: record.sandbox.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            state,
            created_at: records::time(record.created_at_ns),
            started_at: run.started_at_ns.map(records::time),
            finished_at: run.finished_at_ns.map(records::time),
            exit_code: run.exit_code,
            signal: run.signal,
            oom_killed: run.oom_killed,
            reason: reason.to_owned(),
            message,
            image_id: record.image_id.clone(),
            image: config.user_image.clone(),
            log_path: record.log_path.clone(),
            pid: run
                .pid
                .filter(|_| state == ContainerState::Running)
                .and_then(|pid| u32::try_from(pid).ok()),
            user: run.user.map(|user| (user.uid, user.gid, user.groups)),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }
    }

    fn termination_message(&self) -> String {
        let Some(path) = &self.record.config.termination_message_host_path else {
            return String::new();
        };
        let bytes =
            crate::sys::read_bounded(path, MAX_TERMINATION_MESSAGE_BYTES).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns when the container has ended; `false` after the timeout.
    async fn wait_for_end(&self, timeout: Duration) -> bool {
        let mut state = self.state.subscribe();
        let ended = tokio::time::timeout(timeout, state.wait_for(Known::has_ended)).await;
        matches!(ended, Ok(Ok(_)))
    }
}

impl Inner {
    pub(super) async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
    ) -> Result<String> {
        let owner = self.sandbox(sandbox)?;
        if !owner.is_ready() {
            return Err(Error::Conflict(format!("sandbox {sandbox} is not running")));
        }
        let pod = owner.config();
        let image = self.image(&config.image).await?;
        let stop_signal = match config
            .stop_signal
            .as_deref()
            .or(image.stop_signal.as_deref())
        {
            Some(name) if !name.is_empty() => plan::signal_number(name)?,
            _ => libc::SIGTERM,
        };
        let id = new_id();
        let record = ContainerRecord {
            cgroup: format!("{}/{id}", pod.cgroup_parent.trim_end_matches('/')),
            log_path: pod.log_directory.join(&config.log_path),
            sandbox: sandbox.to_owned(),
            created_at_ns: records::now_ns(),
            image_id: image.id.clone(),
            id: id.clone(),
            stop_signal,
            config,
        };
        if let Err(error) = self.build_container(&record, &pod, &image).await {
            self.discard(&record).await?;
            return Err(error);
        }
        let known = Known {
            run: RunState::created(&id),
            lost: false,
        };
        let container = Container {
            record,
            state: watch::Sender::new(known),
            ending: tokio::sync::Mutex::new(()),
        };
        lock(&self.containers).insert(id.clone(), Arc::new(container));
        Ok(id)
    }

    async fn image(&self, reference: &str) -> Result<ImageInfo> {
        self.images
            .resolve(reference)
            .await?
            .ok_or_else(|| Error::NotFound(format!("image {reference:?} is not present")))
    }

    async fn build_container(
        &self,
        record: &ContainerRecord,
        pod: &PodSandboxConfig,
        image: &ImageInfo,
    ) -> Result<()> {
        let config = &record.config;
        let rootfs = self.rootfs.hold(&record.id, &image.id).await?;
        let mut volume_layers = BTreeMap::new();
        let volumes = config
            .mounts
            .iter()
            .filter_map(|mount| mount.image.as_ref());
        for (index, reference) in volumes.enumerate() {
            let volume = self.image(reference).await?;
            let held = self
                .rootfs
                .hold(&format!("{}.{index}", record.id), &volume.id)
                .await?;
            volume_layers.insert(reference.clone(), held.layers);
        }
        let capabilities = plan::capability_set(config)?;
        let seccomp = if config.security.privileged {
            None
        } else {
            seccomp::compile(&config.security.seccomp, capabilities)?
        };
        let cgroup = if self.cgroups.is_v2() {
            CgroupView::V2
        } else {
            CgroupView::V1(self.cgroups.visible(&record.cgroup)?)
        };
        let directory = self.paths.container(&record.id);
        let top_layer = rootfs.layers.last().cloned();
        let spec = plan::launch(
            config,
            plan::Facts {
                sandbox: pod,
                sandbox_directory: self.paths.sandbox(&record.sandbox),
                container_directory: directory.clone(),
                shm: self.paths.shm(&record.sandbox),
                image,
                image_user: &rootfs.user,
                layers: rootfs.layers.clone(),
                volume_layers: &volume_layers,
                hostname: &hostname(pod),
                cgroup,
                seccomp,
                capabilities,
            },
        )?;
        let devices = device_rules(config)?;
        let record = record.clone();
        let (cgroup, resources) = (record.cgroup.clone(), config.resources.clone());
        let files = blocking(move || {
            make_directories(&directory, top_layer.as_deref())?;
            records::write(&directory.join("spec.json"), &spec)
                .map_err(io_error("writing into", &directory))?;
            records::write(&directory.join("record.json"), &record)
                .map_err(io_error("writing into", &directory))
        });
        let group = self.cgroups.ensure_container(&cgroup, &resources, devices);
        let (files, group) = futures::future::join(files, group).await;
        files.and(group)
    }

    pub(super) async fn start_container(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let _ending = container.ending.lock().await;
        if container.known().run.phase != Phase::Created {
            return Err(Error::Conflict(format!(
                "container {id} was started before"
            )));
        }
        let record = &container.record;
        let sandbox = self.sandbox(&record.sandbox)?;
        if !sandbox.is_ready() {
            return Err(Error::Conflict(format!(
                "sandbox {} is not running",
                record.sandbox
            )));
        }
        let request = Request::Start(StartRequest {
            container: id.to_owned(),
            directory: self.paths.container(id),
            procs: self.cgroups.procs_files(&record.cgroup)?,
            oom_file: self.cgroups.oom_file(&record.cgroup)?,
            log_path: record.log_path.clone(),
            log_limits: Some(self.log_limits),
            terminal: record.config.tty,
            stdin: record.config.stdin,
            stdin_once: record.config.stdin_once,
            pid_namespace: plan::pid_namespace(&sandbox.config(), &record.config),
        });
        match shim_client::call(&self.paths.socket(&record.sandbox), &request).await {
            Ok((Reply::Started(state), _)) => {
                self.apply(state);
                Ok(())
            }
            Ok(_) => Err(Error::Failed(
                "the pod's shim gave an unexpected answer".to_owned(),
            )),
            Err(error) => {
                self.apply(RunState {
                    phase: Phase::Exited,
                    exit_code: Some(128),
                    start_error: Some(error.to_string()),
                    finished_at_ns: Some(records::now_ns()),
                    ..container.known().run
                });
                let error = Error::Failed(format!("failed to start container: {error}"));
                Err(error)
            }
        }
    }

    pub(super) async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        if !container.known().is_running() {
            return Ok(());
        }
        if !grace.is_zero() {
            self.signal(&container, container.record.stop_signal, false)
                .await;
            if container.wait_for_end(grace).await {
                return Ok(());
            }
        }
        self.kill_container(&container).await
    }

    async fn signal(&self, container: &Container, signal: i32, all: bool) {
        let request = Request::Signal {
            container: container.record.id.clone(),
            signal,
            all,
        };
        // A shim that does not answer is dead or dying, which its watcher handles.
        let _ = shim_client::call(&self.paths.socket(&container.record.sandbox), &request).await;
    }

    pub(super) async fn kill_container(&self, container: &Container) -> Result<()> {
        if !container.known().is_running() {
            return Ok(());
        }
        self.signal(container, libc::SIGKILL, true).await;
        if container.wait_for_end(KILL_TIMEOUT).await {
            return Ok(());
        }
        Err(Error::Timeout(format!(
            "container {} does not die",
            container.record.id
        )))
    }

    pub(super) async fn remove_container(&self, id: &str) -> Result<()> {
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        let _ending = container.ending.lock().await;
        self.kill_container(&container).await?;
        let record = &container.record;
        let socket = self.paths.socket(&record.sandbox);
        let _ = shim_client::call(
            &socket,
            &Request::Forget {
                container: id.to_owned(),
            },
        )
        .await;
        self.discard(record).await?;
        lock(&self.containers).remove(id);
        Ok(())
    }

    /// Removes what a container has outside of the shim, as far as it was made.
    async fn discard(&self, record: &ContainerRecord) -> Result<()> {
        self.cgroups.remove(&record.cgroup).await?;
        let directory = self.paths.container(&record.id);
        blocking(move || remove_directory(&directory)).await?;
        for holder in holders(record) {
            self.rootfs.release(&holder).await?;
        }
        Ok(())
    }

    pub(super) async fn update_resources(
        &self,
        id: &str,
        resources: &CgroupResources,
    ) -> Result<()> {
        let container = self.container(id)?;
        if container.known().has_ended() {
            return Err(Error::Conflict(format!("container {id} is not running")));
        }
        self.cgroups
            .ensure(&container.record.cgroup, resources)
            .await
    }

    pub(super) async fn reopen_log(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        if !container.known().is_running() {
            return Err(Error::Conflict(format!("container {id} is not running")));
        }
        let request = Request::ReopenLog {
            container: id.to_owned(),
        };
        shim_client::call(&self.paths.socket(&container.record.sandbox), &request)
            .await
            .map(drop)
    }

    pub(super) async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        let container = self.container(id)?;
        let cgroup = self.cgroups.stats(&container.record.cgroup).await?;
        let upper = self.paths.container(id).join("upper");
        let layer = blocking(move || Ok(crate::disk::usage(&upper))).await?;
        Ok(ContainerStats {
            cgroup,
            writable_layer_bytes: layer.bytes,
            writable_layer_inodes: layer.inodes,
        })
    }
}

/// The writable layer's own directory becomes the container's `/`, so it takes after the image's.
fn make_directories(directory: &Path, top_layer: Option<&Path>) -> Result<()> {
    for name in ["", "upper", "work", "rootfs"] {
        let path = directory.join(name);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(io_error("creating", &path))?;
    }
    let mode = top_layer
        .and_then(|layer| std::fs::metadata(layer).ok())
        .map_or(0o755, |m| m.mode() & 0o7777);
    let upper = directory.join("upper");
    std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(mode))
        .map_err(io_error("preparing", &upper))
}

/// `None` lets a privileged container use every device.
fn device_rules(config: &ContainerConfig) -> Result<Option<Vec<DeviceRule>>> {
    if config.security.privileged {
        return Ok(None);
    }
    let mut rules = default_rules();
    for device in &config.devices {
        add_device(&device.host_path, &device.permissions, &mut rules).map_err(|error| {
            Error::Invalid(format!("device {}: {error}", device.host_path.display()))
        })?;
    }
    Ok(Some(rules))
}

fn add_device(path: &Path, permissions: &str, rules: &mut Vec<DeviceRule>) -> std::io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path)?.flatten() {
            if !entry.file_type()?.is_symlink() {
                add_device(&entry.path(), permissions, rules)?;
            }
        }
        return Ok(());
    }
    let kind = if metadata.file_type().is_block_device() {
        DeviceKind::Block
    } else if metadata.file_type().is_char_device() {
        DeviceKind::Character
    } else {
        return Ok(());
    };
    let (major, minor) = (
        rustix::fs::major(metadata.rdev()),
        rustix::fs::minor(metadata.rdev()),
    );
    rules.push(DeviceRule::new(kind, Some(major), Some(minor), permissions));
    Ok(())
}
