//! How much an expression can cost.

use crate::decl::{DeclKind, DeclType};
use crate::types::Type;
use std::sync::Arc;

/// Bounds of a size in elements, entries or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeRange {
    pub min: u64,
    pub max: u64,
}

/// Bounds of a cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CostRange {
    pub min: u64,
    pub max: u64,
}

/// Knows how large variables and what lies in them can be.
pub trait SizeEstimator {
    /// The size of what lies at a path: a variable's name, then fields, and `@items`, `@keys`,
    /// `@values` for what a list or map holds. `None` when it is not known.
    fn estimate_size(&self, path: &[Arc<str>], ty: &Type) -> Option<SizeRange>;
}

/// Sizes by the declaration of the variable that every path begins with.
#[derive(Debug, Clone)]
pub struct DeclSizes {
    root: DeclType,
}

impl DeclSizes {
    pub fn new(root: DeclType) -> DeclSizes {
        DeclSizes { root }
    }
}

impl SizeEstimator for DeclSizes {
    fn estimate_size(&self, path: &[Arc<str>], _: &Type) -> Option<SizeRange> {
        let (_, inside) = path.split_first()?;
        let mut at = &self.root;
        for name in inside {
            at = match (&**name, &at.kind) {
                ("@items" | "@values", DeclKind::List(e) | DeclKind::Map(_, e)) => e,
                ("@keys", DeclKind::Map(k, _)) => k,
                (field, DeclKind::Object(fields)) => &fields.get(field)?.ty,
                _ => return None,
            };
        }
        let max = u64::try_from(at.max_elements).unwrap_or(u64::MAX);
        Some(SizeRange { min: 0, max })
    }
}
