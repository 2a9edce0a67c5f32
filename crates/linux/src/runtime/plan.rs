//! From a container's configuration and its image to a launch specification: pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use keelson_ports::{ContainerConfig, DnsConfig, Error, ImageInfo, PodSandboxConfig, Result};

use crate::capabilities;
use crate::shim::protocol::PidNamespace;
use crate::spec::{
    CgroupView, DeviceSpec, LaunchSpec, MountSource, MountSpec, ProcessSpec, UserBase, UserSpec,
};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What the plan needs to know beside the configuration.
pub(super) struct Facts<'a> {
    pub(super) sandbox: &'a PodSandboxConfig,
    pub(super) sandbox_directory: PathBuf,
    pub(super) container_directory: PathBuf,
    pub(super) shm: PathBuf,
    pub(super) image: &'a ImageInfo,
    /// The user as the image's configuration writes it.
    pub(super) image_user: &'a str,
    pub(super) layers: Vec<PathBuf>,
    /// Layers of the images that are mounted as volumes, by image.
    pub(super) volume_layers: &'a BTreeMap<String, Vec<PathBuf>>,
    pub(super) hostname: &'a str,
    pub(super) cgroup: CgroupView,
    pub(super) seccomp: Option<Vec<u64>>,
    pub(super) capabilities: u64,
}

pub(super) fn capability_set(config: &ContainerConfig) -> Result<u64> {
    let security = &config.security;
    capabilities::plan(
        security.privileged,
        &security.add_capabilities,
        &security.drop_capabilities,
    )
    .map_err(|name| Error::Invalid(format!("unknown capability {name:?}")))
}

pub(super) fn launch(config: &ContainerConfig, facts: Facts<'_>) -> Result<LaunchSpec> {
    let security = &config.security;
    let mut mounts = user_mounts(config, facts.volume_layers)?;
    for name in ["hostname", "resolv.conf"] {
        let target = Path::new("/etc").join(name);
        if !mounts.iter().any(|mount| mount.target == target) {
            mounts.push(MountSpec {
                source: MountSource::Host(facts.sandbox_directory.join(name)),
                target,
                readonly: security.readonly_rootfs,
                recursive_readonly: false,
                propagation: Default::default(),
            });
        }
    }
    let paths = |given: &Option<Vec<String>>, default: &[&str]| match given {
        Some(paths) => paths.clone(),
        None => default.iter().map(|path| (*path).to_owned()).collect(),
    };
    let directory = &facts.container_directory;
    Ok(LaunchSpec {
        upper: directory.join("upper"),
        work: directory.join("work"),
        rootfs: directory.join("rootfs"),
        readonly_rootfs: security.readonly_rootfs,
        mounts,
        masked_paths: paths(&security.masked_paths, &MASKED_PATHS),
        readonly_paths: paths(&security.readonly_paths, &READONLY_PATHS),
        shm: if facts.sandbox.host_namespaces.ipc {
            PathBuf::from("/dev/shm")
        } else {
            facts.shm.clone()
        },
        devices: config
            .devices
            .iter()
            .map(|device| DeviceSpec {
                container_path: device.container_path.clone(),
                host_path: device.host_path.clone(),
            })
            .collect(),
        privileged: security.privileged,
        process: process(config, &facts)?,
        layers: facts.layers,
        cgroup: facts.cgroup,
    })
}

fn process(config: &ContainerConfig, facts: &Facts<'_>) -> Result<ProcessSpec> {
    let arguments = arguments(config, facts.image);
    if arguments.is_empty() {
        return Err(Error::Invalid("no command specified".to_owned()));
    }
    let working_directory = [
        config.working_dir.as_str(),
        facts.image.working_dir.as_str(),
        "/",
    ]
    .into_iter()
    .find(|directory| !directory.is_empty())
    .unwrap_or("/");
    Ok(ProcessSpec {
        arguments,
        environment: environment(config, facts.image, facts.hostname),
        working_directory: working_directory.to_owned(),
        user: user(config, facts.image_user)?,
        capabilities: facts.capabilities,
        no_new_privs: config.security.no_new_privs && !config.security.privileged,
        seccomp: facts.seccomp.clone(),
        oom_score_adj: config.oom_score_adj.clamp(-1000, 1000),
    })
}

/// A command replaces the image's entry point and arguments; arguments alone replace its arguments.
fn arguments(config: &ContainerConfig, image: &ImageInfo) -> Vec<String> {
    let (command, args) = if !config.command.is_empty() {
        (&config.command, &config.args)
    } else if !config.args.is_empty() {
        (&image.entrypoint, &config.args)
    } else {
        (&image.entrypoint, &image.cmd)
    };
    command.iter().chain(args).cloned().collect()
}

