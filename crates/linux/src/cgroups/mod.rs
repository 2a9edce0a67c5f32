//! Control groups over their files, version 1 and 2.
//!
//! Every group lies below one prefix of this instance, so that instances on one machine do not
//! meet and removing the prefix removes everything.

mod devices;
mod layout;
mod limits;
mod stats;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use keelson_ports::{CgroupResources, CgroupStats, Cgroups, Error, Result};

pub(crate) use self::devices::{DeviceKind, DeviceRule, default_rules};
use self::layout::Layout;
use self::limits::Setting;
pub(crate) use self::stats::keyed;
use crate::sys;

/// How long processes that were killed may take to leave their group.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(10);
const EMPTY_POLL: Duration = Duration::from_millis(5);
const CONTROLLERS_V2: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"];

#[derive(Debug, Clone)]
pub struct LinuxCgroups {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    prefix: String,
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    let message = format!("{what} {}: {error}", path.display());
    if error.kind() == io::ErrorKind::NotFound {
        Error::NotFound(message)
    } else {
        Error::Failed(message)
    }
}

impl LinuxCgroups {
    /// Finds the mounted hierarchies. `prefix` is this instance's own root, such as
    /// `/keelson-1f2e3d4c`; it is made on first use.
    pub fn open(prefix: &str) -> Result<LinuxCgroups> {
        let prefix = prefix.trim_matches('/');
        if prefix.is_empty() {
            return Err(Error::Invalid(
                "the cgroup root must have a name of its own".to_owned(),
            ));
        }
        layout::join(Path::new("/"), prefix, "")?;
        Ok(LinuxCgroups {
            inner: Arc::new(Inner {
                layout: layout::detect()?,
                prefix: format!("/{prefix}"),
            }),
        })
    }

    pub fn prefix(&self) -> &str {
        &self.inner.prefix
    }

    /// The directories that stand for `path`, one for each hierarchy.
    fn directories(&self, path: &str) -> Result<Vec<PathBuf>> {
        self.inner.directories(path)
    }

    /// The files that take a process into `path` when its id is written to each.
    pub(crate) fn procs_files(&self, path: &str) -> Result<Vec<PathBuf>> {
        Ok(self
            .directories(path)?
            .into_iter()
            .map(|directory| directory.join("cgroup.procs"))
            .collect())
    }

    /// What a container sees as `/sys/fs/cgroup`: names and the directories behind them. Empty
    /// for version 2, where a cgroup namespace does it.
    pub(crate) fn visible(&self, path: &str) -> Result<Vec<(String, PathBuf)>> {
        let Layout::V1(hierarchies) = &self.inner.layout else {
            return Ok(Vec::new());
        };
        hierarchies
            .iter()
            // Programs take a mounted version 2 for a sign that the limits are found in it.
            .filter(|hierarchy| hierarchy.controllers != ["unified"])
            .map(|hierarchy| {
                let name = hierarchy
                    .mount
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned());
                Ok((
                    name.unwrap_or_default(),
                    layout::join(&hierarchy.mount, &self.inner.prefix, path)?,
                ))
            })
            .filter(|entry| !matches!(entry, Ok((name, _)) if name.is_empty()))
            .collect()
    }

    /// The file that counts the out-of-memory kills of `path` in its line `oom_kill`.
    pub(crate) fn oom_file(&self, path: &str) -> Result<PathBuf> {
        match &self.inner.layout {
            Layout::V1(_) => Ok(self
                .inner
                .controller_directory("memory", path)?
                .join("memory.oom_control")),
            Layout::V2(mount) => {
                Ok(layout::join(mount, &self.inner.prefix, path)?.join("memory.events"))
            }
        }
    }

    pub(crate) fn is_v2(&self) -> bool {
        matches!(self.inner.layout, Layout::V2(_))
    }

    /// Creates the group of a container: limits, devices, and death of the whole group when
    /// memory runs out where the kernel can do that.
    pub(crate) async fn ensure_container(
        &self,
        path: &str,
        resources: &CgroupResources,
        devices: Option<Vec<DeviceRule>>,
    ) -> Result<()> {
        let (inner, path, resources) =
            (Arc::clone(&self.inner), path.to_owned(), resources.clone());
        blocking(move || {
            inner.ensure(&path, &resources)?;
            if let Layout::V2(_) = inner.layout {
                let file = inner.directories(&path)?.remove(0).join("memory.oom.group");
                // Kernels before 4.19 do not have it.
                let _ = std::fs::write(file, "1");
            }
            match devices {
                Some(rules) => inner.allow_devices(&path, &rules),
                None => Ok(()),
            }
        })
        .await
    }

    /// The processes in `path` and below it; none when it does not exist.
    pub(crate) fn processes(&self, path: &str) -> BTreeSet<sys::Pid> {
        let mut found = BTreeSet::new();
        for directory in self.directories(path).unwrap_or_default() {
            collect_processes(&directory, &mut found);
        }
        found
    }

    pub(crate) async fn kill(&self, path: &str) -> Result<()> {
        let (inner, path) = (Arc::clone(&self.inner), path.to_owned());
        blocking(move || inner.kill_all(&path)).await
    }

    /// Removes every group of this instance, with the prefix itself.
    pub(crate) async fn remove_all(&self) -> Result<()> {
        self.remove("").await
    }
}

