//! What a pod asks for: sums over containers and the class of service that follows.

use std::collections::BTreeMap;

use keelson_machinery::quantity::Quantity;
use serde_json::Value;

use crate::check;
use crate::tree::Tree;

pub(crate) type Amounts = BTreeMap<String, Quantity>;

fn amounts(container: &Value, which: &str) -> Amounts {
    let list = container.at("resources").map(which);
    list.iter()
        .filter_map(|(k, v)| Some((k.clone(), check::quantity(v)?)))
        .collect()
}

fn add(into: &mut Amounts, more: &Amounts) {
    for (name, q) in more {
        match into.get_mut(name) {
            Some(sum) => *sum += *q,
            None => {
                into.insert(name.clone(), *q);
            }
        }
    }
}

fn raise(into: &mut Amounts, other: Amounts) {
    for (name, q) in other {
        match into.get_mut(&name) {
            Some(max) if *max >= q => {}
            _ => {
                into.insert(name, q);
            }
        }
    }
}

/// The sum over containers, or the most that any moment of the initialisation needs.
pub(crate) fn of_containers(spec: &Value, which: &str) -> Amounts {
    let mut sum = Amounts::new();
    for c in spec.list("containers") {
        add(&mut sum, &amounts(c, which));
    }
    let (mut sidecars, mut initial) = (Amounts::new(), Amounts::new());
    for c in spec.list("initContainers") {
        let own = amounts(c, which);
        if c.text("restartPolicy") == "Always" {
            add(&mut sum, &own);
            add(&mut sidecars, &own);
            raise(&mut initial, sidecars.clone());
        } else {
            let mut at_once = own;
            add(&mut at_once, &sidecars);
            raise(&mut initial, at_once);
        }
    }
    raise(&mut sum, initial);
    sum
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let pod_level = spec.at("resources");
    if !pod_level.map("requests").is_empty() || !pod_level.map("limits").is_empty() {
        return class_of(std::iter::once(pod_level));
    }
    let lists = spec
        .list("containers")
        .iter()
        .chain(spec.list("initContainers"));
    class_of(lists.map(|c| c.at("resources")))
}

fn class_of<'a>(all: impl Iterator<Item = &'a Value>) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
    for resources in all {
        let mut limited = 0;
        for (which, sums) in [("requests", &mut requests), ("limits", &mut limits)] {
            for (name, value) in resources.map(which) {
                let Some(q) = check::quantity(value) else {
                    continue;
                };
                if !matches!(name.as_str(), "cpu" | "memory") || q.milli_value() <= 0 {
                    continue;
                }
                any = true;
                limited += usize::from(which == "limits");
                add(sums, &Amounts::from([(name.clone(), q)]));
            }
        }
        guaranteed &= limited == 2;
    }
    if !any {
        return "BestEffort";
    }
    let equal = requests.iter().all(|(name, q)| limits.get(name) == Some(q))
        && requests.len() == limits.len();
    if guaranteed && equal {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes_follow_requests_and_limits() {
        let of = |resources: Value| qos_class(&json!({"containers": [{"resources": resources}]}));
        assert_eq!(of(json!({})), "BestEffort");
        assert_eq!(of(json!({"requests": {"cpu": "1"}})), "Burstable");
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(of(json!({"requests": both, "limits": both})), "Guaranteed");
        assert_eq!(
            of(json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": both})),
            "Burstable"
        );
        assert_eq!(
            of(json!({"requests": {"nvidia.com/gpu": "1"}})),
            "BestEffort"
        );
    }

    #[test]
    fn sidecars_count_beside_containers_and_init_containers_by_their_peak() {
        let spec = json!({
            "containers": [{"resources": {"requests": {"cpu": "1"}}}],
            "initContainers": [
                {"restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
                {"resources": {"requests": {"cpu": "3"}}},
            ],
        });
        assert_eq!(of_containers(&spec, "requests")["cpu"].milli_value(), 3500);
    }
}
