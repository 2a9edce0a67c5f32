//! `spec.podFailurePolicy`: what its rules say about a failed pod.

use k8s_openapi::api::batch::v1::{PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement};
use k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// What a failure policy says about a failed pod.
pub(super) struct Judgement {
    pub(super) action: String,
    pub(super) message: String,
}

pub(super) fn is_ignored(policy: Option<&PodFailurePolicy>, p: &Pod) -> bool {
    policy
        .and_then(|policy| judge(policy, p))
        .is_some_and(|rule| rule.action == "Ignore")
}

/// The first rule that matches.
pub(super) fn judge(policy: &PodFailurePolicy, p: &Pod) -> Option<Judgement> {
    let subject = format!("{}/{}", pod::namespace(&p.metadata), pod::name(&p.metadata));
    policy.rules.iter().enumerate().find_map(|(number, rule)| {
        let action = &rule.action;
        let message = if let Some(codes) = &rule.on_exit_codes {
            let (container, code) = matching_container(codes, p)?;
            format!("Container {container} for pod {subject} failed with exit code {code} matching {action} rule at index {number}")
        } else {
            let patterns = rule.on_pod_conditions.as_ref()?;
            let conditions = p.status.as_ref()?.conditions.as_ref()?;
            let hit = conditions.iter().find(|c| {
                patterns.iter().any(|w| w.type_ == c.type_ && w.status.as_deref().unwrap_or("True") == c.status)
            })?;
            format!("Pod {subject} has condition {} matching {action} rule at index {number}", hit.type_)
        };
        Some(Judgement { action: action.clone(), message })
    })
}

fn matching_container(
    wanted: &PodFailurePolicyOnExitCodesRequirement,
    p: &Pod,
) -> Option<(String, i32)> {
    let status = p.status.as_ref()?;
    let all = status
        .container_statuses
        .iter()
        .flatten()
        .chain(status.init_container_statuses.iter().flatten());
    all.filter(|s| wanted.container_name.as_ref().is_none_or(|n| *n == s.name))
        .filter_map(|s| {
            Some((
                s.name.clone(),
                s.state.as_ref()?.terminated.as_ref()?.exit_code,
            ))
        })
        .filter(|(_, code)| *code != 0)
        .find(|(_, code)| match wanted.operator.as_str() {
            "In" => wanted.values.contains(code),
            "NotIn" => !wanted.values.contains(code),
            _ => false,
        })
}
