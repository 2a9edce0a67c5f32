//! `x-kubernetes-validations`: rules of custom objects written as expressions, run over an object
//! and what it was before an update.

use std::collections::BTreeMap;

use crate::expressions::rule::{self, CompiledRule, OLD_SELF, SELF, Stored};
use keelson_cel::{
    Activation, DeclKind, DeclType, ErrorKind, EvalError, Evaluation, Expression, Schema,
    Value as CelValue, ValueResult, escape, limits,
};
use keelson_machinery::field::{ErrorList, FieldError, Path};
use serde_json::Value;

/// The rules of a schema and of those inside of it; parts without any are left out.
#[derive(Debug)]
pub struct Expressions {
    rules: Result<Vec<CompiledRule>, String>,
    /// How expressions see the value.
    schema: Schema,
    items: Option<Box<Expressions>>,
    additional: Option<Box<Expressions>>,
    properties: BTreeMap<String, Expressions>,
    all_of: Vec<Expressions>,
    /// Keys by which items are matched with those before; empty for lists of other types.
    keys: Vec<String>,
}

impl Expressions {
    /// Nothing when no rule stands in the schema of a custom resource.
    pub fn new(openapi: &Value) -> Option<Self> {
        Self::of(openapi, true)
    }

    /// As [`Expressions::new`] for a part of such a schema.
    pub fn of_part(openapi: &Value) -> Option<Self> {
        Self::of(openapi, openapi["x-kubernetes-embedded-resource"] == true)
    }

    fn of(openapi: &Value, is_object: bool) -> Option<Self> {
        if !openapi.is_object() {
            return None;
        }
        let schema = Schema::from_openapi(openapi);
        let declared = DeclType::from_schema(&schema, is_object);
        build(openapi, openapi, &schema, declared.as_ref(), is_object)
    }

    /// The errors of a new object, or of an update.
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Report {
        let matched = Matched {
            own: old.map(|old| (object, old)),
            parent: None,
        };
        self.run(object, old, matched)
    }

    /// As [`Expressions::validate`], but what was wrong before is wrong now too.
    pub fn validate_strictly(&self, object: &Value, old: Option<&Value>) -> ErrorList {
        self.run(object, old, Matched::NOT).errors
    }

    fn run<'v>(
        &'v self,
        object: &'v Value,
        old: Option<&'v Value>,
        matched: Matched<'v>,
    ) -> Report {
        let mut run = Run {
            budget: limits::RUNTIME_COST_BUDGET,
            report: Report::default(),
        };
        // Who runs out of budget has said so in the report.
        let _ = run.node(self, object, old, matched, &Path::root());
        run.report
    }
}

/// What rules say of an object.
#[derive(Debug, Default)]
pub struct Report {
    pub errors: ErrorList,
    /// Of parts that were wrong before and did not change.
    pub ratcheted: ErrorList,
}

/// `rules` holds the rules (it differs from `node` under allOf), `node` the shape.
fn build(
    rules: &Value,
    node: &Value,
    schema: &Schema,
    declared: Option<&DeclType>,
    root: bool,
) -> Option<Expressions> {
    let compiled = compiled(rules, node, declared);
    let element = declared.and_then(|declared| match &declared.kind {
        DeclKind::List(of) | DeclKind::Map(_, of) => Some(&**of),
        _ => None,
    });
    let inside = |key: &str, schema: &Option<Box<Schema>>| {
        let (rules, node) = (&rules[key], &node[key]);
        let schema = schema.as_deref()?;
        if !rules.is_object() || !node.is_object() {
            return None;
        }
        build(rules, node, schema, element, schema.embedded_resource).map(Box::new)
    };
    let mut out = Expressions {
        items: inside("items", &schema.items),
        additional: inside("additionalProperties", &schema.additional_properties),
        properties: properties(rules, node, schema, declared),
        all_of: Vec::new(),
        keys: if schema.list_type == "map" {
            schema.list_map_keys.clone()
        } else {
            Vec::new()
        },
        schema: if root {
            schema.with_type_and_object_meta()
        } else {
            schema.clone()
        },
        rules: compiled,
    };
    let branches = rules["allOf"].as_array().into_iter().flatten();
    out.all_of = branches
        .filter_map(|branch| build(branch, node, schema, declared, root))
        .collect();
    let empty = out.rules.as_ref().is_ok_and(Vec::is_empty)
        && out.items.is_none()
        && out.additional.is_none()
        && out.properties.is_empty()
        && out.all_of.is_empty();
    (!empty).then_some(out)
}

