use std::time::{Duration, Instant};

use futures::StreamExt;
use keelson_linux::purge;
use keelson_ports::*;

use crate::machine::{Machine, log_text, script, with_machine};

/// A zombie that its new parent has not collected yet does not live.
fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn a_container_runs_logs_and_exits() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("one").await;
        let mut events = machine.runtime.events();
        let (status, text) = machine
            .run(
                &sandbox,
                script("main", "echo out; echo err >&2; printf tail; exit 3"),
            )
            .await;
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (Some(3), "Error")
        );
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["err", "out", "tail"]);
        let log = std::fs::read_to_string(&status.log_path).unwrap();
        assert!(
            log.lines().any(|line| line.ends_with("Z stderr F err")),
            "{log}"
        );
        assert!(status.started_at.unwrap() <= status.finished_at.unwrap());
        assert_eq!(status.user, Some((0, 0, vec![0])));
        let started = RuntimeEvent::ContainerStarted {
            sandbox: sandbox.clone(),
            container: status.id.clone(),
        };
        let exited = RuntimeEvent::ContainerExited {
            sandbox: sandbox.clone(),
            container: status.id.clone(),
        };
        assert_eq!(events.next().await, Some(started));
        assert_eq!(events.next().await, Some(exited));

        let again = machine
            .runtime
            .run_pod_sandbox(machine.pod("one"))
            .await
            .unwrap();
        assert_eq!(again, sandbox);
        let pod = machine.runtime.pod_sandbox_status(&sandbox).await.unwrap();
        assert_eq!((pod.state, pod.ips.len()), (SandboxState::Ready, 1));
        machine.runtime.stop_pod_sandbox(&sandbox).await.unwrap();
        machine.runtime.stop_pod_sandbox(&sandbox).await.unwrap();
        assert_eq!(
            machine
                .runtime
                .pod_sandbox_status(&sandbox)
                .await
                .unwrap()
                .state,
            SandboxState::NotReady
        );
        assert_eq!(machine.runtime.list_containers().await.unwrap().len(), 1);
        machine.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
        machine.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
        assert!(machine.runtime.list_containers().await.unwrap().is_empty());
        assert!(
            machine
                .runtime
                .pod_sandbox_status(&sandbox)
                .await
                .unwrap_err()
                .is_not_found()
        );
        machine
    });
}

#[test]
fn a_program_that_does_not_exist_is_a_start_error() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("bad").await;
        let mut config = script("bad", "");
        config.command = vec!["no-such".to_owned()];
        let id = machine
            .runtime
            .create_container(&sandbox, config)
            .await
            .unwrap();
        let error = machine
            .runtime
            .start_container(&id)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exec: \"no-such\": executable file not found in $PATH"),
            "{error}"
        );
        let status = machine.runtime.container_status(&id).await.unwrap();
        assert_eq!(
            (status.state, status.exit_code),
            (ContainerState::Exited, Some(128))
        );
        assert_eq!(status.reason, "StartError");
        let missing = ContainerConfig {
            image: "nope".to_owned(),
            ..script("x", "")
        };
        assert!(
            machine
                .runtime
                .create_container(&sandbox, missing)
                .await
                .unwrap_err()
                .is_not_found()
        );
        machine
    });
}

#[test]
fn stopping_asks_first_and_kills_later() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("stop").await;
        let polite = machine
            .start(
                &sandbox,
                script(
                    "polite",
                    "trap 'exit 7' TERM; while true; do sleep 0.02; done",
                ),
            )
            .await;
        let deaf = machine
            .start(
                &sandbox,
                script("deaf", "trap '' TERM; while true; do sleep 0.02; done"),
            )
            .await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        machine
            .runtime
            .stop_container(&polite, Duration::from_secs(10))
            .await
            .unwrap();
        assert_eq!(
            machine
                .runtime
                .container_status(&polite)
                .await
                .unwrap()
                .exit_code,
            Some(7)
        );
        let begin = Instant::now();
        machine
            .runtime
            .stop_container(&deaf, Duration::from_millis(300))
            .await
            .unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(300));
        let status = machine.runtime.container_status(&deaf).await.unwrap();
        assert_eq!((status.exit_code, status.signal), (Some(137), Some(9)));
        machine
    });
}

#[test]
fn running_out_of_memory_is_told() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("oom").await;
        let mut config = script("oom", "exec tail /dev/zero");
        config.resources = CgroupResources {
            memory_limit_bytes: Some(32 << 20),
            ..CgroupResources::default()
        };
        let (status, _) = machine.run(&sandbox, config).await;
        assert!(status.oom_killed, "{status:?}");
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (Some(137), "OOMKilled")
        );
        machine
    });
}

