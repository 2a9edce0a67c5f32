//! What a pod's `/etc/resolv.conf` says.

use k8s_openapi::api::core::v1::Pod;
use keelson_ports::DnsConfig;

use super::{is_host_network, namespace, spec};

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
/// Of the whole search line, spaces included.
const MAX_SEARCH_LINE_CHARS: usize = 2048;
/// Resolvers of old C libraries abort on a longer search path.
const MAX_SEARCH_CHARS: usize = 253;

/// A pod's resolver settings, and what its events have to say of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodDns {
    pub(crate) config: DnsConfig,
    pub(crate) warnings: Vec<DnsWarning>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DnsWarning {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The cluster's side and the host's own file.
#[derive(Debug, Clone, Default)]
pub(crate) struct DnsContext {
    pub(crate) cluster_dns: Vec<String>,
    pub(crate) cluster_domain: String,
    pub(crate) host: DnsConfig,
}

/// Reads the host's `resolv.conf`: a later `search` line replaces an earlier one, options add up.
pub(crate) fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            Some("search") => {
                config.searches = words
                    .map(|s| s.trim_end_matches('.').to_owned())
                    .filter(|s| !s.is_empty())
                    .collect();
            }
            Some("options") => words.for_each(|option| set_option(&mut config.options, option)),
            _ => {}
        }
    }
    config
}

pub(crate) fn for_pod(pod: &Pod, context: &DnsContext) -> PodDns {
    let policy = spec(pod).dns_policy.as_deref().unwrap_or("ClusterFirst");
    let wants_cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !is_host_network(pod),
        _ => false,
    };
    let mut warnings = Vec::new();
    let mut config = if policy == "None" {
        DnsConfig::default()
    } else if wants_cluster && !context.cluster_dns.is_empty() {
        cluster_first(pod, context)
    } else {
        if wants_cluster {
            warnings.push(missing_cluster_dns(pod));
        }
        context.host.clone()
    };
    // The cluster's come first, so that a Service's short name resolves whatever the pod adds.
    if let Some(own) = spec(pod).dns_config.as_ref() {
        config
            .servers
            .extend(own.nameservers.iter().flatten().cloned());
        config
            .searches
            .extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let Some(name) = option.name.as_deref() else {
                continue;
            };
            match option.value.as_deref().filter(|value| !value.is_empty()) {
                Some(value) => set_option(&mut config.options, &format!("{name}:{value}")),
                None => set_option(&mut config.options, name),
            }
        }
        dedup(&mut config.servers);
        dedup(&mut config.searches);
    }
    warnings.extend(limit_nameservers(&mut config.servers));
    warnings.extend(limit_searches(&mut config.searches));
    PodDns { config, warnings }
}

fn missing_cluster_dns(pod: &Pod) -> DnsWarning {
    let pod_name = format!(
        "{}_{}({})",
        super::name(pod),
        namespace(pod),
        super::uid(pod)
    );
    DnsWarning {
        reason: "MissingClusterDNS",
        message: format!(
            "pod: {pod_name:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy."
        ),
    }
}

/// An option stands once; the later value is the one that counts.
fn set_option(options: &mut Vec<String>, option: &str) {
    let name = |option: &str| option.split(':').next().map(str::to_owned);
    options.retain(|known| name(known) != name(option));
    options.push(option.to_owned());
}

fn limit_nameservers(servers: &mut Vec<String>) -> Option<DnsWarning> {
    if servers.len() <= MAX_NAMESERVERS {
        return None;
    }
    servers.truncate(MAX_NAMESERVERS);
    Some(DnsWarning {
        reason: "DNSConfigForming",
        message: format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            servers.join(" ")
        ),
    })
}

fn limit_searches(searches: &mut Vec<String>) -> Option<DnsWarning> {
    let asked = searches.len();
    searches.truncate(MAX_SEARCHES);
    searches.retain(|search| search.len() <= MAX_SEARCH_CHARS);
    while searches.join(" ").len() > MAX_SEARCH_LINE_CHARS {
        searches.pop();
    }
    (searches.len() < asked).then(|| DnsWarning {
        reason: "DNSConfigForming",
        message: format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            searches.join(" ")
        ),
    })
}

