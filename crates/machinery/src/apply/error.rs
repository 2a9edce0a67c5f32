//! Why an apply failed.

use super::managed::Id;
use super::path;
use crate::go;
use crate::status::{Status, StatusCause};
use std::collections::BTreeMap;
use std::fmt;

/// A field another manager owns at another value.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflict {
    manager: Id,
    path: Vec<String>,
}

impl Conflict {
    pub(super) fn new(manager: Id, path: Vec<String>) -> Conflict {
        Conflict { manager, path }
    }

    pub(super) fn elements(&self) -> &[String] {
        &self.path
    }

    /// `.spec.replicas`.
    pub fn path(&self) -> String {
        path::display(&self.path)
    }

    /// `"kubectl" using apps/v1`.
    pub fn manager(&self) -> String {
        let mut s = go::quote(&self.manager.manager);
        if !self.manager.subresource.is_empty() {
            s.push_str(&format!(
                " with subresource {}",
                go::quote(&self.manager.subresource)
            ));
        }
        if self.manager.operation == super::Operation::Update {
            s.push_str(&format!(" using {}", self.manager.api_version));
        }
        s
    }
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApplyError {
    #[error("{}", summary(.0))]
    Conflicts(Vec<Conflict>),
    #[error("{0}")]
    BadRequest(String),
    /// The configuration does not fit the schema.
    #[error("{0}")]
    Typed(String),
    #[error("failed to decode managed fields: {0}")]
    ManagedFields(String),
}

impl ApplyError {
    pub fn status(&self) -> Status {
        match self {
            ApplyError::Conflicts(list) => Status::apply_conflict(
                self,
                list.iter()
                    .map(|c| StatusCause {
                        reason: "FieldManagerConflict".into(),
                        message: format!("conflict with {}", c.manager()),
                        field: c.path(),
                    })
                    .collect(),
            ),
            ApplyError::BadRequest(m) => Status::bad_request(m),
            ApplyError::Typed(_) | ApplyError::ManagedFields(_) => Status {
                code: 500,
                message: self.to_string(),
                ..Status::default()
            },
        }
    }
}

fn summary(conflicts: &[Conflict]) -> impl fmt::Display + use<> {
    if let [one] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager(),
            one.path()
        );
    }
    let mut by_manager: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for c in conflicts {
        by_manager.entry(c.manager()).or_default().push(c.path());
    }
    let mut lines = Vec::new();
    for (manager, paths) in by_manager {
        lines.push(format!("conflicts with {manager}:"));
        lines.extend(paths.into_iter().map(|p| format!("- {p}")));
    }
    format!(
        "Apply failed with {} conflicts: {}",
        conflicts.len(),
        lines.join("\n")
    )
}
