//! Conditions under which an authorization webhook is asked: expressions about the `request`, the
//! spec of a SubjectAccessReview.

use std::sync::{Arc, LazyLock};

use keelson_cel::{
    DeclType, Declarations, Environment, Expression, Type, Value as CelValue, Variables, Version,
    limits,
};
use keelson_kinds::expressions;
use keelson_kinds::expressions::declare::{map_of, object, text, texts};
use serde_json::{Map, Value, json};

const REQUEST: &str = "request";
const FIELD_SELECTOR: &str = "fieldSelector";
const LABEL_SELECTOR: &str = "labelSelector";

static ENVIRONMENT: LazyLock<Environment> = LazyLock::new(|| {
    let request = request_type();
    Environment::builder(Version::STORED_EXPRESSIONS)
        .variable(REQUEST, request.ty.clone())
        .provider(Arc::new(
            Declarations::new([&request]).with_keywords_as_fields(),
        ))
        .build()
});

fn request_type() -> DeclType {
    let requirement = object(
        "kubernetes.SelectorRequirement",
        [("key", text()), ("operator", text()), ("values", texts())],
    );
    let selector = |name: &str| {
        let requirements = DeclType::list(Arc::new(requirement.clone()), -1);
        object(
            name,
            [("rawSelector", text()), ("requirements", requirements)],
        )
    };
    let resource = object(
        "kubernetes.ResourceAttributes",
        [
            ("namespace", text()),
            ("verb", text()),
            ("group", text()),
            ("version", text()),
            ("resource", text()),
            ("subresource", text()),
            ("name", text()),
            (
                FIELD_SELECTOR,
                selector("kubernetes.FieldSelectorAttributes"),
            ),
            (
                LABEL_SELECTOR,
                selector("kubernetes.LabelSelectorAttributes"),
            ),
        ],
    );
    let other = object(
        "kubernetes.NonResourceAttributes",
        [("path", text()), ("verb", text())],
    );
    object(
        "kubernetes.SubjectAccessReviewSpec",
        [
            ("resourceAttributes", resource),
            ("nonResourceAttributes", other),
            ("user", text()),
            ("groups", texts()),
            ("extra", map_of(texts())),
            ("uid", text()),
        ],
    )
}

/// Compiles one condition; the error is the text that upstream shows.
pub(super) fn compile(source: &str) -> Result<Expression, String> {
    let expression = expressions::compile(&ENVIRONMENT, source, &[Type::Bool])?;
    match expression.instantiation_error() {
        None => Ok(expression),
        Some(error) => Err(format!("program instantiation failed: {error}")),
    }
}

/// The conditions of one webhook.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    expressions: Vec<Expression>,
    field_selector: bool,
    label_selector: bool,
}

impl Conditions {
    pub(super) fn new(expressions: Vec<Expression>) -> Self {
        let uses = |field: &str| expressions.iter().any(|e| e.selects(None, field));
        Self {
            field_selector: uses(FIELD_SELECTOR),
            label_selector: uses(LABEL_SELECTOR),
            expressions,
        }
    }

    /// Whether all conditions hold for a review's spec. One that is false decides; otherwise an
    /// error does.
    pub(super) fn hold(&self, spec: &Value) -> Result<bool, String> {
        if self.expressions.is_empty() {
            return Ok(true);
        }
        let request = self.visible(spec);
        let request = CelValue::from_json(&request, None).map_err(|e| e.to_string())?;
        let variables = Variables::new().with(REQUEST, request);
        let mut errors: Vec<String> = Vec::new();
        for expression in &self.expressions {
            let evaluation = expression.eval(&variables, limits::PER_CALL_LIMIT);
            match evaluation.result {
                Ok(CelValue::Bool(false)) => return Ok(false),
                Ok(CelValue::Bool(true)) => {}
                Ok(_) => errors.push(format!(
                    "cel evaluation error: expression '{}' eval result type should be bool",
                    expression.source()
                )),
                Err(error) => errors.push(format!(
                    "cel evaluation error: expression '{}' resulted in error: {error}",
                    expression.source()
                )),
            }
        }
        match errors.as_slice() {
            [] => Ok(true),
            [one] => Err(one.clone()),
            several => Err(format!("[{}]", several.join(", "))),
        }
    }

    /// Every attribute that is a text is there, even empty; selectors only for who looks at them.
    fn visible(&self, spec: &Value) -> Value {
        let or = |value: &Value, other: Value| {
            if value.is_null() {
                other
            } else {
                value.clone()
            }
        };
        let mut out = json!({
            "user": or(&spec["user"], json!("")),
            "uid": or(&spec["uid"], json!("")),
            "groups": or(&spec["groups"], json!([])),
            "extra": or(&spec["extra"], json!({})),
        });
        let attributes = |given: &Value, names: &[&str]| -> Map<String, Value> {
            let of = |name: &&str| ((*name).to_owned(), or(&given[*name], json!("")));
            names.iter().map(of).collect()
        };
        let resource = &spec["resourceAttributes"];
        if resource.is_object() {
            let names = [
                "namespace",
                "verb",
                "group",
                "version",
                "resource",
                "subresource",
                "name",
            ];
            let mut visible = attributes(resource, &names);
            for (name, used) in [
                (FIELD_SELECTOR, self.field_selector),
                (LABEL_SELECTOR, self.label_selector),
            ] {
                if let Some(selector) = resource.get(name).filter(|_| used) {
                    visible.insert(name.to_owned(), selector.clone());
                }
            }
            out["resourceAttributes"] = Value::Object(visible);
        }
        let other = &spec["nonResourceAttributes"];
        if other.is_object() {
            out["nonResourceAttributes"] = Value::Object(attributes(other, &["verb", "path"]));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(sources: &[&str], spec: &Value) -> Result<bool, String> {
        let compiled = sources.iter().map(|s| compile(s).unwrap()).collect();
        Conditions::new(compiled).hold(spec)
    }

    #[test]
    fn a_condition_that_is_false_decides_before_an_error() {
        let spec = json!({"user": "jane", "resourceAttributes": {"verb": "list", "resource": "pods",
            "labelSelector": {"requirements": [{"key": "a", "operator": "In", "values": ["b"]}]}}});
        let table: [(&[&str], Result<bool, &str>); 6] = [
            (&[], Ok(true)),
            (
                &["has(request.resourceAttributes)", "request.user == 'jane'"],
                Ok(true),
            ),
            // Attributes that are texts are always there, what is asked about is not.
            (
                &[
                    "request.resourceAttributes.namespace == ''",
                    "request.groups.size() == 0",
                ],
                Ok(true),
            ),
            (
                &["request.resourceAttributes.labelSelector.requirements[0].values == ['b']"],
                Ok(true),
            ),
            (
                &[
                    "request.nonResourceAttributes.path == '/x'",
                    "request.user == 'joe'",
                ],
                Ok(false),
            ),
            (
                &["request.nonResourceAttributes.path == '/x'"],
                Err(
                    "cel evaluation error: expression 'request.nonResourceAttributes.path == '/x'' resulted in error: no such key: nonResourceAttributes",
                ),
            ),
        ];
        for (sources, expected) in table {
            let expected = expected.map_err(ToOwned::to_owned);
            assert_eq!(hold(sources, &spec), expected, "{sources:?}");
        }
    }

    #[test]
    fn conditions_are_typed() {
        assert_eq!(
            compile("request.user").unwrap_err(),
            "must evaluate to bool but got string"
        );
        assert!(
            compile("request.usr == 'x'")
                .unwrap_err()
                .contains("undefined field 'usr'")
        );
    }
}
