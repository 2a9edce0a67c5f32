//! Limits that Kubernetes sets to its expressions, in units of CEL cost.

/// The most one evaluation may cost.
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// The most all expressions of one policy binding, or of one custom resource, may cost together.
pub const RUNTIME_COST_BUDGET: u64 = 10_000_000;
/// The most the match conditions of one webhook or one policy may cost together.
pub const MATCH_CONDITIONS_BUDGET: u64 = 2_500_000;
/// The largest text in bytes that a `messageExpression` may give.
pub const MAX_MESSAGE_BYTES: usize = 5 * 1024;
/// The largest request body in bytes; bounds what an unbounded schema may hold.
pub const MAX_REQUEST_BYTES: i64 = 3 * 1024 * 1024;
/// The most code points an expression may have.
pub const MAX_EXPRESSION_CODE_POINTS: usize = 100_000;
/// The most nodes a tree may have: some macros repeat what they are called on, so that trees can
/// outgrow their texts.
pub const MAX_NODES: usize = 500_000;
/// The deepest nesting of an expression.
pub const MAX_RECURSION_DEPTH: usize = 250;

/// Runs one level of a walk over a tree, on more stack when little is left: trees that the limits
/// allow are deeper than the stack of a worker thread.
pub(crate) fn deep<T>(walk: impl FnOnce() -> T) -> T {
    const LEFT: usize = 128 << 10;
    const MORE: usize = 2 << 20;
    stacker::maybe_grow(LEFT, MORE, walk)
}
