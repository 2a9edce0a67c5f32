//! The environment of admission: match conditions of webhooks, and admission policies.
//!
//! `object`, `oldObject` and `params` are of any type, `request` and `namespaceObject` have
//! declared fields, `variables` has one per variable of the policy that was compiled before.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use keelson_cel::{DeclType, Declarations, Environment, Expression, Type, Version, display_issues};

use super::declare::{field, map_of, object, text, texts, user_info};

pub const OBJECT: &str = "object";
pub const OLD_OBJECT: &str = "oldObject";
pub const PARAMS: &str = "params";
pub const REQUEST: &str = "request";
pub const NAMESPACE: &str = "namespaceObject";
pub const AUTHORIZER: &str = "authorizer";
pub const REQUEST_RESOURCE: &str = "authorizer.requestResource";
pub const VARIABLES: &str = "variables";

const VARIABLES_TYPE: &str = "kubernetes.variables";

/// What an expression must give, by what it is for.
pub static CONDITION: LazyLock<[Type; 1]> = LazyLock::new(|| [Type::Bool]);
pub static MESSAGE: LazyLock<[Type; 1]> = LazyLock::new(|| [Type::String]);
pub static AUDIT_ANNOTATION: LazyLock<[Type; 2]> = LazyLock::new(|| [Type::String, Type::Null]);
pub static APPLY_CONFIGURATION: LazyLock<[Type; 1]> = LazyLock::new(|| [Type::object("Object")]);
pub static JSON_PATCH: LazyLock<[Type; 1]> =
    LazyLock::new(|| [Type::list(Type::object("JSONPatch"))]);

/// Variables that not every expression has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Declared {
    pub params: bool,
    pub authorizer: bool,
    /// The types that mutations make: `Object` and `JSONPatch`.
    pub mutation: bool,
}

/// What `object`, `oldObject` and `params` are, when that is to be checked too.
#[derive(Debug, Clone, Default)]
pub struct Typed {
    pub object: Option<DeclType>,
    pub params: Option<DeclType>,
}

/// Compiles the expressions of one webhook or policy.
#[derive(Debug, Clone, Default)]
pub struct Compiler {
    /// The variables compiled so far; `None` where there can be none.
    variables: Option<BTreeMap<String, Type>>,
    typed: Typed,
}

impl Compiler {
    /// For expressions that cannot use `variables`.
    pub fn stateless() -> Self {
        Self::default()
    }

    /// For policies.
    pub fn composing() -> Self {
        Self {
            variables: Some(BTreeMap::new()),
            ..Self::default()
        }
    }

    /// For policies, with what is known of the objects.
    pub fn checking(typed: Typed) -> Self {
        Self {
            typed,
            ..Self::composing()
        }
    }

    /// Compiles a variable, which later expressions may use; one that does not compile has any
    /// type to them.
    pub fn variable(
        &mut self,
        name: &str,
        source: &str,
        declared: Declared,
        version: Version,
    ) -> Result<Expression, String> {
        let compiled = self.compile(source, declared, &[], version);
        let ty = compiled
            .as_ref()
            .map_or(Type::Dyn, |e| without_objects(e.output_type()));
        if let Some(variables) = &mut self.variables {
            variables.insert(name.to_owned(), ty);
        }
        compiled
    }

    pub fn compile(
        &self,
        source: &str,
        declared: Declared,
        wanted: &[Type],
        version: Version,
    ) -> Result<Expression, String> {
        super::compile(&self.environment(declared, version), source, wanted)
    }

    /// What the checker says against an expression, whatever it gives.
    pub fn issues(&self, source: &str, declared: Declared) -> Option<String> {
        self.environment(declared, Version::STORED_EXPRESSIONS)
            .compile(source)
            .err()
            .map(|issues| display_issues(&issues))
    }