#[async_trait]
impl Cgroups for LinuxCgroups {
    fn version(&self) -> u8 {
        if self.is_v2() { 2 } else { 1 }
    }

    async fn ensure(&self, path: &str, resources: &CgroupResources) -> Result<()> {
        let (inner, path, resources) =
            (Arc::clone(&self.inner), path.to_owned(), resources.clone());
        blocking(move || inner.ensure(&path, &resources)).await
    }

    async fn remove(&self, path: &str) -> Result<()> {
        let (inner, path) = (Arc::clone(&self.inner), path.to_owned());
        blocking(move || {
            inner.kill_all(&path)?;
            // Each removal may wait for the kernel's grace period; together they wait once.
            std::thread::scope(|scope| {
                let removals: Vec<_> = inner
                    .directories(&path)?
                    .into_iter()
                    .map(|directory| scope.spawn(move || remove_tree(&directory)))
                    .collect();
                let interrupted = |_| {
                    Err(Error::Failed(
                        "removing a cgroup was interrupted".to_owned(),
                    ))
                };
                removals
                    .into_iter()
                    .try_for_each(|removal| removal.join().unwrap_or_else(interrupted))
            })
        })
        .await
    }

    async fn stats(&self, path: &str) -> Result<CgroupStats> {
        let (inner, path) = (Arc::clone(&self.inner), path.to_owned());
        blocking(move || inner.stats(&path)).await
    }

    async fn children(&self, path: &str) -> Result<Vec<String>> {
        let mut names = BTreeSet::new();
        for directory in self.directories(path)? {
            names.extend(
                child_directories(&directory)
                    .into_iter()
                    .filter_map(|child| {
                        child
                            .file_name()
                            .map(|name| name.to_string_lossy().into_owned())
                    }),
            );
        }
        Ok(names.into_iter().collect())
    }
}

/// Kernel-side work of up to milliseconds, kept off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Failed(format!("cgroup work was interrupted: {error}")))?
}

impl Inner {
    fn directories(&self, path: &str) -> Result<Vec<PathBuf>> {
        match &self.layout {
            Layout::V1(hierarchies) => hierarchies
                .iter()
                .map(|hierarchy| layout::join(&hierarchy.mount, &self.prefix, path))
                .collect(),
            Layout::V2(mount) => Ok(vec![layout::join(mount, &self.prefix, path)?]),
        }
    }

    fn controller_directory(&self, controller: &str, path: &str) -> Result<PathBuf> {
        let mount = match &self.layout {
            Layout::V2(mount) => mount,
            Layout::V1(hierarchies) => {
                let hierarchy = hierarchies
                    .iter()
                    .find(|h| h.controllers.iter().any(|c| c == controller));
                &hierarchy
                    .ok_or_else(|| {
                        Error::Unsupported(format!(
                            "the cgroup v1 controller {controller:?} is not mounted"
                        ))
                    })?
                    .mount
            }
        };
        layout::join(mount, &self.prefix, path)
    }