fn compiled(
    rules: &Value,
    node: &Value,
    declared: Option<&DeclType>,
) -> Result<Vec<CompiledRule>, String> {
    let sources = rule::rules_of(rules);
    if sources.is_empty() {
        return Ok(Vec::new());
    }
    match declared {
        Some(declared) => Ok(rule::compile(sources, node, declared, &Stored)),
        None => Err("failed to convert to declType for CEL validation rules".to_owned()),
    }
}

fn properties(
    rules: &Value,
    node: &Value,
    schema: &Schema,
    declared: Option<&DeclType>,
) -> BTreeMap<String, Expressions> {
    let mut out = BTreeMap::new();
    let (Some(of_rules), Some(shapes)) = (rules["properties"].as_object(), &schema.properties)
    else {
        return out;
    };
    for (name, rules) in of_rules {
        let Some(schema) = shapes.get(name) else {
            continue;
        };
        let own;
        let declared = match escape(name) {
            Some(escaped) => match declared.map(|declared| &declared.kind) {
                // A field of an unknown type is left out of rules altogether.
                Some(DeclKind::Object(fields)) => match fields.get(&escaped) {
                    Some(field) => &*field.ty,
                    None => continue,
                },
                _ => continue,
            },
            // Rules above cannot name it, its own see what it is.
            None => match DeclType::from_schema(schema, schema.embedded_resource) {
                Some(found) => {
                    own = found;
                    &own
                }
                None => continue,
            },
        };
        let node = &node["properties"][name];
        if let Some(found) = build(
            rules,
            node,
            schema,
            Some(declared),
            schema.embedded_resource,
        ) {
            out.insert(name.clone(), found);
        }
    }
    out
}

/// A value together with what it was, as far as the two can be matched.
#[derive(Clone, Copy)]
struct Matched<'a> {
    own: Option<(&'a Value, &'a Value)>,
    /// The nearest part above that could be matched, where this one cannot.
    parent: Option<(&'a Value, &'a Value)>,
}

impl<'a> Matched<'a> {
    const NOT: Self = Self {
        own: None,
        parent: None,
    };

    /// What fails now failed before as well, since nothing changed.
    fn is_unchanged(&self) -> bool {
        self.own
            .or(self.parent)
            .is_some_and(|(new, old)| new == old)
    }

    fn below(
        self,
        find: impl FnOnce(&'a Value, &'a Value) -> Option<(&'a Value, &'a Value)>,
    ) -> Self {
        match self.own {
            Some((new, old)) => Self {
                own: find(new, old),
                parent: self.own,
            },
            None => self,
        }
    }

    fn key(self, name: &str) -> Self {
        let of_type = matches!(name, "apiVersion" | "kind");
        if self.own.is_some() && self.parent.is_none() && of_type {
            // Both objects were converted to one version, whatever they were.
            return Self::NOT;
        }
        self.below(|new, old| Some((new.get(name)?, old.get(name)?)))
    }

    fn index(self, index: usize, keys: &[String]) -> Self {
        self.below(|new, old| {
            let item = new.get(index)?;
            Some((item, with_keys(keys, old, item)?))
        })
    }
}

/// The item of a list of type map that has the same keys.
fn with_keys<'a>(keys: &[String], list: &'a Value, item: &Value) -> Option<&'a Value> {
    if keys.is_empty() {
        return None;
    }
    let same = |old: &&Value| {
        keys.iter().all(|key| {
            let (a, b) = (old.get(key), item.get(key));
            a.is_some_and(|a| !a.is_object() && !a.is_array() && !a.is_null()) && a == b
        })
    };
    list.as_array()?.iter().find(same)
}