    fn environment(&self, declared: Declared, version: Version) -> Environment {
        let type_of = |decl: &Option<DeclType>| decl.as_ref().map_or(Type::Dyn, |d| d.ty.clone());
        let mut roots: Vec<&DeclType> = vec![&REQUEST_TYPE, &NAMESPACE_TYPE];
        roots.extend(&self.typed.object);
        roots.extend(&self.typed.params);
        let variables = self.variables.as_ref().map(variables_type);
        roots.extend(&variables);
        let object = type_of(&self.typed.object);
        let mut builder = Environment::builder(version)
            .variable(OBJECT, object.clone())
            .variable(OLD_OBJECT, object)
            .variable(NAMESPACE, NAMESPACE_TYPE.ty.clone())
            .variable(REQUEST, REQUEST_TYPE.ty.clone())
            .provider(Arc::new(Declarations::new(roots).with_keywords_as_fields()));
        if declared.params {
            builder = builder.variable(PARAMS, type_of(&self.typed.params));
        }
        if declared.authorizer {
            builder = builder
                .variable(
                    AUTHORIZER,
                    Type::object("kubernetes.authorization.Authorizer"),
                )
                .variable(
                    REQUEST_RESOURCE,
                    Type::object("kubernetes.authorization.ResourceCheck"),
                );
        }
        if self.variables.is_some() {
            builder = builder.variable(VARIABLES, Type::object(VARIABLES_TYPE));
        }
        if declared.mutation {
            builder = builder.mutation();
        }
        builder.build()
    }
}

fn variables_type(variables: &BTreeMap<String, Type>) -> DeclType {
    let fields = variables
        .iter()
        .map(|(name, ty)| (name.clone(), field(DeclType::scalar(ty.clone()))));
    DeclType::object(VARIABLES_TYPE, fields.collect())
}

/// Variables keep scalar types, lists and maps; the fields of objects are looked at when they run.
fn without_objects(ty: &Type) -> Type {
    match ty {
        Type::List(element) => Type::list(without_objects(element)),
        Type::Map(key, value) => Type::map(without_objects(key), without_objects(value)),
        Type::Null
        | Type::Bool
        | Type::Int
        | Type::Uint
        | Type::Double
        | Type::String
        | Type::Bytes
        | Type::Duration
        | Type::Timestamp => ty.clone(),
        _ => Type::Dyn,
    }
}

static REQUEST_TYPE: LazyLock<DeclType> = LazyLock::new(|| {
    let kind = || {
        object(
            "kubernetes.GroupVersionKind",
            [("group", text()), ("version", text()), ("kind", text())],
        )
    };
    let resource = || {
        object(
            "kubernetes.GroupVersionResource",
            [("group", text()), ("version", text()), ("resource", text())],
        )
    };
    object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", kind()),
            ("resource", resource()),
            ("subResource", text()),
            ("requestKind", kind()),
            ("requestResource", resource()),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user_info()),
            ("dryRun", DeclType::scalar(Type::Bool)),
            ("options", DeclType::scalar(Type::Dyn)),
        ],
    )
});

static NAMESPACE_TYPE: LazyLock<DeclType> = LazyLock::new(|| {
    let time = || DeclType::scalar(Type::Timestamp);
    let number = || DeclType::scalar(Type::Int);
    let condition = object(
        "kubernetes.NamespaceCondition",
        [
            ("status", text()),
            ("type", text()),
            ("lastTransitionTime", time()),
            ("message", text()),
            ("reason", text()),
        ],
    );
    let status = object(
        "kubernetes.NamespaceStatus",
        [
            ("conditions", DeclType::list(Arc::new(condition), -1)),
            ("phase", text()),
        ],
    );
    let metadata = object(
        "kubernetes.NamespaceMetadata",
        [
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", map_of(text())),
            ("annotations", map_of(text())),
            ("UID", text()),
            ("creationTimestamp", time()),
            ("deletionGracePeriodSeconds", number()),
            ("deletionTimestamp", time()),
            ("generation", number()),
            ("resourceVersion", text()),
            ("finalizers", texts()),
        ],
    );
    let spec = object("kubernetes.NamespaceSpec", [("finalizers", texts())]);
    object(
        "kubernetes.Namespace",
        [("metadata", metadata), ("spec", spec), ("status", status)],
    )
});