    fn ensure(&self, path: &str, resources: &CgroupResources) -> Result<()> {
        let settings = match &self.layout {
            Layout::V1(hierarchies) => {
                for hierarchy in hierarchies {
                    let cpuset = hierarchy
                        .controllers
                        .iter()
                        .any(|controller| controller == "cpuset");
                    let target = layout::join(&hierarchy.mount, &self.prefix, path)?;
                    make_v1(&hierarchy.mount, &target, cpuset)?;
                }
                limits::plan_v1(resources)
            }
            Layout::V2(mount) => {
                make_v2(mount, &layout::join(mount, &self.prefix, path)?)?;
                limits::plan_v2(resources)
            }
        };
        settings
            .iter()
            .try_for_each(|setting| self.write(path, setting, &settings))
    }

    fn write(&self, path: &str, setting: &Setting, all: &[Setting]) -> Result<()> {
        let directory = match self.controller_directory(setting.controller, path) {
            Err(_) if setting.optional => return Ok(()),
            directory => directory?,
        };
        let file = directory.join(&setting.file);
        let Err(error) = std::fs::write(&file, &setting.value) else {
            return Ok(());
        };
        if setting.optional {
            return Ok(());
        }
        // Two limits that bind each other are in the way while the other is still the old one:
        // memory with swap above memory, and period below quota.
        let other = match setting.file.as_str() {
            "memory.limit_in_bytes" => Some(("memory.memsw.limit_in_bytes", "-1".to_owned())),
            "cpu.cfs_period_us" => all
                .iter()
                .find(|other| other.file == "cpu.cfs_quota_us")
                .map(|quota| ("cpu.cfs_quota_us", quota.value.clone())),
            _ => None,
        };
        if let Some((other, value)) = other
            && std::fs::write(directory.join(other), value).is_ok()
            && std::fs::write(&file, &setting.value).is_ok()
        {
            return Ok(());
        }
        Err(failed(
            &format!("writing {:?} to", setting.value),
            &file,
            &error,
        ))
    }

    fn allow_devices(&self, path: &str, rules: &[DeviceRule]) -> Result<()> {
        if let Layout::V2(_) = self.layout {
            let directory = self.controller_directory("devices", path)?;
            let fd = std::fs::File::open(&directory)
                .map_err(|error| failed("opening", &directory, &error))?;
            return sys::attach_device_program(fd.as_fd(), &devices::program(rules))
                .map_err(|error| failed("limiting the devices of", &directory, &error));
        }
        // A machine without the controller cannot limit devices; capabilities still keep
        // containers from most of them.
        let Ok(directory) = self.controller_directory("devices", path) else {
            return Ok(());
        };
        let deny = directory.join("devices.deny");
        std::fs::write(&deny, "a").map_err(|error| failed("writing", &deny, &error))?;
        let allow = directory.join("devices.allow");
        for rule in rules {
            std::fs::write(&allow, rule.render())
                .map_err(|error| failed("writing", &allow, &error))?;
        }
        Ok(())
    }

    fn stats(&self, path: &str) -> Result<CgroupStats> {
        let memory = self.controller_directory("memory", path)?;
        if !memory.is_dir() {
            return Err(Error::NotFound(format!("cgroup {path} does not exist")));
        }
        Ok(match &self.layout {
            Layout::V2(_) => stats::read_v2(&memory),
            Layout::V1(_) => {
                let directory = |controller: &str| self.controller_directory(controller, path).ok();
                let found =
                    ["cpuacct", "cpu", "memory", "pids"].map(|name| (name, directory(name)));
                stats::read_v1(|controller| {
                    found
                        .iter()
                        .find(|(name, _)| *name == controller)
                        .and_then(|(_, path)| path.as_deref())
                })
            }
        })
    }

    fn kill_all(&self, path: &str) -> Result<()> {
        let deadline = std::time::Instant::now() + EMPTY_TIMEOUT;
        let directories = self.directories(path)?;
        loop {
            let mut alive = BTreeSet::new();
            for directory in &directories {
                let _ = std::fs::write(directory.join("cgroup.kill"), "1");
                collect_processes(directory, &mut alive);
            }
            if alive.is_empty() {
                return Ok(());
            }
            if std::time::Instant::now() > deadline {
                return Err(Error::Timeout(format!(
                    "{} processes of cgroup {path} do not die (first: {})",
                    alive.len(),
                    alive.first().copied().unwrap_or_default()
                )));
            }
            for pid in alive {
                // Gone in the meantime is what is wanted.
                let _ = sys::kill(pid, libc::SIGKILL);
            }
            std::thread::sleep(EMPTY_POLL);
        }
    }
}

