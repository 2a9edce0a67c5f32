//! A checked tree in the form that evaluation walks.
//!
//! Chains of selections and indices become one attribute: a base with qualifiers. What depends on
//! constants alone is computed here. Costs follow from this form, so it mirrors upstream's.

use crate::ast::{Comprehension, Element, Entry, Expr, ExprKind, Field, Literal};
use crate::check::{Checked, Reference};
use crate::library::{self, Binding, Function, Overload};
use crate::limits::deep;
use crate::types::Type;
use crate::value::{EvalError, List, MapEntries, MapKey, Value, implementation};
use regex::Regex;
use std::collections::HashSet;
use std::sync::Arc;

#[derive(Debug)]
pub(crate) enum Node {
    Constant(Value<'static>),
    Attribute(Box<Attribute>),
    /// Whether the attribute's last qualifier is there.
    Test(Box<Attribute>),
    And(Vec<Node>),
    Or(Vec<Node>),
    Equal(Box<(Node, Node)>),
    NotEqual(Box<(Node, Node)>),
    Call(Box<Call>),
    /// Whether a value is in a constant list.
    Member(Box<Node>, HashSet<MapKey>),
    List(Vec<(Node, bool)>),
    Map(Vec<(Node, Node, bool)>),
    Object(Arc<str>, Vec<(Arc<str>, Node, bool)>),
    Fold(Box<Fold>),
    OptionalOr(Box<(Node, Node)>),
    OptionalOrValue(Box<(Node, Node)>),
    NotStrictlyFalse(Box<Node>),
    /// `accumulator + [value]`, in place.
    Append(usize, Box<Node>),
    /// The accumulator with a key and its value, or with all entries of a map, in place.
    Insert(usize, Box<Node>, Option<Box<Node>>),
}

#[derive(Debug)]
pub(crate) struct Attribute {
    pub(crate) base: Base,
    pub(crate) qualifiers: Vec<Arc<Qualifier>>,
}

#[derive(Debug)]
pub(crate) enum Base {
    Variable(Arc<str>),
    Local(usize),
    Operand(Node),
    Conditional(Box<(Node, Attribute, Attribute)>),
}

#[derive(Debug)]
pub(crate) struct Qualifier {
    pub(crate) key: Key,
    pub(crate) optional: bool,
    /// Only asks whether it is there.
    pub(crate) test: bool,
}

#[derive(Debug)]
pub(crate) enum Key {
    Constant(Value<'static>),
    Attribute(Attribute),
    Node(Node),
}

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) function: Arc<Function>,
    /// The only overload that fits, when the checker found one.
    pub(crate) chosen: Option<Arc<Overload>>,
    pub(crate) args: Vec<Node>,
    /// A constant pattern, compiled.
    pub(crate) pattern: Option<Regex>,
}

impl Call {
    pub(crate) fn overload_id(&self) -> &'static str {
        self.chosen.as_ref().map_or("", |o| o.id)
    }
}

#[derive(Debug)]
pub(crate) struct Fold {
    pub(crate) range: Node,
    pub(crate) var: usize,
    pub(crate) var2: Option<usize>,
    pub(crate) accu: usize,
    pub(crate) init: Node,
    pub(crate) condition: Node,
    pub(crate) step: Node,
    pub(crate) result: Node,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) root: Node,
    /// How many local variables there can be at once.
    pub(crate) locals: usize,
}

pub(crate) fn plan(expr: &Expr, checked: &Checked) -> Result<Plan, EvalError> {
    let mut planner = Planner {
        checked,
        scopes: Vec::new(),
        locals: 0,
    };
    let root = planner.node(expr)?;
    Ok(Plan {
        root,
        locals: planner.locals,
    })
}

struct Planner<'a> {
    checked: &'a Checked,
    /// Names of local variables; the place is the slot.
    scopes: Vec<Arc<str>>,
    locals: usize,
}

