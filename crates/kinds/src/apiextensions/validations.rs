//! `x-kubernetes-validations` of a definition's schemas: they compile, and they cannot cost more
//! than a server can bear, whatever objects hold.

use std::collections::BTreeSet;

use keelson_cel::{DeclKind, DeclType, Schema, Version, escape};
use keelson_machinery::field::{ErrorList, FieldError, Path};
use serde_json::Value;

use super::schema::MAX_DEPTH;
use crate::check::{At, same};
use crate::expressions::rule::{self, CompiledRule, Versions};
use crate::tree::Tree;

/// What one expression may cost, times how often it can run for one object.
const EXPRESSION_LIMIT: u64 = 10_000_000;
/// What all expressions of a schema may cost together.
const SCHEMA_LIMIT: u64 = 100_000_000;

/// What was there before an update; such expressions are bound less strictly.
#[derive(Default)]
pub(super) struct Before<'a> {
    rules: BTreeSet<&'a str>,
    messages: BTreeSet<&'a str>,
    versions: &'a [Value],
}

impl<'a> Before<'a> {
    pub(super) fn new(old: Option<&'a Value>) -> Self {
        let mut out = Self {
            versions: old.map_or(&[], |old| old.list("spec.versions")),
            ..Self::default()
        };
        for version in out.versions {
            out.find(version.at("schema.openAPIV3Schema"), 0);
        }
        out
    }

    fn find(&mut self, schema: &'a Value, depth: usize) {
        if depth > MAX_DEPTH * 2 {
            return;
        }
        for rule in schema.list("x-kubernetes-validations") {
            self.rules.insert(rule.text("rule"));
            self.messages.insert(rule.text("messageExpression"));
        }
        match schema {
            Value::Object(map) => map.values().for_each(|value| self.find(value, depth + 1)),
            Value::Array(items) => items.iter().for_each(|value| self.find(value, depth + 1)),
            _ => {}
        }
    }

    /// Whether the version of that name had this same schema.
    pub(super) fn had(&self, name: &str, schema: &Value) -> bool {
        self.versions.iter().any(|version| {
            version.text("name") == name && same(version.at("schema.openAPIV3Schema"), schema)
        })
    }

    /// Whether the version of that name had these same selectable fields.
    pub(super) fn had_selectable(&self, name: &str, fields: &Value) -> bool {
        let mut named = self.versions.iter().filter(|v| v.text("name") == name);
        named.any(|version| same(version.at("selectableFields"), fields))
    }
}

impl Versions for Before<'_> {
    fn rule(&self, source: &str) -> Version {
        version(self.rules.contains(source))
    }

    fn message_expression(&self, source: &str) -> Version {
        version(self.messages.contains(source))
    }
}

fn version(stored: bool) -> Version {
    if stored {
        Version::STORED_EXPRESSIONS
    } else {
        Version::NEW_EXPRESSIONS
    }
}

/// Checks a schema that keeps all other rules. `unchanged`: the version had it before.
pub(super) fn validate(root: &At, before: &Before, unchanged: bool, e: &mut ErrorList) {
    if !mentions_rules(root.value, 0) {
        return;
    }
    let mut walk = Walk {
        before,
        unchanged,
        total: 0,
        most_expensive: Vec::new(),
        errors: e,
    };
    let mut root_node = Node {
        at: root.clone(),
        is_root: true,
        declared: Declared::Unknown,
        in_scope: false,
        cardinality: Some(1),
        uncorrelatable: None,
    };
    walk.node(&mut root_node, 0);
    walk.finish(root);
}

fn mentions_rules(schema: &Value, depth: usize) -> bool {
    depth <= MAX_DEPTH * 2
        && match schema {
            Value::Object(map) => {
                map.contains_key("x-kubernetes-validations")
                    || map.values().any(|value| mentions_rules(value, depth + 1))
            }
            Value::Array(items) => items.iter().any(|value| mentions_rules(value, depth + 1)),
            _ => false,
        }
}

/// What a schema looks like to expressions; found when first needed.
#[derive(Clone)]
enum Declared {
    Unknown,
    Not,
    As(DeclType),
}

