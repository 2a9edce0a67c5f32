//! The syntax tree. Ids are unique within a tree; every id has a place in the source.

use std::sync::Arc;

pub(crate) type Id = u32;

#[derive(Debug, Clone)]
pub(crate) struct Expr {
    pub(crate) id: Id,
    pub(crate) kind: ExprKind,
}

#[derive(Debug, Clone)]
pub(crate) enum ExprKind {
    /// Stands where an error was reported.
    Unspecified,
    Literal(Literal),
    Ident(Arc<str>),
    Select {
        operand: Box<Expr>,
        field: Arc<str>,
        /// `has(operand.field)`.
        test_only: bool,
    },
    Call {
        target: Option<Box<Expr>>,
        function: Arc<str>,
        args: Vec<Expr>,
    },
    List(Vec<Element>),
    Map(Vec<Entry>),
    Struct {
        name: Arc<str>,
        fields: Vec<Field>,
    },
    Comprehension(Box<Comprehension>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Debug, Clone)]
pub(crate) struct Element {
    pub(crate) value: Expr,
    /// Written `?value`: left out when it is `optional.none()`.
    pub(crate) optional: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: Expr,
    pub(crate) value: Expr,
    pub(crate) optional: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) id: Id,
    pub(crate) name: Arc<str>,
    pub(crate) value: Expr,
    pub(crate) optional: bool,
}

/// A loop with an accumulator; what the macros expand to.
#[derive(Debug, Clone)]
pub(crate) struct Comprehension {
    pub(crate) range: Expr,
    pub(crate) var: Arc<str>,
    /// With a second variable the first is the index or key, the second the element or value.
    pub(crate) var2: Option<Arc<str>>,
    pub(crate) accu: Arc<str>,
    pub(crate) init: Expr,
    pub(crate) condition: Expr,
    pub(crate) step: Expr,
    pub(crate) result: Expr,
}

impl Expr {
    pub(crate) fn new(id: Id, kind: ExprKind) -> Expr {
        Expr { id, kind }
    }

    /// Whether a part of the expression, or the expression itself, is what is looked for.
    pub(crate) fn any(&self, wanted: impl Fn(&Expr) -> bool) -> bool {
        let mut left = vec![self];
        while let Some(expr) = left.pop() {
            if wanted(expr) {
                return true;
            }
            match &expr.kind {
                ExprKind::Unspecified | ExprKind::Literal(_) | ExprKind::Ident(_) => {}
                ExprKind::Select { operand, .. } => left.push(operand),
                ExprKind::Call { target, args, .. } => {
                    left.extend(target.as_deref());
                    left.extend(args);
                }
                ExprKind::List(elements) => left.extend(elements.iter().map(|e| &e.value)),
                ExprKind::Map(entries) => {
                    left.extend(entries.iter().flat_map(|e| [&e.key, &e.value]));
                }
                ExprKind::Struct { fields, .. } => left.extend(fields.iter().map(|f| &f.value)),
                ExprKind::Comprehension(c) => {
                    left.extend([&c.range, &c.init, &c.condition, &c.step, &c.result]);
                }
            }
        }
        false
    }

    /// Whether this is `operand.field`, `operand.?field` or `has(operand.field)`; of any operand
    /// when none is given.
    pub(crate) fn selects(&self, operand: Option<&str>, field: &str) -> bool {
        let (from, name) = match &self.kind {
            ExprKind::Select { operand, field, .. } => (&**operand, &**field),
            ExprKind::Call { function, args, .. } if &**function == "_?._" => match args.as_slice()
            {
                [
                    from,
                    Expr {
                        kind: ExprKind::Literal(Literal::String(name)),
                        ..
                    },
                ] => (from, &**name),
                _ => return false,
            },
            _ => return false,
        };
        let of_operand = |wanted: &str| matches!(&from.kind, ExprKind::Ident(n) if **n == *wanted);
        name == field && operand.is_none_or(of_operand)
    }

    /// `a.b.c` as a name, when the expression is nothing but that.
    pub(crate) fn qualified_name(&self) -> Option<String> {
        let mut parts = Vec::new();
        let mut at = self;
        loop {
            match &at.kind {
                ExprKind::Ident(name) => {
                    parts.push(&**name);
                    parts.reverse();
                    return Some(parts.join("."));
                }
                ExprKind::Select {
                    operand,
                    field,
                    test_only: false,
                } => {
                    parts.push(field);
                    at = operand;
                }
                _ => return None,
            }
        }
    }
}
