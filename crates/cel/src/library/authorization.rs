//! Authorization checks.
//!
//! Checks are put together step by step; the last step asks the [`Authorizer`] that the
//! activation's `authorizer` variable holds.

use super::Row;
use super::declare::Binding::Own;
use crate::authorizer::{Attributes, Authorizer, Decision};
use crate::value::{EvalError, Opaque, Value, ValueResult};
use keelson_machinery::validation::{is_dns1123_label, is_dns1123_subdomain};
use std::any::Any;
use std::sync::Arc;

const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
const PATH_CHECK: &str = "kubernetes.authorization.PathCheck";
const GROUP_CHECK: &str = "kubernetes.authorization.GroupCheck";
const RESOURCE_CHECK: &str = "kubernetes.authorization.ResourceCheck";
const DECISION: &str = "kubernetes.authorization.Decision";

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row("path", "authorizer_path", "kubernetes.authorization.Authorizer.(string) -> kubernetes.authorization.PathCheck", Own(path)),
    Row("group", "authorizer_group", "kubernetes.authorization.Authorizer.(string) -> kubernetes.authorization.GroupCheck", Own(group)),
    Row("serviceAccount", "authorizer_serviceaccount", "kubernetes.authorization.Authorizer.(string, string) -> kubernetes.authorization.Authorizer", Own(service_account)),
    Row("resource", "groupcheck_resource", "kubernetes.authorization.GroupCheck.(string) -> kubernetes.authorization.ResourceCheck", Own(resource)),
    Row("subresource", "resourcecheck_subresource", "kubernetes.authorization.ResourceCheck.(string) -> kubernetes.authorization.ResourceCheck", Own(subresource)),
    Row("namespace", "resourcecheck_namespace", "kubernetes.authorization.ResourceCheck.(string) -> kubernetes.authorization.ResourceCheck", Own(namespace)),
    Row("name", "resourcecheck_name", "kubernetes.authorization.ResourceCheck.(string) -> kubernetes.authorization.ResourceCheck", Own(name)),
    Row("check", "pathcheck_check", "kubernetes.authorization.PathCheck.(string) -> kubernetes.authorization.Decision", Own(check)),
    Row("check", "resourcecheck_check", "kubernetes.authorization.ResourceCheck.(string) -> kubernetes.authorization.Decision", Own(check)),
    Row("errored", "decision_errored", "kubernetes.authorization.Decision.() -> bool", Own(errored)),
    Row("error", "decision_error", "kubernetes.authorization.Decision.() -> string", Own(error)),
    Row("allowed", "decision_allowed", "kubernetes.authorization.Decision.() -> bool", Own(allowed)),
    Row("reason", "decision_reason", "kubernetes.authorization.Decision.() -> string", Own(reason)),
];

#[rustfmt::skip]
pub(super) const SELECTOR_ROWS: &[Row] = &[
    Row("fieldSelector", "authorizer_fieldselector", "kubernetes.authorization.ResourceCheck.(string) -> kubernetes.authorization.ResourceCheck", Own(field_selector)),
    Row("labelSelector", "authorizer_labelselector", "kubernetes.authorization.ResourceCheck.(string) -> kubernetes.authorization.ResourceCheck", Own(label_selector)),
];

/// A check under construction; its stage is its type.
#[derive(Debug, Clone)]
struct Check {
    stage: &'static str,
    authorizer: Arc<dyn Authorizer>,
    attributes: Attributes,
}

#[derive(Debug, Clone, PartialEq)]
struct Decided(Decision);

impl Opaque for Check {
    fn type_name(&self) -> &str {
        self.stage
    }

