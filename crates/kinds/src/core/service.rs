//! Service. Addresses and node ports come from allocators elsewhere; here are the rules of what
//! may be asked for and what an update keeps.

pub(crate) mod addresses;

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::validation;
use serde_json::{Value, json};

use self::addresses::{address_changes, cluster_ips};
use super::endpoints::endpoint_ip;
use crate::cell::{self, NONE, UNKNOWN};
use crate::check::addresses::{legacy_cidr, legacy_cidr_warning, legacy_ip, legacy_ip_warning};
use crate::check::{self, At};
use crate::kind::{Column, Kind, UpdateContext};
use crate::rules;
use crate::tree::{Tree, TreeMut};

const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

pub(crate) static SERVICE: Kind = Kind {
    group: "",
    resource: "services",
    default,
    prepare_create: |obj| {
        obj.put("status", json!({"loadBalancer": {}}));
        normalize_cluster_ips(obj);
    },
    validate: |obj| validate(obj),
    prepare_update,
    validate_update,
    warnings: |new, _| warnings(new),
    columns: &[
        Column::text("Type"),
        Column::text("Cluster-IP"),
        Column::text("External-IP"),
        Column::text("Port(s)"),
        Column::AGE,
        Column::wide("Selector"),
    ],
    cells,
    selectable: |obj| {
        vec![
            ("spec.clusterIP", obj.text("spec.clusterIP").to_owned()),
            ("spec.type", obj.text("spec.type").to_owned()),
        ]
    },
    selectable_names: &["spec.clusterIP", "spec.type"],
    validate_name: check::name_is_dns1123_label,
    allow_create_on_update: true,
    ..Kind::GENERIC
};

fn warnings(obj: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let spec = At::new(obj, "spec");
    let kind = spec.value.text("type");
    let annotations = At::new(obj, "metadata").at("annotations");
    if annotations.has_key("service.kubernetes.io/topology-aware-hints") {
        out.push("annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead".to_owned());
    }
    let headless = kind == "ClusterIP" && spec.value.text("clusterIP") == "None";
    let external = spec.at("externalIPs");
    if !matches!(spec.value.text("clusterIP"), "" | "None") {
        for ip in spec.at("clusterIPs").each() {
            legacy_ip_warning(&ip, &mut out);
        }
    }
    if headless {
        for (ignored, shown) in [
            (!spec.at("loadBalancerIP").is_empty(), "loadBalancerIP"),
            (!external.is_empty(), "externalIPs"),
            (
                spec.value.text("sessionAffinity") != "None",
                "SessionAffinity",
            ),
        ] {
            if ignored {
                out.push(format!("spec.{shown} is ignored for headless services"));
            }
        }
    }
    for ip in external.each() {
        legacy_ip_warning(&ip, &mut out);
    }
    if !external.is_empty() && !headless && kind != "ExternalName" {
        out.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters"
                .to_owned(),
        );
    }
    if !spec.at("loadBalancerIP").is_empty() {
        legacy_ip_warning(&spec.at("loadBalancerIP"), &mut out);
    }
    for range in spec.at("loadBalancerSourceRanges").each() {
        legacy_cidr_warning(&range, &mut out);
    }
    if kind == "ExternalName" && !external.is_empty() {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if kind != "ExternalName" && !spec.at("externalName").is_empty() {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec.value.text("trafficDistribution") == "PreferClose" {
        out.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\""
                .to_owned(),
        );
    }
    out
}

fn externally_accessible(obj: &Value) -> bool {
    let kind = obj.text("spec.type");
    matches!(kind, "LoadBalancer" | "NodePort")
        || kind == "ClusterIP" && !obj.list("spec.externalIPs").is_empty()
}

