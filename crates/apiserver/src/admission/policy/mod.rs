//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: rules about requests, written as
//! expressions by the cluster's administrators.
//!
//! A policy does nothing by itself; bindings say where it holds and with which parameters.

mod compiled;
mod mutating;
mod params;
mod patch;
pub(crate) mod status;
mod validating;

pub(super) use compiled::Cache;
pub(super) use mutating::MutatingAdmissionPolicy;
pub(super) use validating::ValidatingAdmissionPolicy;

use std::sync::Arc;

use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::matching::{self, Form, GROUP};
use super::{Attributes, Cluster};
use compiled::Policy;

/// Requests that are answered and not stored; a policy about them could lock everybody out.
const REVIEWS: &[(&str, &str)] = &[
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
];

fn is_excluded(attrs: &Attributes) -> bool {
    matching::is_configuration(attrs)
        || REVIEWS.contains(&(attrs.group.as_str(), attrs.resource.as_str()))
}

/// A policy that has bindings, with them.
struct Hook {
    policy: Arc<Value>,
    compiled: Arc<Policy>,
    bindings: Vec<Arc<Value>>,
}

impl Hook {
    fn ignores_failures(&self) -> bool {
        self.policy["spec"]["failurePolicy"] == "Ignore"
    }
}

/// All policies that somebody bound, by name, and their bindings by name.
fn hooks(cluster: &Cluster, policies: &str, bindings: &str) -> Vec<Hook> {
    let mut bindings = cluster.objects.list(GROUP, bindings, "");
    if bindings.is_empty() {
        return Vec::new();
    }
    bindings.sort_by(|a, b| meta::name(a).cmp(meta::name(b)));
    let mut policies = cluster.objects.list(GROUP, policies, "");
    policies.sort_by(|a, b| meta::name(a).cmp(meta::name(b)));
    policies
        .into_iter()
        .filter_map(|policy| {
            let own: Vec<Arc<Value>> = bindings
                .iter()
                .filter(|binding| binding["spec"]["policyName"] == meta::name(&policy))
                .cloned()
                .collect();
            if own.is_empty() {
                return None;
            }
            Some(Hook {
                compiled: cluster.compiled.policy(&policy),
                policy,
                bindings: own,
            })
        })
        .collect()
}

/// The form in which match constraints of a policy want the request, if they do.
async fn definition_matches(
    attrs: &Attributes,
    cluster: &Cluster,
    policy: &Value,
) -> Result<Option<Form>, String> {
    let constraints = &policy["spec"]["matchConstraints"];
    if !constraints.is_object() {
        return Err("policy contained no match constraints, a required field".to_owned());
    }
    resources_match(attrs, cluster, constraints).await
}

async fn binding_matches(
    attrs: &Attributes,
    cluster: &Cluster,
    binding: &Value,
) -> Result<bool, String> {
    let resources = &binding["spec"]["matchResources"];
    if !resources.is_object() {
        return Ok(true);
    }
    let form = resources_match(attrs, cluster, resources).await?;
    Ok(form.is_some())
}

async fn resources_match(
    attrs: &Attributes,
    cluster: &Cluster,
    wanted: &Value,
) -> Result<Option<Form>, String> {
    let policy = &wanted["matchPolicy"];
    let named = |rules: &Value| matching::rules_match(attrs, cluster, rules, policy);
    if named(&wanted["excludeResourceRules"]).is_some() {
        return Ok(None);
    }
    let rules = &wanted["resourceRules"];
    let form = if rules.as_array().is_none_or(Vec::is_empty) {
        Some(Form::requested(attrs))
    } else {
        named(rules)
    };
    let Some(form) = form else {
        return Ok(None);
    };
    let selected = matching::selects(attrs, cluster, wanted)
        .await
        .map_err(|status| status.message)?;
    Ok(Some(form).filter(|_| selected))
}

/// The namespace that expressions see: none for what lies in none, and none for namespaces.
async fn namespace_of(attrs: &Attributes, cluster: &Cluster) -> Result<Option<Arc<Value>>, Status> {
    if attrs.namespace.is_empty() || attrs.kind == "Namespace" {
        return Ok(None);
    }
    matching::namespace(cluster, &attrs.namespace)
        .await
        .map(Some)
}