/// No rule is run any more.
struct Exhausted;

struct Run {
    budget: u64,
    report: Report,
}

const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

impl Run {
    fn node<'v>(
        &mut self,
        expressions: &'v Expressions,
        value: &'v Value,
        old: Option<&'v Value>,
        matched: Matched<'v>,
        path: &Path,
    ) -> Result<(), Exhausted> {
        if value.is_null() {
            return Ok(());
        }
        let old = old.filter(|old| !old.is_null());
        self.rules(expressions, value, old, matched, path)?;
        for branch in &expressions.all_of {
            let matched = Matched {
                own: None,
                ..matched
            };
            self.node(branch, value, old, matched, path)?;
        }
        match value {
            Value::Array(items) => {
                let Some(of) = &expressions.items else {
                    return Ok(());
                };
                for (index, item) in items.iter().enumerate() {
                    let old = old.and_then(|old| with_keys(&expressions.keys, old, item));
                    let matched = matched.index(index, &expressions.keys);
                    self.node(of, item, old, matched, &path.index(index))?;
                }
            }
            Value::Object(map) => {
                for (name, value) in map {
                    let old = old.and_then(|old| old.get(name));
                    let matched = matched.key(name);
                    if let Some(of) = &expressions.additional {
                        self.node(of, value, old, matched, &path.key(name))?;
                    }
                    if let Some(of) = expressions.properties.get(name) {
                        self.node(of, value, old, matched, &path.child(name))?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn rules<'v>(
        &mut self,
        expressions: &'v Expressions,
        value: &'v Value,
        old: Option<&'v Value>,
        matched: Matched<'v>,
        path: &Path,
    ) -> Result<(), Exhausted> {
        let at = At {
            path,
            ty: &expressions.schema.ty,
        };
        let rules = match &expressions.rules {
            Ok(rules) => rules,
            Err(error) => {
                let error = at.invalid(format!("rule compiler initialization error: {error}"));
                self.report.errors.push(error);
                return Ok(());
            }
        };
        for rule in rules {
            let expression = match &rule.expression {
                None => continue,
                Some(Err(detail)) => {
                    let error = at.invalid(format!("rule compile error: {detail}"));
                    self.report.errors.push(error);
                    continue;
                }
                Some(Ok(expression)) => expression,
            };
            let optional = rule.source.optional_old_self == Some(true);
            // A transition needs something to come from.
            if rule.uses_old_self && old.is_none() && !optional {
                continue;
            }
            let scope = Scope {
                value,
                old,
                optional,
                schema: &expressions.schema,
            };
            if self.holds(expression, rule, &scope, &at)? {
                continue;
            }
            let error = self.failure(rule, &scope, &at)?;
            if !rule.uses_old_self && matched.is_unchanged() {
                self.report.ratcheted.push(error);
            } else {
                self.report.errors.push(error);
            }
        }
        Ok(())
    }

    /// Whether a rule holds; one that cannot be evaluated is reported and taken as holding.
    fn holds(
        &mut self,
        expression: &Expression,
        rule: &CompiledRule,
        scope: &Scope<'_>,
        at: &At<'_>,
    ) -> Result<bool, Exhausted> {
        let evaluation = expression.eval(scope, limits::PER_CALL_LIMIT);
        if !self.charge(&evaluation) {
            self.report.errors.push(at.invalid(OUT_OF_BUDGET));
            return Err(Exhausted);
        }
        let source = name_of(rule);
        let error = match evaluation.result {
            Ok(value) => return Ok(matches!(value, CelValue::Bool(true))),
            Err(error) => error,
        };
        if error.kind == ErrorKind::CostLimit {
            self.report.errors.push(at.invalid(format!(
                "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {source}"
            )));
            return Err(Exhausted);
        }
        let detail = if error.message.starts_with("no such overload") {
            format!(
                "'{error}': call arguments did not match a supported operator, function or macro signature for rule: {source}"
            )
        } else {
            format!("{error} evaluating rule: {source}")
        };
        self.report.errors.push(at.invalid(detail));
        Ok(true)
    }

    fn charge(&mut self, evaluation: &Evaluation<'_>) -> bool {
        match self.budget.checked_sub(evaluation.cost) {
            Some(rest) => {
                self.budget = rest;
                true
            }
            None => false,
        }
    }

    /// What to say of a rule that does not hold.
    fn failure(
        &mut self,
        rule: &CompiledRule,
        scope: &Scope<'_>,
        at: &At<'_>,
    ) -> Result<FieldError, Exhausted> {
        let path = match &rule.field_path {
            Some(below) => at.path.child(&below.to_string()),
            None => at.path.clone(),
        };
        let detail = match &rule.message {
            Some(Ok(expression)) => match self.message(expression, rule, scope) {
                Ok(message) => message,
                Err(detail) => {
                    let error = FieldError::invalid(&path, at.ty, detail);
                    self.report.errors.push(error);
                    return Err(Exhausted);
                }
            },
            _ => None,
        };
        let detail = detail.unwrap_or_else(|| {
            if rule.source.message.is_empty() {
                format!("failed rule: {}", name_of(rule))
            } else {
                rule.source.message.trim().to_owned()
            }
        });
        let shown = |error: FieldError| match at.ty {
            "object" | "array" => error.shown_as(String::new()),
            _ => error,
        };
        let value = scope.value.clone();
        Ok(match rule.source.reason.as_str() {
            "FieldValueForbidden" => FieldError::forbidden(&path, detail),
            "FieldValueRequired" => FieldError::required(&path, detail),
            "FieldValueDuplicate" => shown(FieldError::duplicate(&path, value)),
            _ => shown(FieldError::invalid(&path, value, detail)),
        })
    }

    /// The message that an expression gives, if it can be shown; an error ends the validation.
    fn message(
        &mut self,
        expression: &Expression,
        rule: &CompiledRule,
        scope: &Scope<'_>,
    ) -> Result<Option<String>, String> {
        // Messages see the plain old value, if there is one.
        let scope = Scope {
            optional: false,
            ..*scope
        };
        let evaluation = expression.eval(&scope, limits::PER_CALL_LIMIT);
        if !self.charge(&evaluation) {
            return Err("messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".to_owned());
        }
        match evaluation.result {
            Ok(CelValue::String(text)) => {
                let text = text.trim();
                let fits = !text.is_empty()
                    && text.len() <= limits::MAX_MESSAGE_BYTES
                    && !text.contains('\n');
                Ok(fits.then(|| text.to_owned()))
            }
            Ok(_) => Ok(None),
            Err(EvalError {
                kind: ErrorKind::CostLimit,
                ..
            }) => Err(format!(
                "no further validation rules will be run due to call cost exceeds limit for messageExpression: {:?}",
                rule.source.message_expression
            )),
            // The rule's own message stands in.
            Err(_) => Ok(None),
        }
    }
}

/// How a rule is called in messages.
fn name_of(rule: &CompiledRule) -> &str {
    if rule.source.message.is_empty() {
        rule.source.rule.trim()
    } else {
        rule.source.message.trim()
    }
}

struct At<'a> {
    path: &'a Path,
    ty: &'a str,
}

impl At<'_> {
    fn invalid(&self, detail: impl std::fmt::Display) -> FieldError {
        FieldError::invalid(self.path, self.ty, detail)
    }
}

#[derive(Clone, Copy)]
struct Scope<'v> {
    value: &'v Value,
    old: Option<&'v Value>,
    /// `oldSelf` may be absent, and says so.
    optional: bool,
    schema: &'v Schema,
}

