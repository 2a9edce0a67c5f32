//! Expressions in objects of the API: what they may speak of and what they must give. They are
//! compiled here, when the object that holds them is validated, and again, by the same rules, by
//! who evaluates them.

pub mod admission;
pub mod declare;
pub mod device;
pub mod rule;
pub mod schema;

use keelson_cel::{Environment, Expression, Type, display_issues};

/// Compiles an expression that must give one of `wanted`, or anything when that is empty. The
/// error is the text that upstream shows.
pub fn compile(
    environment: &Environment,
    source: &str,
    wanted: &[Type],
) -> Result<Expression, String> {
    let expression = environment
        .compile(source)
        .map_err(|issues| format!("compilation failed: {}", display_issues(&issues)))?;
    let given = expression.output_type();
    if wanted.is_empty() || wanted.contains(given) {
        return Ok(expression);
    }
    let given = name_of(given);
    match wanted {
        [one] => Err(format!("must evaluate to {} but got {given}", name_of(one))),
        several => {
            let names: Vec<String> = several.iter().map(name_of).collect();
            let names = names.join(" ");
            Err(format!("must evaluate to one of [{names}] but got {given}"))
        }
    }
}

/// A type by its own name, which is not always the one that the checker's messages use.
fn name_of(ty: &Type) -> String {
    match ty {
        Type::List(element) => format!("list({})", name_of(element)),
        Type::Map(key, value) => format!("map({}, {})", name_of(key), name_of(value)),
        Type::Optional(of) => format!("optional_type({})", name_of(of)),
        Type::Type(of) => format!("type({})", name_of(of)),
        other => other.runtime_name().to_owned(),
    }
}
