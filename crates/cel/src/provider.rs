//! Where the checker looks up types with fields.

use crate::types::Type;

/// Knows object types by name.
pub trait TypeProvider: Send + Sync {
    /// Whether an object type has this name.
    fn has_type(&self, name: &str) -> bool;

    /// The type of a field, by its escaped name.
    fn field(&self, type_name: &str, field: &str) -> Option<Type>;

    /// Whether `Name{…}` makes a value of this type.
    fn constructible(&self, _type_name: &str) -> bool {
        false
    }
}

/// Knows none.
pub struct NoTypes;

impl TypeProvider for NoTypes {
    fn has_type(&self, _: &str) -> bool {
        false
    }

    fn field(&self, _: &str, _: &str) -> Option<Type> {
        None
    }
}
