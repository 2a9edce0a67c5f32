//! Running expressions about a request: their variables, their budget, and conditions made of
//! them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use keelson_cel::{self as cel, Expression, Value as CelValue, ValueResult, limits};
use keelson_kinds::expressions::admission::{
    AUTHORIZER, NAMESPACE, OBJECT, OLD_OBJECT, PARAMS, REQUEST, REQUEST_RESOURCE, VARIABLES,
};
use keelson_machinery::meta;
use serde_json::{Map, Value, json};
use tokio::runtime::{Handle, RuntimeFlavor};

use super::matching::{Form, Versioned};
use super::{Attributes, Cluster};
use crate::authz::{Attributes as Question, Authorizer, Decision, Verdict};
use crate::request::UserInfo;

const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// An expression of a stored object, or why it does not compile.
pub(super) type Compiled = Result<Expression, String>;

/// Variables of a policy by name.
pub(super) type Variables = BTreeMap<String, Compiled>;

/// What the expressions of one webhook or policy are about.
pub(super) struct Input {
    pub object: Option<Arc<Value>>,
    pub old_object: Option<Arc<Value>>,
    pub request: Value,
    /// Null for what lies in no namespace.
    pub namespace: Value,
    pub params: Option<Arc<Value>>,
    authorizer: Arc<RequestAuthorizer>,
    resource: cel::Attributes,
}

impl Input {
    pub(super) fn new(
        attrs: &Attributes,
        cluster: &Cluster,
        form: &Form,
        objects: Versioned,
    ) -> Self {
        Self {
            object: objects.object,
            old_object: objects.old_object,
            request: request(attrs, form),
            namespace: Value::Null,
            params: None,
            authorizer: Arc::new(RequestAuthorizer {
                authorizer: Arc::clone(&cluster.authorizer),
                user: Arc::clone(&attrs.user),
            }),
            resource: cel::Attributes {
                group: attrs.group.clone(),
                resource: attrs.resource.clone(),
                subresource: attrs.subresource.clone(),
                namespace: attrs.namespace.clone(),
                name: attrs.name.clone(),
                ..cel::Attributes::default()
            },
        }
    }

    pub(super) fn with_namespace(mut self, namespace: Option<&Value>) -> Self {
        self.namespace = namespace.map_or(Value::Null, visible_namespace);
        self
    }

    pub(super) fn with_params(mut self, params: Option<Arc<Value>>) -> Self {
        self.params = params;
        self
    }
}

/// `request`: an AdmissionRequest without the objects, which are variables of their own.
fn request(attrs: &Attributes, form: &Form) -> Value {
    let requested = Form::requested(attrs);
    let mut user = attrs.user.to_json();
    if attrs.user.groups.is_empty() {
        meta::as_map(&mut user).remove("groups");
    }
    let mut out = json!({
        "uid": "",
        "kind": form.kind_json(), "resource": form.resource_json(),
        "requestKind": requested.kind_json(), "requestResource": requested.resource_json(),
        "operation": attrs.operation.as_str(),
        "userInfo": user,
        "dryRun": attrs.dry_run,
        "options": attrs.options,
        "object": null,
        "oldObject": null,
    });
    for (key, value) in [
        ("name", &attrs.name),
        ("namespace", &attrs.namespace),
        ("subResource", &attrs.subresource),
        ("requestSubResource", &attrs.subresource),
    ] {
        if !value.is_empty() {
            out[key] = json!(value);
        }
    }
    out
}

/// The fields of a namespace that expressions see.
fn visible_namespace(namespace: &Value) -> Value {
    const VISIBLE: &[&str] = &[
        "name",
        "generateName",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "labels",
        "annotations",
        "finalizers",
    ];
    let metadata: Map<String, Value> = namespace["metadata"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| VISIBLE.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let part = |key: &str| namespace.get(key).cloned().unwrap_or_else(|| json!({}));
    json!({"metadata": metadata, "spec": part("spec"), "status": part("status")})
}

/// Asks the server's authorizer on behalf of the requesting user, or of a service account.
#[derive(Clone)]
struct RequestAuthorizer {
    authorizer: Arc<Authorizer>,
    user: Arc<UserInfo>,
}

impl std::fmt::Debug for RequestAuthorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RequestAuthorizer({})", self.user.username)
    }
}

impl cel::Authorizer for RequestAuthorizer {
    fn authorize(&self, asked: &cel::Attributes) -> cel::Decision {
        let account = asked.service_account.as_ref();
        let account = account.map(|(namespace, name)| UserInfo::service_account(namespace, name));
        let user = account.as_ref().unwrap_or(&self.user);
        let question = Question {
            version: "*",
            subresource: &asked.subresource,
            is_resource: asked.path.is_none(),
            path: asked.path.as_deref().unwrap_or_default(),
            ..Question::resource(
                user,
                &asked.verb,
                &asked.group,
                &asked.resource,
                &asked.namespace,
                &asked.name,
            )
        };
        match decide(&self.authorizer, &question) {
            Ok(verdict) => {
                let (allowed, reason) = match verdict.decision {
                    Decision::Allow(reason) => (true, reason),
                    Decision::Deny(reason) | Decision::NoOpinion(reason) => (false, reason),
                };
                cel::Decision {
                    allowed,
                    reason,
                    error: verdict.error,
                }
            }
            Err(error) => cel::Decision {
                error: Some(error),
                ..cel::Decision::default()
            },
        }
    }
}

