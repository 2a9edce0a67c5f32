//! Types of expressions.

use std::fmt;
use std::sync::Arc;

/// The type of an expression, as the checker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Type {
    /// Whatever; checked at run time.
    Dyn,
    /// What remains after an error in a subexpression was reported.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    /// An object with declared fields, known to the environment's `TypeProvider` by this name.
    Object(Arc<str>),
    /// A type of a library, with its parameters, without fields.
    Opaque(Arc<str>, Arc<[Type]>),
    Optional(Arc<Type>),
    /// The type of a type.
    Type(Arc<Type>),
    /// A type parameter of a function declaration, or a variable while checking.
    Param(Arc<str>),
}

impl Type {
    pub fn list(element: Type) -> Type {
        Type::List(Arc::new(element))
    }

    pub fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new(key), Arc::new(value))
    }

    pub fn object(name: &str) -> Type {
        Type::Object(name.into())
    }

    pub fn opaque(name: &str) -> Type {
        Type::Opaque(name.into(), Arc::new([]))
    }

    pub fn optional(of: Type) -> Type {
        Type::Optional(Arc::new(of))
    }

    pub fn of_type(of: Type) -> Type {
        Type::Type(Arc::new(of))
    }

    /// The type of types, of no type in particular.
    pub(crate) fn bare() -> Type {
        Type::of_type(Type::opaque(""))
    }

    pub fn param(name: &str) -> Type {
        Type::Param(name.into())
    }

    /// Whether anything can be assigned to it.
    pub fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn)
    }

    /// Its declaration, as messages about an expression's output show it; the checker's own
    /// messages use `Display`.
    pub fn declared(&self) -> String {
        match self {
            Type::List(e) => format!("list({})", e.declared()),
            Type::Map(k, v) => format!("map({}, {})", k.declared(), v.declared()),
            Type::Optional(t) => format!("optional_type({})", t.declared()),
            Type::Type(t) if t.runtime_name().is_empty() => "type".to_owned(),
            Type::Type(t) => format!("type({})", t.declared()),
            Type::Param(name) => format!("<{name}>"),
            Type::Opaque(name, parameters) if !parameters.is_empty() => {
                let parameters: Vec<_> = parameters.iter().map(Type::declared).collect();
                format!("{name}({})", parameters.join(", "))
            }
            other => other.runtime_name().to_owned(),
        }
    }

    /// The name that `type(x)` prints and compares.
    pub fn runtime_name(&self) -> &str {
        match self {
            Type::Dyn => "dyn",
            Type::Error => "*error*",
            Type::Null => "null_type",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Duration => "google.protobuf.Duration",
            Type::Timestamp => "google.protobuf.Timestamp",
            Type::List(_) => "list",
            Type::Map(..) => "map",
            Type::Object(name) | Type::Opaque(name, _) | Type::Param(name) => name,
            Type::Optional(_) => "optional_type",
            Type::Type(_) => "type",
        }
    }
}

/// Prints the way the checker's messages do.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn => f.write_str("dyn"),
            Type::Error => f.write_str("!error!"),
            Type::Null => f.write_str("null"),
            Type::Duration => f.write_str("duration"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::List(e) => write!(f, "list({e})"),
            Type::Map(k, v) => write!(f, "map({k}, {v})"),
            Type::Opaque(name, parameters) if !parameters.is_empty() => {
                write!(f, "{name}(")?;
                for (i, p) in parameters.iter().enumerate() {
                    if i > 0 {
                        f.write_str(", ")?;
                    }
                    write!(f, "{p}")?;
                }
                f.write_str(")")
            }
            Type::Optional(t) => write!(f, "optional_type({t})"),
            Type::Type(t) if t.runtime_name().is_empty() => f.write_str("type"),
            Type::Type(t) => write!(f, "type({t})"),
            other => f.write_str(other.runtime_name()),
        }
    }
}
