//! What controllers ask of a pod: is it active, ready, available, and which to delete first.

use std::cmp::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::Value;

use crate::clock;

pub(crate) const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or("Pending")
}

pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Neither finished nor being deleted.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_terminating(pod)
}

pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == kind)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// The instant at which the pod became ready, while it is.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready")
        .filter(|c| c.status == "True")
        .and_then(|c| c.last_transition_time.as_ref())
        .map(|t| t.0)
}

/// Ready for at least `min_ready_seconds`.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    if !is_ready(pod) {
        return false;
    }
    min_ready_seconds == 0
        || ready_since(pod)
            .is_some_and(|since| clock::after(since, i64::from(min_ready_seconds)) <= now)
}

/// How long until a ready pod becomes available, when it is not yet.
pub(crate) fn until_available(
    pod: &Pod,
    min_ready_seconds: i32,
    now: Timestamp,
) -> Option<Duration> {
    if min_ready_seconds == 0 || !is_ready(pod) {
        return None;
    }
    clock::until(
        now,
        clock::after(ready_since(pod)?, i64::from(min_ready_seconds)),
    )
}

pub(crate) fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

pub(crate) fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

pub(crate) fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

pub(crate) fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

pub(crate) fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|n| !n.is_empty())
}

/// The pod that a template describes, owned by `owner`. The API server completes the name when
/// only `generate_name` is given.
pub(crate) fn from_template(
    template: &PodTemplateSpec,
    namespace: &str,
    generate_name: Option<String>,
    owner: OwnerReference,
) -> Pod {
    let from = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            generate_name,
            labels: from.labels,
            annotations: from.annotations,
            finalizers: from.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// A short, label-safe digest of a template. Only equality matters to clients, not the value.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let value = serde_json::to_value(template).unwrap_or(Value::Null);
    digest(&value, collisions)
}

/// FNV-1a over the canonical JSON, written with letters that cannot form words.
pub(crate) fn digest(value: &Value, collisions: Option<i32>) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash = 0x811c_9dc5_u32;
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let salt = collisions
        .map(|c| c.to_le_bytes().to_vec())
        .unwrap_or_default();
    for byte in bytes.into_iter().chain(salt) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    hash.to_string()
        .bytes()
        .map(|b| ALPHABET[usize::from(b) % ALPHABET.len()] as char)
        .collect()
}

/// Orders pods so that the first is the best to delete. `rank` is the number of related active
/// pods on the same node: spreading is kept by deleting where there are most.
pub(crate) fn deletion_order(
    (a, rank_a): (&Pod, usize),
    (b, rank_b): (&Pod, usize),
    now: Timestamp,
) -> Ordering {
    node_name(a)
        .is_some()
        .cmp(&node_name(b).is_some())
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| rank_b.cmp(&rank_a))
        .then_with(|| age_bucket(ready_since(a), now).cmp(&age_bucket(ready_since(b), now)))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| {
            let created = |p: &Pod| p.metadata.creation_timestamp.as_ref().map(|t| t.0);
            age_bucket(created(a), now).cmp(&age_bucket(created(b), now))
        })
        .then_with(|| uid(&a.metadata).cmp(uid(&b.metadata)))
}

fn phase_rank(pod: &Pod) -> u8 {
    match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    annotation(&pod.metadata, DELETION_COST)
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    pod.status
        .as_ref()
        .and_then(|s| s.container_statuses.as_ref())
        .and_then(|c| c.iter().map(|c| c.restart_count).max())
        .unwrap_or(0)
}

/// The logarithm of an age: younger pods go first, but within a bucket another rule decides, so
/// that the choice is not always the latest pod (which may be the only one of its zone). A bucket
/// per pod, rather than a comparison of pairs, keeps the order total.
fn age_bucket(since: Option<Timestamp>, now: Timestamp) -> Option<i64> {
    since.map(|t| {
        let age = now.as_second().saturating_sub(t.as_second());
        if age <= 0 { -1 } else { i64::from(age.ilog2()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(text: &str) -> Pod {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn unassigned_pending_unready_and_doubled_up_go_first() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let ready = r#""status":{"phase":"Running","conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2026-01-01T00:00:00Z"}]}"#;
        let ordered = [
            (
                pod(r#"{"metadata":{"name":"unassigned"},"spec":{"containers":[]}}"#),
                0,
            ),
            (
                pod(
                    r#"{"metadata":{"name":"pending"},"spec":{"containers":[],"nodeName":"n"},"status":{"phase":"Pending"}}"#,
                ),
                0,
            ),
            (
                pod(
                    r#"{"metadata":{"name":"unready"},"spec":{"containers":[],"nodeName":"n"},"status":{"phase":"Running"}}"#,
                ),
                0,
            ),
            (
                pod(&format!(
                    r#"{{"metadata":{{"name":"cheap","annotations":{{"{DELETION_COST}":"-1"}}}},"spec":{{"containers":[],"nodeName":"n"}},{ready}}}"#
                )),
                0,
            ),
            (
                pod(&format!(
                    r#"{{"metadata":{{"name":"crowded"}},"spec":{{"containers":[],"nodeName":"n"}},{ready}}}"#
                )),
                3,
            ),
            (
                pod(&format!(
                    r#"{{"metadata":{{"name":"alone"}},"spec":{{"containers":[],"nodeName":"n"}},{ready}}}"#
                )),
                1,
            ),
        ];
        for pair in ordered.windows(2) {
            let (a, b) = (&pair[0], &pair[1]);
            assert_eq!(
                deletion_order((&a.0, a.1), (&b.0, b.1), now),
                Ordering::Less,
                "{} before {}",
                name(&a.0.metadata),
                name(&b.0.metadata)
            );
        }
    }

    #[test]
    fn the_order_is_total_for_ages_in_one_bucket() {
        let at = |second: u32, uid: u32| {
            let ready = format!("2026-01-01T00:00:{second:02}Z");
            pod(&format!(
                r#"{{"metadata":{{"uid":"{uid}","creationTimestamp":"{ready}"}},"spec":{{"containers":[],"nodeName":"n"}},"status":{{"phase":"Running","conditions":[{{"type":"Ready","status":"True","lastTransitionTime":"{ready}"}}]}}}}"#
            ))
        };
        let now: Timestamp = "2026-01-01T00:02:00Z".parse().unwrap();
        let mut pods: Vec<Pod> = (0..60).map(|n| at(n * 7 % 5, n * 13 % 60)).collect();
        pods.sort_by(|a, b| deletion_order((a, 0), (b, 0), now));
        for (i, a) in pods.iter().enumerate() {
            for b in &pods[i + 1..] {
                assert_ne!(deletion_order((a, 0), (b, 0), now), Ordering::Greater);
            }
        }
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let p = pod(
            r#"{"status":{"conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}"#,
        );
        let at = |t: &str| t.parse::<Timestamp>().unwrap();
        assert!(is_available(&p, 0, at("2026-01-01T00:00:00Z")));
        assert!(!is_available(&p, 10, at("2026-01-01T00:00:09Z")));
        assert!(is_available(&p, 10, at("2026-01-01T00:00:10Z")));
        assert_eq!(
            until_available(&p, 10, at("2026-01-01T00:00:09Z")),
            Some(Duration::from_secs(1))
        );
    }

    #[test]
    fn hash_depends_on_template_and_collisions() {
        let template: PodTemplateSpec =
            serde_json::from_str(r#"{"spec":{"containers":[{"name":"a"}]}}"#).unwrap();
        let hash = template_hash(&template, None);
        assert_eq!(hash, template_hash(&template, None));
        assert_ne!(hash, template_hash(&template, Some(1)));
    }
}