#[test]
fn limits_hold_and_change() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("limits").await;
        let mut config = script("main", "sleep 1000");
        config.resources = CgroupResources {
            memory_limit_bytes: Some(64 << 20),
            cpu_shares: Some(512),
            cpu_quota_us: Some(50_000),
            cpu_period_us: Some(100_000),
            pids_limit: Some(30),
            ..CgroupResources::default()
        };
        let id = machine.start(&sandbox, config).await;
        let group = format!("/kubepods/podlimits/{id}");
        let stats = machine.cgroups.stats(&group).await.unwrap();
        assert_eq!(stats.memory_limit_bytes, Some(64 << 20));
        assert_eq!(stats.pids, 1);
        if machine.cgroups.version() == 1 {
            let seen = machine.exec(&id, "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/memory/memory.limit_in_bytes").await;
            assert_eq!(String::from_utf8_lossy(&seen.stdout), "50000\n67108864\n");
            let write = machine
                .exec(&id, "echo 1 > /sys/fs/cgroup/memory/memory.limit_in_bytes")
                .await;
            assert_ne!(write.exit_code, 0);
        }
        let more = CgroupResources {
            memory_limit_bytes: Some(128 << 20),
            ..CgroupResources::default()
        };
        machine
            .runtime
            .update_container_resources(&id, more)
            .await
            .unwrap();
        let stats = machine.runtime.container_stats(&id).await.unwrap();
        assert_eq!(stats.cgroup.memory_limit_bytes, Some(128 << 20));
        machine
            .exec(&id, "dd if=/dev/zero of=/big bs=1M count=3")
            .await;
        assert!(
            machine
                .runtime
                .container_stats(&id)
                .await
                .unwrap()
                .writable_layer_bytes
                >= 3 << 20
        );
        let forks = machine
            .exec(
                &id,
                "i=0; while [ $i -lt 60 ]; do sleep 5 & i=$((i+1)); done; echo done",
            )
            .await;
        assert!(
            !String::from_utf8_lossy(&forks.stdout).contains("done"),
            "{forks:?}"
        );
        let children = machine
            .cgroups
            .children("/kubepods/podlimits")
            .await
            .unwrap();
        assert_eq!(children, [id]);
        machine
    });
}

#[test]
fn a_restarted_runtime_finds_everything() {
    with_machine(|mut machine| async move {
        let sandbox = machine.sandbox("live").await;
        let stays = machine
            .start(&sandbox, script("stays", "echo hello; sleep 1000"))
            .await;
        let ends = machine
            .start(&sandbox, script("ends", "sleep 0.3; exit 5"))
            .await;
        let waits = machine
            .runtime
            .create_container(&sandbox, script("waits", "exit 6"))
            .await
            .unwrap();
        let pid = machine.runtime.container_status(&stays).await.unwrap().pid;
        machine.restart().await;
        let status = machine.runtime.container_status(&stays).await.unwrap();
        assert_eq!((status.state, status.pid), (ContainerState::Running, pid));
        assert_eq!(machine.ended(&ends).await.exit_code, Some(5));
        machine.restart().await;
        assert_eq!(
            machine
                .runtime
                .container_status(&ends)
                .await
                .unwrap()
                .exit_code,
            Some(5)
        );
        let output = machine.exec(&stays, "echo inside").await;
        assert_eq!(output.stdout, b"inside\n");
        machine.runtime.start_container(&waits).await.unwrap();
        assert_eq!(machine.ended(&waits).await.exit_code, Some(6));
        machine
            .runtime
            .stop_container(&stays, Duration::ZERO)
            .await
            .unwrap();
        assert_eq!(
            machine
                .runtime
                .container_status(&stays)
                .await
                .unwrap()
                .exit_code,
            Some(137)
        );
        machine
    });
}

const VICTIM: &str = "KEELSON_TEST_VICTIM";

/// Not a test of its own: the server process that the next test kills.
#[test]
fn victim() {
    let Some(directory) = std::env::var_os(VICTIM) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let machine = Machine::join(directory.into()).await;
        let sandbox = machine.sandbox("victim").await;
        let writer = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.01; done";
        machine.start(&sandbox, script("writer", writer)).await;
        std::fs::write(machine.directory.join("ready"), "").unwrap();
        futures::future::pending::<()>().await;
    });
}

#[test]
fn pods_survive_a_killed_server() {
    with_machine(|mut machine| async move {
        let mut server = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lifecycle::victim"])
            .env(VICTIM, &machine.directory)
            .spawn()
            .unwrap();
        while !machine.directory.join("ready").exists() {
            assert!(server.try_wait().unwrap().is_none());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server.kill().unwrap();
        server.wait().unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        machine.restart().await;
        let container = machine.runtime.list_containers().await.unwrap().remove(0);
        assert_eq!(container.state, ContainerState::Running);
        let pid = container.pid.unwrap();
        assert!(lives(pid));
        machine
            .runtime
            .stop_container(&container.id, Duration::ZERO)
            .await
            .unwrap();
        let text = log_text(&container.log_path);
        let numbers: Vec<usize> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>());
        assert!(numbers.len() > 5, "{numbers:?}");
        machine
    });
}

