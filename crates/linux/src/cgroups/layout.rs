//! Where the control groups are mounted, found from the mount table alone.

use std::path::{Path, PathBuf};

use keelson_ports::{Error, Result};

use crate::mountinfo::{self, MountEntry};

/// One mounted hierarchy of version 1 with the controllers that share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) mount: PathBuf,
    pub(crate) controllers: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    V1(Vec<Hierarchy>),
    V2(PathBuf),
}

/// The version 1 controllers a group is made in. The others do not limit anything Kubernetes asks for.
const CONTROLLERS_V1: [&str; 7] = [
    "cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "hugetlb",
];
const REQUIRED_V1: [&str; 3] = ["cpu", "memory", "pids"];

pub(crate) fn detect() -> Result<Layout> {
    let mounts = mountinfo::read()
        .map_err(|error| Error::Failed(format!("reading the mount table: {error}")))?;
    plan(&mounts)
}

fn plan(mounts: &[MountEntry]) -> Result<Layout> {
    let mut hierarchies: Vec<Hierarchy> = Vec::new();
    let mut unified = None;
    for mount in mounts {
        match mount.fstype.as_str() {
            "cgroup2" if unified.is_none() => unified = Some(mount.target.clone()),
            "cgroup" => {
                let controllers = controllers_of(&mount.super_options);
                let seen = hierarchies
                    .iter()
                    .any(|known| known.controllers == controllers);
                if !controllers.is_empty() && !seen {
                    hierarchies.push(Hierarchy {
                        mount: mount.target.clone(),
                        controllers,
                    });
                }
            }
            _ => {}
        }
    }
    let has = |controller: &str| {
        hierarchies
            .iter()
            .any(|h| h.controllers.iter().any(|c| c == controller))
    };
    if REQUIRED_V1.iter().any(|controller| has(controller)) {
        if let Some(missing) = REQUIRED_V1.iter().find(|controller| !has(controller)) {
            return Err(Error::Unsupported(format!(
                "the cgroup v1 controller {missing:?} is not mounted; mount it below /sys/fs/cgroup"
            )));
        }
        if let Some(mount) = unified {
            hierarchies.push(Hierarchy {
                mount,
                controllers: vec!["unified".to_owned()],
            });
        }
        return Ok(Layout::V1(hierarchies));
    }
    unified.map(Layout::V2).ok_or_else(|| {
        Error::Unsupported(
            "no cgroup file system is mounted in this mount namespace; mount cgroup2 on /sys/fs/cgroup \
             (commands started by `ip netns exec` lose these mounts because it replaces /sys)"
                .to_owned(),
        )
    })
}

fn controllers_of(super_options: &str) -> Vec<String> {
    super_options
        .split(',')
        .filter(|option| CONTROLLERS_V1.contains(option) || *option == "name=systemd")
        .map(str::to_owned)
        .collect()
}

/// Joins a path that the node named below `prefix`, refusing whatever would leave it.
pub(crate) fn join(mount: &Path, prefix: &str, path: &str) -> Result<PathBuf> {
    let mut out = mount.to_path_buf();
    for part in prefix
        .split('/')
        .chain(path.split('/'))
        .filter(|part| !part.is_empty())
    {
        if part == "." || part == ".." || part.contains('\0') {
            return Err(Error::Invalid(format!("{path:?} is not a cgroup path")));
        }
        out.push(part);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(target: &str, fstype: &str, options: &str) -> MountEntry {
        MountEntry {
            root: "/".into(),
            target: target.into(),
            shared: false,
            fstype: fstype.into(),
            super_options: options.into(),
        }
    }

    #[test]
    fn a_hybrid_machine_is_version_1() {
        let layout = plan(&[
            mount("/c/cpu", "cgroup", "rw,cpu,cpuacct"),
            mount("/c/memory", "cgroup", "rw,memory"),
            mount("/c/pids", "cgroup", "rw,pids"),
            mount("/c/freezer", "cgroup", "rw,freezer"),
            mount("/c/unified", "cgroup2", "rw"),
        ]);
        let Ok(Layout::V1(hierarchies)) = layout else {
            panic!("{layout:?}")
        };
        assert_eq!(hierarchies.len(), 4);
        assert_eq!(hierarchies[0].controllers, ["cpu", "cpuacct"]);
    }

    #[test]
    fn only_cgroup2_is_version_2() {
        let layout = plan(&[mount("/sys/fs/cgroup", "cgroup2", "rw")]).unwrap();
        assert_eq!(layout, Layout::V2("/sys/fs/cgroup".into()));
    }

    #[test]
    fn nothing_mounted_says_what_to_do() {
        let error = plan(&[mount("/", "ext4", "rw")]).unwrap_err().to_string();
        assert!(error.contains("mount cgroup2"), "{error}");
        let error = plan(&[mount("/c/memory", "cgroup", "rw,memory")])
            .unwrap_err()
            .to_string();
        assert!(error.contains("\"cpu\""), "{error}");
    }

    #[test]
    fn paths_cannot_climb() {
        assert!(join(Path::new("/c"), "/k", "/../x").is_err());
        assert_eq!(
            join(Path::new("/c"), "/k", "/kubepods//pod1").unwrap(),
            Path::new("/c/k/kubepods/pod1")
        );
    }
}
