//! The walk over a checked tree.

use super::calls::{self, Call};
use super::{CostRange, SizeEstimator, SizeRange, UNKNOWN};
use crate::ast::{Comprehension, Element, Entry, Expr, ExprKind, Id, Literal};
use crate::check::{Checked, Reference};
use crate::limits::deep;
use crate::parser::ACCUMULATOR;
use crate::types::Type;
use std::collections::HashMap;
use std::sync::Arc;

const LIST: u64 = 10;
const MAP: u64 = 30;
const OBJECT: u64 = 40;

pub(crate) fn estimate(expr: &Expr, checked: &Checked, sizes: &dyn SizeEstimator) -> CostRange {
    let mut estimator = Estimator {
        checked,
        sizes,
        paths: HashMap::new(),
        locals: Vec::new(),
        computed: HashMap::new(),
        entries: HashMap::new(),
    };
    estimator.cost(expr)
}

/// Where a value lies, from a variable on.
pub(super) type Path = Vec<Arc<str>>;

/// The sizes of what a list or map holds.
#[derive(Debug, Clone, Copy)]
struct EntrySize {
    is_list: bool,
    key: SizeRange,
    value: SizeRange,
}

impl EntrySize {
    fn union(self, other: EntrySize) -> EntrySize {
        EntrySize {
            is_list: self.is_list,
            key: self.key.union(other.key),
            value: self.value.union(other.value),
        }
    }
}

struct Local {
    name: Arc<str>,
    path: Path,
    size: Option<SizeRange>,
    entries: Option<EntrySize>,
}

pub(super) struct Estimator<'a> {
    checked: &'a Checked,
    pub(super) sizes: &'a dyn SizeEstimator,
    paths: HashMap<Id, Path>,
    locals: Vec<Local>,
    computed: HashMap<Id, SizeRange>,
    entries: HashMap<Id, EntrySize>,
}

/// A target or an argument of a call.
pub(super) struct Arg<'e> {
    pub(super) expr: &'e Expr,
    /// Empty when it does not lie in a variable.
    pub(super) path: Path,
    pub(super) ty: Type,
    pub(super) size: Option<SizeRange>,
}

