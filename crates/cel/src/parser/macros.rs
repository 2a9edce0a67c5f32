//! Calls that stand for other expressions.

use super::Parser;
use crate::ast::{Comprehension, Element, Expr, ExprKind, Literal};
use std::sync::Arc;

/// The accumulator's name, which no source text can spell.
pub(crate) const ACCUMULATOR: &str = "@result";
/// Its name of old, which is still refused as a variable.
const OLD_ACCUMULATOR: &str = "__result__";
const UNUSED: &str = "#unused";
const SORT_INPUT: &str = "@__sortBy_input__";

/// What makes the expansion of a call: the target, if any, and the arguments.
pub(super) type Expand = fn(&mut Maker<'_, '_>, Option<Expr>, Vec<Expr>) -> Expansion;

type Expansion = Result<Expr, Refused>;

/// Why a macro cannot be expanded, and the id of the argument at fault.
pub(super) struct Refused {
    id: u32,
    message: String,
}

/// Every macro: its name, how many arguments, whether it is called on a target.
const MACROS: &[(&str, usize, bool, Expand)] = &[
    ("has", 1, false, has),
    ("all", 2, true, all),
    ("exists", 2, true, exists),
    ("exists_one", 2, true, exists_one),
    ("map", 2, true, map),
    ("map", 3, true, map),
    ("filter", 2, true, filter),
    ("optMap", 2, true, opt_map),
    ("optFlatMap", 2, true, opt_flat_map),
    ("all", 3, true, all),
    ("exists", 3, true, exists),
    ("exists_one", 3, true, exists_one),
    ("existsOne", 3, true, exists_one),
    ("transformList", 3, true, transform_list),
    ("transformList", 4, true, transform_list),
    ("transformMap", 3, true, transform_map),
    ("transformMap", 4, true, transform_map),
    ("transformMapEntry", 3, true, transform_map_entry),
    ("transformMapEntry", 4, true, transform_map_entry),
    ("sortBy", 2, true, sort_by),
];

/// `cel.bind(name, value, result)`, in environments that have it.
pub(super) const BIND: (&str, usize, Expand) = ("bind", 3, named_bind);

/// The namespace that [`BIND`] is called on.
pub(super) const NAMESPACE: &str = "cel";

pub(super) fn find(name: &str, args: usize, on_target: bool) -> Option<Expand> {
    MACROS
        .iter()
        .find(|m| m.0 == name && m.1 == args && m.2 == on_target)
        .map(|m| m.3)
}

/// Makes nodes that all lie where the macro was called.
pub(super) struct Maker<'p, 's> {
    parser: &'p mut Parser<'s>,
    offset: usize,
}

impl Parser<'_> {
    pub(super) fn expand(
        &mut self,
        expand: Expand,
        offset: usize,
        target: Option<Expr>,
        args: Vec<Expr>,
    ) -> Expr {
        let mut maker = Maker {
            parser: self,
            offset,
        };
        match expand(&mut maker, target, args) {
            Ok(expr) => expr,
            Err(refused) => {
                let at = self.offsets.get(refused.id as usize).copied();
                self.failed(at.unwrap_or(offset), refused.message)
            }
        }
    }
}

impl Maker<'_, '_> {
    fn make(&mut self, kind: ExprKind) -> Expr {
        let id = self.parser.id(self.offset);
        Expr::new(id, kind)
    }

    fn ident(&mut self, name: &str) -> Expr {
        self.make(ExprKind::Ident(name.into()))
    }

    fn accu(&mut self) -> Expr {
        self.ident(ACCUMULATOR)
    }

    fn literal(&mut self, value: Literal) -> Expr {
        self.make(ExprKind::Literal(value))
    }

    fn call(&mut self, function: &str, args: Vec<Expr>) -> Expr {
        self.make(ExprKind::Call {
            target: None,
            function: function.into(),
            args,
        })
    }

    fn method(&mut self, function: &str, target: Expr, args: Vec<Expr>) -> Expr {
        self.make(ExprKind::Call {
            target: Some(Box::new(target)),
            function: function.into(),
            args,
        })
    }

    fn list(&mut self, values: Vec<Expr>) -> Expr {
        let elements = values.into_iter().map(|value| Element {
            value,
            optional: false,
        });
        self.make(ExprKind::List(elements.collect()))
    }