    fn equals(&self, other: &dyn Opaque) -> bool {
        let other = other.as_any().downcast_ref::<Check>();
        other.is_some_and(|o| o.stage == self.stage && o.attributes == self.attributes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Opaque for Decided {
    fn type_name(&self) -> &str {
        DECISION
    }

    fn equals(&self, other: &dyn Opaque) -> bool {
        other.as_any().downcast_ref::<Decided>() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl<'v> Value<'v> {
    /// The `authorizer` variable, of the type `kubernetes.authorization.Authorizer`.
    pub fn authorizer(authorizer: Arc<dyn Authorizer>) -> Value<'v> {
        Value::opaque(Check {
            stage: AUTHORIZER,
            authorizer,
            attributes: Attributes::default(),
        })
    }

    /// The `authorizer.requestResource` variable, of the type
    /// `kubernetes.authorization.ResourceCheck`: a check of the request's own resource.
    pub fn resource_check(authorizer: Arc<dyn Authorizer>, attributes: Attributes) -> Value<'v> {
        Value::opaque(Check {
            stage: RESOURCE_CHECK,
            authorizer,
            attributes,
        })
    }
}

fn text(args: &[Value<'_>], i: usize) -> String {
    let text = args.get(i).and_then(Value::as_str);
    text.unwrap_or_default().to_owned()
}

/// The check with something added.
fn with<'v>(
    args: &[Value<'v>],
    stage: &'static str,
    change: impl FnOnce(&mut Attributes),
) -> ValueResult<'v> {
    let check: &Check = args[0].downcast().ok_or_else(EvalError::no_such_overload)?;
    let mut check = check.clone();
    check.stage = stage;
    change(&mut check.attributes);
    Ok(Value::opaque(check))
}

fn path<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let path = text(args, 1);
    if path.trim().is_empty() {
        return Err(EvalError::new("path must not be empty"));
    }
    with(args, PATH_CHECK, |a| a.path = Some(path))
}

fn group<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    with(args, GROUP_CHECK, |a| a.group = text(args, 1))
}

fn service_account<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let (namespace, name) = (text(args, 1), text(args, 2));
    if !is_dns1123_subdomain(&name).is_empty() {
        return Err(EvalError::new("Invalid service account name"));
    }
    if !is_dns1123_label(&namespace).is_empty() {
        return Err(EvalError::new("Invalid service account namespace"));
    }
    with(args, AUTHORIZER, |a| {
        a.service_account = Some((namespace, name));
    })
}

fn resource<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let resource = text(args, 1);
    if resource.trim().is_empty() {
        return Err(EvalError::new("resource must not be empty"));
    }
    with(args, RESOURCE_CHECK, |a| a.resource = resource)
}

fn subresource<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    with(args, RESOURCE_CHECK, |a| a.subresource = text(args, 1))
}

fn namespace<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    with(args, RESOURCE_CHECK, |a| a.namespace = text(args, 1))
}

fn name<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    with(args, RESOURCE_CHECK, |a| a.name = text(args, 1))
}

fn field_selector<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let selector = Some(text(args, 1)).filter(|s| !s.is_empty());
    with(args, RESOURCE_CHECK, |a| a.field_selector = selector)
}

fn label_selector<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let selector = Some(text(args, 1)).filter(|s| !s.is_empty());
    with(args, RESOURCE_CHECK, |a| a.label_selector = selector)
}

fn check<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let check: &Check = args[0].downcast().ok_or_else(EvalError::no_such_overload)?;
    let mut attributes = check.attributes.clone();
    attributes.verb = text(args, 1);
    Ok(Value::opaque(Decided(
        check.authorizer.authorize(&attributes),
    )))
}

fn decision<'a>(args: &'a [Value<'_>]) -> Result<&'a Decision, EvalError> {
    match args[0].downcast::<Decided>() {
        Some(decided) => Ok(&decided.0),
        None => Err(EvalError::no_such_overload()),
    }
}

fn errored<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Bool(decision(args)?.error.is_some()))
}

fn error<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let error = decision(args)?.error.as_deref();
    Ok(Value::string(error.unwrap_or_default()))
}

fn allowed<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Bool(decision(args)?.allowed))
}

fn reason<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::string(&decision(args)?.reason))
}
