//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy.

use std::collections::BTreeSet;

use keelson_cel::{Type, Version};
use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use super::{GROUP, rule};
use crate::cell::{self, UNSET};
use crate::check::{At, conditions, same};
use crate::expressions::admission::{
    APPLY_CONFIGURATION, AUDIT_ANNOTATION, CONDITION, Compiler, Declared, JSON_PATCH, MESSAGE,
};
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};

const MAX_AUDIT_ANNOTATIONS: usize = 20;
const MAX_AUDIT_EXPRESSION_BYTES: usize = 5 * 1024;

pub(crate) static VALIDATING_ADMISSION_POLICY: Kind = Kind {
    group: GROUP,
    resource: "validatingadmissionpolicies",
    default,
    prepare_create: rules::first_generation,
    validate: |obj| validating(obj, None),
    prepare_update: |new, old, ctx| {
        rules::with_generation(new, old, ctx);
        if ctx.subresource == "status" {
            rules::keep_metadata(new, old);
        }
    },
    validate_update: |new, old, ctx| {
        if ctx.subresource == "status" {
            status(new)
        } else {
            validating(new, Some(old))
        }
    },
    columns: &[
        Column::integer("Validations"),
        Column::text("ParamKind"),
        Column::AGE,
    ],
    cells: |obj, now| {
        vec![
            obj.list("spec.validations").len().into(),
            param_kind(obj).into(),
            cell::age(obj, now),
        ]
    },
    allow_unconditional_update: false,
    reset_fields: Kind::STATUS_KEEPS_METADATA,
    ..Kind::GENERIC
};

pub(crate) static MUTATING_ADMISSION_POLICY: Kind = Kind {
    group: GROUP,
    resource: "mutatingadmissionpolicies",
    default,
    prepare_create: |obj| obj.put("metadata.generation", 1),
    validate: |obj| mutating(obj, None),
    prepare_update: rules::with_generation,
    validate_update: |new, old, _| mutating(new, Some(old)),
    columns: &[
        Column::integer("Mutations"),
        Column::text("ParamKind"),
        Column::AGE,
    ],
    cells: |obj, now| {
        vec![
            obj.list("spec.mutations").len().into(),
            param_kind(obj).into(),
            cell::age(obj, now),
        ]
    },
    allow_unconditional_update: false,
    ..Kind::GENERIC
};

fn default(obj: &mut Value) {
    if obj.has("spec") {
        obj.fill("spec.failurePolicy", "Fail");
    }
    if let Some(constraints) = obj
        .at_mut("spec.matchConstraints")
        .filter(|c| c.is_object())
    {
        rule::default_match(constraints);
    }
}

fn param_kind(obj: &Value) -> String {
    let kind = obj.at("spec.paramKind");
    if kind.is_object() {
        format!("{}/{}", kind.text("apiVersion"), kind.text("kind"))
    } else {
        UNSET.to_owned()
    }
}

/// One policy while its expressions are compiled.
struct Policy<'a> {
    spec: At<'a>,
    old: Option<&'a Value>,
    params: bool,
    compiler: Compiler,
}

impl<'a> Policy<'a> {
    fn new(obj: &'a Value, old: Option<&'a Value>) -> Self {
        let spec = At::new(obj, "spec");
        Self {
            params: spec.has("paramKind"),
            spec,
            old,
            compiler: Compiler::composing(),
        }
    }

    /// Reports an expression that does not compile, under `at`.
    fn expression(
        &mut self,
        at: &At,
        stored: &Stored,
        declared: Declared,
        wanted: &[Type],
        e: &mut ErrorList,
    ) {
        let version = stored.version(at.text());
        if let Err(detail) = self.compiler.compile(at.text(), declared, wanted, version) {
            e.push(at.invalid(detail));
        }
    }

    fn declared(&self) -> Declared {
        Declared {
            params: self.params,
            authorizer: true,
            mutation: false,
        }
    }

    /// The part that both kinds of policy have, up to `variables`.
    fn common(&mut self, mutating: bool, e: &mut ErrorList) {
        let spec = self.spec.clone();
        let failure = spec.at("failurePolicy");
        if failure.exists() {
            failure.one_of(e, &["Fail", "Ignore"]);
        } else {
            e.push(failure.required(""));
        }
        if self.params {
            param_kind_rules(&spec.at("paramKind"), e);
        }
        let constraints = spec.at("matchConstraints");
        if constraints.exists() {
            match_resources(&constraints, e);
            let rules = constraints.at("resourceRules");
            rules.require(e);
            if mutating {
                mutable_operations(&rules, e);
            }
        } else {
            e.push(constraints.required(""));
        }
        let conditions = spec.at("matchConditions");
        let unchanged = self.old.is_some_and(|old| {
            same(spec.value.at("paramKind"), old.at("spec.paramKind"))
                && same(conditions.value, old.at("spec.matchConditions"))
        });
        if !unchanged {
            let stored = Stored::of(self.old, "spec.matchConditions", "expression");
            rule::match_conditions(&conditions, self.params, &stored, e);
        }
        let stored = Stored::of(self.old, "spec.validations", "expression");
        for variable in spec.at("variables").each() {
            self.variable(&variable, &stored, e);
        }
    }

