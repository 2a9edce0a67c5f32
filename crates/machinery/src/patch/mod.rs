//! The patch types of the API besides server-side apply: JSON patch, merge patch, strategic merge
//! patch.

pub mod json;
pub mod merge;
pub mod strategic;

use crate::status::{Status, StatusDetails};

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed.
    #[error("{0}")]
    Malformed(String),
    #[error("The allowed maximum operations in a JSON patch is {max}, got {got}")]
    TooManyOperations { max: usize, got: usize },
    /// The patch does not fit the object.
    #[error("{0}")]
    DoesNotApply(String),
    /// A directive that says nothing sensible; upstream has no class for these.
    #[error("{0}")]
    Directive(String),
    /// A `test` operation found something else.
    #[error("{0}")]
    TestFailed(String),
}

impl PatchError {
    /// How the failure reaches a client.
    pub fn status(&self) -> Status {
        match self {
            PatchError::Malformed(m) => Status::bad_request(m),
            PatchError::Directive(m) => Status::unclassified(m),
            PatchError::TooManyOperations { .. } => Status::request_entity_too_large(self),
            PatchError::DoesNotApply(_) | PatchError::TestFailed(_) => Status {
                code: 422,
                reason: "Invalid".into(),
                message: "the server rejected our request due to an error in our request".into(),
                details: Some(StatusDetails::default()),
            },
        }
    }
}