struct Node<'a> {
    at: At<'a>,
    is_root: bool,
    declared: Declared,
    /// Rules stand here or above, so that declarations of parents serve their children.
    in_scope: bool,
    /// How often the value can stand in one object; `None` when nothing bounds it.
    cardinality: Option<u64>,
    /// The list or map above whose parts cannot be matched with those before an update.
    uncorrelatable: Option<Path>,
}

impl<'a> Node<'a> {
    fn flag(&self, key: &str) -> bool {
        self.at.value.get(key) == Some(&Value::Bool(true))
    }

    fn declared(&mut self) -> Option<DeclType> {
        if let Declared::Unknown = self.declared {
            let schema = Schema::from_openapi(self.at.value);
            let root = self.is_root || self.flag("x-kubernetes-embedded-resource");
            self.declared =
                DeclType::from_schema(&schema, root).map_or(Declared::Not, Declared::As);
        }
        match &self.declared {
            Declared::As(decl) => Some(decl.clone()),
            _ => None,
        }
    }

    /// The node below, whose declaration is part of this one's where `part` finds it.
    fn child(
        &mut self,
        at: At<'a>,
        part: impl Fn(&DeclType) -> Option<DeclType>,
        uncorrelatable: bool,
    ) -> Node<'a> {
        let own = if self.in_scope { self.declared() } else { None };
        let declared = own
            .and_then(|own| part(&own))
            .map_or(Declared::Unknown, Declared::As);
        let factor = self.factor();
        Node {
            is_root: false,
            declared,
            in_scope: self.in_scope,
            cardinality: self
                .cardinality
                .and_then(|own| factor.map(|factor| own.saturating_mul(factor))),
            uncorrelatable: self
                .uncorrelatable
                .clone()
                .or_else(|| uncorrelatable.then(|| self.at.path.clone())),
            at,
        }
    }

    /// How many children the value can have.
    fn factor(&self) -> Option<u64> {
        let bound = |key: &str| {
            let number = &self.at.value[key];
            let bound = number
                .as_i64()
                .or_else(|| number.as_f64().map(|f| f as i64))?;
            Some(u64::try_from(bound).unwrap_or(0))
        };
        match self.at.value.text("type") {
            "object" if self.at.has("additionalProperties") => bound("maxProperties"),
            "array" => bound("maxItems"),
            _ => Some(1),
        }
    }
}

struct Walk<'a> {
    before: &'a Before<'a>,
    unchanged: bool,
    total: u64,
    /// The four most expensive expressions, the first the most.
    most_expensive: Vec<(u64, Path)>,
    errors: &'a mut ErrorList,
}