    fn variable(&mut self, variable: &At, stored: &Stored, e: &mut ErrorList) {
        let (name, expression) = (variable.at("name"), variable.at("expression"));
        if name.text().trim().is_empty() {
            e.push(name.required("name is not specified"));
        } else if !is_identifier(name.text()) {
            e.push(name.invalid("must be a valid CEL identifier"));
        }
        if expression.text().trim().is_empty() {
            return e.push(expression.required("expression is not specified"));
        }
        let (declared, version) = (self.declared(), stored.version(expression.text()));
        let compiled = self
            .compiler
            .variable(name.text(), expression.text(), declared, version);
        if let Err(detail) = compiled {
            e.push(expression.invalid(detail));
        }
    }
}

/// Expressions that were there before an update: they may use what new ones may not.
pub(super) struct Stored<'a>(BTreeSet<&'a str>);

impl<'a> Stored<'a> {
    pub(super) fn of(old: Option<&'a Value>, list: &str, field: &str) -> Self {
        let items = old.map_or(&[] as &[Value], |old| old.list(list));
        Self::all(items.iter().map(|item| item.text(field)))
    }

    pub(super) fn all(expressions: impl Iterator<Item = &'a str>) -> Self {
        Self(expressions.collect())
    }

    pub(super) fn version(&self, expression: &str) -> Version {
        if self.0.contains(expression) {
            Version::STORED_EXPRESSIONS
        } else {
            Version::NEW_EXPRESSIONS
        }
    }
}

/// `[_a-zA-Z][_a-zA-Z0-9]*` that is no word of the language.
fn is_identifier(name: &str) -> bool {
    const RESERVED: &[&str] = &[
        "as",
        "break",
        "const",
        "continue",
        "else",
        "false",
        "for",
        "function",
        "if",
        "import",
        "in",
        "let",
        "loop",
        "namespace",
        "null",
        "package",
        "return",
        "true",
        "var",
        "void",
        "while",
    ];
    validation::is_c_identifier(name).is_empty() && !RESERVED.contains(&name)
}

fn param_kind_rules(param: &At, e: &mut ErrorList) {
    let version = param.at("apiVersion");
    let parts: Vec<&str> = version.text().split('/').collect();
    match parts.as_slice() {
        [""] => e.push(version.required("")),
        ["", ""] => e.push(version.invalid("version must be specified")),
        [own] => group_version(&version, "", own, e),
        [group, own] => group_version(&version, group, own, e),
        _ => e.push(version.invalid(format!(
            "unexpected GroupVersion string: {}",
            version.text()
        ))),
    }
    let kind = param.at("kind");
    if kind.is_empty() {
        return e.push(kind.required(""));
    }
    let messages = validation::is_dns1035_label(&kind.text().to_lowercase());
    if !messages.is_empty() {
        e.push(kind.invalid(format!(
            "may have mixed case, but should otherwise match: {}",
            messages.join(",")
        )));
    }
}

fn group_version(at: &At, group: &str, version: &str, e: &mut ErrorList) {
    if !group.is_empty() {
        let messages = validation::is_dns1123_subdomain(group);
        if !messages.is_empty() {
            e.push(FieldError::invalid(&at.path, group, messages.join(",")));
        }
    }
    if version.is_empty() {
        return e.push(at.invalid("version must be specified"));
    }
    let messages = validation::is_dns1035_label(version);
    if !messages.is_empty() {
        e.push(FieldError::invalid(&at.path, version, messages.join(",")));
    }
}

/// A deletion has no object to change.
pub(super) fn mutable_operations(rules: &At, e: &mut ErrorList) {
    const ALLOWED: &[&str] = &["*", "CONNECT", "CREATE", "UPDATE"];
    let path = rules.path.child("operations");
    for operation in rules.each().flat_map(|rule| rule.at("operations").each()) {
        if !ALLOWED.contains(&operation.text()) {
            e.push(FieldError::not_supported(&path, operation.text(), ALLOWED));
        }
    }
}