#[test]
fn a_dead_shim_takes_its_containers_along() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("dead").await;
        let id = machine
            .start(&sandbox, script("main", "sleep 1000 & sleep 1000"))
            .await;
        let pid = machine
            .runtime
            .container_status(&id)
            .await
            .unwrap()
            .pid
            .unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let shim = status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:"))
            .unwrap()
            .trim()
            .to_owned();
        let shim = rustix::process::Pid::from_raw(shim.parse().unwrap()).unwrap();
        rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
        let status = machine.ended(&id).await;
        assert_eq!(
            (status.state, status.exit_code),
            (ContainerState::Unknown, None)
        );
        assert!(!lives(pid));
        let pod = machine.runtime.pod_sandbox_status(&sandbox).await.unwrap();
        assert_eq!(pod.state, SandboxState::NotReady);
        assert!(
            machine
                .runtime
                .create_container(&sandbox, script("no", ""))
                .await
                .is_err()
        );
        machine.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
        machine
    });
}

#[test]
fn fifty_containers_start_at_once() {
    with_machine(|machine| async move {
        let mut sandboxes = Vec::new();
        let begin = Instant::now();
        for pod in 0..5 {
            sandboxes.push(machine.sandbox(&format!("many{pod}")).await);
        }
        eprintln!("a sandbox: {:?}", begin.elapsed() / 5);
        let mut times = [Duration::ZERO; 3];
        for index in 0..10 {
            let begin = Instant::now();
            let config = script(&format!("single{index}"), "exit 0");
            let id = machine
                .runtime
                .create_container(&sandboxes[0], config)
                .await
                .unwrap();
            times[0] += begin.elapsed();
            machine.runtime.start_container(&id).await.unwrap();
            times[1] += begin.elapsed();
            machine.ended(&id).await;
            times[2] += begin.elapsed();
        }
        eprintln!(
            "one container created, started, ended: {:?}",
            times.map(|time| time / 10)
        );
        let begin = Instant::now();
        let runs = (0..50).map(|index| {
            let (machine, sandbox) = (&machine, &sandboxes[index % 5]);
            async move {
                let (status, text) = machine
                    .run(
                        sandbox,
                        script(&format!("c{index}"), &format!("echo {index}; exit {index}")),
                    )
                    .await;
                assert_eq!(status.exit_code, Some(index as i32));
                assert_eq!(text, format!("{index}\n"));
            }
        });
        futures::future::join_all(runs).await;
        eprintln!("a container, of fifty at once: {:?}", begin.elapsed() / 50);
        let begin = Instant::now();
        let containers = machine.runtime.list_containers().await.unwrap();
        for container in containers.iter().take(10) {
            machine
                .runtime
                .remove_container(&container.id)
                .await
                .unwrap();
        }
        eprintln!("a container removed: {:?}", begin.elapsed() / 10);
        let begin = Instant::now();
        machine
            .runtime
            .remove_pod_sandbox(&sandboxes[1])
            .await
            .unwrap();
        eprintln!(
            "a sandbox with its containers removed: {:?}",
            begin.elapsed()
        );
        machine
    });
}

/// A process's share of memory that no file stands for, in KiB.
fn anonymous(pid: &str) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss_Anon:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_shim_is_small() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("small").await;
        let id = machine.start(&sandbox, script("main", "sleep 1000")).await;
        for _ in 0..20 {
            machine
                .exec(&id, "echo hello; head -c 100000 /dev/zero")
                .await;
        }
        let pid = machine
            .runtime
            .container_status(&id)
            .await
            .unwrap()
            .pid
            .unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let shim = status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:"))
            .unwrap()
            .trim()
            .to_owned();
        let kib = anonymous(&shim);
        eprintln!("a shim's anonymous memory: {kib} KiB");
        assert!(kib < 1024, "{kib} KiB");
        machine
    });
}