impl Planner<'_> {
    fn node(&mut self, e: &Expr) -> Result<Node, EvalError> {
        deep(|| self.shallow(e))
    }

    fn shallow(&mut self, e: &Expr) -> Result<Node, EvalError> {
        match &e.kind {
            ExprKind::Unspecified => Err(EvalError::new("unsupported expr")),
            ExprKind::Literal(literal) => Ok(Node::Constant(Value::from(literal))),
            ExprKind::Ident(_) => self.name(e),
            ExprKind::Select {
                operand,
                field,
                test_only,
            } => {
                if self.reference(e).is_some() {
                    return self.name(e);
                }
                let key = Key::Constant(Value::string(field));
                let operand = self.node(operand)?;
                let attribute = qualified(operand, key, false, *test_only);
                Ok(match test_only {
                    true => Node::Test(Box::new(attribute)),
                    false => Node::Attribute(Box::new(attribute)),
                })
            }
            ExprKind::Call {
                target,
                function,
                args,
            } => self.call(e, target.as_deref(), function, args),
            ExprKind::List(elements) => self.list(elements),
            ExprKind::Map(entries) => self.map(entries),
            ExprKind::Struct { fields, .. } => self.object(e, fields),
            ExprKind::Comprehension(c) => self.fold(c),
        }
    }

    fn reference(&self, e: &Expr) -> Option<&Reference> {
        self.checked.references[e.id as usize].as_ref()
    }

    fn name(&mut self, e: &Expr) -> Result<Node, EvalError> {
        match self.reference(e) {
            Some(Reference::Type(Type::Object(name))) => Err(EvalError::new(format!(
                "reference to undefined type: {name}"
            ))),
            Some(Reference::Type(t)) => Ok(Node::Constant(Value::Type(t.clone()))),
            Some(Reference::Variable(name)) => {
                let base = match self.local(name) {
                    Some(slot) => Base::Local(slot),
                    None => Base::Variable(name.clone()),
                };
                Ok(Node::Attribute(Box::new(Attribute {
                    base,
                    qualifiers: Vec::new(),
                })))
            }
            _ => Err(EvalError::new("unresolved name")),
        }
    }

    fn local(&self, name: &str) -> Option<usize> {
        self.scopes.iter().rposition(|n| **n == *name)
    }

    fn call(
        &mut self,
        e: &Expr,
        target: Option<&Expr>,
        name: &str,
        args: &[Expr],
    ) -> Result<Node, EvalError> {
        if name == "_?._"
            && let [operand, field] = args
        {
            return self.index(operand, field, true);
        }
        let Some(Reference::Function {
            function,
            overloads,
            namespaced,
        }) = self.reference(e)
        else {
            return Err(EvalError::new(format!("no such overload: {name}")));
        };
        let function = function.clone();
        let chosen = match overloads.as_slice() {
            [only] => Some(only.clone()),
            _ => None,
        };
        let target = target.filter(|_| !namespaced);
        match (function.name, args) {
            ("_[_]", [operand, key]) => return self.index(operand, key, false),
            ("_[?_]", [operand, key]) => return self.index(operand, key, true),
            _ => {}
        }
        let mut nodes = Vec::with_capacity(args.len() + 1);
        for part in target.into_iter().chain(args) {
            nodes.push(self.node(part)?);
        }
        special(function, chosen, nodes)
    }

    fn index(&mut self, operand: &Expr, key: &Expr, optional: bool) -> Result<Node, EvalError> {
        let operand = self.node(operand)?;
        let key = match self.node(key)? {
            Node::Constant(v) => {
                if !is_key(&v) {
                    return Err(EvalError::new(format!(
                        "invalid qualifier type: {}",
                        implementation(&v)
                    )));
                }
                Key::Constant(v)
            }
            Node::Attribute(attribute) => Key::Attribute(*attribute),
            other => Key::Node(other),
        };
        let attribute = qualified(operand, key, optional, false);
        Ok(Node::Attribute(Box::new(attribute)))
    }

    fn list(&mut self, elements: &[Element]) -> Result<Node, EvalError> {
        let mut nodes = Vec::with_capacity(elements.len());
        for element in elements {
            nodes.push((self.node(&element.value)?, element.optional));
        }
        let constants: Option<Vec<_>> = nodes
            .iter()
            .map(|(n, optional)| match n {
                Node::Constant(v) if !optional => Some(v.clone()),
                _ => None,
            })
            .collect();
        Ok(match constants {
            Some(values) => Node::Constant(Value::list(values)),
            None => Node::List(nodes),
        })
    }

    fn map(&mut self, entries: &[Entry]) -> Result<Node, EvalError> {
        let mut nodes = Vec::with_capacity(entries.len());
        let mut constants = Some(MapEntries::default());
        for entry in entries {
            let key = self.node(&entry.key)?;
            let value = self.node(&entry.value)?;
            match (&mut constants, &key, &value) {
                (Some(map), Node::Constant(k), Node::Constant(v)) if !entry.optional => {
                    map.insert(k.clone(), v.clone())?;
                }
                _ => constants = None,
            }
            nodes.push((key, value, entry.optional));
        }
        Ok(match constants {
            Some(map) => Node::Constant(Value::from(map)),
            None => Node::Map(nodes),
        })
    }

    fn object(&mut self, e: &Expr, fields: &[Field]) -> Result<Node, EvalError> {
        let name = match self.reference(e) {
            Some(Reference::Type(Type::Object(name))) => name.clone(),
            _ => return Err(EvalError::new("unknown type")),
        };
        let mut nodes = Vec::with_capacity(fields.len());
        for field in fields {
            nodes.push((field.name.clone(), self.node(&field.value)?, field.optional));
        }
        Ok(Node::Object(name, nodes))
    }

    fn fold(&mut self, c: &Comprehension) -> Result<Node, EvalError> {
        let init = self.node(&c.init)?;
        let range = self.node(&c.range)?;
        let mark = self.scopes.len();
        self.scopes.push(c.accu.clone());
        self.scopes.push(c.var.clone());
        self.scopes.extend(c.var2.clone());
        self.locals = self.locals.max(self.scopes.len());
        let condition = self.node(&c.condition)?;
        let step = match self.accumulation(c, &c.step, mark)? {
            Some(node) => node,
            None => self.node(&c.step)?,
        };
        self.scopes.truncate(mark + 1);
        let result = self.node(&c.result)?;
        self.scopes.truncate(mark);
        Ok(Node::Fold(Box::new(Fold {
            range,
            var: mark + 1,
            var2: c.var2.as_ref().map(|_| mark + 2),
            accu: mark,
            init,
            condition,
            step,
            result,
        })))
    }

    /// A step that adds to the macros' accumulator, so that building a collection takes time
    /// linear in its size.
    fn accumulation(
        &mut self,
        c: &Comprehension,
        step: &Expr,
        slot: usize,
    ) -> Result<Option<Node>, EvalError> {
        let ExprKind::Call { function, args, .. } = &step.kind else {
            return Ok(None);
        };
        let is_accu = |e: &Expr| matches!(&e.kind, ExprKind::Ident(name) if *name == c.accu);
        if *c.accu != *crate::parser::ACCUMULATOR {
            return Ok(None);
        }
        Ok(match (&**function, args.as_slice()) {
            ("_+_", [accu, list]) if is_accu(accu) => match &list.kind {
                ExprKind::List(elements) => match elements.as_slice() {
                    [only] if !only.optional => {
                        Some(Node::Append(slot, Box::new(self.node(&only.value)?)))
                    }
                    _ => None,
                },
                _ => None,
            },
            ("cel.@mapInsert", [accu, map]) if is_accu(accu) => {
                Some(Node::Insert(slot, Box::new(self.node(map)?), None))
            }
            ("cel.@mapInsert", [accu, key, value]) if is_accu(accu) => {
                let key = Box::new(self.node(key)?);
                let value = Box::new(self.node(value)?);
                Some(Node::Insert(slot, key, Some(value)))
            }
            ("_?_:_", [filter, add, accu]) if is_accu(accu) => {
                let filter = self.node(filter)?;
                let Some(add) = self.accumulation(c, add, slot)? else {
                    return Ok(None);
                };
                let accu = self.node(accu)?;
                Some(conditional(filter, add, accu))
            }
            _ => None,
        })
    }
}