    fn fold(&mut self, comprehension: Comprehension) -> Expr {
        self.make(ExprKind::Comprehension(Box::new(comprehension)))
    }

    /// A copy with ids of its own, each at its original's place.
    fn copy(&mut self, e: &Expr) -> Expr {
        let offset = self.parser.offsets.get(e.id as usize).copied();
        let id = self.parser.id(offset.unwrap_or(self.offset));
        if self.parser.overgrown {
            return Expr::new(id, ExprKind::Unspecified);
        }
        let kind = match &e.kind {
            ExprKind::Select {
                operand,
                field,
                test_only,
            } => ExprKind::Select {
                operand: Box::new(self.copy(operand)),
                field: field.clone(),
                test_only: *test_only,
            },
            ExprKind::Call {
                target,
                function,
                args,
            } => ExprKind::Call {
                target: target.as_ref().map(|t| Box::new(self.copy(t))),
                function: function.clone(),
                args: args.iter().map(|a| self.copy(a)).collect(),
            },
            ExprKind::List(elements) => {
                let mut elements = elements.clone();
                for element in &mut elements {
                    element.value = self.copy(&element.value);
                }
                ExprKind::List(elements)
            }
            ExprKind::Map(entries) => {
                let mut entries = entries.clone();
                for entry in &mut entries {
                    entry.key = self.copy(&entry.key);
                    entry.value = self.copy(&entry.value);
                }
                ExprKind::Map(entries)
            }
            ExprKind::Struct { name, fields } => {
                let mut fields = fields.clone();
                for field in &mut fields {
                    field.id = self.parser.id(self.offset);
                    field.value = self.copy(&field.value);
                }
                ExprKind::Struct {
                    name: name.clone(),
                    fields,
                }
            }
            ExprKind::Comprehension(c) => {
                let mut c = c.clone();
                c.range = self.copy(&c.range);
                c.init = self.copy(&c.init);
                c.condition = self.copy(&c.condition);
                c.step = self.copy(&c.step);
                c.result = self.copy(&c.result);
                ExprKind::Comprehension(c)
            }
            other => other.clone(),
        };
        Expr::new(id, kind)
    }
}

fn refuse<T>(e: &Expr, message: impl Into<String>) -> Result<T, Refused> {
    Err(Refused {
        id: e.id,
        message: message.into(),
    })
}

fn simple_name(e: &Expr, message: &str) -> Result<Arc<str>, Refused> {
    match &e.kind {
        ExprKind::Ident(name) => Ok(name.clone()),
        _ => refuse(e, message),
    }
}

fn not_accumulator(e: &Expr, name: &str) -> Result<(), Refused> {
    if name == ACCUMULATOR || name == OLD_ACCUMULATOR {
        return refuse(e, "iteration variable overwrites accumulator variable");
    }
    Ok(())
}

/// The loop variables that the first arguments name: one, or two when `two`.
fn variables(
    args: &[Expr],
    two: bool,
    message: &str,
) -> Result<(Arc<str>, Option<Arc<str>>), Refused> {
    let first = simple_name(&args[0], message)?;
    if !two {
        not_accumulator(&args[0], &first)?;
        return Ok((first, None));
    }
    let second = simple_name(&args[1], message)?;
    if first == second {
        return refuse(&args[1], format!("duplicate variable name: {first}"));
    }
    not_accumulator(&args[0], &first)?;
    not_accumulator(&args[1], &second)?;
    Ok((first, Some(second)))
}

const SIMPLE_NAME: &str = "argument must be a simple name";

/// The target; every macro that asks for it is called on one.
fn range(m: &mut Maker<'_, '_>, target: Option<Expr>) -> Expr {
    target.unwrap_or_else(|| m.make(ExprKind::Unspecified))
}

fn has(m: &mut Maker<'_, '_>, _: Option<Expr>, mut args: Vec<Expr>) -> Expansion {
    let arg = args.swap_remove(0);
    match arg.kind {
        ExprKind::Select { operand, field, .. } => Ok(m.make(ExprKind::Select {
            operand,
            field,
            test_only: true,
        })),
        _ => refuse(&arg, "invalid argument to has() macro"),
    }
}