fn default(obj: &mut Value) {
    obj.fill_text("spec.sessionAffinity", "None");
    if obj.text("spec.sessionAffinity") == "None" {
        obj.remove("spec.sessionAffinityConfig");
    } else if obj.text("spec.sessionAffinity") == "ClientIP" {
        obj.fill("spec.sessionAffinityConfig.clientIP.timeoutSeconds", 10800);
    }
    obj.fill_text("spec.type", "ClusterIP");
    for port in obj.list_mut("spec.ports") {
        port.fill_text("protocol", "TCP");
        let unset = match port.at("targetPort") {
            Value::Null => true,
            Value::String(s) => s.is_empty(),
            other => other.as_i64() == Some(0),
        };
        if unset {
            port.put("targetPort", port.at("port").clone());
        }
    }
    if externally_accessible(obj) {
        obj.fill_text("spec.externalTrafficPolicy", "Cluster");
    }
    let kind = obj.text("spec.type").to_owned();
    if needs_cluster_ip(&kind) {
        obj.fill("spec.internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        obj.fill("spec.allocateLoadBalancerNodePorts", true);
        for ingress in obj.list_mut("status.loadBalancer.ingress") {
            if !ingress.text("ip").is_empty() {
                ingress.fill("ipMode", "VIP");
            }
        }
    }
}

fn needs_cluster_ip(kind: &str) -> bool {
    matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_node_ports(obj: &Value) -> bool {
    match obj.text("spec.type") {
        "NodePort" => true,
        "LoadBalancer" => obj.at("spec.allocateLoadBalancerNodePorts") != &Value::Bool(false),
        _ => false,
    }
}

fn needs_health_check_port(obj: &Value) -> bool {
    obj.text("spec.type") == "LoadBalancer" && obj.text("spec.externalTrafficPolicy") == "Local"
}

/// `clusterIP` and the first of `clusterIPs` are one.
fn normalize_cluster_ips(obj: &mut Value) {
    let one = obj.text("spec.clusterIP").to_owned();
    if !one.is_empty() && obj.list("spec.clusterIPs").is_empty() {
        obj.put("spec.clusterIPs", json!([one]));
    }
}

fn prepare_update(new: &mut Value, old: &Value, ctx: &UpdateContext) {
    if ctx.subresource == "status" {
        return rules::only_status(new, old);
    }
    new.keep("status", old);
    keep_allocated(new, old);
    sync_cluster_ips(new, old);
    drop_of_former_type(new, old);
}

/// What was allocated stays when an update leaves it out; ports are known by their names.
fn keep_allocated(new: &mut Value, old: &Value) {
    let both = |test: fn(&Value) -> bool, new: &Value| test(old) && test(new);
    if both(|o| needs_cluster_ip(o.text("spec.type")), new) {
        if new.text("spec.clusterIP").is_empty() {
            new.keep("spec.clusterIP", old);
        }
        if new.list("spec.clusterIPs").is_empty() && !old.list("spec.clusterIPs").is_empty() {
            new.keep("spec.clusterIPs", old);
        }
    }
    if both(needs_node_ports, new) {
        let before = node_ports(old);
        let used: BTreeSet<i64> = node_ports(new).intersection(&before).copied().collect();
        let missing = |port: &&mut Value| port.num("nodePort") == 0;
        for port in new.list_mut("spec.ports").iter_mut().filter(missing) {
            let ports = old.list("spec.ports");
            let twin = ports.iter().find(|o| o.text("name") == port.text("name"));
            let kept = twin.map_or(0, |twin| twin.num("nodePort"));
            if kept != 0 && !used.contains(&kept) {
                port.put("nodePort", kept);
            }
        }
    }
    if both(needs_health_check_port, new) && new.num("spec.healthCheckNodePort") == 0 {
        new.keep("spec.healthCheckNodePort", old);
    }
}

fn node_ports(obj: &Value) -> BTreeSet<i64> {
    let ports = obj.list("spec.ports").iter().map(|p| p.num("nodePort"));
    ports.filter(|port| *port != 0).collect()
}

/// A client that knows only the single address means both fields with it.
fn sync_cluster_ips(new: &mut Value, old: &Value) {
    let (one, was) = (
        new.text("spec.clusterIP").to_owned(),
        old.text("spec.clusterIP"),
    );
    let before = old.list("spec.clusterIPs");
    if one == was {
        if new.list("spec.clusterIPs").is_empty() && !before.is_empty() {
            new.put("spec.clusterIPs", before.to_vec());
        }
    } else if new.list("spec.clusterIPs") == before {
        if one.is_empty() {
            new.remove("spec.clusterIPs");
        } else {
            new.put("spec.clusterIPs", json!([one]));
        }
    }
}

/// Fields that the new type has no use for go with the old type, unless they were just set.
fn drop_of_former_type(new: &mut Value, old: &Value) {
    let (kind, was) = (new.text("spec.type").to_owned(), old.text("spec.type"));
    let mut drop = |fields: &[&str]| {
        if fields.iter().all(|field| new.at(field) == old.at(field)) {
            fields.iter().for_each(|field| new.remove(field));
        }
    };
    if needs_cluster_ip(was) && !needs_cluster_ip(&kind) {
        drop(&["spec.clusterIP", "spec.clusterIPs"]);
        drop(&["spec.ipFamilies"]);
        drop(&["spec.ipFamilyPolicy"]);
        drop(&["spec.internalTrafficPolicy"]);
    }
    if was == "LoadBalancer" && kind != "LoadBalancer" {
        drop(&["spec.allocateLoadBalancerNodePorts"]);
        drop(&["spec.loadBalancerClass"]);
        new.put("status", json!({"loadBalancer": {}}));
    }
    if externally_accessible(old)
        && !externally_accessible(new)
        && new.at("spec.externalTrafficPolicy") == old.at("spec.externalTrafficPolicy")
    {
        new.remove("spec.externalTrafficPolicy");
    }
    if needs_health_check_port(old)
        && !needs_health_check_port(new)
        && new.at("spec.healthCheckNodePort") == old.at("spec.healthCheckNodePort")
    {
        new.remove("spec.healthCheckNodePort");
    }
    let of_nodes = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    if of_nodes(was) && !of_nodes(&kind) && node_ports(new).is_subset(&node_ports(old)) {
        for port in new.list_mut("spec.ports") {
            port.remove("nodePort");
        }
    }
}

fn is_headless(obj: &Value) -> bool {
    let ips = obj.list("spec.clusterIPs");
    ips.len() == 1 && ips[0] == "None"
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let kind = spec.value.text("type").to_owned();
    if spec.at("ports").is_empty() && !is_headless(obj) && kind != "ExternalName" {
        e.push(spec.at("ports").required(""));
    }
    of_type(obj, &spec, &kind, &mut e);
    let ports = spec.at("ports");
    let mut names = BTreeSet::new();
    for port in ports.each() {
        self::port(&port, ports.len() > 1, &mut names, &mut e);
    }
    spec.at("selector").labels(&mut e);
    session_affinity(&spec, &mut e);
    if kind != "ExternalName" {
        cluster_ips(obj, &spec, &mut e);
    }
    for ip in spec.at("externalIPs").each() {
        let before = e.len();
        legacy_ip(&ip, &mut e);
        if e.len() == before {
            endpoint_ip(&ip, &mut e);
        }
    }
    spec.at("type").required_one_of(
        &mut e,
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
    );
    port_conflicts(&ports, &kind, &mut e);
    load_balancer(obj, &spec, &kind, &mut e);
    traffic(obj, &spec, &kind, &mut e);
    e
}

fn of_type(obj: &Value, spec: &At, kind: &str, e: &mut ErrorList) {
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(obj) => {
            let path = spec.path.child("clusterIPs").index(0);
            e.push(FieldError::invalid(
                &path,
                "None",
                format!("may not be set to 'None' for {kind} services"),
            ));
        }
        "ExternalName" => {
            for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if !spec.at(field).is_empty() {
                    e.push(
                        spec.at(field)
                            .forbidden("may not be set for ExternalName services"),
                    );
                }
            }
            let name = spec.at("externalName");
            if name.is_empty() {
                e.push(name.required(""));
            } else {
                name.conforms(e, |n| {
                    validation::is_dns1123_subdomain(n.strip_suffix('.').unwrap_or(n))
                });
            }
        }
        _ => {}
    }
}

