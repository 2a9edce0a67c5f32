#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use keelson_ports::{
    Backend, Frontend, HostPort, PacketRules as _, Protocol, ServiceRule, ServiceRules,
    SourcePolicy,
};

use super::netns::{isolated, new_beside, run_in};
use super::*;
use crate::packets::{NftRules, PacketRulesConfig};

struct Node {
    network: BridgeNetwork,
    dir: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Node {
    /// A node in the calling thread's namespace.
    fn new() -> Self {
        Node::with_range("10.42.0.0/24")
    }

    fn with_range(range: &str) -> Self {
        let dir =
            std::env::temp_dir().join(format!("keelson-net-{}", uuid::Uuid::new_v4().simple()));
        let mut config = NetworkConfig::new(dir.clone());
        config.service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let network = BridgeNetwork::open(config).unwrap();
        let ranges = [range.parse().unwrap(), "fd42::/64".parse().unwrap()];
        let cluster = [
            "10.42.0.0/16".parse().unwrap(),
            "fd42::/48".parse().unwrap(),
        ];
        runtime
            .block_on(network.setup_node(&ranges, &cluster))
            .unwrap();
        Node {
            network,
            dir,
            runtime,
        }
    }

    fn pod(&self, name: &str, host_ports: Vec<HostPort>) -> Pod {
        let namespace = new_beside();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&namespace);
        let request = PodNetworkRequest {
            sandbox: name.into(),
            pod_namespace: "default".into(),
            pod_name: name.into(),
            pod_uid: name.into(),
            netns: format!("/proc/self/fd/{fd}").into(),
            host_ports,
            ingress_bps: None,
            egress_bps: None,
        };
        let start = Instant::now();
        let status = self
            .runtime
            .block_on(self.network.attach(&request))
            .unwrap();
        eprintln!("attached {name} in {:?}", start.elapsed());
        Pod {
            namespace,
            ip: status.ips[0],
            ips: status.ips,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

struct Pod {
    namespace: OwnedFd,
    ip: IpAddr,
    ips: Vec<IpAddr>,
}

impl Pod {
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        run_in(&self.namespace, || Ok(work())).unwrap()
    }

    /// Answers every connection with its own name and the peer's address.
    fn serve(&self, name: &'static str, port: u16) {
        let bind: std::net::SocketAddr = (std::net::Ipv6Addr::UNSPECIFIED, port).into();
        let listener = self.run(|| TcpListener::bind(bind).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { break };
                let peer = stream.peer_addr().unwrap().ip().to_canonical();
                let _ = write!(stream, "{name} {peer}");
            }
        });
    }
}

