//! What a mutation's expression makes of an object.

use keelson_cel::{List, Map, Object, Value as CelValue, limits};
use keelson_machinery::{apply, meta, patch};
use serde_json::{Value, json};

use super::compiled::Mutation;
use crate::admission::Cluster;
use crate::admission::expressions::{Activation, Budget, Compiled, Input, Variables};
use crate::admission::matching::Form;

/// The object after the mutation, not yet completed with defaults.
pub(super) fn apply(
    mutation: &Mutation,
    variables: &Variables,
    input: &Input,
    cluster: &Cluster,
    form: &Form,
) -> Result<Value, String> {
    let object = input.object.as_deref().unwrap_or(&Value::Null);
    match mutation {
        Mutation::ApplyConfiguration(expression) => {
            let value = evaluate(expression, variables, input)?;
            let mut config = configuration(&value)?;
            meta::set_type(&mut config, meta::api_version(object), meta::kind(object));
            merge(cluster, form, object, &config)
        }
        Mutation::JsonPatch(expression) => {
            let value = evaluate(expression, variables, input)?;
            let operations = operations(&value)?;
            patched(object, &operations)
        }
    }
}

fn evaluate<'v>(
    expression: &Compiled,
    variables: &'v Variables,
    input: &'v Input,
) -> Result<CelValue<'v>, String> {
    if let Err(detail) = expression {
        return Err(detail.clone());
    }
    let activation = Activation::new(input, variables);
    Budget::new(limits::RUNTIME_COST_BUDGET)
        .evaluate(expression, &activation)
        .map_err(|spent| spent.to_string())?
}

fn configuration(value: &CelValue<'_>) -> Result<Value, String> {
    let CelValue::Object(_) = value else {
        return Err(format!(
            "unsupported return type from ApplyConfiguration expression: {}",
            value.type_of().runtime_name()
        ));
    };
    check_names(value)?;
    value.to_json().map_err(|error| error.to_string())
}

fn merge(cluster: &Cluster, form: &Form, object: &Value, config: &Value) -> Result<Value, String> {
    let of_resource = cluster
        .objects
        .resource_of_kind(&form.kind_group, &form.kind_version, &form.kind)
        .map(|entry| entry.schema.clone());
    let schema = of_resource.or_else(|| {
        keelson_api::kind_type(&form.kind_group, &form.kind_version, &form.kind)
            .and_then(keelson_api::schema)
            .map(keelson_api::SchemaRef::Static)
    });
    let schema = schema.ok_or_else(|| {
        format!(
            "Resource kind {}/{}, Kind={} not found. There can be a delay between when CustomResourceDefinitions are created and when they are available.",
            form.kind_group, form.kind_version, form.kind
        )
    })?;
    apply::merge_mutation(object, config, &schema)
        .map_err(|error| format!("error applying patch: {error}"))
}

fn operations(value: &CelValue<'_>) -> Result<Value, String> {
    let CelValue::List(List::Values(items)) = value else {
        return match value {
            CelValue::List(List::Json([], _)) => Ok(json!([])),
            _ => Err("type mismatch: JSONPatchType.expression should evaluate to array".to_owned()),
        };
    };
    items.iter().map(operation).collect()
}

fn operation(item: &CelValue<'_>) -> Result<Value, String> {
    let CelValue::Object(operation) = item else {
        return Err(
            "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch"
                .to_owned(),
        );
    };
    let mut out = json!({"op": "", "path": ""});
    for (name, value) in &operation.fields {
        if &**name == "value" {
            check_names(value)?;
            out["value"] = value.to_json().map_err(|error| {
                format!("JSONPath valueExpression evaluated to a type that could not marshal to JSON: {error}")
            })?;
        } else if let CelValue::String(text) = value {
            out[&**name] = json!(text.as_str());
        }
    }
    Ok(out)
}

fn patched(object: &Value, operations: &Value) -> Result<Value, String> {
    match patch::json::apply(object.clone(), operations) {
        Ok(after) => Ok(after),
        // What a test operation is not content with stays as it is.
        Err(patch::PatchError::TestFailed(_)) => Ok(object.clone()),
        Err(error) => Err(format!("JSON Patch: {error}")),
    }
}

/// `Object.spec{…}` may only stand where `spec` of an `Object` is.
fn check_names(value: &CelValue<'_>) -> Result<(), String> {
    let CelValue::Object(root) = value else {
        return Ok(());
    };
    let mut errors = Vec::new();
    check_object(root, &mut root.type_name.to_string(), &mut errors);
    if errors.is_empty() {
        Ok(())
    } else {
        Err(format!("type mismatch: {}", errors.join("\n")))
    }
}

fn check_object(object: &Object<'_>, path: &mut String, errors: &mut Vec<String>) {
    if &*object.type_name != path.as_str() {
        errors.push(format!(
            "unexpected type name {:?}, expected {path:?}, which matches field name path from root Object type",
            &*object.type_name
        ));
    }
    let length = path.len();
    for (name, value) in &object.fields {
        path.push('.');
        path.push_str(name);
        check_value(value, path, errors);
        path.truncate(length);
    }
}

fn check_value(value: &CelValue<'_>, path: &mut String, errors: &mut Vec<String>) {
    match value {
        CelValue::Object(object) => check_object(object, path, errors),
        CelValue::List(List::Values(items)) => {
            items
                .iter()
                .for_each(|item| check_value(item, path, errors));
        }
        CelValue::Map(Map::Values(map)) => map
            .entries()
            .iter()
            .for_each(|(_, value)| check_value(value, path, errors)),
        _ => {}
    }
}