/// Later settings of a name replace earlier ones and keep their place.
fn environment(config: &ContainerConfig, image: &ImageInfo, hostname: &str) -> Vec<String> {
    let mut out: Vec<(String, String)> = Vec::new();
    let mut at: BTreeMap<String, usize> = BTreeMap::new();
    let mut set = |entry: String| {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        match at.get(&name) {
            Some(index) => {
                if let Some(slot) = out.get_mut(*index) {
                    slot.1 = entry;
                }
            }
            None => {
                at.insert(name.clone(), out.len());
                out.push((name, entry));
            }
        }
    };
    set(DEFAULT_PATH.to_owned());
    set(format!("HOSTNAME={hostname}"));
    if config.tty {
        set("TERM=xterm".to_owned());
    }
    for entry in &image.env {
        set(entry.clone());
    }
    for (name, value) in &config.env {
        set(format!("{name}={value}"));
    }
    out.into_iter().map(|(_, entry)| entry).collect()
}

fn user(config: &ContainerConfig, image_user: &str) -> Result<UserSpec> {
    let id = |value: i64| {
        u32::try_from(value)
            .map_err(|_| Error::Invalid(format!("{value} is not a user or group id")))
    };
    let security = &config.security;
    let base = match (security.run_as_user, &security.run_as_username) {
        (Some(uid), _) => UserBase::Id(id(uid)?),
        (None, Some(name)) if !name.is_empty() => UserBase::Image(name.clone()),
        _ => UserBase::Image(image_user.to_owned()),
    };
    Ok(UserSpec {
        base,
        group: security.run_as_group.map(id).transpose()?,
        supplemental_groups: security
            .supplemental_groups
            .iter()
            .map(|gid| id(*gid))
            .collect::<Result<_>>()?,
        strict_groups: security.supplemental_groups_strict,
    })
}

fn user_mounts(
    config: &ContainerConfig,
    images: &BTreeMap<String, Vec<PathBuf>>,
) -> Result<Vec<MountSpec>> {
    config
        .mounts
        .iter()
        .map(|mount| {
            if !mount.container_path.is_absolute() {
                return Err(Error::Invalid(format!(
                    "mount path {:?} must be absolute",
                    mount.container_path.display().to_string()
                )));
            }
            let source = match &mount.image {
                None => MountSource::Host(mount.host_path.clone()),
                Some(image) => {
                    MountSource::Layers(images.get(image).cloned().ok_or_else(|| {
                        Error::NotFound(format!("image {image:?} of a volume is not present"))
                    })?)
                }
            };
            Ok(MountSpec {
                source,
                target: mount.container_path.components().collect(),
                readonly: mount.readonly,
                recursive_readonly: mount.recursive_readonly,
                propagation: mount.propagation,
            })
        })
        .collect()
}

pub(super) fn pid_namespace(sandbox: &PodSandboxConfig, config: &ContainerConfig) -> PidNamespace {
    if let Some(target) = &config.security.target_container {
        PidNamespace::Container(target.clone())
    } else if sandbox.host_namespaces.pid {
        PidNamespace::Host
    } else if sandbox.share_process_namespace {
        PidNamespace::Pod
    } else {
        PidNamespace::Own
    }
}

