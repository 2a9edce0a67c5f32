//! The door of the `authorizer` variable.

use std::fmt;

/// What an expression asks the authorizer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The service account `(namespace, name)` to ask for; the requesting user when there is none.
    pub service_account: Option<(String, String)>,
    pub verb: String,
    /// Set for a check of a non-resource path, which uses no field below but this.
    pub path: Option<String>,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: Option<String>,
    pub label_selector: Option<String>,
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    pub error: Option<String>,
}

/// Decides on behalf of an expression; a request's user is the implementor's business.
pub trait Authorizer: fmt::Debug + Send + Sync {
    fn authorize(&self, attributes: &Attributes) -> Decision;
}