fn all(m: &mut Maker<'_, '_>, target: Option<Expr>, mut args: Vec<Expr>) -> Expansion {
    let (var, var2) = variables(&args, args.len() == 3, SIMPLE_NAME)?;
    let predicate = args.swap_remove(args.len() - 1);
    let init = m.literal(Literal::Bool(true));
    let accu = m.accu();
    let condition = m.call("@not_strictly_false", vec![accu]);
    let accu = m.accu();
    let step = m.call("_&&_", vec![accu, predicate]);
    finish(m, target, var, var2, init, condition, step)
}

fn exists(m: &mut Maker<'_, '_>, target: Option<Expr>, mut args: Vec<Expr>) -> Expansion {
    let (var, var2) = variables(&args, args.len() == 3, SIMPLE_NAME)?;
    let predicate = args.swap_remove(args.len() - 1);
    let init = m.literal(Literal::Bool(false));
    let accu = m.accu();
    let not = m.call("!_", vec![accu]);
    let condition = m.call("@not_strictly_false", vec![not]);
    let accu = m.accu();
    let step = m.call("_||_", vec![accu, predicate]);
    finish(m, target, var, var2, init, condition, step)
}

fn exists_one(m: &mut Maker<'_, '_>, target: Option<Expr>, mut args: Vec<Expr>) -> Expansion {
    let (var, var2) = variables(&args, args.len() == 3, SIMPLE_NAME)?;
    let predicate = args.swap_remove(args.len() - 1);
    let init = m.literal(Literal::Int(0));
    let condition = m.literal(Literal::Bool(true));
    let (accu, one) = (m.accu(), m.literal(Literal::Int(1)));
    let more = m.call("_+_", vec![accu, one]);
    let accu = m.accu();
    let step = m.call("_?_:_", vec![predicate, more, accu]);
    let (accu, one) = (m.accu(), m.literal(Literal::Int(1)));
    let result = m.call("_==_", vec![accu, one]);
    let range = range(m, target);
    Ok(m.fold(Comprehension {
        range,
        var,
        var2,
        accu: ACCUMULATOR.into(),
        init,
        condition,
        step,
        result,
    }))
}

/// A comprehension whose result is the accumulator.
fn finish(
    m: &mut Maker<'_, '_>,
    target: Option<Expr>,
    var: Arc<str>,
    var2: Option<Arc<str>>,
    init: Expr,
    condition: Expr,
    step: Expr,
) -> Expansion {
    let range = range(m, target);
    let result = m.accu();
    Ok(m.fold(Comprehension {
        range,
        var,
        var2,
        accu: ACCUMULATOR.into(),
        init,
        condition,
        step,
        result,
    }))
}

/// A comprehension that adds to its accumulator with every element that passes the filter.
fn collect(
    m: &mut Maker<'_, '_>,
    target: Option<Expr>,
    (var, var2): (Arc<str>, Option<Arc<str>>),
    init: Expr,
    filter: Option<Expr>,
    add: Expr,
) -> Expansion {
    let condition = m.literal(Literal::Bool(true));
    let step = match filter {
        Some(filter) => {
            let accu = m.accu();
            m.call("_?_:_", vec![filter, add, accu])
        }
        None => add,
    };
    finish(m, target, var, var2, init, condition, step)
}

/// `accumulator + [value]`.
fn append(m: &mut Maker<'_, '_>, value: Expr) -> Expr {
    let accu = m.accu();
    let list = m.list(vec![value]);
    m.call("_+_", vec![accu, list])
}

fn map(m: &mut Maker<'_, '_>, target: Option<Expr>, mut args: Vec<Expr>) -> Expansion {
    let vars = variables(&args, false, "argument is not an identifier")?;
    let value = args.swap_remove(args.len() - 1);
    let filter = (args.len() == 2).then(|| args.swap_remove(1));
    let init = m.list(Vec::new());
    let add = append(m, value);
    collect(m, target, vars, init, filter, add)
}

fn filter(m: &mut Maker<'_, '_>, target: Option<Expr>, mut args: Vec<Expr>) -> Expansion {
    let vars = variables(&args, false, "argument is not an identifier")?;
    let filter = args.swap_remove(1);
    let init = m.list(Vec::new());
    let add = append(m, args.swap_remove(0));
    collect(m, target, vars, init, Some(filter), add)
}

