//! What expressions may speak of.

use crate::check;
use crate::eval;
use crate::expression::Expression;
use crate::issue::{self, Issue};
use crate::library::{Function, Functions, patches};
use crate::parser;
use crate::provider::{NoTypes, TypeProvider};
use crate::source::Source;
use crate::types::Type;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// A minor version of Kubernetes, for the libraries that a version introduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    names: Arc<Names>,
}

/// Collects what an [`Environment`] holds.
#[derive(Clone)]
pub struct EnvironmentBuilder {
    names: Names,
}

/// What names mean.
#[derive(Clone)]
pub(crate) struct Names {
    functions: Arc<Functions>,
    variables: BTreeMap<Arc<str>, Type>,
    bindings: bool,
    provider: Arc<dyn TypeProvider>,
}

/// Types that can be named in an expression.
static TYPES: LazyLock<HashMap<&'static str, Type>> = LazyLock::new(|| {
    let any = Type::param;
    HashMap::from([
        ("bool", Type::Bool),
        ("bytes", Type::Bytes),
        ("double", Type::Double),
        ("int", Type::Int),
        ("null_type", Type::Null),
        ("string", Type::String),
        ("uint", Type::Uint),
        ("google.protobuf.Duration", Type::Duration),
        ("google.protobuf.Timestamp", Type::Timestamp),
        ("list", Type::list(any("A"))),
        ("map", Type::map(any("A"), any("B"))),
        ("type", Type::bare()),
        ("optional_type", Type::optional(any("V"))),
        ("net.IP", Type::opaque("net.IP")),
        ("net.CIDR", Type::opaque("net.CIDR")),
    ])
});

impl Names {
    pub(crate) fn variable(&self, name: &str) -> Option<(&Arc<str>, &Type)> {
        self.variables.get_key_value(name)
    }

    pub(crate) fn type_named(&self, name: &str) -> Option<Type> {
        if self.provider.has_type(name) {
            return Some(Type::object(name));
        }
        TYPES.get(name).cloned()
    }

    pub(crate) fn function(&self, name: &str) -> Option<Arc<Function>> {
        self.functions.get(name)
    }

    pub(crate) fn provider(&self) -> &dyn TypeProvider {
        &*self.provider
    }
}

/// The functions of a version, built once.
fn functions(version: Version) -> Arc<Functions> {
    static BUILT: LazyLock<Mutex<HashMap<Version, Arc<Functions>>>> = LazyLock::new(Mutex::default);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let functions = built
        .entry(version)
        .or_insert_with(|| Arc::new(Functions::at(version)));
    functions.clone()
}

impl Environment {
    /// The libraries of Kubernetes that were there at a version.
    pub fn builder(version: Version) -> EnvironmentBuilder {
        EnvironmentBuilder {
            names: Names {
                functions: functions(version),
                variables: BTreeMap::new(),
                bindings: false,
                provider: Arc::new(NoTypes),
            },
        }
    }

    /// A builder that starts with what this environment holds.
    pub fn extend(&self) -> EnvironmentBuilder {
        EnvironmentBuilder {
            names: (*self.names).clone(),
        }
    }

    /// Parses and checks an expression. All issues are given, in the order of their places.
    pub fn compile(&self, source: &str) -> Result<Expression, Vec<Issue>> {
        let text = Source::new(source);
        let sorted = |mut issues: Vec<Issue>| {
            issue::sort(&mut issues);
            issues
        };
        let parsed = parser::parse(&text, self.names.bindings).map_err(sorted)?;
        let checked = check::check(&parsed.expr, &parsed.offsets, &text, &self.names);
        let checked = checked.map_err(sorted)?;
        let plan = eval::plan(&parsed.expr, &checked);
        Ok(Expression::new(source, parsed.expr, checked, plan))
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("variables", &self.names.variables)
            .finish_non_exhaustive()
    }
}

impl EnvironmentBuilder {
    /// Declares a variable. Its name may have dots.
    #[must_use]
    pub fn variable(mut self, name: &str, ty: Type) -> EnvironmentBuilder {
        self.names.variables.insert(name.into(), ty);
        self
    }

    /// Adds the macro `cel.bind(name, value, result)`.
    #[must_use]
    pub fn bindings(mut self) -> EnvironmentBuilder {
        self.names.bindings = true;
        self
    }

    /// Looks up object types there.
    #[must_use]
    pub fn provider(mut self, provider: Arc<dyn TypeProvider>) -> EnvironmentBuilder {
        self.names.provider = provider;
        self
    }

    /// Adds what mutations may use: `JSONPatch{…}`, `jsonpatch.escapeKey` and `Object{…}` with
    /// every type below it.
    #[must_use]
    pub fn mutation(mut self) -> EnvironmentBuilder {
        let mut functions = (*self.names.functions).clone();
        functions.add(patches::ROWS);
        self.names.functions = Arc::new(functions);
        let others = self.names.provider;
        self.names.provider = Arc::new(patches::MutationTypes { others });
        self
    }

    pub fn build(self) -> Environment {
        Environment {
            names: Arc::new(self.names),
        }
    }
}