fn ask(to: (IpAddr, u16)) -> Result<String, io::Error> {
    let mut stream = TcpStream::connect_timeout(&to.into(), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service(frontend: Frontend, backends: &[(IpAddr, u16)], source: SourcePolicy) -> ServiceRule {
    ServiceRule {
        frontend,
        name: "default/test:http".into(),
        backends: backends
            .iter()
            .map(|b| Backend {
                address: (*b).into(),
            })
            .collect(),
        serving: Vec::new(),
        drop_if_empty: false,
        affinity: None,
        source,
        allowed_sources: Vec::new(),
    }
}

fn cluster_ip(address: &str, port: u16, backends: &[(IpAddr, u16)]) -> ServiceRule {
    let frontend = Frontend::Address {
        ip: ip(address),
        protocol: Protocol::Tcp,
        port,
    };
    service(frontend, backends, SourcePolicy::MasqueradeOffCluster)
}

fn service_rules(services: Vec<ServiceRule>) -> ServiceRules {
    ServiceRules {
        services,
        pod_cidrs: vec![
            "10.42.0.0/16".parse().unwrap(),
            "fd42::/48".parse().unwrap(),
        ],
        node_port_addresses: Vec::new(),
    }
}

#[test]
fn pods_reach_each_other_and_the_node() {
    isolated(|| {
        let node = Node::new();
        let (a, b) = (node.pod("a", Vec::new()), node.pod("b", Vec::new()));
        b.serve("b", 80);
        assert_eq!(ask((b.ip, 80)).unwrap(), "b 10.42.0.1", "from the node");
        assert_eq!(a.run(|| ask((b.ip, 80))).unwrap(), format!("b {}", a.ip));
        assert_eq!(
            a.run(|| ask((b.ips[1], 80))).unwrap(),
            format!("b {}", a.ips[1]),
            "over IPv6"
        );
        let listener = TcpListener::bind("10.42.0.1:81").unwrap();
        std::thread::spawn(move || write!(listener.accept().unwrap().0, "node"));
        assert_eq!(a.run(|| ask((ip("10.42.0.1"), 81))).unwrap(), "node");
    });
}

#[test]
fn attaching_twice_is_once_and_detaching_frees() {
    isolated(|| {
        let node = Node::new();
        let first = node.pod("a", Vec::new());
        let again = node.runtime.block_on(async {
            let request = PodNetworkRequest {
                sandbox: "a".into(),
                pod_namespace: String::new(),
                pod_name: String::new(),
                pod_uid: String::new(),
                netns: "/nonexistent".into(),
                host_ports: Vec::new(),
                ingress_bps: None,
                egress_bps: None,
            };
            node.network.attach(&request).await
        });
        assert_eq!(again.unwrap().ips, first.ips);
        node.runtime.block_on(node.network.retain(&[])).unwrap();
        let names: Vec<String> = Links::open()
            .unwrap()
            .list()
            .unwrap()
            .into_iter()
            .map(|l| l.name)
            .collect();
        assert!(
            !names
                .iter()
                .any(|n| n.starts_with(&node.network.config.link_prefix())),
            "{names:?}"
        );
        node.runtime.block_on(node.network.detach("a")).unwrap();
    });
}

#[test]
fn teardown_leaves_the_namespace_as_it_was() {
    isolated(|| {
        let forward = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        let before = forward();
        let node = Node::new();
        node.pod(
            "a",
            vec![HostPort {
                protocol: Protocol::Tcp,
                container_port: 1,
                host_port: 2,
                host_ip: None,
            }],
        );
        node.runtime.block_on(node.network.teardown_node()).unwrap();
        let mut links = Links::open().unwrap();
        let names: Vec<String> = links.list().unwrap().into_iter().map(|l| l.name).collect();
        assert!(!names.iter().any(|n| n.starts_with('k')), "{names:?}");
        assert!(
            links
                .routes()
                .unwrap()
                .iter()
                .all(|r| r.protocol != ROUTE_PROTOCOL)
        );
        assert_eq!(forward(), before);
        if let Ok(nft) = std::process::Command::new("nft")
            .args(["list", "ruleset"])
            .output()
        {
            assert_eq!(String::from_utf8_lossy(&nft.stdout).trim(), "");
        }
    });
}

#[test]
fn host_ports_work_from_loopback_and_from_the_pod_itself() {
    isolated(|| {
        let node = Node::new();
        let port = HostPort {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_port: 8080,
            host_ip: None,
        };
        let a = node.pod("a", vec![port]);
        a.serve("a", 80);
        assert_eq!(ask((ip("127.0.0.1"), 8080)).unwrap(), "a 10.42.0.1");
        let own = a.run(|| ask((ip("10.42.0.1"), 8080))).unwrap();
        assert_eq!(own, "a 10.42.0.1", "hairpin");
    });
}

#[test]
fn services_translate_balance_and_reject() {
    isolated(|| {
        let node = Node::new();
        let (a, b, c) = (
            node.pod("a", Vec::new()),
            node.pod("b", Vec::new()),
            node.pod("c", Vec::new()),
        );
        b.serve("b", 8080);
        c.serve("c", 8080);
        let packets = NftRules::new(PacketRulesConfig::default());
        let apply = |rules: ServiceRules| node.runtime.block_on(packets.apply(&rules)).unwrap();
        let node_port = Frontend::NodePort {
            ipv6: false,
            protocol: Protocol::Tcp,
            port: 30080,
        };
        let both = [(b.ip, 8080), (c.ip, 8080)];
        apply(service_rules(vec![
            cluster_ip("10.96.0.10", 80, &both),
            cluster_ip("10.96.0.11", 80, &[]),
            cluster_ip("fd96::10", 80, &[(b.ips[1], 8080)]),
            service(node_port, &both, SourcePolicy::MasqueradeAll),
        ]));
        let answers: std::collections::BTreeSet<String> = (0..40)
            .map(|_| a.run(|| ask((ip("10.96.0.10"), 80))).unwrap())
            .collect();
        let from_a = |name: &str| format!("{name} {}", a.ip);
        assert_eq!(answers, [from_a("b"), from_a("c")].into());
        assert_eq!(
            a.run(|| ask((ip("fd96::10"), 80))).unwrap(),
            format!("b {}", a.ips[1])
        );
        assert!(ask((ip("10.96.0.10"), 80)).is_ok(), "from the node");
        assert!(
            ask((ip("127.0.0.1"), 30080)).is_ok(),
            "node port on loopback"
        );
        assert!(
            ask((ip("10.42.0.1"), 30080)).is_ok(),
            "node port on the bridge"
        );
        let refused = a.run(|| ask((ip("10.96.0.11"), 80))).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let refused = ask((ip("10.96.0.11"), 80)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        // A backend on the node itself, as the API server and the resolver are.
        let listener = TcpListener::bind("10.42.0.1:6443").unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = write!(stream.unwrap(), "api");
            }
        });
        let api = [(ip("10.42.0.1"), 6443)];
        apply(service_rules(vec![cluster_ip("10.96.0.1", 443, &api)]));
        assert_eq!(a.run(|| ask((ip("10.96.0.1"), 443))).unwrap(), "api");
        assert_eq!(ask((ip("10.96.0.1"), 443)).unwrap(), "api");
        // A pod behind its own service.
        apply(service_rules(vec![cluster_ip(
            "10.96.0.10",
            80,
            &[(b.ip, 8080)],
        )]));
        assert_eq!(
            b.run(|| ask((ip("10.96.0.10"), 80))).unwrap(),
            "b 10.42.0.1"
        );
        // One backend, then the other, then none: each change is a small transaction.
        apply(service_rules(vec![cluster_ip(
            "10.96.0.10",
            80,
            &[(c.ip, 8080)],
        )]));
        assert_eq!(a.run(|| ask((ip("10.96.0.10"), 80))).unwrap(), from_a("c"));
        apply(service_rules(vec![cluster_ip("10.96.0.10", 80, &[])]));
        assert!(a.run(|| ask((ip("10.96.0.10"), 80))).is_err());
        node.runtime.block_on(packets.clear()).unwrap();
        node.runtime.block_on(packets.clear()).unwrap();
    });
}

