//! Types of a tree's nodes, and what its names refer to.

mod literals;
mod unify;

use crate::ast::{Comprehension, Element, Entry, Expr, ExprKind, Field, Id, Literal};
use crate::environment::Names;
use crate::issue::Issue;
use crate::library::{Function, Overload};
use crate::limits::deep;
use crate::source::Source;
use crate::types::Type;
use std::sync::Arc;
use unify::{Bindings, loose, most_general};

/// A type with more parts than this is refused: nested bindings can make types grow with every
/// level.
const MAX_TYPE_SIZE: usize = 250;

/// What a name or a call refers to.
#[derive(Debug, Clone)]
pub(crate) enum Reference {
    /// A variable, under its full name.
    Variable(Arc<str>),
    /// The name of a type.
    Type(Type),
    /// A function, with the overloads that can apply, in order. `namespaced` calls have no
    /// target: it is part of the function's name.
    Function {
        function: Arc<Function>,
        overloads: Vec<Arc<Overload>>,
        namespaced: bool,
    },
}

/// What the checker found out, by id.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    pub(crate) types: Vec<Type>,
    pub(crate) references: Vec<Option<Reference>>,
}

pub(crate) fn check(
    expr: &Expr,
    offsets: &[usize],
    source: &Source,
    names: &Names,
) -> Result<Checked, Vec<Issue>> {
    let mut checker = Checker {
        source,
        offsets,
        names,
        types: vec![Type::Error; offsets.len()],
        references: vec![None; offsets.len()],
        bindings: Bindings::default(),
        scopes: Vec::new(),
        variables_made: 0,
        issues: Vec::new(),
    };
    checker.check(expr);
    if !checker.issues.is_empty() {
        return Err(checker.issues);
    }
    for i in 0..checker.types.len() {
        let resolved = checker.bindings.substitute(&checker.types[i], true);
        checker.types[i] = resolved;
    }
    let checked = Checked {
        types: checker.types,
        references: checker.references,
    };
    let issues = literals::validate(expr, offsets, source, &checked);
    if issues.is_empty() {
        Ok(checked)
    } else {
        Err(issues)
    }
}

struct Checker<'a> {
    source: &'a Source,
    offsets: &'a [usize],
    names: &'a Names,
    types: Vec<Type>,
    references: Vec<Option<Reference>>,
    bindings: Bindings,
    /// Variables of comprehensions, the innermost last.
    scopes: Vec<(Arc<str>, Type)>,
    variables_made: usize,
    issues: Vec<Issue>,
}

