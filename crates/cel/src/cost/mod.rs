//! How much an expression can cost, without evaluating it.
//!
//! Estimates decide which rules a CustomResourceDefinition may hold, so they follow upstream's to
//! the unit.

mod calls;
mod estimate;

pub(crate) use estimate::estimate;

use crate::decl::{DeclKind, DeclType};
use crate::types::Type;
use std::sync::Arc;

/// Bounds of a size or of a cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub min: u64,
    pub max: u64,
}

/// In elements, entries or bytes.
pub type SizeRange = Bounds;
/// In units of cost.
pub type CostRange = Bounds;

/// Nothing is known.
const UNKNOWN: SizeRange = SizeRange {
    min: 0,
    max: u64::MAX,
};

impl Bounds {
    fn exactly(n: u64) -> Bounds {
        Bounds { min: n, max: n }
    }

    fn plus(self, other: Bounds) -> Bounds {
        Bounds {
            min: self.min.saturating_add(other.min),
            max: self.max.saturating_add(other.max),
        }
    }

    fn times(self, other: Bounds) -> Bounds {
        Bounds {
            min: self.min.saturating_mul(other.min),
            max: self.max.saturating_mul(other.max),
        }
    }

    fn union(self, other: Bounds) -> Bounds {
        Bounds {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }

    /// What costs this much for each element, of so many; or so much of what is already a cost.
    fn each(self, factor: f64) -> CostRange {
        Bounds {
            min: scaled(self.min, factor),
            max: scaled(self.max, factor),
        }
    }
}

/// Rounded up; as large as can be when it overflows.
fn scaled(n: u64, factor: f64) -> u64 {
    (n as f64 * factor).ceil() as u64
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
