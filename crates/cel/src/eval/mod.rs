//! Evaluation.
//!
//! An error is the value of an expression like any other: `&&`, `||` and the macros that are made
//! of them can leave it behind. Only reaching the cost limit ends the evaluation at once.

mod attribute;
mod call_cost;
mod plan;

pub(crate) use call_cost::actual_size;
pub(crate) use plan::{Plan, plan};

use crate::activation::Activation;
use crate::library;
use crate::limits::deep;
use crate::value::{EvalError, List, Map, MapEntries, Object, Value, ValueResult, implementation};
use plan::{Call, Fold, Node};
use std::collections::BTreeMap;
use std::sync::Arc;

const LIST_COST: u64 = 10;
const MAP_COST: u64 = 30;
const OBJECT_COST: u64 = 40;

pub(crate) fn evaluate<'v>(
    plan: &Plan,
    activation: &dyn Activation<'v>,
    limit: u64,
) -> (ValueResult<'v>, u64) {
    let mut interpreter = Interpreter {
        activation,
        locals: vec![Slot::Ready(Ok(Value::Null)); plan.locals],
        cost: 0,
        limit,
    };
    let result = interpreter.eval(&plan.root);
    let mut cost = interpreter.cost;
    if result.as_ref().is_err_and(EvalError::is_cost_limit) {
        // A function refused to begin what would have passed the limit.
        cost = cost.max(limit.saturating_add(1));
    }
    (result, cost)
}

