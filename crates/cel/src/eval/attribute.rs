//! Variables and what is selected of them.

use super::Interpreter;
use super::plan::{Attribute, Base, Key, Qualifier, is_key};
use crate::limits::deep;
use crate::value::{EvalError, Object, Value, ValueResult, implementation};
use std::sync::Arc;

impl<'p, 'v> Interpreter<'p, '_, 'v> {
    pub(super) fn attribute_node(&mut self, attribute: &'p Attribute) -> ValueResult<'v> {
        let result = self.attribute(attribute);
        // A conditional costs what its parts cost.
        if !matches!(attribute.base, Base::Conditional(_)) {
            self.charge(1)?;
        }
        result
    }

    pub(super) fn test(&mut self, attribute: &'p Attribute) -> ValueResult<'v> {
        match self.attribute(attribute)? {
            Value::Optional(v) => Ok(Value::Bool(v.is_some())),
            other => Ok(other),
        }
    }

    fn attribute(&mut self, attribute: &'p Attribute) -> ValueResult<'v> {
        deep(|| self.resolve(attribute))
    }

    fn resolve(&mut self, attribute: &'p Attribute) -> ValueResult<'v> {
        let base = match &attribute.base {
            Base::Variable(name) => match self.activation.resolve(name) {
                Some(v) => v?,
                None => {
                    return Err(EvalError::new(format!("no such attribute(s): {name}")));
                }
            },
            Base::Local(slot) => self.local(*slot)?,
            Base::Operand(node) => self.eval(node)?,
            Base::Conditional(parts) => {
                let (condition, yes, no) = &**parts;
                return match self.eval(condition)? {
                    Value::Bool(true) => self.attribute(yes),
                    Value::Bool(false) => self.attribute(no),
                    _ => Err(EvalError::no_such_overload()),
                };
            }
        };
        let base = flat(base);
        if attribute.qualifiers.is_empty() {
            return Ok(base);
        }
        self.qualify_all(base, &attribute.qualifiers)
    }

    fn qualify_all(
        &mut self,
        base: Value<'v>,
        qualifiers: &'p [Arc<Qualifier>],
    ) -> ValueResult<'v> {
        let (mut at, mut optional) = match base {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(v)) => ((*v).clone(), true),
            v => (v, false),
        };
        for qualifier in qualifiers {
            optional = optional || qualifier.optional;
            let found = self.qualify(&at, qualifier, optional);
            // What may be missing costs something only when it is there.
            if !optional || matches!(found, Ok(Some(_))) {
                self.charge(1)?;
            }
            at = match found? {
                Some(v) => v,
                None if qualifier.test && !optional => return Ok(Value::Bool(false)),
                None if optional => return Ok(Value::Optional(None)),
                None => return Err(EvalError::no_such_overload()),
            };
            if qualifier.test && !optional {
                return Ok(Value::Bool(true));
            }
        }
        Ok(if optional { Value::some(at) } else { at })
    }

    /// The part of a value that a qualifier names; `None` when it is not there and may be missing.
    fn qualify(
        &mut self,
        at: &Value<'v>,
        qualifier: &'p Qualifier,
        optional: bool,
    ) -> Result<Option<Value<'v>>, EvalError> {
        let may_miss = optional || qualifier.test;
        match &qualifier.key {
            Key::Constant(key) => self.part(at, key, may_miss),
            Key::Attribute(attribute) => {
                let key = self.attribute(attribute)?;
                self.part(at, &key, may_miss)
            }
            Key::Node(node) => {
                let key = self.eval(node)?;
                self.part(at, &key, may_miss)
            }
        }
    }

    fn part(
        &self,
        at: &Value<'v>,
        key: &Value<'v>,
        may_miss: bool,
    ) -> Result<Option<Value<'v>>, EvalError> {
        if !is_key(key) {
            return Err(EvalError::new(format!(
                "invalid qualifier type: {}",
                implementation(key)
            )));
        }
        let missing = |what: &str| {
            if may_miss {
                return Ok(None);
            }
            Err(EvalError::new(format!("{what}: {key}")))
        };
        match at {
            Value::Map(map) => match map.find(key)? {
                Some(v) => Ok(Some(v)),
                None => missing("no such key"),
            },
            Value::List(list) => match list.get(index(key)?) {
                Some(v) => v.map(Some),
                None => missing("index out of bounds"),
            },
            Value::Object(object) => Ok(object_field(object, key, may_miss)),
            Value::Lazy(name) => {
                let field = key.as_str().unwrap_or_default();
                match self.activation.resolve_field(name, field) {
                    Some(v) => v.map(Some),
                    None => missing("no such key"),
                }
            }
            _ => missing("no such key"),
        }
    }
}

/// Optionals of optionals become one when a variable is read.
fn flat(v: Value<'_>) -> Value<'_> {
    let Value::Optional(Some(inner)) = &v else {
        return v;
    };
    let mut at = inner;
    while let Value::Optional(Some(deeper)) = &**at {
        at = deeper;
    }
    match &**at {
        Value::Optional(_) => Value::some(Value::Null),
        _ => Value::Optional(Some(at.clone())),
    }
}

/// A field of an object that an expression made. One that was not set is null, or empty when it is
/// a text of a patch.
fn object_field<'v>(object: &Object<'v>, key: &Value<'v>, may_miss: bool) -> Option<Value<'v>> {
    let name = key.as_str().unwrap_or_default();
    let text = &*object.type_name == "JSONPatch" && matches!(name, "op" | "path" | "from");
    match object.fields.get(name) {
        Some(v) if !(may_miss && text && v.is_zero()) => Some(v.clone()),
        _ if may_miss => None,
        _ if text => Some(Value::string("")),
        _ => Some(Value::Null),
    }
}

/// The place a key names in a list; places that cannot be are beyond every list.
fn index(key: &Value<'_>) -> Result<usize, EvalError> {
    let place = match key {
        Value::Int(i) => usize::try_from(*i).ok(),
        Value::Uint(u) => usize::try_from(*u).ok(),
        Value::Double(d) if d.fract() == 0.0 => (*d >= 0.0 && *d < 9e15).then_some(*d as usize),
        Value::Double(d) => {
            return Err(EvalError::new(format!(
                "unsupported index value {} in list",
                crate::number::shortest(*d)
            )));
        }
        other => {
            return Err(EvalError::new(format!(
                "unsupported index type '{}' in list",
                other.type_of().runtime_name()
            )));
        }
    };
    Ok(place.unwrap_or(usize::MAX))
}
