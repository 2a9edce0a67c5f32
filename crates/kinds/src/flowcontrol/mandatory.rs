//! Specs that nobody may change: whatever happens to the configuration, administrators get in, and
//! every request belongs somewhere.

use serde_json::{Value, json};

/// The spec of the mandatory FlowSchema of that name.
pub fn flow_schema(name: &str) -> Option<Value> {
    let (precedence, groups) = match name {
        "exempt" => (1, &["system:masters"][..]),
        "catch-all" => (
            10_000,
            &["system:unauthenticated", "system:authenticated"][..],
        ),
        _ => return None,
    };
    let subjects: Vec<Value> = groups
        .iter()
        .map(|group| json!({"kind": "Group", "group": {"name": group}}))
        .collect();
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": name},
        "matchingPrecedence": precedence,
        "rules": [{
            "subjects": subjects,
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"],
                "clusterScope": true, "namespaces": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        }],
    });
    if name == "catch-all" {
        spec["distinguisherMethod"] = json!({"type": "ByUser"});
    }
    Some(spec)
}

/// The spec of the mandatory PriorityLevelConfiguration of that name.
pub fn priority_level(name: &str) -> Option<Value> {
    match name {
        "exempt" => Some(json!({
            "type": "Exempt",
            "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0},
        })),
        "catch-all" => Some(json!({
            "type": "Limited",
            "limited": {"nominalConcurrencyShares": 5, "lendablePercent": 0,
                "limitResponse": {"type": "Reject"}},
        })),
        _ => None,
    }
}
