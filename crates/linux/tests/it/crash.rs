//! Servers that are killed at any instruction: the next one finds what was finished and clears
//! away what was not.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use keelson_linux::LinuxCgroups;
use keelson_ports::*;
use rand::Rng;

use crate::machine::{Machine, script, with_machine};

const VICTIM: &str = "KEELSON_TEST_CHURN";
/// How many servers are killed; more of them find rarer moments.
const ROUNDS: &str = "KEELSON_KILL_ROUNDS";
const DEFAULT_ROUNDS: usize = 12;
/// A server is killed within this time of its start.
const LONGEST_LIFE: Duration = Duration::from_millis(250);

/// Everything of a machine that a lost record could leave behind.
fn left(machine: &Path, cgroups: &LinuxCgroups) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for kind in ["runtime/sandboxes", "runtime/containers", "run"] {
        for entry in std::fs::read_dir(machine.join(kind)).into_iter().flatten() {
            found.insert(format!("file {}", entry.unwrap().path().display()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = |line: &&str| line.contains(machine.to_str().unwrap());
    found.extend(mounts.lines().filter(ours).map(str::to_owned));
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let group = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        // A zombie has no command line.
        if !command.is_empty() && group.contains(cgroups.prefix()) {
            let (pid, command) = (entry.path(), String::from_utf8_lossy(&command).into_owned());
            found.insert(format!("process {} {command:?}", pid.display()));
        }
    }
    found
}

/// Removes what the runtime knows; gives what is left of the rest.
async fn clear(machine: &Machine) -> BTreeSet<String> {
    for sandbox in machine.runtime.list_pod_sandboxes().await.unwrap() {
        machine
            .runtime
            .remove_pod_sandbox(&sandbox.id)
            .await
            .unwrap();
    }
    let mut groups = BTreeSet::new();
    for pod in machine.cgroups.children("/kubepods").await.unwrap() {
        let path = format!("/kubepods/{pod}");
        for container in machine.cgroups.children(&path).await.unwrap() {
            groups.insert(format!("cgroup {path}/{container}"));
        }
        machine.cgroups.remove(&path).await.unwrap();
    }
    // A shim in the making notices on its own that nobody waits for it.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut found = left(&machine.directory, &machine.cgroups);
        found.extend(groups.clone());
        if found.is_empty() || Instant::now() > deadline {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Not a test of its own: a server that makes and removes pods until it is killed.
#[test]
fn churn() {
    let Some(directory) = std::env::var_os(VICTIM) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let machine = Machine::join(directory.into()).await;
        let pods = (0..4).map(|pod| {
            let machine = &machine;
            async move {
                for turn in 0.. {
                    let uid = format!("churn{pod}-{turn}");
                    let mut config = machine.pod(&uid);
                    config.share_process_namespace = pod % 2 == 0;
                    let sandbox = machine.runtime.run_pod_sandbox(config).await.unwrap();
                    machine
                        .start(&sandbox, script("main", "exec sleep 1000"))
                        .await;
                    machine.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
                    let group = format!("/kubepods/pod{uid}");
                    machine.cgroups.remove(&group).await.unwrap();
                }
            }
        });
        futures::future::join_all(pods).await;
    });
}

fn start_churn(machine: &Machine) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::churn"])
        .env(VICTIM, &machine.directory)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_server_killed_at_any_moment_leaves_nothing() {
    let rounds = std::env::var(ROUNDS)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(DEFAULT_ROUNDS);
    with_machine(move |mut machine| async move {
        for round in 0..rounds {
            let mut server = start_churn(&machine);
            // It has its own start behind it when it has made something.
            let deadline = Instant::now() + Duration::from_secs(60);
            while left(&machine.directory, &machine.cgroups).is_empty() {
                assert!(Instant::now() < deadline && server.try_wait().unwrap().is_none());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let life = rand::rng().random_range(Duration::ZERO..LONGEST_LIFE);
            tokio::time::sleep(life).await;
            server.kill().unwrap();
            server.wait().unwrap();
            machine.restart().await;
            let left = clear(&machine).await;
            assert!(left.is_empty(), "round {round}, after {life:?}: {left:#?}");
        }
        machine
    });
}

#[test]
fn an_unfinished_sandbox_is_no_sandbox() {
    with_machine(|mut machine| async move {
        let kept = machine.sandbox("kept").await;
        let main = machine
            .start(&kept, script("main", "exec sleep 1000"))
            .await;
        // The two forms that a server killed during the creation leaves behind.
        let record = |id: &str| {
            machine
                .directory
                .join("runtime/sandboxes")
                .join(id)
                .join("record.json")
        };
        let early = machine.sandbox("early").await;
        std::fs::remove_file(record(&early)).unwrap();
        let late = machine.sandbox("late").await;
        let text = std::fs::read_to_string(record(&late)).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["unfinished"] = true.into();
        value["shim_pid"] = serde_json::Value::Null;
        std::fs::write(record(&late), value.to_string()).unwrap();
        let stray = format!("/kubepods/podkept/{}", "a".repeat(64));
        machine
            .cgroups
            .ensure(&stray, &CgroupResources::default())
            .await
            .unwrap();

        machine.restart().await;
        let known = machine.runtime.list_pod_sandboxes().await.unwrap();
        let ids: Vec<&str> = known.iter().map(|sandbox| sandbox.id.as_str()).collect();
        assert_eq!(ids, [kept.as_str()]);
        assert_eq!(known[0].state, SandboxState::Ready);
        let status = machine.runtime.container_status(&main).await.unwrap();
        assert_eq!(status.state, ContainerState::Running);
        let groups = machine.cgroups.children("/kubepods/podkept").await.unwrap();
        assert_eq!(groups, [main]);
        let left = clear(&machine).await;
        assert!(left.is_empty(), "{left:#?}");
        machine
    });
}
