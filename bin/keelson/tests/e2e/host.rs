//! What a cluster could leave on its host.

use std::collections::BTreeSet;

use crate::lab::Lab;

pub(crate) struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Everything that mentions this lab's instance, or lives in its network namespace.
    pub(crate) fn take(lab: &Lab) -> Self {
        let mut found = BTreeSet::new();
        let dir = lab.dir.to_str().unwrap().to_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = |line: &&str| line.contains(&dir) || line.contains("/run/keelson/");
        found.extend(
            mounts
                .lines()
                .filter(ours)
                .map(|line| format!("mount {line}")),
        );
        for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(&dir) && !command.contains("e2e") || command.contains("__shim") {
                found.insert(format!("process {command}"));
            }
        }
        for controller in std::fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .filter_map(Result::ok)
        {
            for group in std::fs::read_dir(controller.path())
                .into_iter()
                .flatten()
                .filter_map(Result::ok)
            {
                if group.file_name().to_string_lossy().starts_with("keelson") {
                    found.insert(format!("cgroup {}", group.path().display()));
                }
            }
        }
        for run in std::fs::read_dir("/run/keelson")
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
        {
            found.insert(format!("file {}", run.path().display()));
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
