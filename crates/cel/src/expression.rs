//! A compiled expression.

use crate::activation::Activation;
use crate::ast::Expr;
use crate::check::{Checked, Reference};
use crate::cost::{self, CostRange, SizeEstimator};
use crate::eval::{self, Plan};
use crate::types::Type;
use crate::value::{EvalError, ValueResult};
use std::sync::Arc;

/// An expression that was parsed and checked and can be evaluated any number of times. Cheap to
/// clone.
#[derive(Debug, Clone)]
pub struct Expression {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    source: String,
    expr: Expr,
    checked: Checked,
    plan: Result<Plan, EvalError>,
}

/// What an evaluation gave, and what it cost.
#[derive(Debug, Clone)]
pub struct Evaluation<'v> {
    pub result: ValueResult<'v>,
    pub cost: u64,
}

impl Expression {
    pub(crate) fn new(
        source: &str,
        expr: Expr,
        checked: Checked,
        plan: Result<Plan, EvalError>,
    ) -> Expression {
        let source = source.to_owned();
        Expression {
            inner: Arc::new(Inner {
                source,
                expr,
                checked,
                plan,
            }),
        }
    }

    pub fn source(&self) -> &str {
        &self.inner.source
    }

    /// The type the checker found.
    pub fn output_type(&self) -> &Type {
        &self.inner.checked.types[self.inner.expr.id as usize]
    }

    /// Why a checked expression can still not be evaluated at all: a constant in it is not valid.
    /// Upstream says so with the words `program instantiation failed`.
    pub fn instantiation_error(&self) -> Option<&EvalError> {
        self.inner.plan.as_ref().err()
    }

    /// Whether a variable is used anywhere in it. As upstream has it, a loop variable of that name
    /// counts, too.
    pub fn uses_variable(&self, name: &str) -> bool {
        let references = self.inner.checked.references.iter().flatten();
        references
            .into_iter()
            .any(|r| matches!(r, Reference::Variable(n) if **n == *name))
    }

    /// Whether the field is selected anywhere in it: of the named variable, or of anything.
    pub fn selects(&self, variable: Option<&str>, field: &str) -> bool {
        self.inner.expr.any(|part| part.selects(variable, field))
    }

    /// What it can cost at least and at most, by the sizes that the estimator knows.
    pub fn estimate_cost(&self, sizes: &dyn SizeEstimator) -> CostRange {
        cost::estimate(&self.inner.expr, &self.inner.checked, sizes)
    }

    /// Evaluates it at a cost of at most `limit`, see [`crate::limits`].
    pub fn eval<'v>(&self, activation: &dyn Activation<'v>, limit: u64) -> Evaluation<'v> {
        match &self.inner.plan {
            Ok(plan) => {
                let (result, cost) = eval::evaluate(plan, activation, limit);
                Evaluation { result, cost }
            }
            Err(e) => Evaluation {
                result: Err(e.clone()),
                cost: 0,
            },
        }
    }
}