impl Checker<'_> {
    fn check(&mut self, e: &Expr) {
        let t = deep(|| self.infer(e));
        let t = self.bounded(e.id, t);
        self.types[e.id as usize] = t;
    }

    fn infer(&mut self, e: &Expr) -> Type {
        match &e.kind {
            ExprKind::Unspecified => {
                self.issue(e.id, "unexpected unspecified type: ".to_owned());
                Type::Error
            }
            ExprKind::Literal(literal) => literal_type(literal),
            ExprKind::Ident(name) => self.ident(e.id, name),
            ExprKind::Select {
                operand,
                field,
                test_only,
            } => self.select(e, operand, field, *test_only),
            ExprKind::Call {
                target,
                function,
                args,
            } => self.call(e.id, target.as_deref(), function, args),
            ExprKind::List(elements) => self.list(elements),
            ExprKind::Map(entries) => self.map(entries),
            ExprKind::Struct { name, fields } => self.message(e.id, name, fields),
            ExprKind::Comprehension(c) => self.comprehension(c),
        }
    }

    /// Refuses types that outgrow their bound.
    fn bounded(&mut self, id: Id, t: Type) -> Type {
        let mut left = MAX_TYPE_SIZE;
        if self.fits(&t, &mut left) {
            return t;
        }
        self.issue(id, "type is too complex".to_owned());
        Type::Error
    }

    fn fits(&self, t: &Type, left: &mut usize) -> bool {
        if *left == 0 {
            return false;
        }
        *left -= 1;
        match t {
            Type::List(t) | Type::Optional(t) | Type::Type(t) => self.fits(t, left),
            Type::Map(k, v) => self.fits(k, left) && self.fits(v, left),
            Type::Opaque(_, parameters) => parameters.iter().all(|p| self.fits(p, left)),
            _ => true,
        }
    }

    fn issue(&mut self, id: Id, message: String) {
        let offset = self.offsets.get(id as usize).copied();
        self.issues.push(self.source.issue(offset, message));
    }

    fn type_of(&self, e: &Expr) -> Type {
        self.types[e.id as usize].clone()
    }

    fn fresh(&mut self) -> Type {
        let name = format!("_var{}", self.variables_made);
        self.variables_made += 1;
        Type::param(&name)
    }

    fn undeclared(&mut self, id: Id, name: &str) -> Type {
        self.issue(
            id,
            format!("undeclared reference to '{name}' (in container '')"),
        );
        Type::Error
    }

    fn mismatch(&mut self, id: Id, expected: &Type, found: &Type) {
        self.issue(
            id,
            format!("expected type '{expected}' but found '{found}'"),
        );
    }

    /// What a name means: a variable in scope, a declared one, or a type.
    fn look_up(&self, name: &str) -> Option<(Type, Reference)> {
        let name = name.strip_prefix('.').unwrap_or(name);
        let local = self.scopes.iter().rev().find(|(n, _)| **n == *name);
        if let Some((name, t)) = local {
            return Some((t.clone(), Reference::Variable(name.clone())));
        }
        if let Some((name, t)) = self.names.variable(name) {
            return Some((t.clone(), Reference::Variable(name.clone())));
        }
        let t = self.names.type_named(name)?;
        Some((Type::of_type(t.clone()), Reference::Type(t)))
    }

    fn ident(&mut self, id: Id, name: &str) -> Type {
        match self.look_up(name) {
            Some((t, reference)) => {
                self.references[id as usize] = Some(reference);
                t
            }
            None => self.undeclared(id, name),
        }
    }

    fn select(&mut self, e: &Expr, operand: &Expr, field: &str, test_only: bool) -> Type {
        // A dotted name can be one variable.
        if let Some(name) = e.qualified_name()
            && let Some((t, reference)) = self.look_up(&name)
        {
            self.references[e.id as usize] = Some(reference);
            return t;
        }
        let t = self.field(e.id, operand, field, false);
        if test_only {
            return Type::Bool;
        }
        self.bindings.substitute(&t, false)
    }

    fn field(&mut self, id: Id, operand: &Expr, field: &str, optional: bool) -> Type {
        self.check(operand);
        let operand = self.bindings.substitute(&self.type_of(operand), false);
        let (target, was_optional) = match &operand {
            Type::Optional(t) => ((**t).clone(), true),
            t => (t.clone(), false),
        };
        let result = match &target {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(name) => self.object_field(id, name, field),
            Type::Param(_) => {
                self.bindings.assignable(&Type::Dyn, &target);
                Type::Dyn
            }
            t if loose(t) => Type::Dyn,
            t => {
                self.issue(id, format!("type '{t}' does not support field selection"));
                Type::Dyn
            }
        };
        if was_optional || optional {
            Type::optional(result)
        } else {
            result
        }
    }

    fn object_field(&mut self, id: Id, object: &str, field: &str) -> Type {
        let provider = self.names.provider();
        if !provider.has_type(object) {
            self.issue(id, format!("unexpected failed resolution of '{object}'"));
            return Type::Error;
        }
        provider.field(object, field).unwrap_or_else(|| {
            self.issue(id, format!("undefined field '{field}'"));
            Type::Error
        })
    }

    fn call(&mut self, id: Id, target: Option<&Expr>, function: &str, args: &[Expr]) -> Type {
        if function == "_?._" {
            return self.optional_select(id, args);
        }
        for arg in args {
            self.check(arg);
        }
        let Some(target) = target else {
            let plain = function.strip_prefix('.').unwrap_or(function);
            return match self.names.function(plain) {
                Some(f) => self.resolve(id, f, None, args, false),
                None => self.undeclared(id, function),
            };
        };
        // `a.b.f()` is the function `a.b.f` if there is one.
        if let Some(prefix) = target.qualified_name() {
            let name = format!("{}.{function}", prefix.trim_start_matches('.'));
            if let Some(f) = self.names.function(&name) {
                return self.resolve(id, f, None, args, true);
            }
        }
        self.check(target);
        match self.names.function(function) {
            Some(f) => self.resolve(id, f, Some(target), args, false),
            None => self.undeclared(id, function),
        }
    }

    fn optional_select(&mut self, id: Id, args: &[Expr]) -> Type {
        let [operand, field] = args else {
            return Type::Error;
        };
        let ExprKind::Literal(Literal::String(field)) = &field.kind else {
            return Type::Error;
        };
        let t = self.field(id, operand, field, true);
        self.types[args[1].id as usize] = Type::String;
        self.bindings.substitute(&t, false)
    }

    /// Finds the overloads that fit the arguments.
    fn resolve(
        &mut self,
        id: Id,
        function: Arc<Function>,
        target: Option<&Expr>,
        args: &[Expr],
        namespaced: bool,
    ) -> Type {
        let mut found: Vec<Type> = target
            .into_iter()
            .chain(args)
            .map(|e| self.type_of(e))
            .collect();
        let mut result: Option<Type> = None;
        let mut overloads = Vec::new();
        for overload in &function.overloads {
            if overload.member != target.is_some() {
                continue;
            }
            if matches!(function.name, "_&&_" | "_||_") {
                return self.logical(id, &function, overload, args, &found);
            }
            let (wanted, returns) = self.instantiate(overload);
            if !self.bindings.all_assignable(&found, &wanted) {
                continue;
            }
            overloads.push(overload.clone());
            let returns = self.bindings.substitute(&returns, false);
            result = Some(match result {
                None => returns,
                Some(r) if r.is_dyn() || r == returns => r,
                Some(_) => Type::Dyn,
            });
        }
        let Some(result) = result else {
            for t in &mut found {
                *t = self.bindings.substitute(t, true);
            }
            let signature = signature(&found, target.is_some());
            let name = function.name;
            self.issue(
                id,
                format!("found no matching overload for '{name}' applied to '{signature}'"),
            );
            return Type::Error;
        };
        self.references[id as usize] = Some(Reference::Function {
            function,
            overloads,
            namespaced,
        });
        result
    }

    fn logical(
        &mut self,
        id: Id,
        function: &Arc<Function>,
        overload: &Arc<Overload>,
        args: &[Expr],
        found: &[Type],
    ) -> Type {
        let mut ok = true;
        for (arg, t) in args.iter().zip(found) {
            if !self.bindings.assignable(t, &Type::Bool) {
                self.mismatch(arg.id, &Type::Bool, t);
                ok = false;
            }
        }
        if !ok {
            return Type::Error;
        }
        self.references[id as usize] = Some(Reference::Function {
            function: function.clone(),
            overloads: vec![overload.clone()],
            namespaced: false,
        });
        Type::Bool
    }

    /// Argument types and result of an overload with fresh variables for its parameters.
    fn instantiate(&mut self, overload: &Overload) -> (Vec<Type>, Type) {
        if overload.parameters.is_empty() {
            return (overload.args.clone(), overload.result.clone());
        }
        let mut fresh = Bindings::default();
        for name in &overload.parameters {
            let variable = self.fresh();
            fresh.bind(name, variable);
        }
        let args = overload.args.iter().map(|t| fresh.substitute(t, false));
        (args.collect(), fresh.substitute(&overload.result, false))
    }

    fn join(&mut self, previous: Option<Type>, current: Type) -> Type {
        let Some(previous) = previous else {
            return current;
        };
        if self.bindings.assignable(&previous, &current) {
            return most_general(&previous, &current).clone();
        }
        // Whether such a mix is allowed is decided once all types are known.
        Type::Dyn
    }

    /// The type of an element, which has to be an optional one when it is written `?e`.
    fn element_type(&mut self, e: &Expr, optional: bool) -> Type {
        let t = self.type_of(e);
        match &t {
            Type::Optional(inner) if optional => (**inner).clone(),
            t if optional && !t.is_dyn() => {
                self.mismatch(e.id, &Type::optional(t.clone()), t);
                t.clone()
            }
            _ => t,
        }
    }

    fn list(&mut self, elements: &[Element]) -> Type {
        let mut joined = None;
        for element in elements {
            self.check(&element.value);
            let t = self.element_type(&element.value, element.optional);
            joined = Some(self.join(joined, t));
        }
        Type::list(joined.unwrap_or_else(|| self.fresh()))
    }

    fn map(&mut self, entries: &[Entry]) -> Type {
        let mut key = None;
        let mut value = None;
        for entry in entries {
            self.check(&entry.key);
            let t = self.type_of(&entry.key);
            key = Some(self.join(key, t));
            self.check(&entry.value);
            let t = self.element_type(&entry.value, entry.optional);
            value = Some(self.join(value, t));
        }
        let key = key.unwrap_or_else(|| self.fresh());
        Type::map(key, value.unwrap_or_else(|| self.fresh()))
    }

    fn message(&mut self, id: Id, name: &str, fields: &[Field]) -> Type {
        let Some((t, reference)) = self.look_up(name) else {
            return self.undeclared(id, name);
        };
        let (result, name) = match (&t, reference) {
            (Type::Type(inner), Reference::Type(named)) => match &**inner {
                Type::Object(object) => {
                    let object = object.clone();
                    self.references[id as usize] = Some(Reference::Type(named));
                    ((**inner).clone(), object.to_string())
                }
                other => {
                    let shown = other.runtime_name();
                    self.issue(id, format!("'{shown}' is not a message type"));
                    (Type::Error, name.to_owned())
                }
            },
            _ => {
                self.issue(id, format!("'{t}' is not a type"));
                (Type::Error, name.to_owned())
            }
        };
        for field in fields {
            self.check(&field.value);
            let declared = self.object_field(field.id, &name, &field.name);
            let value = self.element_type(&field.value, field.optional);
            if !self.bindings.assignable(&declared, &value) {
                let name = &field.name;
                self.issue(
                    field.id,
                    format!(
                        "expected type of field '{name}' is '{declared}' but provided type is '{value}'"
                    ),
                );
            }
        }
        result
    }

    fn comprehension(&mut self, c: &Comprehension) -> Type {
        self.check(&c.range);
        self.check(&c.init);
        let range = self.bindings.substitute(&self.type_of(&c.range), false);
        let accu = self.type_of(&c.init);
        let (first, second) = match &range {
            Type::List(element) if c.var2.is_some() => (Type::Int, (**element).clone()),
            Type::List(element) => ((**element).clone(), Type::Error),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.bindings.assignable(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.issue(c.range.id, message);
                (Type::Error, Type::Error)
            }
        };
        let mark = self.scopes.len();
        self.scopes.push((c.accu.clone(), accu.clone()));
        self.scopes.push((c.var.clone(), first));
        if let Some(var2) = &c.var2 {
            self.scopes.push((var2.clone(), second));
        }
        self.check(&c.condition);
        self.must_be(&c.condition, &Type::Bool);
        self.check(&c.step);
        self.must_be(&c.step, &accu);
        self.scopes.truncate(mark + 1);
        self.check(&c.result);
        self.scopes.truncate(mark);
        self.bindings.substitute(&self.type_of(&c.result), false)
    }

    fn must_be(&mut self, e: &Expr, wanted: &Type) {
        let found = self.type_of(e);
        if !self.bindings.assignable(wanted, &found) {
            self.mismatch(e.id, wanted, &found);
        }
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}

fn signature(args: &[Type], member: bool) -> String {
    let show = |args: &[Type]| {
        let args: Vec<String> = args.iter().map(Type::to_string).collect();
        format!("({})", args.join(", "))
    };
    match args.split_first() {
        Some((target, rest)) if member => format!("{target}.{}", show(rest)),
        _ => show(args),
    }
}