fn port<'a>(port: &At<'a>, named: bool, names: &mut BTreeSet<&'a str>, e: &mut ErrorList) {
    let name = port.at("name");
    if !name.is_empty() {
        name.conforms(e, validation::is_dns1123_label);
        if !names.insert(name.text()) {
            e.push(name.duplicate());
        }
    } else if named {
        e.push(name.required(""));
    }
    port.at("port").port(e);
    port.at("protocol")
        .required_one_of(e, &["SCTP", "TCP", "UDP"]);
    port.at("targetPort").port_or_name(e);
    if port.has("appProtocol") {
        port.at("appProtocol")
            .conforms(e, validation::is_qualified_name);
    }
}

fn session_affinity(spec: &At, e: &mut ErrorList) {
    let (affinity, config) = (spec.at("sessionAffinity"), spec.at("sessionAffinityConfig"));
    affinity.required_one_of(e, &["ClientIP", "None"]);
    match affinity.text() {
        "ClientIP" => {
            let seconds = config.at("clientIP").at("timeoutSeconds");
            if !config.exists() {
                e.push(config.required("when session affinity type is ClientIP"));
            } else if !config.has("clientIP") {
                e.push(
                    config
                        .at("clientIP")
                        .required("when session affinity type is ClientIP"),
                );
            } else if !seconds.exists() {
                e.push(seconds.required("when session affinity type is ClientIP"));
            } else if !(1..=86400).contains(&seconds.num()) {
                e.push(seconds.invalid("must be greater than 0 and less than 86400"));
            }
        }
        "None" if config.exists() => {
            e.push(config.forbidden("must not be set when session affinity is None"))
        }
        _ => {}
    }
}