impl Walk<'_> {
    fn node(&mut self, node: &mut Node, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        let rules = node.at.at("x-kubernetes-validations");
        node.in_scope |= !rules.is_empty();
        let element = |decl: &DeclType| match &decl.kind {
            DeclKind::List(of) | DeclKind::Map(_, of) => Some(DeclType::clone(of)),
            _ => None,
        };
        let additional = node.at.at("additionalProperties");
        if additional.value.is_object() {
            let mut child = node.child(additional, element, false);
            self.node(&mut child, depth + 1);
        }
        for (name, property) in node.at.at("properties").entries() {
            let field = |decl: &DeclType| match &decl.kind {
                DeclKind::Object(fields) => {
                    let field = fields.get(&escape(name)?)?;
                    Some(DeclType::clone(&field.ty))
                }
                _ => None,
            };
            let atomic = node.at.value.text("x-kubernetes-map-type") == "atomic";
            let mut child = node.child(property, field, atomic);
            self.node(&mut child, depth + 1);
        }
        let items = node.at.at("items");
        if items.value.is_object() {
            let of_map = node.at.value.text("x-kubernetes-list-type") == "map";
            let mut child = node.child(items, element, !of_map);
            self.node(&mut child, depth + 1);
        }
        if !rules.is_empty() {
            self.rules(node, &rules);
        }
    }

    fn rules(&mut self, node: &mut Node, list: &At) {
        let Some(decl) = node.declared() else {
            return self.errors.push(FieldError::internal(
                &list.path,
                "internal error: failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations",
            ));
        };
        let sources = rule::rules_of(node.at.value);
        let compiled = rule::compile(sources, node.at.value, &decl, self.before);
        for (rule, at) in compiled.iter().zip(list.each()) {
            self.rule(node, rule, &at);
        }
    }

    fn rule(&mut self, node: &Node, rule: &CompiledRule, at: &At) {
        let cardinality = node.cardinality.unwrap_or(rule.max_cardinality);
        let cost = rule.max_cost.saturating_mul(cardinality);
        let path = at.path.child("rule");
        self.cost(&path, "estimated rule cost", cost);
        if let Some(Err(detail)) = &rule.expression {
            self.invalid_rule(&path, at, rule, detail);
        }
        match &rule.message {
            Some(Err(detail)) => {
                self.invalid_rule(&at.path.child("messageExpression"), at, rule, detail);
            }
            Some(Ok(_)) => {
                let path = at.path.child("messageExpression");
                self.cost(
                    &path,
                    "estimated messageExpression cost",
                    rule.message_max_cost,
                );
            }
            None => {}
        }
        if rule.uses_old_self {
            if let Some(within) = &node.uncorrelatable {
                let detail = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {within}"
                );
                let source = rule.source.rule.as_str();
                self.errors.push(FieldError::invalid(&path, source, detail));
            }
        } else if let Some(optional) = rule.source.optional_old_self {
            self.errors.push(FieldError::invalid(
                &at.path.child("optionalOldSelf"),
                optional,
                "may not be set if oldSelf is not used in rule",
            ));
        }
    }

    fn invalid_rule(&mut self, path: &Path, at: &At, rule: &CompiledRule, detail: &str) {
        let error = FieldError::invalid(path, at.value.clone(), detail);
        self.errors.push(error.shown_as(rule::shown(&rule.source)));
    }

    fn cost(&mut self, path: &Path, what: &str, cost: u64) {
        if !self.unchanged && cost > EXPRESSION_LIMIT {
            let detail = exceeds(what, cost, EXPRESSION_LIMIT);
            self.errors.push(FieldError::forbidden(path, detail));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= SCHEMA_LIMIT / 100 {
            self.most_expensive.push((cost, path.clone()));
            self.most_expensive
                .sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
            self.most_expensive.truncate(4);
        }
    }

    fn finish(self, root: &At) {
        if self.total <= SCHEMA_LIMIT {
            return;
        }
        for (_, path) in &self.most_expensive {
            self.errors.push(FieldError::forbidden(path, "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        let detail = exceeds(what, self.total, SCHEMA_LIMIT);
        self.errors.push(FieldError::forbidden(&root.path, detail));
    }
}

fn exceeds(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// What can be said of a rule without compiling it.
pub(super) fn texts(schema: &At, e: &mut ErrorList) {
    const REASONS: &[&str] = &[
        "FieldValueDuplicate",
        "FieldValueForbidden",
        "FieldValueInvalid",
        "FieldValueRequired",
    ];
    let has_newlines = |text: &str| text.contains(['\n', '\r']);
    for rule in schema.at("x-kubernetes-validations").each() {
        let (expression, message) = (rule.at("rule"), rule.at("message"));
        let trimmed = message.text().trim();
        if expression.text().trim().is_empty() {
            e.push(expression.required("rule is not specified"));
        } else if !message.is_empty() && trimmed.is_empty() {
            e.push(message.invalid("must be non-empty if specified"));
        } else if has_newlines(trimmed) {
            e.push(message.invalid("must not contain line breaks"));
        } else if has_newlines(expression.text().trim()) && trimmed.is_empty() {
            e.push(message.required("message must be specified if rule contains line breaks"));
        }
        let of_message = rule.at("messageExpression");
        if !of_message.is_empty() && of_message.text().trim().is_empty() {
            e.push(of_message.required("messageExpression must be non-empty if specified"));
        }
        rule.at("reason").one_of(e, REASONS);
        let path = rule.at("fieldPath");
        if path.is_empty() {
            continue;
        }
        if path.text().trim().is_empty() {
            e.push(path.invalid("must be non-empty if specified"));
        }
        if has_newlines(path.text()) {
            e.push(path.invalid("must not contain line breaks"));
        }
        if rule::field_path(path.text(), schema.value).is_err() {
            e.push(path.invalid("must be a valid path"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(schema: Value) -> Vec<String> {
        let mut e = ErrorList::new();
        let holder = json!({ "openAPIV3Schema": schema });
        let root = At::new(&holder, "openAPIV3Schema");
        validate(&root, &Before::default(), false, &mut e);
        e.iter().map(ToString::to_string).collect()
    }

    fn object(properties: Value, rules: Value) -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties, "x-kubernetes-validations": rules}}})
    }

    const AT: &str = "openAPIV3Schema.properties[spec].x-kubernetes-validations[0]";

    #[test]
    fn rules_compile_against_their_schema() {
        let sizes = json!({"min": {"type": "integer"}, "max": {"type": "integer"}});
        let fine = object(
            sizes.clone(),
            json!([{"rule": "self.min <= self.max", "messageExpression": "self.max > 5 ? 'far too much' : 'too much'"}]),
        );
        assert_eq!(errors(fine), Vec::<String>::new());
        for (rule, expected) in [
            (
                json!({"rule": "self.least <= self.max"}),
                format!(
                    r#"{AT}.rule: Invalid value: {{"Rule":"self.least <= self.max","Message":"","MessageExpression":"","Reason":null,"FieldPath":"","OptionalOldSelf":null}}: compilation failed: ERROR: <input>:1:5: undefined field 'least'"#
                ),
            ),
            (
                json!({"rule": "self.min"}),
                format!(
                    r#"{AT}.rule: Invalid value: {{"Rule":"self.min","Message":"","MessageExpression":"","Reason":null,"FieldPath":"","OptionalOldSelf":null}}: cel expression must evaluate to a bool"#
                ),
            ),
            (
                json!({"rule": "self.min > 0", "optionalOldSelf": true}),
                format!(
                    "{AT}.optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule"
                ),
            ),
        ] {
            let found = errors(object(sizes.clone(), json!([rule])));
            assert!(found[0].starts_with(&expected), "{found:?}");
        }
    }

    #[test]
    fn rules_that_could_cost_too_much_are_refused() {
        let list = |bounds: Value| {
            let mut list =
                json!({"type": "array", "items": {"type": "array", "items": {"type": "string"}}});
            for (key, value) in bounds.as_object().unwrap() {
                list[key] = value.clone();
                list["items"][key] = value.clone();
            }
            object(
                json!({ "list": list }),
                json!([{"rule": "self.list.all(x, x.all(y, y == 'a'))"}]),
            )
        };
        let found = errors(list(json!({})));
        assert!(
            found[0].starts_with(&format!(
                "{AT}.rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x"
            )),
            "{found:?}"
        );
        assert!(
            found.last().unwrap().starts_with(
                "openAPIV3Schema: Forbidden: x-kubernetes-validations estimated rule cost total"
            ),
            "{found:?}"
        );
        assert_eq!(errors(list(json!({"maxItems": 10}))), Vec::<String>::new());
    }

    #[test]
    fn transition_rules_need_parts_that_can_be_matched() {
        let items = json!({"type": "object", "properties": {"k": {"type": "string", "maxLength": 9}},
            "x-kubernetes-validations": [{"rule": "self.k == oldSelf.k"}]});
        let found = errors(object(
            json!({"list": {"type": "array", "maxItems": 5, "items": items}}),
            json!([]),
        ));
        assert_eq!(
            found,
            [
                "openAPIV3Schema.properties[spec].properties[list].items.x-kubernetes-validations[0].rule: Invalid value: \"self.k == oldSelf.k\": oldSelf cannot be used on the uncorrelatable portion of the schema within openAPIV3Schema.properties[spec].properties[list]"
            ]
        );
    }
}
