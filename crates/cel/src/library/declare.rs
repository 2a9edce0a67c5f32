//! Declarations of functions.

use super::LIBRARIES;
use crate::environment::Version;
use crate::types::Type;
use crate::value::{EvalError, Value, ValueResult};
use std::collections::HashMap;
use std::sync::Arc;

/// Computes a function of evaluated arguments, the target first.
pub(crate) type Eval = for<'v> fn(&[Value<'v>]) -> ValueResult<'v>;

/// How a call finds its code.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Binding {
    /// One code for all overloads, which looks at the types itself.
    Shared(Eval),
    /// Every overload has its own, which is called with arguments of its types only.
    Own(Eval),
    /// The evaluation knows the function itself.
    Special,
}

/// One overload: the function's name, the overload's id, its signature, its code.
///
/// A signature is `(args) -> result`, or `target.(args) -> result` for one that is called on a
/// target. Single capitals are type parameters.
pub(crate) struct Row(
    pub(crate) &'static str,
    pub(crate) &'static str,
    pub(crate) &'static str,
    pub(crate) Binding,
);

#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: &'static str,
    pub(crate) overloads: Vec<Arc<Overload>>,
}

#[derive(Debug)]
pub(crate) struct Overload {
    pub(crate) id: &'static str,
    pub(crate) member: bool,
    /// The target first.
    pub(crate) args: Vec<Type>,
    pub(crate) result: Type,
    pub(crate) parameters: Vec<Arc<str>>,
    pub(crate) binding: Binding,
}

/// Functions by name.
#[derive(Debug, Default, Clone)]
pub(crate) struct Functions {
    by_name: HashMap<&'static str, Arc<Function>>,
}

impl Functions {
    /// All that were there at a version.
    pub(crate) fn at(version: Version) -> Functions {
        let mut out = Functions::default();
        for library in LIBRARIES.iter().filter(|l| l.since <= version) {
            out.add(library.rows);
        }
        out
    }

    pub(crate) fn add(&mut self, rows: &[Row]) {
        for Row(name, id, text, binding) in rows {
            let overload = Arc::new(overload(id, text, *binding));
            let function = self.by_name.entry(name).or_insert_with(|| {
                Arc::new(Function {
                    name,
                    overloads: Vec::new(),
                })
            });
            let mut overloads = function.overloads.clone();
            overloads.push(overload);
            *function = Arc::new(Function { name, overloads });
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Function>> {
        self.by_name.get(name).cloned()
    }
}

impl Overload {
    fn accepts(&self, args: &[Value<'_>]) -> bool {
        self.args.len() == args.len() && self.args.iter().zip(args).all(|(t, v)| v.fits(t))
    }
}

/// Calls the overload that the checker chose, or the first one that fits the arguments.
pub(crate) fn call<'v>(
    function: &Function,
    chosen: Option<&Overload>,
    args: &[Value<'v>],
) -> ValueResult<'v> {
    let candidates: &mut dyn Iterator<Item = &Overload> = match chosen {
        Some(o) => &mut std::iter::once(o),
        None => &mut function.overloads.iter().map(|o| &**o),
    };
    for overload in candidates {
        match overload.binding {
            Binding::Shared(eval) => return eval(args),
            Binding::Own(eval) if overload.accepts(args) => return eval(args),
            _ => {}
        }
    }
    let types: Vec<String> = args
        .iter()
        .map(|v| v.type_of().runtime_name().to_owned())
        .collect();
    Err(EvalError::new(format!(
        "no such overload: {}({})",
        function.name,
        types.join(", ")
    )))
}

fn overload(id: &'static str, text: &str, binding: Binding) -> Overload {
    let mut reader = Reader { rest: text };
    let member = !reader.rest.starts_with('(');
    let mut args = Vec::new();
    if member {
        args.push(reader.one());
        reader.past(".");
    }
    reader.past("(");
    while !reader.rest.starts_with(')') {
        args.push(reader.one());
        reader.past(",");
    }
    reader.past(")");
    reader.past("->");
    let result = reader.one();
    debug_assert!(reader.rest.is_empty(), "signature {text}");
    let mut parameters = Vec::new();
    for t in args.iter().chain(std::iter::once(&result)) {
        collect(t, &mut parameters);
    }
    Overload {
        id,
        member,
        args,
        result,
        parameters,
        binding,
    }
}

fn collect(t: &Type, out: &mut Vec<Arc<str>>) {
    match t {
        Type::Param(name) if !out.contains(name) => out.push(name.clone()),
        Type::List(t) | Type::Optional(t) | Type::Type(t) => collect(t, out),
        Type::Map(k, v) => {
            collect(k, out);
            collect(v, out);
        }
        _ => {}
    }
}

/// Reads types of signatures.
struct Reader<'t> {
    rest: &'t str,
}

impl Reader<'_> {
    fn past(&mut self, symbol: &str) {
        self.rest = self.rest.trim_start();
        self.rest = self.rest.strip_prefix(symbol).unwrap_or(self.rest);
        self.rest = self.rest.trim_start();
    }

    fn one(&mut self) -> Type {
        // A target's type ends before the dot that a parenthesis follows.
        let end = self
            .rest
            .char_indices()
            .find(|(i, c)| {
                matches!(c, '(' | ')' | ',' | ' ')
                    || (*c == '.' && self.rest[i + 1..].starts_with('('))
            })
            .map_or(self.rest.len(), |(i, _)| i);
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        let mut parameters = Vec::new();
        if !name.is_empty() && self.rest.starts_with('(') {
            self.past("(");
            while !self.rest.starts_with(')') {
                parameters.push(self.one());
                self.past(",");
            }
            self.rest = self.rest.strip_prefix(')').unwrap_or(self.rest);
        }
        let mut parameters = parameters.into_iter();
        let mut next = || parameters.next().unwrap_or(Type::Dyn);
        match name {
            "dyn" => Type::Dyn,
            "null" => Type::Null,
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "duration" => Type::Duration,
            "timestamp" => Type::Timestamp,
            "list" => Type::list(next()),
            "map" => Type::map(next(), next()),
            "optional" => Type::optional(next()),
            "type" => Type::of_type(next()),
            "net.IP" | "net.CIDR" => Type::opaque(name),
            name if name.len() == 1 => Type::param(name),
            name => Type::object(name),
        }
    }
}
