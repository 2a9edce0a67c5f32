//! What a cluster could leave on its host.

use std::collections::BTreeSet;

use crate::lab::Lab;

pub(crate) struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Everything that mentions this lab's instance, or lives in its network namespace.
    pub(crate) fn take(lab: &Lab) -> Self {
        let mut found = BTreeSet::new();
        let id = lab.id();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let dir = lab.dir.to_str().unwrap();
        let ours = |line: &&str| line.contains(dir) || line.contains(&format!("/run/keelson/{id}"));
        found.extend(
            mounts
                .lines()
                .filter(ours)
                .map(|line| format!("mount {line}")),
        );
        let group = format!("/keelson-{id}");
        for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            // A zombie has no command line; it is gone but for the one who must ask for its status.
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if groups.contains(&group) && !command.is_empty() {
                found.insert(format!("process {}", entry.path().display()));
            }
        }
        for controller in std::fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .filter_map(Result::ok)
        {
            let path = controller.path().join(&group[1..]);
            if path.exists() {
                found.insert(format!("cgroup {}", path.display()));
            }
        }
        let run = std::path::Path::new("/run/keelson").join(&id);
        if run.exists() {
            found.insert(format!("file {}", run.display()));
        }
        let devices = lab.inside("cat").arg("/proc/net/dev").output().unwrap();
        let devices = String::from_utf8(devices.stdout).unwrap();
        let name = |line: &str| {
            line.split_once(':')
                .map(|(name, _)| format!("device {}", name.trim()))
        };
        found.extend(devices.lines().filter_map(name));
        let routes = lab.inside("cat").arg("/proc/net/route").output().unwrap();
        found.extend(
            String::from_utf8(routes.stdout)
                .unwrap()
                .lines()
                .skip(1)
                .map(|line| format!("route {line}")),
        );
        if let Ok(rules) = lab.inside("nft").args(["list", "tables"]).output() {
            found.extend(
                String::from_utf8(rules.stdout)
                    .unwrap()
                    .lines()
                    .map(|line| format!("rules {line}")),
            );
        }
        Self(found)
    }

    pub(crate) fn beyond(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}
