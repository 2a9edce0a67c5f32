//! Expressions in the configuration of an issuer: about the `claims` of a token, or about the
//! `user` that was made of them.

use std::sync::{Arc, LazyLock};

use keelson_cel::{
    Declarations, Environment, Expression, Str, Type, Value as CelValue, Variables, Version, limits,
};
use keelson_kinds::expressions::{self, declare};
use serde_json::Value;

/// The expressions of one issuer, compiled.
#[derive(Debug, Default)]
pub(super) struct Expressions {
    pub(super) username: Option<Expression>,
    pub(super) groups: Option<Expression>,
    pub(super) uid: Option<Expression>,
    /// By key.
    pub(super) extra: Vec<(String, Expression)>,
    pub(super) claim_rules: Vec<Rule>,
    pub(super) user_rules: Vec<Rule>,
}

/// A condition that must hold.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) expression: Expression,
    /// Says to the user what a failure means.
    pub(super) message: String,
}

/// What an expression speaks of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject {
    Claims,
    User,
}

/// Why an expression cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Problem {
    Invalid(String),
    Internal(String),
}

const CLAIMS: &str = "claims";
const USER: &str = "user";

static CLAIMS_ENVIRONMENT: LazyLock<Environment> = LazyLock::new(|| {
    Environment::builder(Version::STORED_EXPRESSIONS)
        .variable(CLAIMS, Type::map(Type::String, Type::Dyn))
        .build()
});

static USER_ENVIRONMENT: LazyLock<Environment> = LazyLock::new(|| {
    let user = declare::user_info();
    Environment::builder(Version::STORED_EXPRESSIONS)
        .variable(USER, user.ty.clone())
        .provider(Arc::new(
            Declarations::new([&user]).with_keywords_as_fields(),
        ))
        .build()
});

impl Subject {
    /// Compiles an expression that gives anything.
    pub(super) fn compile(self, source: &str) -> Result<Expression, Problem> {
        let environment = match self {
            Subject::Claims => &CLAIMS_ENVIRONMENT,
            Subject::User => &USER_ENVIRONMENT,
        };
        let expression =
            expressions::compile(environment, source, &[]).map_err(Problem::Invalid)?;
        match expression.instantiation_error() {
            None => Ok(expression),
            Some(error) => Err(Problem::Internal(format!(
                "program instantiation failed: {error}"
            ))),
        }
    }

    /// Compiles an expression that gives a boolean.
    pub(super) fn compile_condition(self, source: &str) -> Result<Expression, Problem> {
        let expression = self.compile(source)?;
        match expression.output_type() {
            Type::Bool => Ok(expression),
            _ => Err(Problem::Invalid("must evaluate to bool".to_owned())),
        }
    }

    /// Evaluates an expression about `data`, an object.
    pub(super) fn evaluate<'v>(
        self,
        expression: &Expression,
        data: &'v Value,
    ) -> Result<CelValue<'v>, String> {
        let name = match self {
            Subject::Claims => CLAIMS,
            Subject::User => USER,
        };
        let variables = Variables::new().with(name, CelValue::from_claims(data));
        let evaluation = expression.eval(&variables, limits::PER_CALL_LIMIT);
        evaluation.result.map_err(|error| {
            format!(
                "expression '{}' resulted in error: {error}",
                expression.source()
            )
        })
    }

    /// Whether all rules hold; the error says which one does not. All are evaluated before any is
    /// judged, so that an error shows whatever the order.
    pub(super) fn hold(self, rules: &[Rule], data: &Value) -> Result<(), String> {
        let values = rules
            .iter()
            .map(|rule| self.evaluate(&rule.expression, data))
            .collect::<Result<Vec<_>, _>>()?;
        for (rule, value) in rules.iter().zip(values) {
            match value.as_bool() {
                Some(true) => {}
                Some(false) => {
                    return Err(format!(
                        "validation expression '{}' failed: {}",
                        rule.expression.source(),
                        rule.message
                    ));
                }
                None => return Err("validation expression must return a boolean".to_owned()),
            }
        }
        Ok(())
    }
}