/// Match constraints of a policy or of its binding.
pub(super) fn match_resources(constraints: &At, e: &mut ErrorList) {
    if !constraints.exists() {
        return;
    }
    let policy = constraints.at("matchPolicy");
    if policy.exists() {
        policy.one_of(e, &["Equivalent", "Exact"]);
    } else {
        e.push(policy.required(""));
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        let selector = constraints.at(selector);
        if selector.exists() {
            selector.label_selector(e);
        } else {
            e.push(selector.required(""));
        }
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in constraints.at(list).each() {
            let mut names = BTreeSet::new();
            for name in rule.at("resourceNames").each() {
                name.conforms(e, validation::is_path_segment_name);
                if !names.insert(name.text()) {
                    e.push(name.duplicate());
                }
            }
            rule::validate(&rule, e);
        }
    }
}

fn validating(obj: &Value, old: Option<&Value>) -> ErrorList {
    let mut e = ErrorList::new();
    let mut policy = Policy::new(obj, old);
    policy.common(false, &mut e);
    let (validations, audits) = (
        policy.spec.at("validations"),
        policy.spec.at("auditAnnotations"),
    );
    if validations.is_empty() && audits.is_empty() {
        let detail = "validations or auditAnnotations must contain at least one item";
        e.push(validations.required(detail));
        e.push(audits.required(detail));
        return e;
    }
    for check in validations.each() {
        self::check(&mut policy, &check, &mut e);
    }
    if audits.len() > MAX_AUDIT_ANNOTATIONS {
        let detail = format!("must not have more than {MAX_AUDIT_ANNOTATIONS} auditAnnotations");
        e.push(audits.invalid(detail));
    }
    let mut keys = BTreeSet::new();
    let stored = Stored::of(old, "spec.auditAnnotations", "valueExpression");
    for audit in audits.each() {
        audit_annotation(
            &mut policy,
            obj.text("metadata.name"),
            &audit,
            &stored,
            &mut e,
        );
        let key = audit.at("key");
        if !keys.insert(key.text()) {
            e.push(key.duplicate());
        }
    }
    e
}

/// One of `validations`.
fn check(policy: &mut Policy, check: &At, e: &mut ErrorList) {
    let (expression, message) = (check.at("expression"), check.at("message"));
    let declared = policy.declared();
    if expression.text().trim().is_empty() {
        e.push(expression.required("expression is not specified"));
    } else {
        let stored = Stored::of(policy.old, "spec.validations", "expression");
        policy.expression(&expression, &stored, declared, &*CONDITION, e);
    }
    let of_message = check.at("messageExpression");
    if !of_message.is_empty() && of_message.text().trim().is_empty() {
        e.push(of_message.invalid("must be non-empty if specified"));
    } else if !of_message.is_empty() {
        let stored = Stored::of(policy.old, "spec.validations", "messageExpression");
        let declared = Declared {
            authorizer: false,
            ..declared
        };
        policy.expression(&of_message, &stored, declared, &*MESSAGE, e);
    }
    let trimmed = message.text().trim();
    if !message.is_empty() && trimmed.is_empty() {
        e.push(message.invalid("must be non-empty if specified"));
    } else if trimmed.contains(['\n', '\r']) {
        e.push(message.invalid("must not contain line breaks"));
    }
    check
        .at("reason")
        .one_of(e, &["Forbidden", "Invalid", "RequestEntityTooLarge"]);
}

fn audit_annotation(
    policy: &mut Policy,
    name: &str,
    audit: &At,
    stored: &Stored,
    e: &mut ErrorList,
) {
    let (key, value) = (audit.at("key"), audit.at("valueExpression"));
    if name.is_empty() {
        e.push(key.invalid("requires metadata.name be non-empty"));
    } else {
        let full = format!("{name}/{}", key.text());
        let messages = validation::is_qualified_name(&full);
        e.extend(
            messages
                .into_iter()
                .map(|m| FieldError::invalid(&key.path, full.as_str(), m)),
        );
    }
    let trimmed = value.text().trim();
    if trimmed.is_empty() {
        e.push(value.required("valueExpression is not specified"));
    } else if trimmed.len() > MAX_AUDIT_EXPRESSION_BYTES {
        let detail = format!("must not exceed {MAX_AUDIT_EXPRESSION_BYTES} bytes in length");
        e.push(value.required(&detail));
    } else {
        let (declared, version) = (policy.declared(), stored.version(value.text()));
        let compiled = policy
            .compiler
            .compile(trimmed, declared, &*AUDIT_ANNOTATION, version);
        if let Err(detail) = compiled {
            e.push(value.invalid(detail));
        }
    }
}

fn mutating(obj: &Value, old: Option<&Value>) -> ErrorList {
    let mut e = ErrorList::new();
    let mut policy = Policy::new(obj, old);
    policy.common(true, &mut e);
    let mutations = policy.spec.at("mutations");
    if mutations.is_empty() {
        e.push(mutations.required("mutations must contain at least one item"));
    }
    for mutation in mutations.each() {
        self::mutation(&mut policy, &mutation, &mut e);
    }
    policy
        .spec
        .at("reinvocationPolicy")
        .required_one_of(&mut e, &["IfNeeded", "Never"]);
    e
}

