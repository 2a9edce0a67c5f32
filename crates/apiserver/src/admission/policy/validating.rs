//! ValidatingAdmissionPolicy: refuses, warns about or notes what its expressions say is wrong.

use std::collections::BTreeMap;

use async_trait::async_trait;
use keelson_cel::{Value as CelValue, limits};
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::compiled::{Policy, Validation};
use super::{Hook, binding_matches, definition_matches, hooks, is_excluded, namespace_of, params};
use crate::admission::expressions::{Activation, Budget, Input, OutOfBudget, conditions_hold};
use crate::admission::matching::{Form, Versioned};
use crate::admission::{AdmissionPlugin, Attributes, Cluster, Operation};

/// A longer value of an audit annotation is cut.
const MAX_ANNOTATION_BYTES: usize = 10 * 1024;
const FAILURE_ANNOTATION: &str = "validation.policy.admission.k8s.io/validation_failure";

pub(in crate::admission) struct ValidatingAdmissionPolicy;

#[async_trait]
impl AdmissionPlugin for ValidatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn handles(&self, _operation: Operation) -> bool {
        true
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        if is_excluded(attrs) {
            return Ok(());
        }
        let mut verdict = Verdict::default();
        for hook in hooks(
            cluster,
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
        ) {
            judge(attrs, cluster, &hook, &mut verdict).await?;
        }
        match verdict.denial {
            Some(denial) => Err(denial.status(attrs)),
            None => Ok(()),
        }
    }
}

/// What all policies say; the first denial is the answer.
#[derive(Default)]
struct Verdict {
    denial: Option<Denial>,
}

struct Denial {
    policy: String,
    binding: Option<String>,
    message: String,
    reason: String,
}

impl Denial {
    fn status(&self, attrs: &Attributes) -> Status {
        let of_binding = self
            .binding
            .as_ref()
            .map_or_else(String::new, |name| format!(" with binding '{name}'"));
        let message = format!(
            "ValidatingAdmissionPolicy '{}'{of_binding} denied request: {}",
            self.policy, self.message
        );
        let mut status = attrs.forbidden(&message).with_cause("", "", message);
        status.reason = if self.reason.is_empty() {
            "Invalid".to_owned()
        } else {
            self.reason.clone()
        };
        status.code = match status.reason.as_str() {
            "Forbidden" => 403,
            "Unauthorized" => 401,
            "RequestEntityTooLarge" => 413,
            _ => 422,
        };
        status
    }
}

impl Verdict {
    fn deny(&mut self, hook: &Hook, binding: Option<&Value>, message: String, reason: &str) {
        if self.denial.is_none() {
            self.denial = Some(Denial {
                policy: meta::name(&hook.policy).to_owned(),
                binding: binding.map(|b| meta::name(b).to_owned()),
                message,
                reason: reason.to_owned(),
            });
        }
    }

    /// The policy cannot be evaluated as it is configured.
    fn misconfigured(&mut self, hook: &Hook, binding: Option<&Value>, error: &str) {
        if hook.ignores_failures() {
            return;
        }
        let what = if binding.is_some() {
            "binding"
        } else {
            "policy"
        };
        self.deny(
            hook,
            binding,
            format!("failed to configure {what}: {error}"),
            "",
        );
    }
}