#[test]
fn pods_share_what_they_ask_for() {
    with_machine(|machine| async move {
        let mut pod = machine.pod("shared");
        pod.share_process_namespace = true;
        let sandbox = machine.runtime.run_pod_sandbox(pod).await.unwrap();
        let first = machine
            .start(
                &sandbox,
                script("first", "echo x > /dev/shm/file; sleep 1001"),
            )
            .await;
        let second = machine
            .start(&sandbox, script("second", "sleep 1002"))
            .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let seen = machine.exec(&second, "cat /dev/shm/file; ps; hostname; cat /etc/resolv.conf /etc/hostname; echo $HOSTNAME").await;
        let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
        assert!(seen.starts_with("x\n"), "{seen}");
        assert!(seen.contains("sleep 1001"), "{seen}");
        assert_eq!(seen.matches("pod-shared").count(), 3, "{seen}");
        assert!(seen.contains("nameserver 10.96.0.10"), "{seen}");
        machine
            .runtime
            .stop_container(&first, Duration::ZERO)
            .await
            .unwrap();
        assert_eq!(machine.exec(&second, "echo alive").await.stdout, b"alive\n");

        let plain = machine.sandbox("plain").await;
        let main = machine.start(&plain, script("main", "sleep 1003")).await;
        let seen = machine.exec(&main, "ps").await;
        assert!(!String::from_utf8_lossy(&seen.stdout).contains("sleep 1002"));
        let mut debug = script("debug", "ps; readlink /proc/self/ns/pid");
        debug.security.target_container = Some(main.clone());
        let (_, text) = machine.run(&plain, debug).await;
        assert!(text.contains("sleep 1003"), "{text}");
        machine
    });
}

#[test]
fn purging_leaves_nothing() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("purge").await;
        let id = machine.start(&sandbox, script("main", "sleep 1000")).await;
        let pid = machine
            .runtime
            .container_status(&id)
            .await
            .unwrap()
            .pid
            .unwrap();
        let directory = machine.directory.clone();
        for expected in [1, 0] {
            let report = purge(&directory.join("run"), machine.cgroups.prefix(), &directory)
                .await
                .unwrap();
            assert_eq!((report.sandboxes, report.containers), (expected, expected));
        }
        assert!(!lives(pid));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(&directory.display().to_string()),
            "{mounts}"
        );
        assert!(machine.cgroups.children("/").await.unwrap().is_empty());
        machine
    });
}

#[test]
fn a_rotated_log_is_reopened() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("rotate").await;
        let id = machine
            .start(
                &sandbox,
                script(
                    "main",
                    "i=0; while true; do echo $i; i=$((i+1)); sleep 0.01; done",
                ),
            )
            .await;
        let path = machine
            .runtime
            .container_status(&id)
            .await
            .unwrap()
            .log_path;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let old = path.with_extension("old");
        std::fs::rename(&path, &old).unwrap();
        machine.runtime.reopen_container_log(&id).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        machine
            .runtime
            .stop_container(&id, Duration::ZERO)
            .await
            .unwrap();
        let all = log_text(&old) + &log_text(&path);
        let numbers: Vec<usize> = all.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>());
        assert!(!log_text(&path).is_empty());
        machine
    });
}

#[test]
fn a_pod_can_share_the_hosts_namespaces() {
    with_machine(|machine| async move {
        let mut pod = machine.pod("host");
        pod.host_namespaces = HostNamespaces {
            network: true,
            pid: true,
            ipc: true,
        };
        let sandbox = machine.runtime.run_pod_sandbox(pod.clone()).await.unwrap();
        assert!(
            machine
                .runtime
                .pod_sandbox_status(&sandbox)
                .await
                .unwrap()
                .ips
                .is_empty()
        );
        // Without a PID namespace nothing but the cgroup holds the container's processes together.
        let script = script(
            "main",
            "hostname; cat /proc/1/comm; readlink /proc/self/ns/net; sleep 1004 & echo $!; exit 1",
        );
        let (status, text) = machine.run(&sandbox, script).await;
        assert_eq!(status.exit_code, Some(1));
        let lines: Vec<&str> = text.lines().collect();
        let host = std::fs::read_link("/proc/self/ns/net").unwrap();
        let name = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let first = std::fs::read_to_string("/proc/1/comm").unwrap();
        assert_eq!((lines[0], lines[1]), (name.as_str(), first.trim()));
        assert_eq!(lines[2], host.to_str().unwrap());
        assert!(!lives(lines[3].parse().unwrap()));

        pod.uid = "sysctl".to_owned();
        pod.sysctls.insert(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "0".to_owned(),
        );
        assert!(matches!(
            machine.runtime.run_pod_sandbox(pod.clone()).await,
            Err(Error::Invalid(_))
        ));
        pod.host_namespaces = HostNamespaces::default();
        let sandbox = machine.runtime.run_pod_sandbox(pod.clone()).await.unwrap();
        let look = crate::machine::script(
            "sysctl",
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        );
        assert_eq!(machine.run(&sandbox, look).await.1, "0\n");
        pod.uid = "unknown".to_owned();
        pod.sysctls.insert("net.no_such".to_owned(), "1".to_owned());
        let error = machine
            .runtime
            .run_pod_sandbox(pod)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("net.no_such"), "{error}");
        assert_eq!(machine.runtime.list_pod_sandboxes().await.unwrap().len(), 2);
        machine
    });
}