/// Expressions do not wait. An authorizer that does (a webhook) is waited for on a thread that the
/// runtime replaces meanwhile.
fn decide(authorizer: &Authorizer, question: &Question<'_>) -> Result<Verdict, String> {
    if let Some(verdict) = authorizer.authorize(question).now_or_never() {
        return Ok(verdict);
    }
    let handle = Handle::try_current().map_err(|error| error.to_string())?;
    if handle.runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Err("authorization webhooks need a runtime of several threads".to_owned());
    }
    Ok(tokio::task::block_in_place(|| {
        handle.block_on(authorizer.authorize(question))
    }))
}

/// The variables of a group of expressions, each computed when first asked for.
pub(super) struct Activation<'v> {
    input: &'v Input,
    variables: &'v Variables,
    known: RefCell<BTreeMap<String, ValueResult<'v>>>,
    /// What variables cost since it was asked last.
    spent: Cell<u64>,
}

impl<'v> Activation<'v> {
    pub(super) fn new(input: &'v Input, variables: &'v Variables) -> Self {
        Self {
            input,
            variables,
            known: RefCell::default(),
            spent: Cell::new(0),
        }
    }
}

impl<'v> cel::Activation<'v> for Activation<'v> {
    fn resolve(&self, name: &str) -> Option<ValueResult<'v>> {
        let object = |object: &'v Option<Arc<Value>>| match object {
            Some(object) => CelValue::from_json(object, None),
            None => Ok(CelValue::Null),
        };
        match name {
            OBJECT => Some(object(&self.input.object)),
            OLD_OBJECT => Some(object(&self.input.old_object)),
            PARAMS => Some(object(&self.input.params)),
            REQUEST => Some(CelValue::from_json(&self.input.request, None)),
            NAMESPACE => Some(CelValue::from_json(&self.input.namespace, None)),
            AUTHORIZER => {
                let authorizer: Arc<dyn cel::Authorizer> = self.input.authorizer.clone();
                Some(Ok(CelValue::authorizer(authorizer)))
            }
            REQUEST_RESOURCE => {
                let authorizer: Arc<dyn cel::Authorizer> = self.input.authorizer.clone();
                Some(Ok(CelValue::resource_check(
                    authorizer,
                    self.input.resource.clone(),
                )))
            }
            VARIABLES => Some(Ok(CelValue::Lazy(VARIABLES.into()))),
            _ => None,
        }
    }

    fn resolve_field(&self, object: &str, name: &str) -> Option<ValueResult<'v>> {
        if object != VARIABLES {
            return None;
        }
        if let Some(known) = self.known.borrow().get(name) {
            return Some(known.clone());
        }
        let value = match self.variables.get(name)? {
            Ok(expression) => {
                let evaluation = expression.eval(self, limits::PER_CALL_LIMIT);
                self.spent
                    .set(self.spent.get().saturating_add(evaluation.cost));
                evaluation.result.map_err(|error| {
                    format!("composited variable {name:?} fails to evaluate: {error}")
                })
            }
            Err(detail) => Err(format!(
                "composited variable {name:?} fails to compile: {detail}"
            )),
        };
        let value = value.map_err(cel::EvalError::new);
        self.known
            .borrow_mut()
            .insert(name.to_owned(), value.clone());
        Some(value)
    }
}

/// What a group of expressions may still cost.
pub(super) struct Budget(u64);

/// The budget is spent; no expression of the group is run any more.
#[derive(Debug, thiserror::Error)]
#[error("{OUT_OF_BUDGET}")]
pub(super) struct OutOfBudget;

impl Budget {
    pub(super) fn new(limit: u64) -> Self {
        Self(limit)
    }

    /// The value of an expression, or the text of why it has none.
    pub(super) fn evaluate<'v>(
        &mut self,
        compiled: &Compiled,
        activation: &Activation<'v>,
    ) -> Result<Result<CelValue<'v>, String>, OutOfBudget> {
        let expression = match compiled {
            Ok(expression) => expression,
            Err(detail) => return Ok(Err(format!("compilation error: {detail}"))),
        };
        let evaluation = expression.eval(activation, limits::PER_CALL_LIMIT);
        self.charge(activation.spent.take())?;
        self.charge(evaluation.cost)?;
        Ok(evaluation.result.map_err(|error| {
            format!(
                "expression '{}' resulted in error: {error}",
                expression.source()
            )
        }))
    }

    fn charge(&mut self, cost: u64) -> Result<(), OutOfBudget> {
        self.0 = self.0.checked_sub(cost).ok_or(OutOfBudget)?;
        Ok(())
    }
}

/// Whether all conditions hold. One that is false decides; otherwise an error does, by the failure
/// policy.
pub(super) fn conditions_hold(
    conditions: &[Compiled],
    input: &Input,
    variables: &Variables,
    ignore_failures: bool,
) -> Result<bool, String> {
    let activation = Activation::new(input, variables);
    let mut budget = Budget::new(limits::MATCH_CONDITIONS_BUDGET);
    let mut errors = Vec::new();
    for condition in conditions {
        match budget.evaluate(condition, &activation) {
            Ok(Ok(CelValue::Bool(false))) => return Ok(false),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => errors.push(error),
            Err(OutOfBudget) if ignore_failures => return Ok(false),
            Err(spent) => return Err(spent.to_string()),
        }
    }
    if errors.is_empty() {
        return Ok(true);
    }
    if ignore_failures {
        return Ok(false);
    }
    Err(match errors.as_slice() {
        [one] => one.clone(),
        _ => format!("[{}]", errors.join(", ")),
    })
}
