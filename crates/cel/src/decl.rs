//! Declared types: what a schema looks like to the checker and to the cost estimate.

use crate::escape::{RESERVED, escape};
use crate::limits::MAX_REQUEST_BYTES;
use crate::provider::TypeProvider;
use crate::schema::Schema;
use crate::types::Type;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of the longest duration or time in JSON.
const MAX_TIME_BYTES: i64 = 32;
const DATE_BYTES: i64 = 12;
const MIN_DATETIME_BYTES: i64 = 21;
const MIN_DURATION_BYTES: i64 = 3;
const MIN_STRING_BYTES: i64 = 2;

/// The declaration of a value: its type and how large it can be.
#[derive(Debug, Clone, PartialEq)]
pub struct DeclType {
    pub ty: Type,
    pub kind: DeclKind,
    /// The most elements, entries or bytes.
    pub max_elements: i64,
    /// The fewest bytes it takes in JSON.
    pub min_serialized_size: i64,
}

#[derive(Debug, Clone, PartialEq)]
pub enum DeclKind {
    Scalar,
    List(Arc<DeclType>),
    Map(Arc<DeclType>, Arc<DeclType>),
    /// Fields by their escaped names.
    Object(BTreeMap<String, DeclField>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct DeclField {
    pub ty: Arc<DeclType>,
    pub required: bool,
}

impl DeclType {
    pub fn scalar(ty: Type) -> DeclType {
        let min = match ty {
            Type::Bool | Type::Null => 4,
            Type::String | Type::Bytes => MIN_STRING_BYTES,
            Type::Duration => MIN_DURATION_BYTES,
            Type::Timestamp => DATE_BYTES,
            _ => 1,
        };
        DeclType::sized(ty, 0, min)
    }

    pub fn list(element: Arc<DeclType>, max_elements: i64) -> DeclType {
        DeclType {
            ty: Type::list(element.ty.clone()),
            kind: DeclKind::List(element),
            max_elements,
            min_serialized_size: 2,
        }
    }

    pub fn map(key: Arc<DeclType>, value: Arc<DeclType>, max_elements: i64) -> DeclType {
        DeclType {
            ty: Type::map(key.ty.clone(), value.ty.clone()),
            kind: DeclKind::Map(key, value),
            max_elements,
            min_serialized_size: 2,
        }
    }

    /// An object type with fields under their escaped names. Objects named `object` get their
    /// names from where they lie, see [`DeclType::named`].
    pub fn object(name: &str, fields: BTreeMap<String, DeclField>) -> DeclType {
        DeclType {
            ty: Type::object(name),
            kind: DeclKind::Object(fields),
            max_elements: 0,
            min_serialized_size: 2,
        }
    }

    fn sized(ty: Type, max_elements: i64, min_serialized_size: i64) -> DeclType {
        DeclType {
            ty,
            kind: DeclKind::Scalar,
            max_elements,
            min_serialized_size,
        }
    }

    /// What a schema declares; `None` for schemas that expressions cannot see.
    pub fn from_schema(s: &Schema, resource_root: bool) -> Option<DeclType> {
        if s.int_or_string {
            let max = max_string(s);
            return Some(DeclType::sized(Type::Dyn, max, 1));
        }
        match s.ty.as_str() {
            "array" => {
                let items = s.items.as_deref()?;
                let element = DeclType::from_schema(items, items.embedded_resource)?;
                let max = s.max_items.map_or_else(
                    || (MAX_REQUEST_BYTES - 2) / (element.min_serialized_size + 1),
                    |n| n.max(0),
                );
                Some(DeclType::list(Arc::new(element), max))
            }
            _ if resource_root => object(&s.with_type_and_object_meta()),
            "object" => object(s),
            "string" => Some(string(s)),
            "boolean" => Some(DeclType::scalar(Type::Bool)),
            "number" => Some(DeclType::scalar(Type::Double)),
            "integer" => Some(DeclType::scalar(Type::Int)),
            _ => None,
        }
    }

    /// Gives objects their names: `name` for this one, `name.field` and so on for those inside.
    #[must_use]
    pub fn named(&self, name: &str) -> DeclType {
        match &self.kind {
            DeclKind::Scalar => self.clone(),
            DeclKind::List(e) => DeclType::list(
                Arc::new(e.named(&format!("{name}.@idx"))),
                self.max_elements,
            ),
            DeclKind::Map(k, v) => DeclType::map(
                k.clone(),
                Arc::new(v.named(&format!("{name}.@elem"))),
                self.max_elements,
            ),
            DeclKind::Object(fields) => {
                let own = match &self.ty {
                    Type::Object(own) if &**own != "object" => own.to_string(),
                    _ => name.to_owned(),
                };
                let fields = fields.iter().map(|(field, f)| {
                    let ty = Arc::new(f.ty.named(&format!("{own}.{field}")));
                    let required = f.required;
                    (field.clone(), DeclField { ty, required })
                });
                DeclType {
                    min_serialized_size: self.min_serialized_size,
                    ..DeclType::object(&own, fields.collect())
                }
            }
        }
    }
}

fn object(s: &Schema) -> Option<DeclType> {
    if let Some(values) = s.additional_properties.as_deref() {
        let value = DeclType::from_schema(values, values.embedded_resource)?;
        let max = s.max_properties.map_or_else(
            || (MAX_REQUEST_BYTES - 2) / (value.min_serialized_size + 6),
            |n| n.max(0),
        );
        let key = Arc::new(DeclType::scalar(Type::String));
        return Some(DeclType::map(key, Arc::new(value), max));
    }
    let mut fields = BTreeMap::new();
    let mut min = 2;
    for (name, property) in s.properties.iter().flatten() {
        let Some(ty) = DeclType::from_schema(property, property.embedded_resource) else {
            continue;
        };
        let required = s.required.contains(name);
        // The server fills in defaults, so that a required property with one may be absent.
        if required && !property.has_default {
            min += i64::try_from(name.len()).unwrap_or(0) + ty.min_serialized_size + 4;
        }
        if let Some(escaped) = escape(name) {
            let ty = Arc::new(ty);
            fields.insert(escaped, DeclField { ty, required });
        }
    }
    Some(DeclType {
        min_serialized_size: min,
        ..DeclType::object("object", fields)
    })
}

fn string(s: &Schema) -> DeclType {
    match s.format.as_str() {
        "byte" => {
            let max = s.max_length.map_or(MAX_REQUEST_BYTES - 2, |n| n.max(0));
            DeclType::sized(Type::Bytes, max, MIN_STRING_BYTES)
        }
        "duration" => DeclType::sized(Type::Duration, MAX_TIME_BYTES, MIN_DURATION_BYTES),
        "date" => DeclType::sized(Type::Timestamp, DATE_BYTES, DATE_BYTES),
        "date-time" => DeclType::sized(Type::Timestamp, MAX_TIME_BYTES, MIN_DATETIME_BYTES),
        _ => DeclType::sized(Type::String, max_string(s), MIN_STRING_BYTES),
    }
}

/// Lengths are declared in code points, sizes are in bytes.
fn max_string(s: &Schema) -> i64 {
    match (s.max_length, s.longest_enum) {
        (Some(n), _) => n.max(0).saturating_mul(4),
        (None, Some(longest)) if !s.int_or_string => longest,
        _ => MAX_REQUEST_BYTES - 2,
    }
}

/// A type provider over declared types.
#[derive(Debug, Clone, Default)]
pub struct Declarations {
    types: BTreeMap<String, DeclType>,
    /// Whether a field named like a keyword can be named without its escape.
    keywords_as_fields: bool,
}

impl Declarations {
    /// Knows the given types and every object type inside of them.
    pub fn new<'a>(roots: impl IntoIterator<Item = &'a DeclType>) -> Declarations {
        let mut out = Declarations::default();
        for root in roots {
            out.add(root);
        }
        out
    }

    #[must_use]
    pub fn with_keywords_as_fields(mut self) -> Declarations {
        self.keywords_as_fields = true;
        self
    }

    fn add(&mut self, t: &DeclType) {
        match &t.kind {
            DeclKind::Scalar => {}
            DeclKind::List(e) => self.add(e),
            DeclKind::Map(_, v) => self.add(v),
            DeclKind::Object(fields) => {
                for f in fields.values() {
                    self.add(&f.ty);
                }
                let name = t.ty.runtime_name().to_owned();
                self.types.insert(name, t.clone());
            }
        }
    }
}

impl TypeProvider for Declarations {
    fn has_type(&self, name: &str) -> bool {
        self.types.contains_key(name)
    }

    fn field(&self, type_name: &str, field: &str) -> Option<Type> {
        let DeclKind::Object(fields) = &self.types.get(type_name)?.kind else {
            return None;
        };
        let found = fields.get(field).or_else(|| {
            let keyword = self.keywords_as_fields && RESERVED.contains(&field);
            fields.get(&format!("__{field}__")).filter(|_| keyword)
        });
        found.map(|f| f.ty.ty.clone())
    }
}
