//! Which types fit which, with type parameters bound on the way.

use crate::types::Type;
use std::collections::HashMap;
use std::sync::Arc;

/// What type variables stand for. Attempts that fail are undone.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    bound: HashMap<Arc<str>, Type>,
    undo: Vec<(Arc<str>, Option<Type>)>,
}

impl Bindings {
    pub(super) fn bind(&mut self, name: &Arc<str>, to: Type) {
        let before = self.bound.insert(name.clone(), to);
        self.undo.push((name.clone(), before));
    }

    fn find(&self, t: &Type) -> Option<&Type> {
        match t {
            Type::Param(name) => self.bound.get(name),
            _ => None,
        }
    }

    fn roll_back(&mut self, to: usize) {
        while self.undo.len() > to {
            if let Some((name, before)) = self.undo.pop() {
                match before {
                    Some(t) => self.bound.insert(name, t),
                    None => self.bound.remove(&name),
                };
            }
        }
    }

    /// Whether `a` is assignable to `b`; binds variables only when it is.
    pub(super) fn assignable(&mut self, a: &Type, b: &Type) -> bool {
        self.all_assignable(std::slice::from_ref(a), std::slice::from_ref(b))
    }

    pub(super) fn all_assignable(&mut self, a: &[Type], b: &[Type]) -> bool {
        let mark = self.undo.len();
        let ok = self.try_all(a, b);
        if !ok {
            self.roll_back(mark);
        }
        ok
    }

    fn try_all(&mut self, a: &[Type], b: &[Type]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.try_assign(a, b))
    }

    fn try_assign(&mut self, a: &Type, b: &Type) -> bool {
        if let Type::Param(name) = b {
            let (valid, bound) = self.substitutes(a, b, name);
            if valid || bound {
                return valid;
            }
        }
        if let Type::Param(name) = a {
            return self.substitutes(b, a, name).0;
        }
        if loose(a) || loose(b) {
            return true;
        }
        match (a, b) {
            (Type::Null, other) | (other, Type::Null) => nullable(other),
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => {
                self.try_assign(a, b)
            }
            (Type::Map(ak, av), Type::Map(bk, bv)) => {
                self.try_assign(ak, bk) && self.try_assign(av, bv)
            }
            (Type::Opaque(an, ap), Type::Opaque(bn, bp)) => an == bn && self.try_all(ap, bp),
            (a, b) => a == b,
        }
    }

    /// Whether `t` can stand for the variable `v`, and whether `v` stands for something already.
    fn substitutes(&mut self, t: &Type, v: &Type, name: &Arc<str>) -> (bool, bool) {
        if t == v {
            return (true, true);
        }
        if let Some(sub) = self.find(v).cloned() {
            if *t == sub {
                return (true, true);
            }
            if self.try_assign(t, &sub) {
                let general = most_general(t, &sub).clone();
                if !self.occurs(v, &general) {
                    self.bind(name, general);
                }
                return (true, true);
            }
            return (false, true);
        }
        if self.occurs(v, t) {
            return (false, false);
        }
        self.bind(name, t.clone());
        (true, false)
    }

    fn occurs(&self, v: &Type, within: &Type) -> bool {
        if v == within {
            return true;
        }
        match within {
            Type::Param(_) => self.find(within).is_some_and(|sub| self.occurs(v, sub)),
            Type::List(t) | Type::Optional(t) | Type::Type(t) => self.occurs(v, t),
            Type::Map(k, t) => self.occurs(v, k) || self.occurs(v, t),
            Type::Opaque(_, parameters) => parameters.iter().any(|p| self.occurs(v, p)),
            _ => false,
        }
    }

    /// The type with bound variables replaced, and with unbound ones made `dyn` when asked.
    pub(super) fn substitute(&self, t: &Type, unbound_to_dyn: bool) -> Type {
        if let Some(sub) = self.find(t) {
            return self.substitute(sub, unbound_to_dyn);
        }
        let inner = |t: &Arc<Type>| Arc::new(self.substitute(t, unbound_to_dyn));
        match t {
            Type::Param(_) if unbound_to_dyn => Type::Dyn,
            Type::List(e) => Type::List(inner(e)),
            Type::Map(k, v) => Type::Map(inner(k), inner(v)),
            Type::Optional(o) => Type::Optional(inner(o)),
            Type::Type(o) => Type::Type(inner(o)),
            Type::Opaque(name, parameters) => {
                let each = parameters.iter();
                let each = each.map(|p| self.substitute(p, unbound_to_dyn));
                Type::Opaque(name.clone(), each.collect())
            }
            other => other.clone(),
        }
    }
}

/// Fits with everything, at check time.
pub(super) fn loose(t: &Type) -> bool {
    matches!(t, Type::Dyn | Type::Error)
}

/// Whether null is one of its values.
fn nullable(t: &Type) -> bool {
    matches!(
        t,
        Type::Null
            | Type::Opaque(..)
            | Type::Optional(_)
            | Type::Object(_)
            | Type::Duration
            | Type::Timestamp
    )
}

/// The more general of two types that fit together.
pub(super) fn most_general<'t>(a: &'t Type, b: &'t Type) -> &'t Type {
    if less_specific(a, b) { a } else { b }
}

fn less_specific(a: &Type, b: &Type) -> bool {
    if matches!(a, Type::Dyn | Type::Param(_)) {
        return true;
    }
    if matches!(b, Type::Dyn | Type::Param(_)) {
        return false;
    }
    match (a, b) {
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => {
            less_specific(a, b)
        }
        (Type::Map(ak, av), Type::Map(bk, bv)) => less_specific(ak, bk) && less_specific(av, bv),
        (Type::Type(_), Type::Type(_)) => true,
        (Type::Opaque(an, ap), Type::Opaque(bn, bp)) => {
            an == bn
                && ap.len() == bp.len()
                && ap.iter().zip(&**bp).all(|(a, b)| less_specific(a, b))
        }
        (a, b) => a == b,
    }
}
