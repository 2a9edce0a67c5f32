//! Literals that the type alone does not prove right.

use super::{Checked, Reference};
use crate::ast::{Expr, ExprKind, Literal};
use crate::issue::Issue;
use crate::library;
use crate::limits::deep;
use crate::source::Source;
use crate::types::Type;
use crate::value::Value;

/// Issues with the arguments of `duration`, `timestamp` and `matches`, and with lists and maps
/// whose parts differ in type.
pub(super) fn validate(
    expr: &Expr,
    offsets: &[usize],
    source: &Source,
    checked: &Checked,
) -> Vec<Issue> {
    let mut validator = Validator {
        offsets,
        source,
        checked,
        issues: Vec::new(),
        in_format: 0,
    };
    validator.visit(expr);
    validator.issues
}

struct Validator<'a> {
    offsets: &'a [usize],
    source: &'a Source,
    checked: &'a Checked,
    issues: Vec<Issue>,
    /// How many calls of `format` are around: what they are given may mix types.
    in_format: usize,
}

impl Validator<'_> {
    fn issue(&mut self, e: &Expr, message: String) {
        let offset = self.offsets.get(e.id as usize).copied();
        self.issues.push(self.source.issue(offset, message));
    }

    fn type_of(&self, e: &Expr) -> &Type {
        &self.checked.types[e.id as usize]
    }

    fn visit(&mut self, e: &Expr) {
        deep(|| self.visit_parts(e));
    }

    fn visit_parts(&mut self, e: &Expr) {
        match &e.kind {
            ExprKind::Unspecified | ExprKind::Literal(_) | ExprKind::Ident(_) => {}
            ExprKind::Select { operand, .. } => self.visit(operand),
            ExprKind::Call {
                target,
                function,
                args,
            } => {
                self.argument(e, function, args);
                let format = usize::from(&**function == "format");
                if let (1, Some(target)) = (format, target) {
                    self.format(e, target, args);
                }
                self.in_format += format;
                for part in target.as_deref().into_iter().chain(args) {
                    self.visit(part);
                }
                self.in_format -= format;
            }
            ExprKind::List(elements) => {
                let parts = elements.iter().map(|el| (&el.value, el.optional));
                self.same(parts, true);
                for element in elements {
                    self.visit(&element.value);
                }
            }
            ExprKind::Map(entries) => {
                self.same(entries.iter().map(|en| (&en.key, false)), false);
                self.same(entries.iter().map(|en| (&en.value, en.optional)), false);
                for entry in entries {
                    self.visit(&entry.key);
                    self.visit(&entry.value);
                }
            }
            ExprKind::Struct { fields, .. } => {
                for field in fields {
                    self.visit(&field.value);
                }
            }
            ExprKind::Comprehension(c) => {
                for part in [&c.range, &c.init, &c.condition, &c.step, &c.result] {
                    self.visit(part);
                }
            }
        }
    }

    fn argument(&mut self, e: &Expr, function: &str, args: &[Expr]) {
        let Some(arg) = args.first() else {
            return;
        };
        let (ExprKind::Literal(literal), "duration" | "timestamp" | "matches") =
            (&arg.kind, function)
        else {
            return;
        };
        let ok = match (function, literal) {
            ("matches", Literal::String(pattern)) => library::regular::compile(pattern).is_ok(),
            ("matches", _) => true,
            (_, literal) => match &self.checked.references[e.id as usize] {
                Some(Reference::Function {
                    function,
                    overloads,
                    ..
                }) => {
                    let chosen = match overloads.as_slice() {
                        [only] => Some(&**only),
                        _ => None,
                    };
                    library::call(function, chosen, &[Value::from(literal)]).is_ok()
                }
                _ => true,
            },
        };
        if !ok {
            self.issue(arg, format!("invalid {function} argument"));
        }
    }

    /// A constant format against the list of values written behind it.
    fn format(&mut self, e: &Expr, target: &Expr, args: &[Expr]) {
        let (ExprKind::Literal(Literal::String(format)), [list]) = (&target.kind, args) else {
            return;
        };
        let ExprKind::List(elements) = &list.kind else {
            return;
        };
        let pieces = match library::formatting::pieces(format) {
            Ok(pieces) => pieces,
            Err(message) => return self.issue(e, message),
        };
        let mut used = 0;
        for piece in pieces {
            let library::formatting::Piece::Clause { verb, .. } = piece else {
                continue;
            };
            let Some(element) = elements.get(used) else {
                return self.issue(e, format!("index {used} out of range"));
            };
            let t = self.type_of(&element.value);
            let refusal = match t {
                Type::Dyn => None,
                // `NaN` and the infinities are written as texts.
                Type::String if matches!(verb, 'f' | 'e') => None,
                t => library::formatting::refusal(verb, t),
            };
            if let Some(refusal) = refusal {
                let message = format!("error during formatting: {refusal}");
                return self.issue(&element.value, message);
            }
            used += 1;
        }
        if elements.len() > used {
            let given = elements.len();
            let message = format!(
                "too many arguments supplied to string.format (expected {used}, got {given})"
            );
            self.issue(e, message);
        }
    }

    fn same<'e>(&mut self, parts: impl Iterator<Item = (&'e Expr, bool)>, first_only: bool) {
        if self.in_format > 0 {
            return;
        }
        let mut wanted: Option<Type> = None;
        for (e, optional) in parts {
            let t = match self.type_of(e) {
                Type::Optional(t) if optional => (**t).clone(),
                Type::Dyn if optional => continue,
                t => t.clone(),
            };
            match &wanted {
                None => wanted = Some(t),
                Some(wanted) if *wanted == t => {}
                Some(wanted) => {
                    let message = format!("expected type '{wanted}' but found '{t}'");
                    self.issue(e, message);
                    if first_only {
                        break;
                    }
                }
            }
        }
    }
}