async fn judge(
    attrs: &Attributes,
    cluster: &Cluster,
    hook: &Hook,
    verdict: &mut Verdict,
) -> Result<(), Status> {
    let form = match definition_matches(attrs, cluster, &hook.policy).await {
        Ok(Some(form)) => form,
        Ok(None) => return Ok(()),
        Err(error) => {
            verdict.misconfigured(hook, None, &error);
            return Ok(());
        }
    };
    let resource = match params::resource(cluster, &hook.policy) {
        Ok(resource) => resource,
        Err(error) => {
            verdict.misconfigured(hook, None, &error);
            return Ok(());
        }
    };
    let mut annotations: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for binding in &hook.bindings {
        let gathered = match binding_matches(attrs, cluster, binding).await {
            Ok(false) => continue,
            Ok(true) => params::collect(attrs, cluster, resource.as_deref(), binding),
            Err(error) => Err(error),
        };
        let params = match gathered {
            Ok(params) => params,
            Err(error) => {
                verdict.misconfigured(hook, Some(binding), &error);
                continue;
            }
        };
        let namespace = namespace_of(attrs, cluster).await?;
        for param in params {
            let input = match input(attrs, cluster, &form) {
                Ok(input) => input
                    .with_namespace(namespace.as_deref())
                    .with_params(param),
                Err(status) => {
                    let error = format!("failed to convert object version: {}", status.message);
                    verdict.misconfigured(hook, Some(binding), &error);
                    continue;
                }
            };
            let result = evaluate(&hook.compiled, &input, hook.ignores_failures());
            act(attrs, hook, binding, &result, verdict);
            collect(hook, binding, result.annotations, &mut annotations, verdict);
        }
    }
    for (key, values) in annotations {
        let key = format!("{}/{key}", meta::name(&hook.policy));
        attrs.annotations.add(&key, values.join(", "));
    }
    Ok(())
}

fn input(attrs: &Attributes, cluster: &Cluster, form: &Form) -> Result<Input, Status> {
    let objects = Versioned::new(attrs, cluster, form)?;
    Ok(Input::new(attrs, cluster, form, objects))
}

/// What a policy says of one request with one set of parameters.
#[derive(Default)]
struct Outcome {
    /// The number of the validation, what is wrong and the reason.
    failures: Vec<(usize, String, String)>,
    annotations: Vec<(String, Annotation)>,
}

enum Annotation {
    Value(String),
    Failed(String),
}

impl Outcome {
    /// Nothing could be evaluated; only the failure policy speaks.
    fn failed(error: String, ignore_failures: bool) -> Self {
        let failures = if ignore_failures {
            Vec::new()
        } else {
            vec![(0, error, String::new())]
        };
        Self {
            failures,
            annotations: Vec::new(),
        }
    }
}

fn evaluate(policy: &Policy, input: &Input, ignore_failures: bool) -> Outcome {
    match conditions_hold(
        &policy.conditions,
        input,
        &policy.variables,
        ignore_failures,
    ) {
        Ok(true) => {}
        Ok(false) => return Outcome::default(),
        Err(error) => return Outcome::failed(error, ignore_failures),
    }
    let validated = validate(policy, input, ignore_failures)
        .and_then(|failures| Ok((failures, annotate(policy, input, ignore_failures)?)));
    match validated {
        Ok((failures, annotations)) => Outcome {
            failures,
            annotations,
        },
        Err(spent) => Outcome::failed(spent.to_string(), ignore_failures),
    }
}

fn validate(
    policy: &Policy,
    input: &Input,
    ignore_failures: bool,
) -> Result<Vec<(usize, String, String)>, OutOfBudget> {
    let activation = Activation::new(input, &policy.variables);
    let mut budget = Budget::new(limits::RUNTIME_COST_BUDGET);
    let results: Vec<_> = policy
        .validations
        .iter()
        .map(|validation| budget.evaluate(&validation.expression, &activation))
        .collect::<Result<_, _>>()?;
    let messages = messages(policy, input, budget);
    let mut failures = Vec::new();
    for (index, (validation, result)) in policy.validations.iter().zip(results).enumerate() {
        let failure = match (result, &messages) {
            (Err(error), _) if !ignore_failures => Some((error, String::new())),
            (Err(_), _) => None,
            (Ok(_), Err(spent)) if !ignore_failures => {
                Some((format!("failed messageExpression: {spent}"), String::new()))
            }
            (Ok(_), Err(_)) | (Ok(CelValue::Bool(true)), _) => None,
            (Ok(_), Ok(messages)) => {
                let message = message(validation, messages[index].as_deref());
                Some((message, validation.reason.clone()))
            }
        };
        failures.extend(failure.map(|(message, reason)| (index, message, reason)));
    }
    Ok(failures)
}