#[test]
fn affinity_sticks_until_the_backend_goes() {
    isolated(|| {
        let node = Node::new();
        let (a, b, c) = (
            node.pod("a", Vec::new()),
            node.pod("b", Vec::new()),
            node.pod("c", Vec::new()),
        );
        b.serve("b", 8080);
        c.serve("c", 8080);
        let packets = NftRules::new(PacketRulesConfig::default());
        let sticky = |backends: &[(IpAddr, u16)]| {
            let mut rule = cluster_ip("10.96.0.10", 80, backends);
            rule.affinity = Some(Duration::from_secs(100));
            service_rules(vec![rule])
        };
        let both = [(b.ip, 8080), (c.ip, 8080)];
        node.runtime
            .block_on(packets.apply(&sticky(&both)))
            .unwrap();
        let get = || a.run(|| ask((ip("10.96.0.10"), 80))).unwrap();
        let first = get();
        assert!((0..20).all(|_| get() == first));
        let other = if first.starts_with('b') {
            both[1]
        } else {
            both[0]
        };
        node.runtime
            .block_on(packets.apply(&sticky(&[other])))
            .unwrap();
        let second = get();
        assert_ne!(second, first);
        node.runtime
            .block_on(packets.apply(&sticky(&both)))
            .unwrap();
        assert!(
            (0..20).all(|_| get() == second),
            "the new choice is remembered in place of the old"
        );
    });
}

/// A client in the namespace of the calling thread that keeps its port.
struct UdpClient(UdpSocket);

impl UdpClient {
    fn new(from: SocketAddr) -> Self {
        let socket = UdpSocket::bind(from).unwrap();
        let patience = Some(Duration::from_secs(2));
        socket.set_read_timeout(patience).unwrap();
        UdpClient(socket)
    }

    fn ask(&self, to: (IpAddr, u16)) -> Result<String, io::Error> {
        self.0.send_to(b"?", to)?;
        let mut buf = [0; 64];
        let n = self.0.recv(&mut buf)?;
        Ok(String::from_utf8_lossy(&buf[..n]).into_owned())
    }
}

