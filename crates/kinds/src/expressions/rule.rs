//! `x-kubernetes-validations` of the schemas of custom resources.

use std::fmt::Write as _;
use std::sync::Arc;

use keelson_api::CelRule;
use keelson_cel::{
    CostRange, DeclSizes, DeclType, Declarations, Environment, Expression, Type, Version,
    display_issues, limits,
};
use keelson_machinery::field::Path;
use serde_json::Value;

pub const SELF: &str = "self";
pub const OLD_SELF: &str = "oldSelf";

/// What objects inside of a schema are called where it has no name of its own.
const TYPE_NAME: &str = "selfType";

/// A rule, ready to run.
#[derive(Debug)]
pub struct CompiledRule {
    pub source: CelRule,
    /// Nothing when the rule is empty.
    pub expression: Option<Result<Expression, String>>,
    /// It compares with the value before an update.
    pub uses_old_self: bool,
    /// The most one evaluation can cost.
    pub max_cost: u64,
    /// How often the rule can be evaluated for one object, where no list or map above bounds it.
    pub max_cardinality: u64,
    pub message: Option<Result<Expression, String>>,
    pub message_max_cost: u64,
    /// Where errors are reported, relative to the schema.
    pub field_path: Option<Path>,
}

/// Which libraries an expression may use, which depends on whether it was there before.
pub trait Versions {
    fn rule(&self, source: &str) -> Version;
    fn message_expression(&self, source: &str) -> Version;
}

/// Every expression is stored already.
pub struct Stored;

impl Versions for Stored {
    fn rule(&self, _: &str) -> Version {
        Version::STORED_EXPRESSIONS
    }

    fn message_expression(&self, _: &str) -> Version {
        Version::STORED_EXPRESSIONS
    }
}

/// The rules of one schema, not of those inside of it.
pub fn rules_of(schema: &Value) -> Vec<CelRule> {
    let list = schema["x-kubernetes-validations"].as_array();
    list.into_iter().flatten().map(rule).collect()
}

fn rule(json: &Value) -> CelRule {
    let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
    CelRule {
        rule: text("rule"),
        message: text("message"),
        message_expression: text("messageExpression"),
        reason: text("reason"),
        field_path: text("fieldPath"),
        optional_old_self: json["optionalOldSelf"].as_bool(),
    }
}

/// Compiles the rules of a schema that is declared as `decl`.
pub fn compile(
    rules: Vec<CelRule>,
    schema: &Value,
    decl: &DeclType,
    versions: &dyn Versions,
) -> Vec<CompiledRule> {
    if rules.is_empty() {
        return Vec::new();
    }
    let scope = Scope::new(decl);
    rules
        .into_iter()
        .map(|rule| scope.compile(rule, schema, versions))
        .collect()
}

/// What the rules of one schema may speak of.
struct Scope {
    ty: Type,
    provider: Arc<Declarations>,
    sizes: DeclSizes,
    max_cardinality: u64,
}

impl Scope {
    fn new(decl: &DeclType) -> Self {
        let named = decl.named(TYPE_NAME);
        Self {
            ty: named.ty.clone(),
            provider: Arc::new(Declarations::new([&named]).with_keywords_as_fields()),
            max_cardinality: max_cardinality(decl.min_serialized_size),
            sizes: DeclSizes::new(named),
        }
    }

    fn environment(&self, rule: &CelRule, version: Version) -> Environment {
        let old = if rule.optional_old_self == Some(true) {
            Type::optional(self.ty.clone())
        } else {
            self.ty.clone()
        };
        Environment::builder(version)
            .variable(SELF, self.ty.clone())
            .variable(OLD_SELF, old)
            .provider(self.provider.clone())
            .build()
    }

    fn compile(&self, rule: CelRule, schema: &Value, versions: &dyn Versions) -> CompiledRule {
        let mut out = CompiledRule {
            expression: None,
            uses_old_self: false,
            max_cost: 0,
            max_cardinality: self.max_cardinality,
            message: None,
            message_max_cost: 0,
            field_path: None,
            source: rule,
        };
        let rule = &out.source;
        if rule.rule.trim().is_empty() {
            return out;
        }
        let environment = self.environment(rule, versions.rule(&rule.rule));
        let compiled = match environment.compile(&rule.rule) {
            Err(issues) => Err(format!("compilation failed: {}", display_issues(&issues))),
            Ok(expression) if *expression.output_type() != Type::Bool => {
                Err("cel expression must evaluate to a bool".to_owned())
            }
            Ok(expression) => Ok(expression),
        };
        let failed = compiled.is_err();
        if let Ok(expression) = &compiled {
            out.uses_old_self = expression.uses_variable(OLD_SELF);
            out.max_cost = self.cost(expression).max;
        }
        if !failed && !rule.message_expression.is_empty() {
            let message = self.message(rule, versions);
            if let Ok(expression) = &message {
                out.message_max_cost = self.cost(expression).max;
            }
            out.message = Some(message);
        }
        out.expression = Some(compiled);
        if !out.source.field_path.is_empty() && !failed {
            out.field_path = field_path(&out.source.field_path, schema).ok();
        }
        out
    }