/// A text or a list of texts; those that are empty, and null, count as absent.
pub(super) fn texts(value: &CelValue<'_>) -> Result<Vec<String>, String> {
    let refused = || "expression must return a string or a list of strings".to_owned();
    let mut out = Vec::new();
    let mut push = |text: &Str<'_>| {
        if !text.is_empty() {
            out.push(text.as_str().to_owned());
        }
    };
    match value {
        CelValue::Null => {}
        CelValue::String(text) => push(text),
        CelValue::List(list) => {
            for element in list.iter() {
                match element {
                    Ok(CelValue::String(text)) => push(&text),
                    _ => return Err(refused()),
                }
            }
        }
        _ => return Err(refused()),
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_are_seen_as_upstream_sees_them() {
        let claims = json!({"sub": "jane", "exp": 12, "roles": ["a", "", "b"], "none": null,
            "kubernetes.io": {"pod": {"name": "p"}, "service-account": "s"}, "deep": [{"a/b": 1}]});
        let table: [(&str, Result<Value, &str>); 9] = [
            ("claims.sub + '!'", Ok(json!("jane!"))),
            // Numbers of JSON are doubles.
            ("claims.exp", Ok(json!(12.0))),
            ("string(int(claims.exp))", Ok(json!("12"))),
            ("claims.kubernetes__dot__io.pod.name", Ok(json!("p"))),
            (
                "claims.kubernetes__dot__io.service__dash__account",
                Ok(json!("s")),
            ),
            ("claims.deep[0].a__slash__b == 1.0", Ok(json!(true))),
            ("has(claims.missing) ? 'x' : 'y'", Ok(json!("y"))),
            ("claims.missing", Err("no such key: missing")),
            ("claims.?missing.orValue('z')", Ok(json!("z"))),
        ];
        for (source, expected) in table {
            let expression = Subject::Claims.compile(source).unwrap();
            let given = Subject::Claims.evaluate(&expression, &claims);
            match (given, expected) {
                (Ok(value), Ok(expected)) => {
                    assert_eq!(value.to_json().unwrap(), expected, "{source}");
                }
                (Err(error), Err(expected)) => assert_eq!(
                    error,
                    format!("expression '{source}' resulted in error: {expected}")
                ),
                (given, expected) => panic!("{source}: {given:?}, expected {expected:?}"),
            }
        }
        let roles = Subject::Claims.compile("claims.roles + ['c']").unwrap();
        let roles = Subject::Claims.evaluate(&roles, &claims).unwrap();
        assert_eq!(texts(&roles).unwrap(), ["a", "b", "c"]);
        let none = Subject::Claims.compile("claims.none").unwrap();
        assert!(
            texts(&Subject::Claims.evaluate(&none, &claims).unwrap()).is_ok_and(|t| t.is_empty())
        );
    }

    #[test]
    fn each_subject_knows_its_own_variable() {
        let undeclared = |problem: Problem, name: &str| match problem {
            Problem::Invalid(text) => text.contains(&format!("undeclared reference to '{name}'")),
            Problem::Internal(_) => false,
        };
        assert!(undeclared(
            Subject::Claims.compile("user.uid").unwrap_err(),
            "user"
        ));
        assert!(undeclared(
            Subject::User.compile("claims.sub").unwrap_err(),
            "claims"
        ));
        assert_eq!(
            Subject::User
                .compile_condition("user.username")
                .unwrap_err(),
            Problem::Invalid("must evaluate to bool".to_owned())
        );
        let unknown = Subject::User.compile("user.unknown == 'x'").unwrap_err();
        assert!(matches!(unknown, Problem::Invalid(t) if t.contains("undefined field 'unknown'")));
    }
}