fn port_conflicts(ports: &At, kind: &str, e: &mut ErrorList) {
    let (mut node_ports, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for port in ports.each() {
        let (protocol, node) = (port.value.text("protocol"), port.at("nodePort"));
        if node.num() != 0 {
            if kind == "ClusterIP" {
                e.push(node.forbidden("may not be used when `type` is 'ClusterIP'"));
            }
            if !node_ports.insert((protocol, node.num())) {
                e.push(node.duplicate());
            }
        }
        if !seen.insert((protocol, port.value.num("port"))) {
            let shown = json!({"name": "", "protocol": protocol, "port": port.value.num("port"), "targetPort": 0});
            e.push(FieldError::duplicate(&port.path, shown));
        }
    }
}

fn load_balancer(obj: &Value, spec: &At, kind: &str, e: &mut ErrorList) {
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let cidr = |path: &Path, text: &str, e: &mut ErrorList| {
        let value = Value::from(text);
        let path = path.clone();
        legacy_cidr(
            &At {
                value: &value,
                path,
            },
            e,
        );
    };
    let ranges = At {
        value: spec.value.at("loadBalancerSourceRanges"),
        path: spec.path.child("LoadBalancerSourceRanges"),
    };
    let annotation = obj
        .at("metadata.annotations")
        .get(SOURCE_RANGES)
        .and_then(Value::as_str);
    let balanced = kind == "LoadBalancer";
    if !ranges.is_empty() {
        if !balanced {
            e.push(ranges.forbidden(ONLY));
        }
        ranges
            .each()
            .for_each(|r| cidr(&r.path, r.text().trim(), e));
    } else if let Some(text) = annotation {
        let path = Path::new("metadata.annotations").key(SOURCE_RANGES);
        if !balanced {
            e.push(FieldError::forbidden(&path, ONLY));
        }
        text.split(',')
            .map(str::trim)
            .filter(|t| !t.is_empty())
            .for_each(|t| cidr(&path, t, e));
    }
    let allocate = spec.at("allocateLoadBalancerNodePorts");
    if allocate.exists() && !balanced {
        e.push(allocate.forbidden(ONLY));
    } else if balanced && !allocate.exists() {
        e.push(FieldError::required(
            &Path::new("allocateLoadBalancerNodePorts"),
            "",
        ));
    }
    let class = spec.at("loadBalancerClass");
    if class.exists() {
        if balanced {
            class.conforms(e, validation::is_qualified_name);
        } else {
            e.push(class.forbidden(ONLY));
        }
    }
}

fn traffic(obj: &Value, spec: &At, kind: &str, e: &mut ErrorList) {
    let external = spec.at("externalTrafficPolicy");
    if externally_accessible(obj) {
        external.required_one_of(e, &["Cluster", "Local"]);
    } else if !external.is_empty() {
        e.push(external.invalid("may only be set for externally-accessible services"));
    }
    let health = spec.at("healthCheckNodePort");
    match (needs_health_check_port(obj), health.num()) {
        (true, 0) => e.push(health.required("")),
        (true, _) => health.port(e),
        (false, 0) => {}
        (false, _) => e.push(health.invalid(
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        )),
    }
    let internal = spec.at("internalTrafficPolicy");
    if !internal.exists() && needs_cluster_ip(kind) {
        e.push(internal.required(""));
    }
    internal.one_of(e, &["Cluster", "Local"]);
    spec.at("trafficDistribution")
        .one_of(e, &["PreferClose", "PreferSameZone", "PreferSameNode"]);
}

fn validate_update(new: &Value, old: &Value, ctx: &UpdateContext) -> ErrorList {
    if ctx.subresource == "status" {
        return status_update(new);
    }
    let mut e = ErrorList::new();
    let (kind, was) = (new.text("spec.type"), old.text("spec.type"));
    if kind != "ExternalName" && was != "ExternalName" {
        address_changes(new, old, &mut e);
    }
    let class = At::new(new, "spec").at("loadBalancerClass");
    if kind == "LoadBalancer"
        && was == kind
        && !check::same(class.value, old.at("spec.loadBalancerClass"))
    {
        e.push(class.invalid("may not change once set"));
    }
    if needs_health_check_port(new)
        && needs_health_check_port(old)
        && new.num("spec.healthCheckNodePort") != old.num("spec.healthCheckNodePort")
    {
        e.push(FieldError::forbidden(
            &Path::new("spec.healthCheckNodePort"),
            check::IMMUTABLE,
        ));
    }
    e.append(&mut validate(new));
    e
}

fn status_update(new: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let ingress = At::new(new, "status").at("loadBalancer").at("ingress");
    if new.text("spec.type") != "LoadBalancer" && !ingress.is_empty() {
        e.push(ingress.forbidden("may only be used when `spec.type` is 'LoadBalancer'"));
        return e;
    }
    for point in ingress.each() {
        let (ip, mode, host) = (point.at("ip"), point.at("ipMode"), point.at("hostname"));
        if !ip.is_empty() {
            legacy_ip(&ip, &mut e);
        }
        match (ip.is_empty(), mode.exists()) {
            (false, false) => e.push(mode.required("must be specified when `ip` is set")),
            (true, true) => e.push(mode.forbidden("may not be specified when `ip` is not set")),
            _ => mode.one_of(&mut e, &["Proxy", "VIP"]),
        }
        host.optional_conforms(&mut e, validation::is_dns1123_subdomain);
        if host.text().parse::<std::net::IpAddr>().is_ok() {
            e.push(host.invalid("must be a DNS name, not an IP address"));
        }
    }
    e
}

fn external_ip(obj: &Value) -> String {
    let external: Vec<_> = obj
        .list("spec.externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match obj.text("spec.type") {
        "ClusterIP" | "NodePort" => cell::joined(external),
        "LoadBalancer" => {
            let mut points: BTreeSet<&str> = BTreeSet::new();
            for point in obj.list("status.loadBalancer.ingress") {
                points.insert(if point.text("ip").is_empty() {
                    point.text("hostname")
                } else {
                    point.text("ip")
                });
            }
            points.remove("");
            let all: Vec<_> = points.into_iter().chain(external).collect();
            if all.is_empty() {
                "<pending>".to_owned()
            } else {
                all.join(",")
            }
        }
        "ExternalName" => obj.text("spec.externalName").to_owned(),
        _ => UNKNOWN.to_owned(),
    }
}

fn cells(obj: &Value, now: i64) -> Vec<Value> {
    let first = obj
        .list("spec.clusterIPs")
        .first()
        .and_then(Value::as_str)
        .unwrap_or(NONE);
    let ports = obj
        .list("spec.ports")
        .iter()
        .map(|p| match p.num("nodePort") {
            0 => format!("{}/{}", p.num("port"), p.text("protocol")),
            node => format!("{}:{node}/{}", p.num("port"), p.text("protocol")),
        });
    vec![
        obj.text("spec.type").into(),
        first.into(),
        external_ip(obj).into(),
        cell::joined(ports).into(),
        cell::age(obj, now),
        cell::labels(obj.at("spec.selector")).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: UpdateContext = UpdateContext {
        subresource: "",
        now: "",
    };

    fn service(kind: &str) -> Value {
        let mut obj = json!({"metadata": {"name": "a"}, "spec": {"type": kind, "ports": [{"port": 80}],
            "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}});
        default(&mut obj);
        obj
    }

    #[test]
    fn an_update_keeps_what_was_allocated() {
        let mut old = service("NodePort");
        old["spec"]["ports"][0]["nodePort"] = json!(30080);
        let mut new = json!({"metadata": {"name": "a"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        default(&mut new);
        prepare_update(&mut new, &old, &MAIN);
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.0.0.1"]));
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
        assert_eq!(validate_update(&new, &old, &MAIN), ErrorList::new());
    }

    #[test]
    fn becoming_an_external_name_gives_up_the_address() {
        let old = service("ClusterIP");
        let mut new = old.clone();
        new["spec"]["type"] = json!("ExternalName");
        new["spec"]["externalName"] = json!("a.example");
        prepare_update(&mut new, &old, &MAIN);
        assert_eq!(new["spec"].get("clusterIP"), None);
        assert_eq!(validate_update(&new, &old, &MAIN), ErrorList::new());
    }

    #[test]
    fn the_address_stays() {
        let old = service("ClusterIP");
        let mut new = old.clone();
        new["spec"]["clusterIP"] = json!("10.0.0.2");
        prepare_update(&mut new, &old, &MAIN);
        let errors = validate_update(&new, &old, &MAIN);
        assert_eq!(
            errors[0].to_string(),
            "spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"
        );
    }
}