/// A local variable.
#[derive(Clone)]
enum Slot<'p, 'v> {
    /// Computed when first asked for.
    Lazy(&'p Node),
    Ready(ValueResult<'v>),
}

struct Interpreter<'p, 'a, 'v> {
    activation: &'a dyn Activation<'v>,
    locals: Vec<Slot<'p, 'v>>,
    cost: u64,
    limit: u64,
}

impl<'p, 'v> Interpreter<'p, '_, 'v> {
    fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit {
            return Err(EvalError::cost_limit());
        }
        Ok(())
    }

    fn eval(&mut self, node: &'p Node) -> ValueResult<'v> {
        deep(|| self.step(node))
    }

    fn step(&mut self, node: &'p Node) -> ValueResult<'v> {
        match node {
            Node::Constant(v) => {
                // An evaluation that reached its limit does nothing more.
                self.charge(0)?;
                Ok(v.clone())
            }
            Node::Attribute(attribute) => self.attribute_node(attribute),
            Node::Test(attribute) => self.test(attribute),
            Node::And(terms) => self.logical(terms, false),
            Node::Or(terms) => self.logical(terms, true),
            Node::Equal(sides) => self.equality(sides, "_==_", "equals"),
            Node::NotEqual(sides) => self.equality(sides, "_!=_", "not_equals"),
            Node::Call(call) => self.call(call),
            Node::Member(arg, set) => {
                let v = self.eval(arg)?;
                let found = library::set_key(&v).is_some_and(|key| set.contains(&key));
                Ok(Value::Bool(found))
            }
            Node::List(elements) => self.list(elements),
            Node::Map(entries) => self.map(entries),
            Node::Object(name, fields) => self.object(name, fields),
            Node::Fold(fold) => self.fold(fold),
            Node::OptionalOr(sides) => match self.eval(&sides.0)? {
                Value::Optional(None) => self.eval(&sides.1),
                other => Ok(other),
            },
            Node::OptionalOrValue(sides) => match self.eval(&sides.0)? {
                Value::Optional(None) => self.eval(&sides.1),
                Value::Optional(Some(v)) => Ok((*v).clone()),
                other => Ok(other),
            },
            Node::NotStrictlyFalse(inner) => {
                let v = self.eval(inner);
                self.charge(1)?;
                Ok(match v {
                    Ok(Value::Bool(b)) => Value::Bool(b),
                    _ => Value::Bool(true),
                })
            }
            Node::Append(slot, element) => self.append(*slot, element),
            Node::Insert(slot, key, value) => self.insert(*slot, key, value.as_deref()),
        }
    }

    /// `&&` and `||`: `decisive` decides, whatever else fails.
    fn logical(&mut self, terms: &'p [Node], decisive: bool) -> ValueResult<'v> {
        let mut error = None;
        for term in terms {
            match self.eval(term) {
                Ok(Value::Bool(b)) if b == decisive => return Ok(Value::Bool(b)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => {
                    error.get_or_insert_with(EvalError::no_such_overload);
                }
                Err(e) if e.is_cost_limit() => return Err(e),
                Err(e) => {
                    error.get_or_insert(e);
                }
            }
        }
        match error {
            Some(e) => Err(e),
            None => Ok(Value::Bool(!decisive)),
        }
    }

    fn equality(
        &mut self,
        sides: &'p (Node, Node),
        function: &str,
        overload: &str,
    ) -> ValueResult<'v> {
        let args = [self.eval(&sides.0), self.eval(&sides.1)];
        let cost = call_cost::of(function, overload, &args, &Ok(Value::Null));
        self.charge(cost)?;
        let [a, b] = args;
        let (a, b) = (a?, b?);
        let equal = a.equals(&b);
        if function == "_==_" {
            return equal.map(Value::Bool);
        }
        match equal {
            Err(e) if e.is_cost_limit() => Err(e),
            equal => Ok(Value::Bool(!equal.unwrap_or(false))),
        }
    }

    fn call(&mut self, call: &'p Call) -> ValueResult<'v> {
        let early = call.stops_early();
        let mut args = Vec::with_capacity(call.args.len());
        for (i, arg) in call.args.iter().enumerate() {
            let v = self.eval(arg);
            match v {
                Err(e) if e.is_cost_limit() => return Err(e),
                // Calls whose arguments were not all evaluated cost nothing.
                Err(e) if early && i + 1 < call.args.len() => return Err(e),
                v => args.push(v),
            }
        }
        let values: Result<Vec<Value<'v>>, EvalError> = args.iter().cloned().collect();
        let result = match values {
            Err(e) => Err(e),
            Ok(values) => match &call.pattern {
                Some(pattern) => library::regular::apply(call.function.name, pattern, &values),
                None => library::call(&call.function, call.chosen.as_deref(), &values),
            },
        };
        let cost = call_cost::of(call.function.name, call.overload_id(), &args, &result);
        self.charge(cost)?;
        result
    }

    fn list(&mut self, elements: &'p [(Node, bool)]) -> ValueResult<'v> {
        let result = self.elements(elements);
        self.charge(LIST_COST)?;
        result
    }

    fn elements(&mut self, elements: &'p [(Node, bool)]) -> ValueResult<'v> {
        let mut values = Vec::with_capacity(elements.len());
        for (node, optional) in elements {
            let v = self.eval(node)?;
            match v {
                v if !optional => values.push(v),
                Value::Optional(Some(v)) => values.push((*v).clone()),
                Value::Optional(None) => {}
                v => {
                    return Err(EvalError::new(format!(
                        "cannot initialize optional list element from non-optional value {v}"
                    )));
                }
            }
        }
        Ok(Value::list(values))
    }

    fn map(&mut self, entries: &'p [(Node, Node, bool)]) -> ValueResult<'v> {
        let result = self.entries(entries);
        self.charge(MAP_COST)?;
        result
    }

    fn entries(&mut self, entries: &'p [(Node, Node, bool)]) -> ValueResult<'v> {
        let mut map = MapEntries::default();
        for (key, value, optional) in entries {
            let key = self.eval(key)?;
            match self.eval(value)? {
                v if !optional => drop(map.insert(key, v)?),
                Value::Optional(Some(v)) => drop(map.insert(key, (*v).clone())?),
                Value::Optional(None) => map.remove(&key),
                v => return Err(not_optional(&key.to_string(), &v)),
            }
        }
        Ok(Value::from(map))
    }

    fn object(&mut self, name: &Arc<str>, fields: &'p [(Arc<str>, Node, bool)]) -> ValueResult<'v> {
        let result = self.fields(name, fields);
        self.charge(OBJECT_COST)?;
        result
    }

    fn fields(&mut self, name: &Arc<str>, fields: &'p [(Arc<str>, Node, bool)]) -> ValueResult<'v> {
        let mut out = BTreeMap::new();
        for (field, node, optional) in fields {
            match self.eval(node)? {
                v if !optional => drop(out.insert(field.clone(), v)),
                Value::Optional(Some(v)) => drop(out.insert(field.clone(), (*v).clone())),
                Value::Optional(None) => drop(out.remove(field)),
                v => return Err(not_optional(field, &v)),
            }
        }
        Ok(Value::Object(Arc::new(Object {
            type_name: name.clone(),
            fields: out,
        })))
    }

    fn fold(&mut self, fold: &'p Fold) -> ValueResult<'v> {
        let range = self.eval(&fold.range)?;
        self.locals[fold.accu] = Slot::Lazy(&fold.init);
        match &range {
            Value::List(list) => {
                for (i, item) in list.iter().enumerate() {
                    let more = match fold.var2 {
                        Some(_) => {
                            let index = Ok(Value::Int(i64::try_from(i).unwrap_or(i64::MAX)));
                            self.iterate(fold, index, Some(item))?
                        }
                        None => self.iterate(fold, item, None)?,
                    };
                    if !more {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                for key in map.keys() {
                    let value = fold
                        .var2
                        .map(|_| map.find(&key).map(|v| v.unwrap_or(Value::Null)));
                    if !self.iterate(fold, Ok(key), value)? {
                        break;
                    }
                }
            }
            other => {
                return Err(EvalError::new(format!(
                    "got '{}', expected iterable type",
                    implementation(other)
                )));
            }
        }
        self.eval(&fold.result)
    }

    /// One round; `false` when the loop's condition no longer holds.
    fn iterate(
        &mut self,
        fold: &'p Fold,
        first: ValueResult<'v>,
        second: Option<ValueResult<'v>>,
    ) -> Result<bool, EvalError> {
        self.locals[fold.var] = Slot::Ready(first);
        if let (Some(slot), Some(second)) = (fold.var2, second) {
            self.locals[slot] = Slot::Ready(second);
        }
        match self.eval(&fold.condition) {
            Ok(Value::Bool(false)) => return Ok(false),
            Err(e) if e.is_cost_limit() => return Err(e),
            _ => {}
        }
        let step = self.eval(&fold.step);
        if let Err(e) = &step
            && e.is_cost_limit()
        {
            return step.map(|_| false);
        }
        self.locals[fold.accu] = Slot::Ready(step);
        Ok(true)
    }

    fn local(&mut self, slot: usize) -> ValueResult<'v> {
        match &self.locals[slot] {
            Slot::Ready(v) => v.clone(),
            Slot::Lazy(node) => {
                let v = self.eval(node);
                self.locals[slot] = Slot::Ready(v.clone());
                v
            }
        }
    }

    /// The accumulator's value, taken out of its slot so that nothing else holds it.
    fn take(&mut self, slot: usize) -> ValueResult<'v> {
        if let Slot::Lazy(_) = self.locals[slot] {
            let first = self.local(slot);
            self.locals[slot] = Slot::Ready(first);
        }
        let empty = Slot::Ready(Ok(Value::Null));
        match std::mem::replace(&mut self.locals[slot], empty) {
            Slot::Ready(v) => v,
            Slot::Lazy(_) => Ok(Value::Null),
        }
    }

    fn append(&mut self, slot: usize, element: &'p Node) -> ValueResult<'v> {
        self.charge(1)?;
        let accu = self.take(slot);
        let v = self.eval(element);
        if !matches!(element, Node::Constant(_)) {
            self.charge(LIST_COST)?;
        }
        self.charge(1)?;
        let (accu, v) = (accu?, v?);
        let Value::List(List::Values(mut values)) = accu else {
            return Err(EvalError::no_such_overload());
        };
        Arc::make_mut(&mut values).push(v);
        Ok(Value::List(List::Values(values)))
    }

    fn insert(&mut self, slot: usize, key: &'p Node, value: Option<&'p Node>) -> ValueResult<'v> {
        self.charge(1)?;
        let accu = self.take(slot);
        // As with other calls, one with three arguments stops at the first that fails, and costs
        // something when that is the last one.
        let (accu, key, value) = match value {
            Some(node) => {
                let accu = accu?;
                (Ok(accu), Ok(self.eval(key)?), Some(self.eval(node)))
            }
            None => (accu, self.eval(key), None),
        };
        self.charge(1)?;
        let (accu, key, value) = (accu?, key?, value.transpose()?);
        let Value::Map(Map::Values(mut map)) = accu else {
            return Err(EvalError::no_such_overload());
        };
        let entries = Arc::make_mut(&mut map);
        match (key, value) {
            (key, Some(value)) => library::insert_new(entries, key, value)?,
            (Value::Map(more), None) => {
                for key in more.keys() {
                    let value = more.find(&key)?.unwrap_or(Value::Null);
                    library::insert_new(entries, key, value)?;
                }
            }
            _ => return Err(EvalError::no_such_overload()),
        }
        Ok(Value::Map(Map::Values(map)))
    }
}

fn not_optional(field: &str, v: &Value<'_>) -> EvalError {
    EvalError::new(format!(
        "cannot initialize optional entry '{field}' from non-optional value {v}"
    ))
}
