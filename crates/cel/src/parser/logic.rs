//! Chains of `&&` and `||`.

use crate::ast::{Expr, ExprKind, Id};
use std::sync::Arc;

/// A balanced tree of one logical operator, so that long chains do not nest deeply.
pub(super) fn balance(function: &str, terms: Vec<Expr>, ops: &[Id]) -> Expr {
    let function: Arc<str> = function.into();
    let mut terms: Vec<Option<Expr>> = terms.into_iter().map(Some).collect();
    build(&function, &mut terms, ops)
}

fn build(function: &Arc<str>, terms: &mut [Option<Expr>], ops: &[Id]) -> Expr {
    if ops.is_empty() {
        let only = terms.first_mut().and_then(Option::take);
        return only.unwrap_or(Expr::new(0, ExprKind::Unspecified));
    }
    let middle = ops.len() / 2;
    let (left, right) = terms.split_at_mut(middle + 1);
    let left = build(function, left, &ops[..middle]);
    let right = build(function, right, &ops[middle + 1..]);
    let kind = ExprKind::Call {
        target: None,
        function: function.clone(),
        args: vec![left, right],
    };
    Expr::new(ops[middle], kind)
}