/// The messages that expressions give, for those validations that have one which can be shown.
fn messages(
    policy: &Policy,
    input: &Input,
    mut budget: Budget,
) -> Result<Vec<Option<String>>, OutOfBudget> {
    let activation = Activation::new(input, &policy.variables);
    policy
        .validations
        .iter()
        .map(|validation| {
            let Some(expression) = &validation.message_expression else {
                return Ok(None);
            };
            let message = match budget.evaluate(expression, &activation)? {
                Ok(CelValue::String(text)) => Some(text.trim().to_owned()),
                Ok(_) => None,
                Err(error) => {
                    tracing::debug!(%error, "a messageExpression failed");
                    None
                }
            };
            Ok(message.filter(|m| {
                !m.is_empty() && m.len() <= limits::MAX_MESSAGE_BYTES && !m.contains('\n')
            }))
        })
        .collect()
}

fn message(validation: &Validation, evaluated: Option<&str>) -> String {
    if let Some(message) = evaluated {
        return message.to_owned();
    }
    match validation.message.trim() {
        "" => format!("failed expression: {}", validation.source.trim()),
        message => message.to_owned(),
    }
}

fn annotate(
    policy: &Policy,
    input: &Input,
    ignore_failures: bool,
) -> Result<Vec<(String, Annotation)>, OutOfBudget> {
    let activation = Activation::new(input, &policy.variables);
    let mut budget = Budget::new(limits::RUNTIME_COST_BUDGET);
    let mut out = Vec::new();
    for annotation in &policy.audit_annotations {
        let value = match budget.evaluate(&annotation.value, &activation)? {
            Ok(CelValue::String(text)) if text.trim().is_empty() => None,
            Ok(CelValue::String(text)) => Some(Annotation::Value(text.trim().to_owned())),
            Ok(CelValue::Null) => None,
            Ok(other) => Some(Annotation::Failed(format!(
                "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                annotation.source,
                other.type_of().runtime_name()
            ))),
            Err(_) if ignore_failures => None,
            Err(error) => Some(Annotation::Failed(error)),
        };
        out.extend(value.map(|value| (annotation.key.clone(), value)));
    }
    Ok(out)
}

/// Does with failures what the binding says.
fn act(attrs: &Attributes, hook: &Hook, binding: &Value, result: &Outcome, verdict: &mut Verdict) {
    let actions = &binding["spec"]["validationActions"];
    for (index, message, reason) in &result.failures {
        for action in actions.as_array().into_iter().flatten() {
            match action.as_str() {
                Some("Deny") => verdict.deny(hook, Some(binding), message.clone(), reason),
                Some("Warn") => attrs.warnings.add(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {message}",
                    meta::name(&hook.policy),
                    meta::name(binding)
                )),
                Some("Audit") => {
                    // In upstream's order, for those who read it as text.
                    let failure = format!(
                        r#"[{{"message":{},"policy":{},"binding":{},"expressionIndex":{index},"validationActions":{actions}}}]"#,
                        json!(message),
                        binding["spec"]["policyName"],
                        json!(meta::name(binding)),
                    );
                    attrs.annotations.add(FAILURE_ANNOTATION, failure);
                }
                _ => {}
            }
        }
    }
}

fn collect<'h>(
    hook: &'h Hook,
    binding: &Value,
    found: Vec<(String, Annotation)>,
    annotations: &mut BTreeMap<&'h str, Vec<String>>,
    verdict: &mut Verdict,
) {
    for (key, annotation) in found {
        match annotation {
            Annotation::Failed(error) => verdict.deny(hook, Some(binding), error, ""),
            Annotation::Value(mut value) => {
                if value.len() > MAX_ANNOTATION_BYTES {
                    let end = value.floor_char_boundary(MAX_ANNOTATION_BYTES);
                    value.truncate(end);
                }
                let own = hook.compiled.audit_annotations.iter();
                let Some(of) = own.map(|a| a.key.as_str()).find(|own| *own == key) else {
                    continue;
                };
                let values = annotations.entry(of).or_default();
                if !values.contains(&value) {
                    values.push(value);
                }
            }
        }
    }
}