impl<'v> Activation<'v> for Scope<'v> {
    fn resolve(&self, name: &str) -> Option<ValueResult<'v>> {
        let value = |value: &'v Value| CelValue::from_json(value, Some(self.schema));
        match name {
            SELF => Some(value(self.value)),
            OLD_SELF if self.optional => Some(match self.old {
                None => Ok(CelValue::Optional(None)),
                Some(old) => value(old).map(|old| CelValue::Optional(Some(old.into()))),
            }),
            OLD_SELF => self.old.map(value),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(properties: Value, rules: Value) -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties, "x-kubernetes-validations": rules}}})
    }

    fn check(openapi: &Value, new: Value, old: Option<Value>) -> (Vec<String>, Vec<String>) {
        let report = Expressions::new(openapi)
            .unwrap()
            .validate(&new, old.as_ref());
        let texts = |errors: ErrorList| errors.iter().map(ToString::to_string).collect();
        (texts(report.errors), texts(report.ratcheted))
    }

    #[test]
    fn failures_are_worded_as_the_rule_says() {
        let sizes = json!({"min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self != 'x'"}]}});
        for (rule, expected) in [
            (
                json!({"rule": "self.min <= self.max"}),
                "spec: Invalid value: failed rule: self.min <= self.max",
            ),
            (
                json!({"rule": "self.min <= self.max", "message": "too much "}),
                "spec: Invalid value: too much",
            ),
            (
                json!({"rule": "self.min <= self.max", "message": "too much", "messageExpression": "'more than ' + string(self.max)", "fieldPath": ".min"}),
                "spec.min: Invalid value: more than 2",
            ),
            (
                json!({"rule": "self.min <= self.max", "reason": "FieldValueForbidden"}),
                "spec: Forbidden: failed rule: self.min <= self.max",
            ),
            (
                json!({"rule": "self.none == 1 || self.min / 0 == 1", "message": "m"}),
                "spec: Invalid value: \"object\": division by zero evaluating rule: m",
            ),
        ] {
            let mut properties = sizes.clone();
            properties["none"] = json!({"type": "integer"});
            let object = json!({"spec": {"min": 3, "max": 2, "none": 2}});
            let (errors, _) = check(&schema(properties, json!([rule])), object, None);
            assert_eq!(errors, [expected]);
        }
        let object = json!({"spec": {"name": "x"}});
        let (errors, _) = check(&schema(sizes, json!([])), object, None);
        assert_eq!(
            errors,
            [r#"spec.name: Invalid value: "x": failed rule: self != 'x'"#]
        );
    }

    #[test]
    fn transitions_compare_what_can_be_matched() {
        let openapi = schema(
            json!({"list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {
                "type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}},
                "x-kubernetes-validations": [{"rule": "self.v >= oldSelf.v", "message": "v must not fall"}]}}}),
            json!([{"rule": "!oldSelf.hasValue() || oldSelf.value().list.size() <= self.list.size()", "optionalOldSelf": true, "message": "items stay"}]),
        );
        let object = |items: Value| json!({"spec": {"list": items}});
        let (errors, _) = check(&openapi, object(json!([{"k": "a", "v": 1}])), None);
        assert_eq!(errors, Vec::<String>::new());
        let old = object(json!([{"k": "a", "v": 1}, {"k": "b", "v": 5}]));
        let new = object(json!([{"k": "b", "v": 2}]));
        let (errors, _) = check(&openapi, new, Some(old));
        assert_eq!(
            errors,
            [
                "spec: Invalid value: items stay",
                "spec.list[0]: Invalid value: v must not fall"
            ]
        );
    }

    #[test]
    fn what_was_wrong_and_did_not_change_is_only_remarked_upon() {
        let openapi = json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "n": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 0"}]},
                "m": {"type": "integer"}}},
        }});
        let old = json!({"spec": {"n": 0, "m": 1}});
        let (errors, ratcheted) = check(
            &openapi,
            json!({"spec": {"n": 0, "m": 2}}),
            Some(old.clone()),
        );
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(
            ratcheted,
            ["spec.n: Invalid value: 0: failed rule: self > 0"]
        );
        let (errors, _) = check(&openapi, json!({"spec": {"n": -1, "m": 1}}), Some(old));
        assert_eq!(errors, ["spec.n: Invalid value: -1: failed rule: self > 0"]);
    }

    #[test]
    fn a_schema_without_rules_needs_no_expressions() {
        assert!(Expressions::new(&json!({"type": "object"})).is_none());
    }
}
