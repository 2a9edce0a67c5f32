use serde_json::{Value, json};

use super::*;

fn node() -> NodeFacts {
    NodeFacts {
        name: "here".into(),
        zone: "z1".into(),
        ..NodeFacts::default()
    }
}

fn service(spec: Value) -> Arc<Service> {
    let mut spec = spec;
    if spec.get("clusterIP").is_none() {
        spec["clusterIP"] = json!("10.96.0.10");
    }
    if spec.get("ports").is_none() {
        spec["ports"] = json!([{"port": 80, "nodePort": spec["nodePort"].take()}]);
    }
    let meta = json!({"namespace": "default", "name": "web"});
    Arc::new(
        serde_json::from_value(
            json!({"metadata": meta, "spec": spec, "status": spec.get("status")}),
        )
        .unwrap(),
    )
}

/// Endpoints as `(last byte, node, ready, serving, terminating)`.
fn slice(endpoints: &[(u8, &str, bool, bool, bool)]) -> Arc<EndpointSlice> {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(n, node, ready, serving, terminating)| {
            json!({
                "addresses": [format!("10.42.0.{n}")],
                "nodeName": node,
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            })
        })
        .collect();
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "web-1", "labels": {SERVICE_NAME_LABEL: "web"}},
            "addressType": "IPv4",
            "ports": [{"port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints,
        }))
        .unwrap(),
    )
}

fn rule_of(plan: &Plan, wanted: impl Fn(&Frontend) -> bool) -> &ServiceRule {
    plan.rules
        .services
        .iter()
        .find(|r| wanted(&r.frontend))
        .unwrap()
}

fn last_bytes(rule: &ServiceRule) -> Vec<u8> {
    rule.backends
        .iter()
        .map(|b| match b.address.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        })
        .collect()
}

fn is_address(f: &Frontend) -> bool {
    matches!(f, Frontend::Address { .. })
}

fn is_node_port(f: &Frontend) -> bool {
    matches!(f, Frontend::NodePort { .. })
}

#[test]
fn endpoints_by_their_conditions() {
    let cases: [(&[(u8, &str, bool, bool, bool)], &[u8]); 4] = [
        (
            &[
                (1, "here", true, true, false),
                (2, "there", true, true, false),
            ],
            &[1, 2],
        ),
        (
            &[
                (1, "here", true, true, false),
                (2, "there", false, true, true),
            ],
            &[1],
        ),
        (
            &[
                (1, "here", false, true, true),
                (2, "there", false, false, true),
            ],
            &[1],
        ),
        (&[(1, "here", false, false, false)], &[]),
    ];
    for (endpoints, want) in cases {
        let plan = plan(&[service(json!({}))], &[slice(endpoints)], &node());
        assert_eq!(
            last_bytes(rule_of(&plan, is_address)),
            want,
            "{endpoints:?}"
        );
    }
}

#[test]
fn external_policy_local_keeps_to_this_node() {
    let spec = json!({"type": "NodePort", "externalTrafficPolicy": "Local", "nodePort": 30080});
    let everywhere = slice(&[
        (1, "here", true, true, false),
        (2, "there", true, true, false),
    ]);
    let with = plan(&[service(spec.clone())], &[everywhere], &node());
    let rule = rule_of(&with, is_node_port);
    assert_eq!(
        (last_bytes(rule), rule.source),
        (vec![1], SourcePolicy::Preserve)
    );
    assert_eq!(
        last_bytes(rule_of(&with, is_address)),
        [1, 2],
        "the cluster IP has its own policy"
    );

    let elsewhere = slice(&[(2, "there", true, true, false)]);
    let without = plan(&[service(spec.clone())], &[elsewhere], &node());
    let rule = rule_of(&without, is_node_port);
    assert!(rule.backends.is_empty() && rule.drop_if_empty);

    let none = plan(&[service(spec)], &[], &node());
    assert!(
        !rule_of(&none, is_node_port).drop_if_empty,
        "nobody has endpoints: reject"
    );
}

#[test]
fn internal_policy_local_is_about_cluster_ips() {
    let spec = json!({"type": "NodePort", "internalTrafficPolicy": "Local", "nodePort": 30080});
    let both = slice(&[
        (1, "here", true, true, false),
        (2, "there", true, true, false),
    ]);
    let plan = plan(&[service(spec)], &[both], &node());
    assert_eq!(last_bytes(rule_of(&plan, is_address)), [1]);
    let rule = rule_of(&plan, is_node_port);
    assert_eq!(
        (last_bytes(rule), rule.source),
        (vec![1, 2], SourcePolicy::MasqueradeAll)
    );
}

#[test]
fn headless_foreign_and_external_names_are_left_alone() {
    let mut foreign = (*service(json!({}))).clone();
    foreign.metadata.labels = Some([(PROXY_NAME_LABEL.to_owned(), "other".to_owned())].into());
    let services = [
        service(json!({"clusterIP": "None"})),
        service(json!({"type": "ExternalName", "externalName": "example.org", "clusterIP": ""})),
        Arc::new(foreign),
    ];
    assert_eq!(plan(&services, &[], &node()).rules.services, []);
}

#[test]
fn affinity_and_load_balancers() {
    let spec = json!({
        "type": "LoadBalancer",
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}},
        "externalIPs": ["192.0.2.1"],
        "loadBalancerSourceRanges": [" 198.51.100.0/24"],
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}, {"ip": "192.0.2.3", "ipMode": "Proxy"}]}},
        "healthCheckNodePort": 32000,
    });
    let plan = plan(
        &[service(spec)],
        &[slice(&[(1, "here", true, true, false)])],
        &node(),
    );
    let at = |text: &str| {
        let wanted: IpAddr = text.parse().unwrap();
        plan.rules
            .services
            .iter()
            .find(move |r| matches!(r.frontend, Frontend::Address { ip, .. } if ip == wanted))
    };
    assert_eq!(
        at("192.0.2.1").unwrap().affinity,
        Some(Duration::from_secs(5))
    );
    assert_eq!(at("192.0.2.1").unwrap().allowed_sources, []);
    assert_eq!(
        at("192.0.2.2").unwrap().allowed_sources,
        ["198.51.100.0/24".parse().unwrap()]
    );
    assert!(at("192.0.2.3").is_none());
    assert_eq!(plan.health_checks[0].local_endpoints, 1);
}

#[test]
fn hints_count_when_all_have_them() {
    let hinted = |zones: [Option<&str>; 2]| {
        let mut slice =
            (*slice(&[(1, "a", true, true, false), (2, "b", true, true, false)])).clone();
        for (endpoint, zone) in slice.endpoints.as_mut().unwrap().iter_mut().zip(zones) {
            endpoint.hints =
                zone.map(|z| serde_json::from_value(json!({"forZones": [{"name": z}]})).unwrap());
        }
        let plan = plan(&[service(json!({}))], &[Arc::new(slice)], &node());
        last_bytes(rule_of(&plan, is_address))
    };
    assert_eq!(hinted([Some("z1"), Some("z2")]), [1]);
    assert_eq!(hinted([Some("z1"), None]), [1, 2]);
    assert_eq!(
        hinted([Some("z2"), Some("z3")]),
        [1, 2],
        "no hint points here"
    );
}