impl Estimator<'_> {
    fn cost(&mut self, e: &Expr) -> CostRange {
        deep(|| self.node(e))
    }

    fn node(&mut self, e: &Expr) -> CostRange {
        match &e.kind {
            ExprKind::Unspecified | ExprKind::Literal(_) => CostRange::exactly(0),
            ExprKind::Ident(name) => self.name(e, name),
            ExprKind::Select {
                operand,
                field,
                test_only,
            } => self.select(e, operand, field, *test_only),
            ExprKind::Call {
                target,
                function,
                args,
            } => self.call(e, target.as_deref(), function, args),
            ExprKind::List(elements) => self.list(e, elements),
            ExprKind::Map(entries) => self.map(e, entries),
            ExprKind::Struct { fields, .. } => {
                let parts = fields.iter().fold(CostRange::exactly(0), |sum, f| {
                    sum.plus(self.cost(&f.value))
                });
                parts.plus(CostRange::exactly(OBJECT))
            }
            ExprKind::Comprehension(c) if binds(c) => self.bind(e, c),
            ExprKind::Comprehension(c) => self.fold(e, c),
        }
    }

    fn type_of(&self, e: &Expr) -> &Type {
        &self.checked.types[e.id as usize]
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|l| *l.name == *name)
    }

    fn name(&mut self, e: &Expr, written: &Arc<str>) -> CostRange {
        let name = match &self.checked.references[e.id as usize] {
            Some(Reference::Variable(name)) => name.clone(),
            _ => written.clone(),
        };
        let path = match self.local(&name) {
            Some(local) => local.path.clone(),
            None => vec![name],
        };
        self.paths.insert(e.id, path);
        CostRange::exactly(1)
    }

    fn select(&mut self, e: &Expr, operand: &Expr, field: &Arc<str>, test: bool) -> CostRange {
        if let Some(name) = e.qualified_name()
            && self.checked.references[e.id as usize].is_some()
        {
            return self.name(e, &name.into());
        }
        let mut sum = self.cost(operand);
        if test {
            return sum;
        }
        if matches!(
            self.type_of(operand),
            Type::Map(..) | Type::Object(_) | Type::Param(_)
        ) {
            sum = sum.plus(CostRange::exactly(1));
        }
        let mut path = self.path(operand);
        path.push(field.clone());
        self.paths.insert(e.id, path);
        sum
    }

    fn path(&self, e: &Expr) -> Path {
        if let ExprKind::Ident(name) = &e.kind
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&e.id).cloned().unwrap_or_default()
    }

    fn arg<'e>(&mut self, e: &'e Expr) -> Arg<'e> {
        let mut path = self.path(e);
        if path.first().is_some_and(|p| **p == *ACCUMULATOR) {
            path.clear();
        }
        Arg {
            expr: e,
            path,
            ty: self.type_of(e).clone(),
            size: self.size(e),
        }
    }

    /// A size from the expression itself, from the estimator, or from the type.
    pub(super) fn size(&mut self, e: &Expr) -> Option<SizeRange> {
        if let Some(size) = self.computed.get(&e.id) {
            return Some(*size);
        }
        if let Some(size) = literal_size(e) {
            return Some(size);
        }
        if let Some(size) = self.sizes.estimate_size(&self.path(e), self.type_of(e)) {
            self.computed.insert(e.id, size);
            return Some(size);
        }
        if scalar(self.type_of(e)) {
            return Some(SizeRange::exactly(1));
        }
        match &e.kind {
            ExprKind::Ident(name) => self.local(name).and_then(|l| l.size),
            _ => None,
        }
    }

    fn size_or_unknown(&mut self, e: &Expr) -> SizeRange {
        self.size(e).unwrap_or(UNKNOWN)
    }

    fn set_size(&mut self, e: &Expr, size: Option<SizeRange>) {
        if let Some(size) = size {
            self.computed.insert(e.id, size);
        }
    }

    fn entry_size(&self, e: &Expr) -> Option<EntrySize> {
        if let Some(size) = self.entries.get(&e.id) {
            return Some(*size);
        }
        match &e.kind {
            ExprKind::Ident(name) => self.local(name).and_then(|l| l.entries),
            _ => None,
        }
    }

    fn copy_sizes(&mut self, to: &Expr, from: &Expr) {
        let size = self.size(from);
        self.set_size(to, size);
        if let Some(entries) = self.entry_size(from) {
            self.entries.insert(to.id, entries);
        }
    }

    /// The entry size that two operands have together.
    pub(super) fn union_entries(&mut self, e: &Expr, a: &Expr, b: &Expr) {
        if let (Some(a), Some(b)) = (self.entry_size(a), self.entry_size(b)) {
            self.entries.insert(e.id, a.union(b));
        }
    }

    fn call(
        &mut self,
        e: &Expr,
        target: Option<&Expr>,
        function: &str,
        args: &[Expr],
    ) -> CostRange {
        if let ("dyn", [arg]) = (function, args) {
            let cost = self.cost(arg);
            self.copy_sizes(e, arg);
            return cost.plus(CostRange::exactly(1));
        }
        let mut costs = Vec::with_capacity(args.len());
        let mut nodes = Vec::with_capacity(args.len());
        for arg in args {
            costs.push(self.cost(arg));
            nodes.push(self.arg(arg));
        }
        let (name, overloads, namespaced) = match &self.checked.references[e.id as usize] {
            Some(Reference::Function {
                function,
                overloads,
                namespaced,
            }) => {
                let ids = overloads.iter().map(|o| o.id).collect();
                (function.name, ids, *namespaced)
            }
            // The optional selection is known to the checker alone.
            _ if function == "_?._" => ("_?._", vec!["select_optional_field"], false),
            _ => return CostRange::exactly(0),
        };
        let mut sum = CostRange::exactly(0);
        let target = match target.filter(|_| !namespaced) {
            Some(target) => {
                sum = sum.plus(self.cost(target));
                Some(self.arg(target))
            }
            None => None,
        };
        let mut cost = CostRange {
            min: u64::MAX,
            max: 0,
        };
        let mut result = None;
        for overload in overloads {
            let call = Call {
                expr: e,
                function: name,
                overload,
                target: target.as_ref(),
                args: &nodes,
                costs: &costs,
            };
            let estimated = calls::estimate(self, &call);
            cost = cost.union(estimated.cost);
            result = match (result, estimated.result) {
                (Some(a), Some(b)) => Some(SizeRange::union(a, b)),
                (a, b) => a.or(b),
            };
            if let ("index_list" | "index_map", Some(held)) = (overload, args.first()) {
                result = self.entry_size(held).map(|s| s.value);
                let mut path = self.path(held);
                let step = if overload == "index_list" {
                    "@items"
                } else {
                    "@values"
                };
                path.push(step.into());
                self.paths.insert(e.id, path);
            }
            if result.is_none() {
                result = self.size(e);
            }
        }
        self.set_size(e, result);
        sum.plus(cost)
    }

    fn list(&mut self, e: &Expr, elements: &[Element]) -> CostRange {
        let mut sum = CostRange::exactly(LIST);
        let mut item = empty(elements.is_empty());
        for element in elements {
            sum = sum.plus(self.cost(&element.value));
            item = item.union(self.size_or_unknown(&element.value));
        }
        let size = EntrySize {
            is_list: true,
            key: SizeRange::exactly(1),
            value: item,
        };
        self.entries.insert(e.id, size);
        sum
    }

    fn map(&mut self, e: &Expr, entries: &[Entry]) -> CostRange {
        let mut sum = CostRange::exactly(MAP);
        let mut key = empty(entries.is_empty());
        let mut value = key;
        for entry in entries {
            sum = sum.plus(self.cost(&entry.key));
            sum = sum.plus(self.cost(&entry.value));
            key = key.union(self.size_or_unknown(&entry.key));
            value = value.union(self.size_or_unknown(&entry.value));
        }
        let size = EntrySize {
            is_list: false,
            key,
            value,
        };
        self.entries.insert(e.id, size);
        sum
    }

    fn bind(&mut self, e: &Expr, c: &Comprehension) -> CostRange {
        let sum = self.cost(&c.range).plus(self.cost(&c.init));
        self.push_binding(&c.accu, &c.init);
        let result = self.cost(&c.result);
        self.locals.pop();
        self.copy_sizes(e, &c.result);
        sum.plus(result)
    }

    fn push_binding(&mut self, name: &Arc<str>, value: &Expr) {
        let local = Local {
            name: name.clone(),
            path: self.path(value),
            size: self.size(value),
            entries: self.entry_size(value),
        };
        self.locals.push(local);
    }

    fn push_element(&mut self, name: &Arc<str>, range: &Expr, key: bool) {
        let entries = self.entry_size(range);
        let is_list = entries.map_or_else(
            || matches!(self.type_of(range), Type::List(_)),
            |s| s.is_list,
        );
        let step = match (key, is_list) {
            (true, true) => "@indices",
            (true, false) => "@keys",
            (false, true) => "@items",
            (false, false) => "@values",
        };
        let mut path = self.path(range);
        path.push(step.into());
        self.locals.push(Local {
            name: name.clone(),
            path,
            size: entries.map(|s| if key { s.key } else { s.value }),
            entries: None,
        });
    }

    fn fold(&mut self, e: &Expr, c: &Comprehension) -> CostRange {
        let mut sum = self.cost(&c.range).plus(self.cost(&c.init));
        let mark = self.locals.len();
        self.push_binding(&c.accu, &c.init);
        match &c.var2 {
            Some(var2) => {
                self.push_element(&c.var, &c.range, true);
                self.push_element(var2, &c.range, false);
            }
            None => {
                // One variable is the element of a list and the key of a map.
                let entries = self.entry_size(&c.range);
                let list = matches!(self.type_of(&c.range), Type::List(_));
                let is_list = entries.map_or(list, |s| s.is_list);
                self.push_element(&c.var, &c.range, !is_list);
            }
        }
        let round = self.cost(&c.condition).plus(self.cost(&c.step));
        self.locals.truncate(mark + 1);
        sum = sum.plus(self.cost(&c.result));
        self.locals.truncate(mark);
        let rounds = self.size_or_unknown(&c.range);
        sum = sum.plus(rounds.times(round));
        match &c.init.kind {
            ExprKind::Literal(_) => {
                let size = self.size(&c.init);
                self.set_size(e, size);
            }
            ExprKind::List(_) | ExprKind::Map(_) => {
                self.set_size(e, Some(rounds));
                if let Some(entries) = self.entry_size(&c.step) {
                    self.entries.insert(e.id, entries);
                }
            }
            _ => {}
        }
        sum
    }
}

/// The size range that a union begins with.
fn empty(none: bool) -> SizeRange {
    SizeRange {
        min: if none { 0 } else { u64::MAX },
        max: 0,
    }
}

/// Whether a comprehension loops over nothing, for the sake of its variable.
fn binds(c: &Comprehension) -> bool {
    matches!(&c.range.kind, ExprKind::List(elements) if elements.is_empty())
        && matches!(c.condition.kind, ExprKind::Literal(Literal::Bool(false)))
}

fn literal_size(e: &Expr) -> Option<SizeRange> {
    let size = match &e.kind {
        ExprKind::Literal(Literal::String(s)) => s.chars().count(),
        ExprKind::Literal(Literal::Bytes(b)) => b.len(),
        ExprKind::Literal(_) => 1,
        ExprKind::List(elements) => elements.len(),
        ExprKind::Map(entries) => entries.len(),
        _ => return None,
    };
    Some(SizeRange::exactly(size as u64))
}

fn scalar(t: &Type) -> bool {
    match t {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => {
            true
        }
        Type::Optional(t) => scalar(t),
        _ => false,
    }
}
