//! Objects that expressions make.

use super::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// An object that an expression made.
#[derive(Debug, Clone)]
pub struct Object<'v> {
    pub type_name: Arc<str>,
    pub fields: BTreeMap<Arc<str>, Value<'v>>,
}