    fn message(&self, rule: &CelRule, versions: &dyn Versions) -> Result<Expression, String> {
        let source = &rule.message_expression;
        let environment = self.environment(rule, versions.message_expression(source));
        let expression = environment.compile(source).map_err(|issues| {
            format!(
                "messageExpression compilation failed: {}",
                display_issues(&issues)
            )
        })?;
        if *expression.output_type() == Type::String {
            Ok(expression)
        } else {
            Err("messageExpression must evaluate to a string".to_owned())
        }
    }

    fn cost(&self, expression: &Expression) -> CostRange {
        expression.estimate_cost(&self.sizes)
    }
}

/// How many values of a least size in JSON fit into one request, with a comma each.
fn max_cardinality(min_size: i64) -> u64 {
    u64::try_from(limits::MAX_REQUEST_BYTES / (min_size.max(0) + 1)).unwrap_or(0)
}

/// A rule as it stands in messages, with its fields in the order of the type.
pub(crate) fn shown(rule: &CelRule) -> String {
    let text = |text: &str| Value::from(text).to_string();
    let reason = match rule.reason.as_str() {
        "" => "null".to_owned(),
        reason => text(reason),
    };
    let optional = rule
        .optional_old_self
        .map_or_else(|| "null".to_owned(), |value| value.to_string());
    let mut out = String::new();
    let _ = write!(
        out,
        r#"{{"Rule":{},"Message":{},"MessageExpression":{},"Reason":{reason},"FieldPath":{},"OptionalOldSelf":{optional}}}"#,
        text(&rule.rule),
        text(&rule.message),
        text(&rule.message_expression),
        text(&rule.field_path)
    );
    out
}

/// The place that `.a['b'].c` names in a schema; the error says what is wrong with it.
pub(crate) fn field_path(path: &str, schema: &Value) -> Result<Path, String> {
    find_field(path, schema, true).map(|(place, _)| place)
}

/// The place that `.a.b` names and its schema; no brackets are allowed.
pub(crate) fn simple_field_path<'s>(
    path: &str,
    schema: &'s Value,
) -> Result<(Path, &'s Value), String> {
    find_field(path, schema, false)
}

fn find_field<'s>(
    path: &str,
    schema: &'s Value,
    brackets: bool,
) -> Result<(Path, &'s Value), String> {
    let mut at = Path::root();
    let mut schema = schema;
    let mut tokens = tokens(path).into_iter();
    let end = || "unexpected end of JSON path".to_owned();
    while let Some(token) = tokens.next() {
        let name = match token {
            "." => tokens.next().ok_or_else(end)?.to_owned(),
            "[" if !brackets => return Err("array notation is not allowed".to_owned()),
            "[" => {
                let quoted = tokens.next().ok_or_else(end)?;
                let inner = quoted
                    .strip_prefix('\'')
                    .and_then(|q| q.strip_suffix('\''))
                    .ok_or_else(|| format!("expected single quoted string but got {quoted}"))?;
                let close = tokens.next().ok_or_else(end)?;
                if close != "]" {
                    return Err(format!("expected ] but got {close}"));
                }
                unescaped(inner).map_err(|e| format!("invalid string literal: {e}"))?
            }
            other => return Err(format!("expected [ or . but got: {other}")),
        };
        let unknown = || "does not refer to a valid field".to_owned();
        let properties = schema["properties"].as_object().filter(|p| !p.is_empty());
        if let Some(properties) = properties {
            at = at.child(&name);
            schema = properties.get(&name).ok_or_else(unknown)?;
        } else if schema["additionalProperties"].is_object() {
            at = at.key(&name);
            schema = &schema["additionalProperties"];
        } else {
            return Err(unknown());
        }
    }
    Ok((at, schema))
}

/// Delimiters alone, and what lies between them; quoted text holds delimiters.
fn tokens(path: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '.' | '[' | ']' => 1,
            '\'' => quoted_end(rest),
            _ => rest.find(['.', '[', ']']).unwrap_or(rest.len()),
        };
        let (token, after) = rest.split_at(end);
        out.push(token);
        rest = after;
    }
    out
}

fn quoted_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    (1..bytes.len())
        .find(|&i| bytes[i] == b'\'' && bytes[i - 1] != b'\\')
        .map_or(text.len(), |i| i + 1)
}

fn unescaped(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('a') => out.push('\u{7}'),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('v') => out.push('\u{b}'),
            Some(c @ ('\'' | '\\')) => out.push(c),
            Some(other) => return Err(format!("invalid escape char \\{other}")),
            None => out.push('\\'),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_to_fields_and_keys() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "object", "properties": {"b.c": {"type": "object", "additionalProperties": {"type": "string"}}}},
        }});
        let text = |path: &str| field_path(path, &schema).map(|p| p.to_string());
        assert_eq!(text(".a").unwrap(), "a");
        assert_eq!(text(".a['b.c']").unwrap(), "a.b.c");
        assert_eq!(text(".a['b.c']['it\\'s']").unwrap(), "a.b.c[it's]");
        for (path, error) in [
            (".x", "does not refer to a valid field"),
            ("a", "expected [ or . but got: a"),
            (".a[0]", "expected single quoted string but got 0"),
            (".a['b.c'", "unexpected end of JSON path"),
        ] {
            assert_eq!(text(path).unwrap_err(), error, "{path}");
        }
    }
}
