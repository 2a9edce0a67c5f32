//! Quality of service: the class, the cgroup path and the OOM score that follow from it.

use k8s_openapi::api::core::v1::{Container, Pod};

use super::resources::{limit, memory_request_bytes, request, value};
use super::{init_containers, regular_containers, spec, uid};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }
}

pub(crate) const ROOT: &str = "/kubepods";
pub(crate) const BURSTABLE: &str = "/kubepods/burstable";
pub(crate) const BEST_EFFORT: &str = "/kubepods/besteffort";

const GUARANTEED_OOM_SCORE: i32 = -997;
const BEST_EFFORT_OOM_SCORE: i32 = 1000;

pub(crate) fn class(pod: &Pod) -> QosClass {
    if let Some(resources) = spec(pod).resources.as_ref()
        && (resources.requests.is_some() || resources.limits.is_some())
    {
        let as_container = Container {
            resources: Some(resources.clone()),
            ..Container::default()
        };
        return class_of(std::iter::once(&as_container));
    }
    class_of(regular_containers(pod).iter().chain(init_containers(pod)))
}

fn class_of<'a>(containers: impl Iterator<Item = &'a Container>) -> QosClass {
    let mut any = false;
    let mut guaranteed = true;
    for container in containers {
        for resource in ["cpu", "memory"] {
            let asked = request(container, resource).filter(|q| value(q).unwrap_or(0) > 0);
            let bound = limit(container, resource).filter(|q| value(q).unwrap_or(0) > 0);
            any |= asked.is_some() || bound.is_some();
            let equal = match (asked, bound) {
                (Some(asked), Some(bound)) => {
                    super::resources::milli_value(asked) == super::resources::milli_value(bound)
                }
                // A limit without a request is defaulted to an equal request by the API.
                (None, Some(_)) => true,
                (_, None) => false,
            };
            guaranteed &= equal;
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// The pod's cgroup, relative to the hierarchy's root.
pub(crate) fn cgroup_path(pod: &Pod) -> String {
    let parent = match class(pod) {
        QosClass::Guaranteed => ROOT,
        QosClass::Burstable => BURSTABLE,
        QosClass::BestEffort => BEST_EFFORT,
    };
    format!("{parent}/pod{}", uid(pod))
}

/// The kernel kills high scores first: the less of its request a burstable container can be said
/// to own of the machine, the earlier it goes.
pub(crate) fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity_bytes: u64) -> i32 {
    let critical = spec(pod).priority_class_name.as_deref() == Some("system-node-critical");
    match class(pod) {
        _ if critical => GUARANTEED_OOM_SCORE,
        QosClass::Guaranteed => GUARANTEED_OOM_SCORE,
        QosClass::BestEffort => BEST_EFFORT_OOM_SCORE,
        QosClass::Burstable => {
            let capacity = i64::try_from(memory_capacity_bytes)
                .unwrap_or(i64::MAX)
                .max(1);
            let share = memory_request_bytes(container).saturating_mul(1000) / capacity;
            let score = 1000 - i32::try_from(share).unwrap_or(1000);
            score.clamp(1000 + GUARANTEED_OOM_SCORE, BEST_EFFORT_OOM_SCORE - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn pod(resources: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": [
            {"name": "c", "resources": resources}]}}))
        .unwrap()
    }

    #[test]
    fn classes() {
        let cases = [
            (json!({}), QosClass::BestEffort, "/kubepods/besteffort/podu"),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}}),
                QosClass::Guaranteed,
                "/kubepods/podu",
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}),
                QosClass::Guaranteed,
                "/kubepods/podu",
            ),
            (
                json!({"requests": {"cpu": "10m"}}),
                QosClass::Burstable,
                "/kubepods/burstable/podu",
            ),
            (
                json!({"limits": {"memory": "1Gi"}}),
                QosClass::Burstable,
                "/kubepods/burstable/podu",
            ),
        ];
        for (resources, expected, path) in cases {
            let pod = pod(resources.clone());
            assert_eq!(class(&pod), expected, "{resources}");
            assert_eq!(cgroup_path(&pod), path);
        }
    }

    #[test]
    fn oom_scores() {
        let burstable = pod(json!({"requests": {"memory": "250Mi"}}));
        let container = &regular_containers(&burstable)[0];
        assert_eq!(oom_score_adj(&burstable, container, 1000 << 20), 750);
        let tiny = pod(json!({"requests": {"memory": "1"}}));
        assert_eq!(
            oom_score_adj(&tiny, &regular_containers(&tiny)[0], 1 << 40),
            999
        );
        let none = pod(json!({}));
        assert_eq!(
            oom_score_adj(&none, &regular_containers(&none)[0], 1 << 30),
            1000
        );
    }
}
