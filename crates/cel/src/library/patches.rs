//! What mutations make: JSON patches and objects to apply.

use super::Row;
use super::declare::Binding::Own;
use crate::provider::TypeProvider;
use crate::types::Type;
use crate::value::{Value, ValueResult};
use std::sync::Arc;

#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    Row("jsonpatch.escapeKey", "string_jsonpatch_escapeKey_string", "(string) -> string", Own(escape_key)),
];

fn escape_key<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let key = args[0].as_str().unwrap_or_default();
    Ok(Value::string(key.replace('~', "~0").replace('/', "~1")))
}

/// `JSONPatch` with its four fields, `Object` and everything called `Object.…` with any field, and
/// the types of another provider.
pub(crate) struct MutationTypes {
    pub(crate) others: Arc<dyn TypeProvider>,
}

fn is_object(name: &str) -> bool {
    name == "Object" || name.starts_with("Object.")
}

impl TypeProvider for MutationTypes {
    fn has_type(&self, name: &str) -> bool {
        name == "JSONPatch" || is_object(name) || self.others.has_type(name)
    }

    fn field(&self, type_name: &str, field: &str) -> Option<Type> {
        match (type_name, field) {
            ("JSONPatch", "op" | "path" | "from") => Some(Type::String),
            ("JSONPatch", "value") => Some(Type::Dyn),
            ("JSONPatch", _) => None,
            (name, _) if is_object(name) => Some(Type::Dyn),
            (name, field) => self.others.field(name, field),
        }
    }
}
