//! Why an evaluation gives no value.

use std::sync::Arc;

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

    pub fn cost_limit() -> EvalError {
        EvalError {
            kind: ErrorKind::CostLimit,
            message: "operation cancelled: actual cost limit exceeded".into(),
        }
    }

    pub(crate) fn no_such_overload() -> EvalError {
        EvalError::new("no such overload")
    }

    pub(crate) fn is_cost_limit(&self) -> bool {
        self.kind == ErrorKind::CostLimit
    }
}