fn mutation(policy: &mut Policy, mutation: &At, e: &mut ErrorList) {
    let kind = mutation.at("patchType");
    kind.required_one_of(e, &["ApplyConfiguration", "JSONPatch"]);
    let (own, other, wanted): (_, _, &[Type]) = match kind.text() {
        "ApplyConfiguration" => ("applyConfiguration", "jsonPatch", &*APPLY_CONFIGURATION),
        "JSONPatch" => ("jsonPatch", "applyConfiguration", &*JSON_PATCH),
        _ => return,
    };
    if mutation.has(own) {
        let expression = mutation.at(own).at("expression");
        let trimmed = expression.text().trim();
        if trimmed.is_empty() {
            e.push(expression.required(""));
        } else {
            let field = format!("{own}.expression");
            let stored = Stored::of(policy.old, "spec.mutations", &field);
            let declared = Declared {
                mutation: true,
                ..policy.declared()
            };
            let version = stored.version(expression.text());
            let compiled = policy.compiler.compile(trimmed, declared, wanted, version);
            if let Err(detail) = compiled {
                e.push(FieldError::invalid(&expression.path, trimmed, detail));
            }
        }
    } else {
        let detail = format!("must be specified when patchType is {}", kind.text());
        e.push(mutation.at(own).required(&detail));
    }
    if mutation.has(other) {
        e.push(FieldError::invalid(
            &mutation.path.child(other),
            format!("{{{other}}}"),
            format!("must not be specified when patchType is {}", kind.text()),
        ));
    }
}

/// What type checking found.
fn status(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let status = At::new(obj, "status");
    let warnings = status.at("typeChecking").at("expressionWarnings");
    for warning in warnings.each() {
        warning.at("warning").require(&mut e);
        let field = warning.at("fieldRef");
        if field.text().trim().is_empty() {
            e.push(field.required(""));
        }
    }
    conditions(&status.at("conditions"), &mut e);
    e
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(spec: Value) -> Value {
        let mut obj = json!({"metadata": {"name": "p"}, "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
        }});
        for (key, value) in spec.as_object().unwrap() {
            obj["spec"][key] = value.clone();
        }
        default(&mut obj);
        obj["spec"]["reinvocationPolicy"] = json!("Never");
        obj
    }

    fn texts(errors: &ErrorList) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn expressions_of_a_policy_are_compiled_with_its_variables() {
        let obj = policy(json!({
            "variables": [{"name": "big", "expression": "object.spec.replicas > 5"}],
            "validations": [
                {"expression": "!variables.big || request.userInfo.username == 'root'", "messageExpression": "'no ' + request.name"},
            ],
            "auditAnnotations": [{"key": "k", "valueExpression": "variables.big ? 'yes' : null"}],
        }));
        // A conditional of text and null is neither of the two.
        let errors = texts(&validating(&obj, None));
        assert_eq!(errors.len(), 1, "{errors:?}");
        let obj = policy(json!({
            "validations": [{"expression": "variables.none", "messageExpression": "1", "message": "a\nb", "reason": "Unauthorized"}],
            "variables": [{"name": "in", "expression": " "}],
        }));
        let errors = texts(&validating(&obj, None));
        for start in [
            r#"spec.variables[0].name: Invalid value: "in": must be a valid CEL identifier"#,
            "spec.variables[0].expression: Required value: expression is not specified",
            r#"spec.validations[0].expression: Invalid value: "variables.none": compilation failed: ERROR: <input>:1:10: undefined field 'none'"#,
            r#"spec.validations[0].messageExpression: Invalid value: "1": must evaluate to string but got int"#,
            r#"spec.validations[0].message: Invalid value: "a\nb": must not contain line breaks"#,
            r#"spec.validations[0].reason: Unsupported value: "Unauthorized""#,
        ] {
            assert!(
                errors.iter().any(|error| error.starts_with(start)),
                "{start} in {errors:?}"
            );
        }
    }

    #[test]
    fn mutations_give_what_their_patch_type_says() {
        let obj = policy(json!({"mutations": [
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{spec: Object.spec{replicas: 1}}"}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'add', path: '/a', value: 1}]"}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression": "Object{}"}},
        ]}));
        assert_eq!(
            texts(&mutating(&obj, None)),
            [
                r#"spec.mutations[2].jsonPatch.expression: Invalid value: "Object{}": must evaluate to list(JSONPatch) but got Object"#
            ]
        );
    }
}
