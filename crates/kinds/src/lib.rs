//! What the kinds of Kubernetes have of their own: defaults, validation, update rules, table
//! columns, selectable fields. One file a kind, one row in [`KINDS`]; names, scope, verbs and
//! versions come from the generated discovery facts in `keelson-api`, everything else from the
//! generic engine.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cell;
mod kind;
mod rules;
mod tree;

pub use kind::{Column, Kind, UpdateContext};

/// Every kind with rules of its own, sorted by group and resource.
pub static KINDS: &[&Kind] = &[];

/// The row of a resource; [`Kind::GENERIC`] for one without rules of its own.
pub fn kind(group: &str, resource: &str) -> &'static Kind {
    KINDS.iter().find(|k| k.group == group && k.resource == resource).copied().unwrap_or(&Kind::GENERIC)
}