fn transform_list(m: &mut Maker<'_, '_>, target: Option<Expr>, mut args: Vec<Expr>) -> Expansion {
    let vars = variables(&args, true, SIMPLE_NAME)?;
    let value = args.swap_remove(args.len() - 1);
    let filter = (args.len() == 3).then(|| args.swap_remove(2));
    let init = m.list(Vec::new());
    let add = append(m, value);
    collect(m, target, vars, init, filter, add)
}

fn transform_map(m: &mut Maker<'_, '_>, target: Option<Expr>, mut args: Vec<Expr>) -> Expansion {
    let vars = variables(&args, true, SIMPLE_NAME)?;
    let value = args.swap_remove(args.len() - 1);
    let filter = (args.len() == 3).then(|| args.swap_remove(2));
    let init = m.make(ExprKind::Map(Vec::new()));
    let (accu, key) = (m.accu(), m.ident(&vars.0));
    let add = m.call("cel.@mapInsert", vec![accu, key, value]);
    collect(m, target, vars, init, filter, add)
}

fn transform_map_entry(
    m: &mut Maker<'_, '_>,
    target: Option<Expr>,
    mut args: Vec<Expr>,
) -> Expansion {
    let vars = variables(&args, true, SIMPLE_NAME)?;
    let value = args.swap_remove(args.len() - 1);
    let filter = (args.len() == 3).then(|| args.swap_remove(2));
    let init = m.make(ExprKind::Map(Vec::new()));
    let accu = m.accu();
    let add = m.call("cel.@mapInsert", vec![accu, value]);
    collect(m, target, vars, init, filter, add)
}

/// `result` with `var` bound to `value`: a loop over nothing whose accumulator is the variable.
fn bind(m: &mut Maker<'_, '_>, var: Arc<str>, value: Expr, result: Expr) -> Expr {
    let range = m.list(Vec::new());
    let condition = m.literal(Literal::Bool(false));
    let step = m.ident(&var);
    m.fold(Comprehension {
        range,
        var: UNUSED.into(),
        var2: None,
        accu: var,
        init: value,
        condition,
        step,
        result,
    })
}

fn named_bind(m: &mut Maker<'_, '_>, _: Option<Expr>, mut args: Vec<Expr>) -> Expansion {
    let message = "cel.bind() variable names must be simple identifiers";
    let var = simple_name(&args[0], message)?;
    let result = args.swap_remove(2);
    let value = args.swap_remove(1);
    Ok(bind(m, var, value, result))
}

fn opt_map(m: &mut Maker<'_, '_>, target: Option<Expr>, args: Vec<Expr>) -> Expansion {
    optional(m, target, args, "optMap", true)
}

fn opt_flat_map(m: &mut Maker<'_, '_>, target: Option<Expr>, args: Vec<Expr>) -> Expansion {
    optional(m, target, args, "optFlatMap", false)
}

fn optional(
    m: &mut Maker<'_, '_>,
    target: Option<Expr>,
    mut args: Vec<Expr>,
    name: &str,
    wrap: bool,
) -> Expansion {
    let message = format!("{name}() variable name must be a simple identifier");
    let var = simple_name(&args[0], &message)?;
    let result = args.swap_remove(1);
    let target = range(m, target);
    let again = m.copy(&target);
    let has_value = m.method("hasValue", target, Vec::new());
    let value = m.method("value", again, Vec::new());
    let mut some = bind(m, var, value, result);
    if wrap {
        some = m.call("optional.of", vec![some]);
    }
    let none = m.call("optional.none", Vec::new());
    Ok(m.call("_?_:_", vec![has_value, some, none]))
}

fn sort_by(m: &mut Maker<'_, '_>, target: Option<Expr>, args: Vec<Expr>) -> Expansion {
    let target = range(m, target);
    if matches!(
        target.kind,
        ExprKind::Literal(_) | ExprKind::Map(_) | ExprKind::Struct { .. }
    ) {
        return refuse(
            &target,
            "sortBy can only be applied to a list, identifier, comprehension, call or select expression",
        );
    }
    let input = m.ident(SORT_INPUT);
    let keys = map(m, Some(input), args)?;
    let input = m.ident(SORT_INPUT);
    let sorted = m.method("@sortByAssociatedKeys", input, vec![keys]);
    Ok(bind(m, SORT_INPUT.into(), target, sorted))
}
