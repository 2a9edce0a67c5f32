//! What can go wrong with a request.

use keelson_machinery::status::Status;
use thiserror::Error;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Error)]
pub enum Error {
    /// The API server answered with a `Status`.
    #[error("{}", .0.message)]
    Api(Box<Status>),
    /// The server could not be reached or the connection broke.
    #[error("talking to the API server: {0}")]
    Transport(String),
    /// The answer was not what was asked for.
    #[error("decoding the API server's answer: {0}")]
    Decode(#[source] serde_json::Error),
    /// The kubeconfig or a certificate cannot be used.
    #[error("{0}")]
    Config(String),
}

impl Error {
    pub fn status(&self) -> Option<&Status> {
        match self {
            Error::Api(status) => Some(status),
            _ => None,
        }
    }

    fn has(&self, code: u16, reason: &str) -> bool {
        self.status()
            .is_some_and(|s| s.code == code && (reason.is_empty() || s.reason == reason))
    }

    pub fn is_not_found(&self) -> bool {
        self.has(404, "")
    }

    pub fn is_conflict(&self) -> bool {
        self.has(409, "Conflict")
    }

    pub fn is_already_exists(&self) -> bool {
        self.has(409, "AlreadyExists")
    }

    pub fn is_forbidden(&self) -> bool {
        self.has(403, "")
    }

    pub fn is_invalid(&self) -> bool {
        self.has(422, "")
    }

    /// The watch or list position is too old and must start over.
    pub fn is_expired(&self) -> bool {
        self.has(410, "")
    }

    /// A create was refused because the namespace is being deleted.
    pub fn is_namespace_terminating(&self) -> bool {
        self.has(403, "")
            && self.status().is_some_and(|s| {
                s.message.contains("because it is being terminated")
                    || s.details.as_ref().is_some_and(|d| {
                        d.causes.iter().any(|c| c.reason == "NamespaceTerminating")
                    })
            })
    }
}

/// An error with its sources, which its `Display` may leave out.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