impl Pod {
    /// Answers every datagram with the name.
    fn serve_udp(&self, name: &'static str, port: u16) {
        let socket = self.run(|| UdpSocket::bind((self.ip, port)).unwrap());
        std::thread::spawn(move || {
            let mut buf = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut buf) {
                let _ = socket.send_to(name.as_bytes(), peer);
            }
        });
    }
}

#[test]
fn a_udp_client_follows_its_service_to_a_new_backend() {
    isolated(|| {
        let node = Node::new();
        let (a, b, c) = (
            node.pod("a", Vec::new()),
            node.pod("b", Vec::new()),
            node.pod("c", Vec::new()),
        );
        b.serve_udp("b", 53);
        b.serve_udp("b2", 54);
        c.serve_udp("c", 53);
        let service_at = (ip("10.96.0.53"), 53);
        let dns = |backends: &[(IpAddr, u16)], serving: &[(IpAddr, u16)]| {
            let frontend = Frontend::Address {
                ip: service_at.0,
                protocol: Protocol::Udp,
                port: service_at.1,
            };
            let mut rule = service(frontend, backends, SourcePolicy::MasqueradeOffCluster);
            rule.serving = serving
                .iter()
                .map(|b| Backend {
                    address: (*b).into(),
                })
                .collect();
            service_rules(vec![rule])
        };
        let open = || {
            NftRules::new(PacketRulesConfig {
                service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
                ..PacketRulesConfig::default()
            })
        };
        let packets = open();
        let apply = |rules: &ServiceRules| node.runtime.block_on(packets.apply(rules)).unwrap();
        let client = a.run(|| UdpClient::new((a.ip, 4000).into()));
        let (to_b, to_c) = ((b.ip, 53), (c.ip, 53));

        apply(&dns(&[to_b], &[]));
        assert_eq!(client.ask(service_at).unwrap(), "b");
        apply(&dns(&[to_c], &[to_b, to_c]));
        assert_eq!(
            client.ask(service_at).unwrap(),
            "b",
            "the flow's backend still serves"
        );
        apply(&dns(&[to_c], &[to_c]));
        assert_eq!(client.ask(service_at).unwrap(), "c");
        apply(&dns(&[(b.ip, 53)], &[]));
        apply(&dns(&[(b.ip, 54)], &[]));
        assert_eq!(
            client.ask(service_at).unwrap(),
            "b2",
            "the same pod, another port"
        );

        // Nothing serves any more: the old backend, alive as it is, is not asked again.
        apply(&dns(&[], &[]));
        client.ask(service_at).unwrap_err();
        apply(&dns(&[to_c], &[]));
        assert_eq!(client.ask(service_at).unwrap(), "c");

        // The Service went while nobody watched: the first rules of a new process know it not.
        node.runtime
            .block_on(open().apply(&service_rules(Vec::new())))
            .unwrap();
        client.ask(service_at).unwrap_err();
    });
}

#[test]
fn a_udp_client_follows_a_host_port_to_the_next_pod() {
    isolated(|| {
        let node = Node::new();
        let port = || HostPort {
            protocol: Protocol::Udp,
            container_port: 53,
            host_port: 18081,
            host_ip: None,
        };
        let at = (ip("10.42.0.1"), 18081);
        let client_pod = node.pod("client", Vec::new());
        let clients = [
            UdpClient::new("127.0.0.1:4000".parse().unwrap()),
            client_pod.run(|| UdpClient::new((client_pod.ip, 4000).into())),
        ];
        let targets = [(ip("127.0.0.1"), 18081), at];
        let ask_all = || -> Vec<Option<String>> {
            let all = clients.iter().zip(targets);
            all.map(|(client, to)| client.ask(to).ok()).collect()
        };
        let both = |name: &str| vec![Some(name.to_owned()); 2];

        let first = node.pod("first", vec![port()]);
        first.serve_udp("first", 53);
        assert_eq!(ask_all(), both("first"));
        node.runtime.block_on(node.network.detach("first")).unwrap();
        // These leave entries of their own, which are not translated.
        assert_eq!(ask_all(), [None, None]);

        let second = node.pod("second", vec![port()]);
        second.serve_udp("second", 53);
        assert_eq!(ask_all(), both("second"));
    });
}