/// `/etc/resolv.conf` of the pod; `None` keeps the host's.
pub(super) fn resolv_conf(dns: &DnsConfig) -> Option<String> {
    if dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty() {
        return None;
    }
    let mut out = String::new();
    if !dns.searches.is_empty() {
        out.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        out.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        out.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Some(out)
}

/// The pod's sysctls as files below `/proc/sys`. A name may use dots or slashes.
pub(super) fn sysctls(config: &PodSandboxConfig) -> Result<Vec<(String, String)>> {
    config
        .sysctls
        .iter()
        .map(|(name, value)| {
            let path = if name.contains('/') { name.clone() } else { name.replace('.', "/") };
            let refuse = |why: &str| Err(Error::Invalid(format!("sysctl {name:?} {why}")));
            if path.split('/').any(|part| part.is_empty() || part == "..") {
                return refuse("is not a name");
            }
            let ipc = path.starts_with("fs/mqueue/")
                || matches!(path.strip_prefix("kernel/"), Some(key) if key.starts_with("shm") || key.starts_with("msg") || key.starts_with("sem"));
            let allowed = if ipc {
                !config.host_namespaces.ipc
            } else {
                path.starts_with("net/") && !config.host_namespaces.network
            };
            if !allowed {
                return refuse("is not allowed: it is not separate for this pod");
            }
            Ok((path, value.clone()))
        })
        .collect()
}

/// A signal by name (with or without `SIG`) or number.
pub(super) fn signal_number(name: &str) -> Result<i32> {
    const NAMES: [(&str, i32); 31] = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ILL", libc::SIGILL),
        ("TRAP", libc::SIGTRAP),
        ("ABRT", libc::SIGABRT),
        ("BUS", libc::SIGBUS),
        ("FPE", libc::SIGFPE),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("SEGV", libc::SIGSEGV),
        ("USR2", libc::SIGUSR2),
        ("PIPE", libc::SIGPIPE),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("STKFLT", libc::SIGSTKFLT),
        ("CHLD", libc::SIGCHLD),
        ("CONT", libc::SIGCONT),
        ("STOP", libc::SIGSTOP),
        ("TSTP", libc::SIGTSTP),
        ("TTIN", libc::SIGTTIN),
        ("TTOU", libc::SIGTTOU),
        ("URG", libc::SIGURG),
        ("XCPU", libc::SIGXCPU),
        ("XFSZ", libc::SIGXFSZ),
        ("VTALRM", libc::SIGVTALRM),
        ("PROF", libc::SIGPROF),
        ("WINCH", libc::SIGWINCH),
        ("IO", libc::SIGIO),
        ("PWR", libc::SIGPWR),
        ("SYS", libc::SIGSYS),
    ];
    let upper = name.trim().to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = || {
        let (base, offset) = match bare.strip_prefix("RTMIN") {
            Some(rest) => (34, rest),
            None => (64, bare.strip_prefix("RTMAX")?),
        };
        let offset = if offset.is_empty() {
            0
        } else {
            offset.parse::<i32>().ok()?
        };
        Some(base + offset).filter(|number| (34..=64).contains(number))
    };
    NAMES
        .iter()
        .find(|(known, _)| *known == bare)
        .map(|(_, number)| *number)
        .or_else(|| bare.parse().ok().filter(|number| (1..=64).contains(number)))
        .or_else(real_time)
        .ok_or_else(|| Error::Invalid(format!("{name:?} is not a signal")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageInfo {
        ImageInfo {
            id: "sha256:1".into(),
            repo_tags: vec![],
            repo_digests: vec![],
            size_bytes: 0,
            user: Default::default(),
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            env: vec!["PATH=/image".into(), "A=1".into()],
            working_dir: String::new(),
            stop_signal: None,
            pinned: false,
            last_used_at: None,
        }
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn command_and_arguments_replace_the_images() {
        let mut config = ContainerConfig::default();
        assert_eq!(arguments(&config, &image()), ["/entry", "default"]);
        config.args = strings(&["x"]);
        assert_eq!(arguments(&config, &image()), ["/entry", "x"]);
        config.command = strings(&["/own"]);
        assert_eq!(arguments(&config, &image()), ["/own", "x"]);
        config.args.clear();
        assert_eq!(arguments(&config, &image()), ["/own"]);
    }

    #[test]
    fn the_environment_has_each_name_once() {
        let config = ContainerConfig {
            env: vec![
                ("A".into(), "2".into()),
                ("B".into(), "x=y".into()),
                ("HOSTNAME".into(), "mine".into()),
            ],
            ..ContainerConfig::default()
        };
        assert_eq!(
            environment(&config, &image(), "pod"),
            ["PATH=/image", "HOSTNAME=mine", "A=2", "B=x=y"]
        );
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (name, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(signal_number(name).unwrap(), number, "{name}");
        }
        for name in ["", "SIGNOPE", "0", "65", "RTMIN-1"] {
            assert!(signal_number(name).is_err(), "{name}");
        }
    }

    #[test]
    fn only_separate_sysctls_are_allowed() {
        let name = "net.ipv4.ip_unprivileged_port_start".to_owned();
        let mut config = PodSandboxConfig {
            sysctls: [(name, "0".to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(
            sysctls(&config).unwrap()[0].0,
            "net/ipv4/ip_unprivileged_port_start"
        );
        config.host_namespaces.network = true;
        assert!(sysctls(&config).is_err());
        for bad in [
            "kernel.core_pattern",
            "net..x",
            "net/../kernel/core_pattern",
            "vm.swappiness",
        ] {
            let config = PodSandboxConfig {
                sysctls: [(bad.to_owned(), String::new())].into(),
                ..Default::default()
            };
            assert!(sysctls(&config).is_err(), "{bad}");
        }
    }

    #[test]
    fn resolv_conf_follows_the_policy() {
        assert_eq!(resolv_conf(&DnsConfig::default()), None);
        let dns = DnsConfig {
            servers: strings(&["10.96.0.10"]),
            searches: strings(&["a.svc", "svc"]),
            options: strings(&["ndots:5"]),
        };
        assert_eq!(
            resolv_conf(&dns).unwrap(),
            "search a.svc svc\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
    }
}