/// Functions that evaluation knows itself, and calls that can be computed now.
fn special(
    function: Arc<Function>,
    chosen: Option<Arc<Overload>>,
    mut nodes: Vec<Node>,
) -> Result<Node, EvalError> {
    let overload = chosen.as_ref().map_or("", |o| o.id);
    let pair = |mut nodes: Vec<Node>| {
        let second = nodes.pop();
        let first = nodes.pop();
        match (first, second) {
            (Some(a), Some(b)) => Ok(Box::new((a, b))),
            _ => Err(EvalError::no_such_overload()),
        }
    };
    match (function.name, overload) {
        ("_&&_", _) => return Ok(Node::And(nodes)),
        ("_||_", _) => return Ok(Node::Or(nodes)),
        ("_==_", _) => return Ok(Node::Equal(pair(nodes)?)),
        ("_!=_", _) => return Ok(Node::NotEqual(pair(nodes)?)),
        ("_?_:_", _) => {
            let (no, yes, condition) = (nodes.pop(), nodes.pop(), nodes.pop());
            return match (condition, yes, no) {
                (Some(c), Some(yes), Some(no)) => Ok(conditional(c, yes, no)),
                _ => Err(EvalError::no_such_overload()),
            };
        }
        ("@not_strictly_false", _) => {
            let inner = nodes.pop().ok_or_else(EvalError::no_such_overload)?;
            return Ok(Node::NotStrictlyFalse(Box::new(inner)));
        }
        ("or", "" | "optional_or_optional") => return Ok(Node::OptionalOr(pair(nodes)?)),
        ("orValue", "" | "optional_orValue_value") => {
            return Ok(Node::OptionalOrValue(pair(nodes)?));
        }
        ("@in", "in_list") => {
            if let Some(set) = constant_set(&nodes[1]) {
                nodes.truncate(1);
                let arg = nodes.pop().ok_or_else(EvalError::no_such_overload)?;
                return Ok(match set {
                    set if set.is_empty() => Node::Constant(Value::Bool(false)),
                    set => Node::Member(Box::new(arg), set),
                });
            }
        }
        _ => {}
    }
    if let (true, [Node::Constant(arg)]) = (is_conversion(function.name), nodes.as_slice()) {
        let value = library::call(&function, chosen.as_deref(), std::slice::from_ref(arg))?;
        return Ok(Node::Constant(value));
    }
    let pattern = match (function.name, nodes.get(1)) {
        ("matches" | "find" | "findAll", Some(Node::Constant(Value::String(pattern)))) => {
            Some(library::regular::compile(pattern)?)
        }
        _ => None,
    };
    Ok(Node::Call(Box::new(Call {
        function,
        chosen,
        args: nodes,
        pattern,
    })))
}

