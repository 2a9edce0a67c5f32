//! What a command can end with; `Display` is what the user reads, in kubectl's form.

use std::path::PathBuf;

use keelson_client::Error as ClientError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", explain(.0))]
    Client(#[from] ClientError),
    #[error("error: {0}")]
    Usage(String),
    #[error("error: the server doesn't have a resource type {0:?}")]
    NoSuchResource(String),
    #[error("error: {path}: {reason}")]
    Manifest { path: PathBuf, reason: String },
    #[error("error: {0}")]
    Io(#[from] std::io::Error),
    #[error("error: {0}")]
    Stream(String),
    /// The exit code of a command that ran in a container.
    #[error("command terminated with exit code {0}")]
    Exit(i32),
}

fn explain(error: &ClientError) -> String {
    match error.status() {
        Some(status) if status.reason.is_empty() => {
            format!("Error from server: {}", status.message)
        }
        Some(status) => format!("Error from server ({}): {}", status.reason, status.message),
        None => format!("error: {error}"),
    }
}
