//! What a pod's `/etc/resolv.conf` says.

use k8s_openapi::api::core::v1::Pod;
use keelson_ports::DnsConfig;

use super::{is_host_network, namespace, spec};

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// The cluster's side and the host's own file.
#[derive(Debug, Clone, Default)]
pub(crate) struct DnsContext {
    pub(crate) cluster_dns: Vec<String>,
    pub(crate) cluster_domain: String,
    pub(crate) host: DnsConfig,
}

/// Reads the host's `resolv.conf`; later `search` and `options` lines replace earlier ones.
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
            Some("options") => config.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    config
}

/// The pod's configuration, and what had to be left out of it.
pub(crate) fn for_pod(pod: &Pod, context: &DnsContext) -> (DnsConfig, Vec<String>) {
    let policy = spec(pod).dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !is_host_network(pod),
        _ => false,
    };
    let mut config = if policy == "None" {
        DnsConfig::default()
    } else if cluster && !context.cluster_dns.is_empty() {
        cluster_first(pod, context)
    } else {
        context.host.clone()
    };
    if let Some(own) = spec(pod).dns_config.as_ref() {
        // Behind the cluster's, so that a Service's short name is found first.
        config
            .servers
            .extend(own.nameservers.clone().unwrap_or_default());
        config
            .searches
            .extend(own.searches.clone().unwrap_or_default());
        for option in own.options.as_deref().unwrap_or_default() {
            let Some(name) = option.name.as_deref() else {
                continue;
            };
            config
                .options
                .retain(|existing| existing.split(':').next() != Some(name));
            config.options.push(
                match option.value.as_deref().filter(|value| !value.is_empty()) {
                    Some(value) => format!("{name}:{value}"),
                    None => name.to_owned(),
                },
            );
        }
    }
    dedup(&mut config.servers);
    dedup(&mut config.searches);
    let omitted = fit(&mut config);
    (config, omitted)
}

/// Cuts the lists to what resolvers take, and tells of each that was cut, in upstream's words.
fn fit(config: &mut DnsConfig) -> Vec<String> {
    let mut omitted = Vec::new();
    let searches = config.searches.len();
    config.searches.truncate(MAX_SEARCHES);
    while config.searches.join(" ").len() > MAX_SEARCH_CHARS {
        config.searches.pop();
    }
    if config.searches.len() < searches {
        omitted.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            config.searches.join(" ")
        ));
    }
    if config.servers.len() > MAX_NAMESERVERS {
        config.servers.truncate(MAX_NAMESERVERS);
        omitted.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            config.servers.join(" ")
        ));
    }
    omitted
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

    fn for_pod(pod: &Pod, context: &DnsContext) -> DnsConfig {
        super::for_pod(pod, context).0
    }

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn policies() {
        let first = for_pod(
            &pod(json!({"containers": [], "dnsPolicy": "ClusterFirst"})),
            &context(),
        );
        assert_eq!(first.servers, ["10.96.0.10"]);
        assert_eq!(
            first.searches,
            [
                "ns.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local",
                "corp.example",
                "lan"
            ]
        );
        assert_eq!(first.options, ["ndots:5"]);

        let host_net = for_pod(
            &pod(json!({"containers": [], "hostNetwork": true})),
            &context(),
        );
        assert_eq!(host_net.servers, ["9.9.9.9", "8.8.8.8"]);
        let both = for_pod(
            &pod(
                json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
            ),
            &context(),
        );
        assert_eq!(both.servers, ["10.96.0.10"]);

        let none = for_pod(
            &pod(
                json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.2.3.4"],
                "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
            ),
            &context(),
        );
        assert_eq!(
            (none.servers, none.searches, none.options),
            (
                vec!["1.2.3.4".into()],
                vec!["a.b".into()],
                vec!["ndots:2".into(), "edns0".into()]
            )
        );
    }

    #[test]
    fn the_pods_own_options_win() {
        let merged = for_pod(
            &pod(
                json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
            ),
            &context(),
        );
        assert_eq!(merged.options, ["ndots:1"]);
    }

    #[test]
    fn the_pods_own_come_behind_the_clusters() {
        let own = json!({"nameservers": ["1.1.1.1", "10.96.0.10", "2.2.2.2", "3.3.3.3"],
            "searches": ["own.example", "lan", "svc.cluster.local"]});
        let (merged, omitted) = super::for_pod(
            &pod(json!({"containers": [], "dnsConfig": own})),
            &context(),
        );
        assert_eq!(merged.servers, ["10.96.0.10", "1.1.1.1", "2.2.2.2"]);
        assert_eq!(
            merged.searches.join(" "),
            "ns.svc.cluster.local svc.cluster.local cluster.local corp.example lan own.example"
        );
        assert_eq!(
            omitted,
            [
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 10.96.0.10 1.1.1.1 2.2.2.2"
            ]
        );
    }

    #[test]
    fn too_many_searches_are_cut_and_told_of() {
        let many = |count: usize, length: usize| -> Vec<String> {
            (0..count).map(|n| format!("{n:0length$}")).collect()
        };
        for searches in [many(40, 3), many(20, 120), many(27, 5)] {
            let total = searches.len() + 5;
            let own = json!({"searches": searches});
            let (merged, omitted) = super::for_pod(
                &pod(json!({"containers": [], "dnsConfig": own})),
                &context(),
            );
            assert!(merged.searches.len() <= 32 && merged.searches.join(" ").len() <= 2048);
            assert_eq!(omitted.len(), usize::from(merged.searches.len() < total));
        }
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
