//! Where an evaluation finds its variables.

use crate::value::{Value, ValueResult};
use std::collections::BTreeMap;

/// Gives variables their values while an expression runs.
pub trait Activation<'v> {
    /// The value of a variable. An error is the result of the expression that asks.
    fn resolve(&self, name: &str) -> Option<ValueResult<'v>>;

    /// The field of a variable whose value is [`Value::Lazy`]: it may be computed when first asked
    /// for. `None` when there is no such field.
    fn resolve_field(&self, _object: &str, _field: &str) -> Option<ValueResult<'v>> {
        None
    }
}

/// An activation that holds its values.
#[derive(Debug, Clone, Default)]
pub struct Variables<'v> {
    values: BTreeMap<String, Value<'v>>,
}

impl<'v> Variables<'v> {
    pub fn new() -> Variables<'v> {
        Variables::default()
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: Value<'v>) -> Variables<'v> {
        self.values.insert(name.to_owned(), value);
        self
    }
}

impl<'v> Activation<'v> for Variables<'v> {
    fn resolve(&self, name: &str) -> Option<ValueResult<'v>> {
        self.values.get(name).cloned().map(Ok)
    }
}
