//! Two processes of the real binary on one etcd, in a network namespace of their own: both serve,
//! what one writes the other shows, neither gives out what the other gave, and when one dies the
//! other goes on alone. Needs root, etcd, ip and kubectl; skipped with a message without root.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::lab::wait_for;

const ETCD: &str = "10.9.0.9";
const SERVERS: [&str; 2] = ["10.9.0.1", "10.9.0.2"];
/// Given out by each server at the same time.
const SERVICES: usize = 25;

/// Ends what it holds, and removes its files.
struct Pair {
    dir: PathBuf,
    holder: Child,
    children: Vec<Child>,
}

impl Drop for Pair {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for index in 0..SERVERS.len() {
            let mut down = self.inside(env!("CARGO_BIN_EXE_keelson"));
            down.args(["down", "--data-dir"]).arg(self.data_dir(index));
            let _ = down.output();
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Pair {
    fn start() -> Self {
        let dir = std::env::temp_dir().join(format!("keelson-servers-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let [a, b] = SERVERS;
        let script = format!(
            "ip link set lo up; for a in {ETCD} {a} {b}; do ip addr add $a/32 dev lo; done; echo up; exec sleep infinity"
        );
        let ready = dir.join("up");
        let holder = Command::new("unshare")
            .args(["--net", "sh", "-c", &script])
            .stdout(File::create(&ready).unwrap())
            .spawn()
            .unwrap();
        let mut pair = Self {
            dir,
            holder,
            children: Vec::new(),
        };
        wait_for("the network namespace", || {
            std::fs::read_to_string(&ready).is_ok_and(|text| text.contains("up"))
        });
        let (client, peer) = (format!("http://{ETCD}:2379"), format!("http://{ETCD}:2380"));
        let mut etcd = pair.inside("etcd");
        etcd.arg("--data-dir")
            .arg(pair.dir.join("etcd"))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        pair.children.push(etcd.spawn().unwrap());
        for (index, address) in SERVERS.iter().enumerate() {
            let log = File::create(pair.dir.join(format!("log{index}"))).unwrap();
            let mut server = pair.inside(env!("CARGO_BIN_EXE_keelson"));
            server
                .args(["server", "--no-node", "--bind-address", address])
                .args(["--etcd-endpoints", &client])
                .args(["--service-cidr", "10.96.0.0/24"])
                .args(["--service-node-port-range", "30000-30127"])
                .arg("--data-dir")
                .arg(pair.data_dir(index))
                .arg("--kubeconfig")
                .arg(pair.kubeconfig(index))
                .stdout(log.try_clone().unwrap())
                .stderr(log);
            pair.children.push(server.spawn().unwrap());
            wait_for("a server", || {
                pair.kubectl(index, &["get", "--raw", "/readyz"])
                    .status
                    .success()
            });
            if index == 0 {
                // The first is to be the one that runs the controllers.
                wait_for("the controllers' lease", || !pair.leader(0).is_empty());
            }
        }
        pair
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let namespace = format!("--net=/proc/{}/ns/net", self.holder.id());
        command.arg(namespace).arg(program).stdin(Stdio::null());
        command.env("HOME", &self.dir);
        command
    }

    fn data_dir(&self, server: usize) -> PathBuf {
        self.dir.join(format!("data{server}"))
    }

    fn kubeconfig(&self, server: usize) -> PathBuf {
        self.dir.join(format!("kubeconfig{server}"))
    }

    fn kubectl(&self, server: usize, arguments: &[&str]) -> Output {
        let mut kubectl = self.inside("kubectl");
        kubectl.arg("--kubeconfig").arg(self.kubeconfig(server));
        kubectl.args(arguments).output().unwrap()
    }

    fn get(&self, server: usize, what: &[&str]) -> Value {
        let arguments = [&["get", "-o", "json"], what].concat();
        serde_json::from_slice(&self.kubectl(server, &arguments).stdout).unwrap_or_default()
    }

    fn create(&self, server: usize, name: &str, object: &Value) -> Output {
        let file = self.dir.join(name);
        std::fs::write(&file, object.to_string()).unwrap();
        self.kubectl(server, &["create", "-f", file.to_str().unwrap()])
    }

    fn leader(&self, server: usize) -> String {
        let lease = self.get(
            server,
            &["lease", "-n", "kube-system", "kube-controller-manager"],
        );
        let holder = lease["spec"]["holderIdentity"].as_str();
        holder.unwrap_or_default().to_owned()
    }

    fn endpoints(&self, server: usize) -> Vec<String> {
        let slices = self.get(
            server,
            &[
                "endpointslices",
                "-l",
                "kubernetes.io/service-name=kubernetes",
            ],
        );
        let items = slices["items"].as_array().cloned().unwrap_or_default();
        let endpoints = items.iter().flat_map(|slice| slice["endpoints"].as_array());
        let mut addresses: Vec<String> = endpoints
            .flatten()
            .filter_map(|endpoint| endpoint["addresses"][0].as_str().map(str::to_owned))
            .collect();
        addresses.sort();
        addresses
    }
}

fn services(prefix: &str) -> Value {
    let items: Vec<Value> = (0..SERVICES)
        .map(|index| {
            json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": format!("{prefix}{index}")},
                "spec": {"type": "NodePort", "ports": [{"port": 80}]}})
        })
        .collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

#[test]
fn two_server_processes_are_one_cluster() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let has = |program: &str| Command::new(program).arg("--help").output().is_ok();
    if !["etcd", "ip", "kubectl"].into_iter().all(has) {
        eprintln!("skipped: etcd, ip and kubectl are needed");
        return;
    }
    let mut pair = Pair::start();
    wait_for("both servers' endpoints", || {
        SERVERS == pair.endpoints(0).as_slice() && SERVERS == pair.endpoints(1).as_slice()
    });

    // What one writes, a watch through the other shows.
    let seen = pair.dir.join("seen");
    let watch = "/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=60";
    let mut watcher = pair.inside("kubectl");
    watcher.arg("--kubeconfig").arg(pair.kubeconfig(1));
    watcher
        .args(["get", "--raw", watch])
        .stdout(File::create(&seen).unwrap());
    pair.children.push(watcher.spawn().unwrap());
    let created = pair.kubectl(0, &["create", "configmap", "through-a"]);
    assert!(created.status.success(), "{created:?}");
    wait_for("the other server's watch", || {
        std::fs::read_to_string(&seen).is_ok_and(|text| text.contains("through-a"))
    });

    // Both give out addresses and ports at once, out of ranges that are soon nearly full.
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        let pair = &pair;
        let threads = ["a", "b"].into_iter().enumerate().map(|(server, prefix)| {
            scope.spawn(move || pair.create(server, prefix, &services(prefix)))
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for output in &outputs {
        assert!(output.status.success(), "{output:?}");
    }
    let made = pair.get(1, &["services"])["items"]
        .as_array()
        .cloned()
        .unwrap();
    let field = |pointer: &str| {
        let values = made.iter().filter_map(|service| service.pointer(pointer));
        let mut values: Vec<String> = values.map(ToString::to_string).collect();
        values.sort();
        values
    };
    for (pointer, expected) in [
        ("/spec/ports/0/nodePort", 2 * SERVICES),
        ("/spec/clusterIP", 2 * SERVICES + 1),
    ] {
        let mut values = field(pointer);
        assert_eq!(values.len(), expected, "{pointer}");
        values.dedup();
        assert_eq!(values.len(), expected, "{pointer} was given out twice");
    }

    // The one that has the lease dies without a word.
    let before = pair.leader(1);
    pair.children[1].kill().unwrap();
    pair.children[1].wait().unwrap();
    wait_for("the lease to move", || {
        let now = pair.leader(1);
        !now.is_empty() && now != before
    });
    let deployed = pair.kubectl(1, &["create", "deployment", "d", "--image=x"]);
    assert!(deployed.status.success(), "{deployed:?}");
    wait_for("the other server's controllers", || {
        let sets = pair.get(1, &["replicasets", "-l", "app=d"]);
        sets["items"]
            .as_array()
            .is_some_and(|items| !items.is_empty())
    });
    wait_for("the endpoints of the one that is left", || {
        pair.endpoints(1) == SERVERS[1..]
    });
}
