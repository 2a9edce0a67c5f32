//! The Common Expression Language as Kubernetes v1.36 uses it: parse, check, estimate, evaluate.
//!
//! An [`Environment`] knows variables, types and libraries; it compiles a text into an
//! [`Expression`], which is checked and can be evaluated many times against an [`Activation`].
//! Values of the API are looked at where they lie ([`Value::from_json`]), nothing is converted up
//! front. Every evaluation has a cost limit, see [`limits`].

pub mod limits;

mod activation;
mod ast;
mod authorizer;
mod check;
mod cost;
mod decl;
mod environment;
mod escape;
mod eval;
mod expression;
mod issue;
mod lexer;
mod library;
mod number;
mod parser;
mod provider;
mod schema;
mod source;
mod time;
mod types;
mod value;

pub use activation::{Activation, Variables};
pub use authorizer::{Attributes, Authorizer, Decision};
pub use cost::{CostRange, DeclSizes, SizeEstimator, SizeRange};
pub use decl::{DeclField, DeclKind, DeclType, Declarations};
pub use environment::{Environment, EnvironmentBuilder, Version};
pub use escape::{escape, unescape};
pub use expression::{Evaluation, Expression};
pub use issue::{Issue, display as display_issues};
pub use library::regular_expression;
pub use provider::{NoTypes, TypeProvider};
pub use schema::Schema;
pub use time::Moment;
pub use types::Type;
pub use value::{
    ErrorKind, EvalError, List, Map, MapEntries, Object, Opaque, Str, Value, ValueResult,
};
