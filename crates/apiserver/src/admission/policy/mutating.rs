//! MutatingAdmissionPolicy: changes what is written, by configurations or patches that its
//! expressions make.

use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::{
    Hook, binding_matches, definition_matches, hooks, is_excluded, namespace_of, params, patch,
};
use crate::admission::expressions::{Input, conditions_hold};
use crate::admission::matching::{Form, Versioned};
use crate::admission::{AdmissionPlugin, Attributes, Cluster, Operation, replace_object};

pub(in crate::admission) struct MutatingAdmissionPolicy;

#[async_trait]
impl AdmissionPlugin for MutatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    fn handles(&self, operation: Operation) -> bool {
        // A deletion has nothing to change.
        operation != Operation::Delete
    }

    async fn admit(&self, attrs: &mut Attributes, cluster: &Cluster) -> Result<(), Status> {
        if is_excluded(attrs) {
            return Ok(());
        }
        let hooks = hooks(
            cluster,
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicybindings",
        );
        if hooks.is_empty() {
            return Ok(());
        }
        let mut failures = Vec::new();
        let invocations = gather(attrs, cluster, &hooks, &mut failures).await;
        if !invocations.is_empty() {
            let namespace = namespace_of(attrs, cluster).await?;
            let again = attrs.rounds.again;
            attrs.rounds.policies.begin(again, attrs.object.as_ref());
            for invocation in &invocations {
                invoke(
                    attrs,
                    cluster,
                    invocation,
                    namespace.as_deref(),
                    &mut failures,
                )?;
            }
            attrs.rounds.policies.end(attrs.object.as_ref());
        }
        refusal(attrs, &failures).map_or(Ok(()), Err)
    }
}

/// One policy with one binding and one parameter.
struct Invocation<'h> {
    hook: &'h Hook,
    binding: &'h Value,
    form: Form,
    params: Option<Arc<Value>>,
}

impl Invocation<'_> {
    fn key(&self) -> String {
        let param = self.params.as_deref().map_or_else(String::new, |p| {
            format!("{}/{}", meta::namespace(p), meta::name(p))
        });
        format!(
            "{}/{}/{param}",
            meta::name(&self.hook.policy),
            meta::name(self.binding)
        )
    }
}

/// A policy that failed and does not ignore it.
struct Failure {
    message: String,
    reason: &'static str,
}

impl Failure {
    fn add(
        failures: &mut Vec<Self>,
        hook: &Hook,
        binding: Option<&Value>,
        error: &str,
        reason: &'static str,
    ) {
        if hook.ignores_failures() {
            return;
        }
        let policy = meta::name(&hook.policy);
        let message = match binding {
            Some(binding) => format!(
                "policy '{policy}' with binding '{}' denied request: {error}",
                meta::name(binding)
            ),
            None => format!("policy {policy:?} denied request: {error}"),
        };
        failures.push(Self { message, reason });
    }
}

fn refusal(attrs: &Attributes, failures: &[Failure]) -> Option<Status> {
    let first = failures.first()?;
    let mut status = attrs.forbidden("admission request denied by policy");
    for failure in failures {
        status = status.with_cause("", "", &failure.message);
    }
    status.message = first.message.clone();
    if !first.reason.is_empty() {
        status.reason = first.reason.to_owned();
    }
    Some(status)
}

/// The invocations that the request calls for.
async fn gather<'h>(
    attrs: &Attributes,
    cluster: &Cluster,
    hooks: &'h [Hook],
    failures: &mut Vec<Failure>,
) -> Vec<Invocation<'h>> {
    let mut out = Vec::new();
    for hook in hooks {
        let of_policy = |error: &str| format!("failed to configure policy: {error}");
        let form = match definition_matches(attrs, cluster, &hook.policy).await {
            Ok(Some(form)) => form,
            Ok(None) => continue,
            Err(error) => {
                Failure::add(failures, hook, None, &of_policy(&error), "");
                continue;
            }
        };
        let resource = match params::resource(cluster, &hook.policy) {
            Ok(resource) => resource,
            Err(error) => {
                Failure::add(failures, hook, None, &of_policy(&error), "");
                continue;
            }
        };
        for binding in &hook.bindings {
            let gathered = match binding_matches(attrs, cluster, binding).await {
                Ok(false) => continue,
                Ok(true) => params::collect(attrs, cluster, resource.as_deref(), binding),
                Err(error) => Err(error),
            };
            match gathered {
                Ok(params) => out.extend(params.into_iter().map(|params| Invocation {
                    hook,
                    binding,
                    form: form.clone(),
                    params,
                })),
                Err(error) => {
                    let error = format!("failed to configure binding: {error}");
                    Failure::add(failures, hook, Some(binding), &error, "");
                }
            }
        }
    }
    out
}

fn invoke(
    attrs: &mut Attributes,
    cluster: &Cluster,
    invocation: &Invocation<'_>,
    namespace: Option<&Value>,
    failures: &mut Vec<Failure>,
) -> Result<(), Status> {
    let Invocation { hook, binding, .. } = invocation;
    let policy = &hook.compiled;
    let input = |attrs: &Attributes| -> Result<Input, Status> {
        let objects = Versioned::new(attrs, cluster, &invocation.form)?;
        Ok(Input::new(attrs, cluster, &invocation.form, objects)
            .with_namespace(namespace)
            .with_params(invocation.params.clone()))
    };
    let conditions = &policy.conditions;
    let hold = conditions.is_empty()
        || match conditions_hold(
            conditions,
            &input(attrs)?,
            &policy.variables,
            hook.ignores_failures(),
        ) {
            Ok(hold) => hold,
            Err(error) => {
                Failure::add(failures, hook, Some(binding), &error, "Invalid");
                false
            }
        };
    let key = invocation.key();
    if !hold || (attrs.rounds.again && !attrs.rounds.policies.is_due(&key)) {
        return Ok(());
    }
    let mut changed = false;
    for mutation in &policy.mutations {
        let input = input(attrs)?;
        let Some(before) = input.object.clone() else {
            continue;
        };
        match patch::apply(
            mutation,
            &policy.variables,
            &input,
            cluster,
            &invocation.form,
        ) {
            Ok(after) if after == *before => {}
            Ok(after) => {
                drop(input);
                replace_object(attrs, cluster, &invocation.form, after)?;
                changed = true;
            }
            Err(error) => Failure::add(failures, hook, Some(binding), &error, "Invalid"),
        }
    }
    if changed {
        attrs.rounds.policies.require();
        attrs.rounds.wanted = true;
    }
    if hook.policy["spec"]["reinvocationPolicy"] == "IfNeeded" {
        attrs.rounds.policies.invoked(&key);
    }
    Ok(())
}