fn make_v1(mount: &Path, target: &Path, cpuset: bool) -> Result<()> {
    for directory in levels(mount, target) {
        make_directory(&directory)?;
        if cpuset {
            // A new group has no processor and no memory node, and takes no process until it has.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                inherit(&directory, file)?;
            }
        }
    }
    Ok(())
}

fn inherit(directory: &Path, file: &str) -> Result<()> {
    let own = directory.join(file);
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| failed("reading", path, &error))
    };
    if !read(&own)?.trim().is_empty() {
        return Ok(());
    }
    let Some(parent) = directory.parent() else {
        return Ok(());
    };
    let value = read(&parent.join(file))?;
    std::fs::write(&own, value.trim()).map_err(|error| failed("writing", &own, &error))
}

fn make_v2(mount: &Path, target: &Path) -> Result<()> {
    enable_controllers(mount, true)?;
    let levels = levels(mount, target);
    for (index, directory) in levels.iter().enumerate() {
        make_directory(directory)?;
        if index + 1 < levels.len() {
            enable_controllers(directory, false)?;
        }
    }
    Ok(())
}

/// Hands the controllers a group has on to its children.
fn enable_controllers(directory: &Path, top: bool) -> Result<()> {
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap_or_default();
    let (available, enabled) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
    let has = |list: &str, name: &str| list.split_ascii_whitespace().any(|item| item == name);
    let file = directory.join("cgroup.subtree_control");
    for controller in CONTROLLERS_V2 {
        if !has(&available, controller) || has(&enabled, controller) {
            continue;
        }
        let value = format!("+{controller}");
        let Err(error) = std::fs::write(&file, &value) else {
            continue;
        };
        // In a container the top group is not the real root and may hold processes, which the
        // kernel does not allow in a group that has limited children. They get a leaf of their own.
        if top
            && error.raw_os_error() == Some(libc::EBUSY)
            && directory.join("cgroup.type").exists()
        {
            move_processes(directory, &directory.join("keelson-init"))?;
            std::fs::write(&file, &value).map_err(|error| failed("writing", &file, &error))?;
            continue;
        }
        return Err(failed(&format!("enabling {controller} in"), &file, &error));
    }
    Ok(())
}

fn move_processes(from: &Path, to: &Path) -> Result<()> {
    make_directory(to)?;
    let list = std::fs::read_to_string(from.join("cgroup.procs"))
        .map_err(|error| failed("reading", from, &error))?;
    for pid in list.lines() {
        // A process that ended, or a kernel thread, does not move.
        let _ = std::fs::write(to.join("cgroup.procs"), pid);
    }
    Ok(())
}

/// The directories from below `mount` down to `target`.
fn levels(mount: &Path, target: &Path) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = target
        .ancestors()
        .take_while(|ancestor| *ancestor != mount)
        .map(Path::to_path_buf)
        .collect();
    out.reverse();
    out
}

fn make_directory(path: &Path) -> Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(failed("creating the cgroup", path, &error))
        }
        _ => Ok(()),
    }
}

fn child_directories(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn collect_processes(directory: &Path, into: &mut BTreeSet<sys::Pid>) {
    let list = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    into.extend(
        list.lines()
            .filter_map(|line| line.parse::<sys::Pid>().ok())
            .filter(|pid| *pid > 0),
    );
    for child in child_directories(directory) {
        collect_processes(&child, into);
    }
}

/// Removes a group and those below it. A process that is still being reaped keeps its group
/// for a moment.
fn remove_tree(directory: &Path) -> Result<()> {
    for child in child_directories(directory) {
        remove_tree(&child)?;
    }
    let deadline = std::time::Instant::now() + EMPTY_TIMEOUT;
    loop {
        match std::fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if std::time::Instant::now() > deadline => {
                return Err(failed("removing the cgroup", directory, &error));
            }
            Err(_) => std::thread::sleep(EMPTY_POLL),
        }
    }
}