fn is_conversion(name: &str) -> bool {
    matches!(
        name,
        "bool"
            | "bytes"
            | "double"
            | "duration"
            | "dyn"
            | "int"
            | "string"
            | "timestamp"
            | "type"
            | "uint"
    )
}

/// The elements of a constant list of simple values.
fn constant_set(node: &Node) -> Option<HashSet<MapKey>> {
    let Node::Constant(Value::List(List::Values(values))) = node else {
        return None;
    };
    values.iter().map(library::set_key).collect()
}

/// Whether a value can be an index.
pub(super) fn is_key(v: &Value<'_>) -> bool {
    matches!(
        v,
        Value::String(_) | Value::Int(_) | Value::Uint(_) | Value::Bool(_) | Value::Double(_)
    )
}

fn attribute_of(node: Node) -> Attribute {
    match node {
        Node::Attribute(attribute) => *attribute,
        other => Attribute {
            base: Base::Operand(other),
            qualifiers: Vec::new(),
        },
    }
}

fn conditional(condition: Node, yes: Node, no: Node) -> Node {
    let parts = (condition, attribute_of(yes), attribute_of(no));
    Node::Attribute(Box::new(Attribute {
        base: Base::Conditional(Box::new(parts)),
        qualifiers: Vec::new(),
    }))
}

fn qualified(operand: Node, key: Key, optional: bool, test: bool) -> Attribute {
    let mut attribute = attribute_of(operand);
    let qualifier = Arc::new(Qualifier {
        key,
        optional,
        test,
    });
    push(&mut attribute, &qualifier);
    attribute
}

/// Qualifiers of a conditional belong to both of its branches.
fn push(attribute: &mut Attribute, qualifier: &Arc<Qualifier>) {
    match &mut attribute.base {
        Base::Conditional(parts) => {
            push(&mut parts.1, qualifier);
            push(&mut parts.2, qualifier);
        }
        _ => attribute.qualifiers.push(qualifier.clone()),
    }
}

impl Call {
    /// Whether the arguments behind one that failed are not evaluated.
    pub(crate) fn stops_early(&self) -> bool {
        let dispatched = self.chosen.is_none()
            && self
                .function
                .overloads
                .iter()
                .any(|o| matches!(o.binding, Binding::Own(_)));
        let many = self.args.len() > 2 || self.overload_id() == "string_format";
        many || dispatched || self.pattern.is_some()
    }
}

impl<'v> From<&Literal> for Value<'v> {
    fn from(literal: &Literal) -> Value<'v> {
        match literal {
            Literal::Null => Value::Null,
            Literal::Bool(b) => Value::Bool(*b),
            Literal::Int(i) => Value::Int(*i),
            Literal::Uint(u) => Value::Uint(*u),
            Literal::Double(d) => Value::Double(*d),
            Literal::String(s) => Value::String(crate::value::Str::Shared(s.clone())),
            Literal::Bytes(b) => Value::Bytes(b.clone()),
        }
    }
}

impl<'v> From<MapEntries<'v>> for Value<'v> {
    fn from(map: MapEntries<'v>) -> Value<'v> {
        Value::Map(crate::value::Map::Values(Arc::new(map)))
    }
}
