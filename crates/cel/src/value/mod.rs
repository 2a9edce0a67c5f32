//! Values of expressions.

use crate::schema::Schema;
use crate::types::Type;
use serde_json::Value as Json;
use std::any::Any;
use std::collections::BTreeMap;
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
    Timestamp(jiff::Timestamp),
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

/// A list.
#[derive(Debug, Clone)]
pub enum List<'v> {
    /// Data of the API; the schema is the list's own.
    Json(&'v [Json], Option<&'v Schema>),
    Values(Arc<[Value<'v>]>),
}

/// A map, or data of an object.
#[derive(Debug, Clone)]
pub enum Map<'v> {
    /// Data of the API; the schema is the map's own.
    Json(&'v serde_json::Map<String, Json>, Option<&'v Schema>),
    Values(Arc<MapEntries<'v>>),
}

/// Entries of a map that an expression made, in the order they were made.
#[derive(Debug, Clone, Default)]
pub struct MapEntries<'v> {
    pub entries: Vec<(Value<'v>, Value<'v>)>,
}

/// An object that an expression made.
#[derive(Debug, Clone)]
pub struct Object<'v> {
    pub type_name: Arc<str>,
    pub fields: BTreeMap<Arc<str>, Value<'v>>,
}

/// A value of a library.
pub trait Opaque: fmt::Debug + Send + Sync + Any {
    fn type_name(&self) -> &str;

    /// Whether it equals another one; `None` when the two cannot be compared.
    fn equals(&self, other: &dyn Opaque) -> Option<bool>;

    fn as_any(&self) -> &dyn Any;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The expression's own failure.
    Failed,
    /// The cost limit was reached.
    CostLimit,
}

/// Why an evaluation gave no value. Its `Display` is upstream's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EvalError {
    pub kind: ErrorKind,
    pub message: Arc<str>,
}

impl EvalError {
    pub fn new(message: impl AsRef<str>) -> EvalError {
        EvalError {
            kind: ErrorKind::Failed,
            message: message.as_ref().into(),
        }
    }
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

    pub fn list(values: impl Into<Arc<[Value<'v>]>>) -> Value<'v> {
        Value::List(List::Values(values.into()))
    }

    /// Data of the API as a value, without copying them. With a schema they get the types it
    /// declares, and data that do not fit are an error; without, they are what their JSON is.
    pub fn from_json(json: &'v Json, schema: Option<&'v Schema>) -> ValueResult<'v> {
        let _ = schema;
        Ok(Value::Preserved(json))
    }

    /// The value as JSON; an error for values that have no such form.
    pub fn to_json(&self) -> Result<Json, EvalError> {
        Err(EvalError::new("no such overload"))
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
            Value::Opaque(o) => Type::opaque(o.type_name()),
            Value::Lazy(name) => Type::Object(name.clone()),
            Value::Preserved(_) => Type::opaque("unknown"),
        }
    }
}