#[test]
fn only_allowed_sources_connect() {
    isolated(|| {
        let node = Node::new();
        let (a, b, c) = (
            node.pod("a", Vec::new()),
            node.pod("b", Vec::new()),
            node.pod("c", Vec::new()),
        );
        c.serve("c", 80);
        let mut rule = cluster_ip("10.96.0.10", 80, &[(c.ip, 80)]);
        rule.allowed_sources = vec![IpNet::from(a.ip)];
        let packets = NftRules::new(PacketRulesConfig::default());
        node.runtime
            .block_on(packets.apply(&service_rules(vec![rule])))
            .unwrap();
        assert!(a.run(|| ask((ip("10.96.0.10"), 80))).is_ok());
        assert!(b.run(|| ask((ip("10.96.0.10"), 80))).is_err());
    });
}

#[test]
fn a_flushed_ruleset_is_rebuilt() {
    isolated(|| {
        let node = Node::new();
        let (a, b) = (node.pod("a", Vec::new()), node.pod("b", Vec::new()));
        b.serve("b", 80);
        let packets = NftRules::new(PacketRulesConfig::default());
        node.runtime
            .block_on(packets.apply(&service_rules(vec![cluster_ip("10.96.0.9", 80, &[])])))
            .unwrap();
        NftRules::new(PacketRulesConfig::default());
        node.runtime
            .block_on(NftRules::new(PacketRulesConfig::default()).clear())
            .unwrap();
        let rules = service_rules(vec![cluster_ip("10.96.0.10", 80, &[(b.ip, 80)])]);
        node.runtime.block_on(packets.apply(&rules)).unwrap();
        assert!(a.run(|| ask((ip("10.96.0.10"), 80))).is_ok());
    });
}

/// Two nodes on one wire: pods of one reach pods of the other with their own addresses, and a
/// node port of one leads to a pod of the other.
#[test]
fn nodes_reach_each_others_pods() {
    isolated(|| {
        let here = Node::new();
        let beside = new_beside();
        let mut links = Links::open().unwrap();
        let bridge = "wire";
        links
            .create_bridge(bridge, [0x0a, 0, 0, 0, 0, 1], 1500)
            .unwrap();
        links.set_up(bridge).unwrap();
        let index = links.index(bridge).unwrap();
        links.add_address(index, ip("192.0.2.1"), 24).unwrap();
        let pair = links::VethPair {
            host_name: "wire-b",
            bridge: index,
            mtu: 1500,
            peer_name: "uplink",
            peer_namespace: &beside,
            peer_mac: [0x0a, 0, 0, 0, 0, 2],
        };
        links.create_veth(&pair).unwrap();
        // Else `br_netfilter`, where it is active, keeps the node port's packets from turning back.
        links.set_hairpin("wire-b").unwrap();
        let there = run_in(&beside, || {
            let mut links = Links::open()?;
            let uplink = links.index("uplink")?;
            links.set_up("uplink")?;
            links.add_address(uplink, ip("192.0.2.2"), 24)?;
            let node = Node::with_range("10.42.1.0/24");
            node.runtime
                .block_on(
                    node.network
                        .set_routes(&[("10.42.0.0/24".parse().unwrap(), ip("192.0.2.1"))]),
                )
                .unwrap();
            Ok(node)
        })
        .unwrap();
        let routes = [("10.42.1.0/24".parse().unwrap(), ip("192.0.2.2"))];
        here.runtime
            .block_on(here.network.set_routes(&routes))
            .unwrap();
        let a = here.pod("a", Vec::new());
        let b = run_in(&beside, || Ok(there.pod("b", Vec::new()))).unwrap();
        b.serve("b", 80);
        assert_eq!(
            a.run(|| ask((b.ip, 80))).unwrap(),
            format!("b {}", a.ip),
            "not masqueraded"
        );

        let packets = NftRules::new(PacketRulesConfig::default());
        let port = |source| {
            let frontend = Frontend::NodePort {
                ipv6: false,
                protocol: Protocol::Tcp,
                port: 30080,
            };
            service_rules(vec![service(frontend, &[(b.ip, 80)], source)])
        };
        here.runtime
            .block_on(packets.apply(&port(SourcePolicy::MasqueradeAll)))
            .unwrap();
        let outside = run_in(&beside, || Ok(ask((ip("192.0.2.1"), 30080)))).unwrap();
        assert_eq!(
            outside.unwrap(),
            "b 192.0.2.1",
            "masqueraded, so that the answer comes back"
        );

        here.runtime.block_on(here.network.set_routes(&[])).unwrap();
        assert!(links.routes().unwrap().iter().all(|r| r.gateway.is_none()));
    });
}