fn cluster_first(pod: &Pod, context: &DnsContext) -> DnsConfig {
    let domain = &context.cluster_domain;
    let mut searches = Vec::new();
    if !domain.is_empty() {
        searches.push(format!("{}.svc.{domain}", namespace(pod)));
        searches.push(format!("svc.{domain}"));
        searches.push(domain.clone());
    }
    searches.extend(context.host.searches.iter().cloned());
    dedup(&mut searches);
    DnsConfig {
        servers: context.cluster_dns.clone(),
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

fn dedup(list: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

/// Host name and domain of a pod: `(hostname, fully qualified name or empty)`.
pub(crate) fn hostname(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let pod_spec = spec(pod);
    if let Some(whole) = pod_spec
        .hostname_override
        .as_deref()
        .filter(|h| !h.is_empty())
    {
        return (whole.to_owned(), String::new());
    }
    let mut host = pod_spec
        .hostname
        .clone()
        .filter(|h| !h.is_empty())
        .unwrap_or_else(|| super::name(pod).to_owned());
    if host.len() > 63 {
        host.truncate(63);
        host = host.trim_end_matches(['-', '.']).to_owned();
    }
    match pod_spec.subdomain.as_deref().filter(|s| !s.is_empty()) {
        Some(subdomain) => {
            let fqdn = format!("{host}.{subdomain}.{}.svc.{cluster_domain}", namespace(pod));
            (host, fqdn)
        }
        None => (host, String::new()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn context() -> DnsContext {
        DnsContext {
            cluster_dns: vec!["10.96.0.10".into()],
            cluster_domain: "cluster.local".into(),
            host: parse_resolv_conf(
                "# c\nnameserver 9.9.9.9\nnameserver 8.8.8.8 # x\nsearch corp.example. lan\noptions edns0\n",
            ),
        }
    }

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec}))
            .unwrap()
    }

    fn of(spec: serde_json::Value) -> PodDns {
        for_pod(&pod(spec), &context())
    }

    const CLUSTER_SEARCHES: [&str; 5] = [
        "ns.svc.cluster.local",
        "svc.cluster.local",
        "cluster.local",
        "corp.example",
        "lan",
    ];

    #[test]
    fn policies() {
        let first = of(json!({"containers": [], "dnsPolicy": "ClusterFirst"})).config;
        assert_eq!(first.servers, ["10.96.0.10"]);
        assert_eq!(first.searches, CLUSTER_SEARCHES);
        assert_eq!(first.options, ["ndots:5"]);

        let host_net = of(json!({"containers": [], "hostNetwork": true})).config;
        assert_eq!(host_net.servers, ["9.9.9.9", "8.8.8.8"]);
        assert_eq!(host_net.options, ["edns0"]);
        let both = of(
            json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
        );
        assert_eq!(both.config.servers, ["10.96.0.10"]);
    }

    /// (what the pod says, servers, searches after the base's, options)
    type MergeCase = (
        serde_json::Value,
        &'static [&'static str],
        &'static [&'static str],
        &'static [&'static str],
    );

    #[test]
    fn a_pods_own_settings_follow_the_clusters() {
        let cases: [MergeCase; 4] = [
            (
                json!({"dnsConfig": {"nameservers": ["1.2.3.4", "10.96.0.10"],
                    "searches": ["own.example", "svc.cluster.local", "lan"]}}),
                &["10.96.0.10", "1.2.3.4"],
                &["own.example"],
                &["ndots:5"],
            ),
            (
                json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}, {"name": "edns0"}]}}),
                &["10.96.0.10"],
                &[],
                &["ndots:1", "edns0"],
            ),
            (
                json!({"dnsPolicy": "Default", "dnsConfig": {"nameservers": ["1.1.1.1"]}}),
                &["9.9.9.9", "8.8.8.8", "1.1.1.1"],
                &[],
                &["edns0"],
            ),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.2.3.4"], "searches": ["a.b"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "ndots", "value": "3"}]}}),
                &["1.2.3.4"],
                &["a.b"],
                &["ndots:3"],
            ),
        ];
        for (mut spec, servers, searches, options) in cases {
            spec["containers"] = json!([]);
            let base: &[&str] = match spec["dnsPolicy"].as_str() {
                Some("None") => &[],
                Some(_) => &CLUSTER_SEARCHES[3..],
                None => &CLUSTER_SEARCHES,
            };
            let dns = of(spec.clone());
            assert_eq!(dns.config.servers, servers, "{spec}");
            assert_eq!(dns.config.searches, [base, searches].concat(), "{spec}");
            assert_eq!(dns.config.options, options, "{spec}");
            assert_eq!(dns.warnings, [], "{spec}");
        }
    }

    #[test]
    fn what_is_too_much_is_left_out_with_an_event() {
        let many = |n: usize| -> Vec<String> { (0..n).map(|i| format!("s{i}.example")).collect() };
        let within = of(json!({"containers": [], "dnsConfig": {"searches": many(27)}}));
        assert_eq!(
            (within.config.searches.len(), within.warnings.len()),
            (32, 0)
        );

        let over = of(json!({"containers": [], "dnsConfig": {"searches": many(28)}}));
        assert_eq!(over.config.searches.len(), 32);
        assert_eq!(over.config.searches[..5], CLUSTER_SEARCHES);
        assert_eq!(over.warnings.len(), 1);
        assert_eq!(over.warnings[0].reason, "DNSConfigForming");
        assert!(
            over.warnings[0]
                .message
                .ends_with("s25.example s26.example")
        );

        let long = format!("{}.example", "x".repeat(246));
        let one_long =
            of(json!({"containers": [], "dnsConfig": {"searches": [long, "ok.example"]}}));
        assert_eq!(one_long.config.searches[5..], ["ok.example"]);
        assert_eq!(one_long.warnings.len(), 1);

        let wide: Vec<String> = (0..20).map(|i| format!("{}{i}", "y".repeat(200))).collect();
        let line = of(json!({"containers": [], "dnsConfig": {"searches": wide}}));
        let chars = line.config.searches.join(" ").len();
        assert!((1840..=2048).contains(&chars), "{chars}");

        let servers = of(
            json!({"containers": [], "dnsConfig": {"nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3"]}}),
        );
        assert_eq!(servers.config.servers, ["10.96.0.10", "1.1.1.1", "2.2.2.2"]);
        assert!(
            servers.warnings[0]
                .message
                .ends_with("line is: 10.96.0.10 1.1.1.1 2.2.2.2")
        );
    }

    #[test]
    fn without_a_cluster_resolver_the_nodes_are_taken_with_an_event() {
        let bare = DnsContext {
            cluster_dns: Vec::new(),
            ..context()
        };
        let dns = for_pod(&pod(json!({"containers": []})), &bare);
        assert_eq!(dns.config.servers, ["9.9.9.9", "8.8.8.8"]);
        assert_eq!(dns.warnings[0].reason, "MissingClusterDNS");
        let default = for_pod(
            &pod(json!({"containers": [], "dnsPolicy": "Default"})),
            &bare,
        );
        assert_eq!(default.warnings, []);
    }

    #[test]
    fn options_of_several_lines_add_up() {
        let host = parse_resolv_conf(
            "options ndots:2 rotate\noptions ndots:3\nsearch a.\nsearch . b.c.\n",
        );
        assert_eq!(host.options, ["rotate", "ndots:3"]);
        assert_eq!(host.searches, ["b.c"]);
    }

    #[test]
    fn hostnames() {
        assert_eq!(
            hostname(&pod(json!({"containers": []})), "c.l"),
            ("p".into(), String::new())
        );
        assert_eq!(
            hostname(
                &pod(json!({"containers": [], "hostname": "h", "subdomain": "s"})),
                "c.l"
            ),
            ("h".into(), "h.s.ns.svc.c.l".into())
        );
    }
}
