//! The one error type of the ports: what kind of failure it was decides what the node does next.

use thiserror::Error;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed port operation. The message is shown to users in events and container statuses.
#[derive(Debug, Clone, Error)]
pub enum Error {
    /// The named sandbox, container, image or path does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The request cannot succeed until the user changes it (bad name, bad option, bad digest).
    #[error("{0}")]
    Invalid(String),
    /// The object exists already or is in a state that forbids the operation.
    #[error("{0}")]
    Conflict(String),
    /// A registry refused the credentials or the lack of them.
    #[error("{0}")]
    Unauthorized(String),
    /// The operation did not finish in the time it was given.
    #[error("{0}")]
    Timeout(String),
    /// The machine lacks a feature; the message says which and what to do.
    #[error("{0}")]
    Unsupported(String),
    /// Anything else; retried with back-off.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound(_))
    }
}