/// A change of one service among thousands is a small transaction.
#[test]
fn many_services_are_no_burden() {
    isolated(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let packets = NftRules::new(PacketRulesConfig::default());
        let mut services = Vec::new();
        for n in 0..2000u32 {
            let [_, _, high, low] = n.to_be_bytes();
            let pods: Vec<(IpAddr, u16)> = (1..4)
                .map(|p| (IpAddr::from([10, 42 + p, high, low]), 8080))
                .collect();
            services.push(cluster_ip(&format!("10.96.{high}.{low}"), 80, &pods));
        }
        let start = Instant::now();
        runtime
            .block_on(packets.apply(&service_rules(services.clone())))
            .unwrap();
        let whole = start.elapsed();
        services[1000].backends.pop();
        let start = Instant::now();
        runtime
            .block_on(packets.apply(&service_rules(services)))
            .unwrap();
        eprintln!(
            "2000 services in {whole:?}, one change in {:?}",
            start.elapsed()
        );
        assert!(
            start.elapsed() < whole,
            "a change is cheaper than the whole"
        );
    });
}

/// Two nodes with a router between them that knows nothing of pods.
#[test]
fn nodes_behind_a_router_are_reached_by_tunnel() {
    isolated(|| {
        // The router has a bridge a side, as it is made of the links at hand.
        let (left, right) = (new_beside(), new_beside());
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let mut links = Links::open().unwrap();
        let sides = [(&left, "left", 1u8), (&right, "right", 2)];
        for (namespace, bridge, n) in sides {
            links
                .create_bridge(bridge, [0x0a, 0, 0, 0, 1, n], 1500)
                .unwrap();
            links.set_up(bridge).unwrap();
            let index = links.index(bridge).unwrap();
            links
                .add_address(index, [192, 0, n, 254].into(), 24)
                .unwrap();
            let pair = links::VethPair {
                host_name: &format!("port-{bridge}"),
                bridge: index,
                mtu: 1500,
                peer_name: "uplink",
                peer_namespace: namespace,
                peer_mac: [0x0a, 0, 0, 0, 2, n],
            };
            links.create_veth(&pair).unwrap();
        }
        let start = |namespace: &OwnedFd, n: u8, other: u8| {
            run_in(namespace, || {
                let mut links = Links::open()?;
                let uplink = links.index("uplink")?;
                links.set_up("uplink")?;
                links.add_address(uplink, [192, 0, n, 1].into(), 24)?;
                let out = Route {
                    destination: "0.0.0.0/0".parse().unwrap(),
                    gateway: Some([192, 0, n, 254].into()),
                    link: uplink,
                    protocol: 4,
                };
                links.set_route(&out, false, None)?;
                let node = Node::with_range(&format!("10.42.{n}.0/24"));
                let range = format!("10.42.{other}.0/24").parse().unwrap();
                let routes = [(range, IpAddr::from([192, 0, other, 1]))];
                node.runtime
                    .block_on(node.network.set_routes(&routes))
                    .unwrap();
                node.runtime
                    .block_on(node.network.set_routes(&routes))
                    .unwrap();
                let pod = node.pod("pod", Vec::new());
                Ok((node, pod))
            })
            .unwrap()
        };
        let (one, a) = start(&left, 1, 2);
        let (_two, b) = start(&right, 2, 1);
        b.serve("b", 80);
        assert_eq!(a.run(|| ask((b.ip, 80))).unwrap(), format!("b {}", a.ip));
        let from_node = run_in(&left, || Ok(ask((b.ip, 80)))).unwrap().unwrap();
        assert_eq!(from_node, "b 10.42.1.1", "through the tunnel as well");
        run_in(&left, || {
            one.runtime.block_on(one.network.teardown_node()).unwrap();
            let kinds: Vec<String> = Links::open()?.list()?.into_iter().map(|l| l.kind).collect();
            assert!(!kinds.contains(&"vxlan".to_owned()), "{kinds:?}");
            Ok(())
        })
        .unwrap();
    });
}
