//! Values of expressions.

mod collections;
mod equality;
mod error;
mod json;
mod object;
mod shown;

pub(crate) use collections::MapKey;
pub use collections::{List, Map, MapEntries};
pub(crate) use equality::compare;
pub use error::{ErrorKind, EvalError};
pub use object::Object;
pub(crate) use shown::implementation;

use crate::schema::Schema;
use crate::types::Type;
use serde_json::Value as Json;
use std::any::Any;
use std::fmt;
use std::sync::Arc;

pub type ValueResult<'v> = Result<Value<'v>, EvalError>;

/// A value. Parts that come from the API are looked at where they lie, for `'v`.
#[derive(Debug, Clone)]
pub enum Value<'v> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Str<'v>),
    Bytes(Arc<[u8]>),
    /// In nanoseconds.
    Duration(i64),
    Timestamp(crate::time::Moment),
    List(List<'v>),
    Map(Map<'v>),
    /// Made by an expression: `Object{…}`, `JSONPatch{…}`.
    Object(Arc<Object<'v>>),
    Optional(Option<Arc<Value<'v>>>),
    Type(Type),
    /// A value of a library.
    Opaque(Arc<dyn Opaque>),
    /// A variable whose fields the activation computes when asked, by the variable's name.
    Lazy(Arc<str>),
    /// Data without a declared type: can only be compared.
    Preserved(&'v Json),
}

/// Text that is borrowed from the data or shared.
#[derive(Clone)]
pub enum Str<'v> {
    Borrowed(&'v str),
    Shared(Arc<str>),
}

/// A value of a library.
pub trait Opaque: fmt::Debug + Send + Sync + Any {
    fn type_name(&self) -> &str;

    /// Whether it equals another one; never equal to one of another type.
    fn equals(&self, other: &dyn Opaque) -> bool;

    /// Its size in the sense of costs, for values that have one.
    fn size(&self) -> Option<usize> {
        None
    }

    fn as_any(&self) -> &dyn Any;
}

impl Str<'_> {
    pub fn as_str(&self) -> &str {
        match self {
            Str::Borrowed(s) => s,
            Str::Shared(s) => s,
        }
    }
}

impl std::ops::Deref for Str<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for Str<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl<'v> Value<'v> {
    pub fn string(s: impl AsRef<str>) -> Value<'v> {
        Value::String(Str::Shared(s.as_ref().into()))
    }

    pub fn list(values: impl Into<Vec<Value<'v>>>) -> Value<'v> {
        Value::List(List::Values(Arc::new(values.into())))
    }

    pub fn opaque(value: impl Opaque) -> Value<'v> {
        Value::Opaque(Arc::new(value))
    }

    pub fn some(value: Value<'v>) -> Value<'v> {
        Value::Optional(Some(Arc::new(value)))
    }

    /// Data of the API as a value, without copying them. With a schema they get the types it
    /// declares, and data that do not fit are an error; without, they are what their JSON is.
    pub fn from_json(json: &'v Json, schema: Option<&'v Schema>) -> ValueResult<'v> {
        match schema {
            Some(schema) => json::typed(json, schema),
            None => Ok(json::untyped(json)),
        }
    }

    /// Claims of a token as a value, without copying them: every number is a double, and names of
    /// fields may be written with the escapes of [`crate::escape`].
    pub fn from_claims(json: &'v Json) -> Value<'v> {
        match json {
            Json::Array(items) => Value::List(List::Claims(items)),
            Json::Object(map) => Value::Map(Map::Claims(map)),
            Json::Number(n) => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
            other => json::untyped(other),
        }
    }

    /// The value as JSON; an error for values that have no such form.
    pub fn to_json(&self) -> Result<Json, EvalError> {
        json::render(self)
    }

    /// The value the way an expression would write it, cut off when it is very long.
    pub fn to_source(&self) -> String {
        shown::quoted(self)
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// The library value of a type, if it is one.
    pub fn downcast<T: 'static>(&self) -> Option<&T> {
        match self {
            Value::Opaque(o) => o.as_any().downcast_ref(),
            _ => None,
        }
    }

    /// The type it has at run time.
    pub fn type_of(&self) -> Type {
        match self {
            Value::Null => Type::Null,
            Value::Bool(_) => Type::Bool,
            Value::Int(_) => Type::Int,
            Value::Uint(_) => Type::Uint,
            Value::Double(_) => Type::Double,
            Value::String(_) => Type::String,
            Value::Bytes(_) => Type::Bytes,
            Value::Duration(_) => Type::Duration,
            Value::Timestamp(_) => Type::Timestamp,
            Value::List(_) => Type::list(Type::Dyn),
            Value::Map(_) => Type::map(Type::Dyn, Type::Dyn),
            Value::Object(o) => Type::Object(o.type_name.clone()),
            Value::Optional(_) => Type::optional(Type::Dyn),
            Value::Type(_) => Type::of_type(Type::Dyn),
            Value::Opaque(o) => Type::object(o.type_name()),
            Value::Lazy(name) => Type::Object(name.clone()),
            Value::Preserved(_) => Type::object("unknown"),
        }
    }

    /// Code points, bytes, elements or entries, for values that have a size.
    pub(crate) fn size(&self) -> Option<usize> {
        match self {
            Value::String(s) => Some(s.chars().count()),
            Value::Bytes(b) => Some(b.len()),
            Value::List(l) => Some(l.len()),
            Value::Map(m) => Some(m.len()),
            Value::Opaque(o) => o.size(),
            _ => None,
        }
    }

    /// Whether it is its type's empty or zero value.
    pub(crate) fn is_zero(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Bool(b) => !b,
            Value::Int(i) => *i == 0,
            Value::Uint(u) => *u == 0,
            Value::Double(d) => *d == 0.0,
            Value::String(s) => s.is_empty(),
            Value::Bytes(b) => b.is_empty(),
            Value::Duration(d) => *d == 0,
            Value::Timestamp(t) => {
                crate::time::nanos(*t) == i128::from(crate::time::FIRST_SECOND) * 1_000_000_000
            }
            // Data of the API have no zero value upstream either.
            Value::List(List::Values(l)) => l.is_empty(),
            Value::Map(Map::Values(m)) => m.is_empty(),
            Value::List(List::Json(l, None) | List::Claims(l)) => l.is_empty(),
            Value::Map(Map::Json(m, None) | Map::Claims(m)) => m.is_empty(),
            Value::Optional(o) => o.is_none(),
            Value::Object(o) => o.fields.is_empty(),
            _ => false,
        }
    }

    /// Whether a function declared for this type can take the value.
    pub(crate) fn fits(&self, t: &Type) -> bool {
        match (t, self) {
            (Type::Dyn | Type::Param(_), _) => true,
            (Type::List(element), Value::List(l)) => {
                matches!(l.get(0), None | Some(Err(_)))
                    || l.get(0).is_some_and(|v| v.is_ok_and(|v| v.fits(element)))
            }
            (Type::Map(key, value), Value::Map(m)) => match m.first() {
                Some((k, Ok(v))) => k.fits(key) && v.fits(value),
                _ => true,
            },
            (Type::Optional(_), Value::Optional(_)) | (Type::Type(_), Value::Type(_)) => true,
            (Type::List(_) | Type::Map(..) | Type::Optional(_) | Type::Type(_), _) => false,
            (t, Value::Opaque(o)) => t.runtime_name() == o.type_name(),
            (t, v) => *t == v.type_of(),
        }
    }
}
