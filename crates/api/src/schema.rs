//! The shape of a value: one type for what the Go structs of built-in kinds say and for what a
//! structural schema of a CustomResourceDefinition says.

use crate::table;
use serde_json::Value;
use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

/// What JSON a value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Type {
    /// Known fields, additional ones, or both.
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    /// A string in base64.
    Bytes,
    IntOrString,
    /// A resource quantity: string or number, printed canonically.
    Quantity,
    /// RFC 3339 in seconds, or null.
    Time,
    /// RFC 3339 in microseconds, or null.
    MicroTime,
    /// Anything, kept as it is.
    #[default]
    Any,
}

/// Properties of an object besides the named ones.
#[derive(Debug, Clone, Default)]
pub enum Additional {
    /// They are unknown and pruned.
    #[default]
    Closed,
    /// They are kept as they are.
    Open,
    /// They have this schema: a map.
    Of(Box<Schema>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    /// Items are told apart by [`Schema::list_keys`].
    Map,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MapType {
    #[default]
    Granular,
    Atomic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupVersionKind {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
}

/// A schema. What belongs to a use of a type (list type, default, patch strategy) stands here even
/// when the shape is that of a named type; [`Schema::shape`] leads there.
#[derive(Debug, Clone, Default)]
pub struct Schema {
    pub(crate) ty: Type,
    /// The named built-in type this one is a use of.
    pub(crate) target: Option<u16>,
    /// Full name of a built-in type (`io.k8s.api.core.v1.Pod`), empty otherwise.
    pub name: Cow<'static, str>,
    pub(crate) fields: Vec<Field>,
    pub(crate) items: Option<Box<Schema>>,
    pub(crate) additional: Additional,
    pub(crate) list_type: Option<ListType>,
    pub(crate) map_type: Option<MapType>,
    /// Keys of a list of type map.
    pub list_keys: Vec<Cow<'static, str>>,
    /// `x-kubernetes-patch-strategy`, as written (`merge`, `retainKeys`, `merge,retainKeys`).
    pub patch_strategy: Cow<'static, str>,
    pub patch_merge_key: Cow<'static, str>,
    pub default: Option<Value>,
    /// `int32`, `int64`, `double`, `date-time`, …; empty for none.
    pub format: Cow<'static, str>,
    /// The Go type's own name where it has one, for type errors (`v1.PullPolicy`).
    pub go_type: Cow<'static, str>,
    /// Null is a value (custom resources); built-in types drop nulls.
    pub nullable: bool,
    /// Unknown fields are kept from here down.
    pub preserve_unknown: bool,
    /// apiVersion, kind and metadata are implied.
    pub embedded_resource: bool,
    pub rules: Option<Box<Rules>>,
    /// Made from a structural schema.
    pub(crate) declared: bool,
    /// Text for `kubectl explain`.
    pub description: Option<Box<str>>,
}

/// A named property.
#[derive(Debug, Clone, Default)]
pub struct Field {
    pub name: Cow<'static, str>,
    pub schema: Schema,
    pub required: bool,
    /// Absent and zero differ.
    pub pointer: bool,
    /// Left out of the output when empty: zero numbers, empty texts, lists and maps, nil pointers.
    pub omit_empty: bool,
    /// Left out when every part of the struct is zero.
    pub omit_zero: bool,
}

/// Validations of a structural schema.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    pub enum_values: Vec<Value>,
    pub minimum: Option<f64>,
    pub maximum: Option<f64>,
    pub exclusive_minimum: bool,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub pattern: Option<String>,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub unique_items: bool,
    pub min_properties: Option<u64>,
    pub max_properties: Option<u64>,
    pub required: Vec<String>,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
    pub cel: Vec<CelRule>,
}

/// `x-kubernetes-validations`.
#[derive(Debug, Clone, Default)]
pub struct CelRule {
    pub rule: String,
    pub message: String,
    pub message_expression: String,
    pub reason: String,
    pub field_path: String,
    pub optional_old_self: Option<bool>,
}

impl Schema {
    /// A use of a built-in type.
    pub fn of_type(name: &str) -> Option<Schema> {
        table::reference(name)
    }

    /// A schema that takes and keeps everything.
    pub fn any() -> Schema {
        Schema {
            preserve_unknown: true,
            additional: Additional::Open,
            ..Schema::default()
        }
    }

    pub fn object(mut fields: Vec<Field>) -> Schema {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        Schema {
            ty: Type::Object,
            fields,
            ..Schema::default()
        }
    }

    /// The named type this is a use of, or itself.
    pub fn shape(&self) -> &Schema {
        match self.target {
            Some(id) => table::by_id(id),
            None => self,
        }
    }

    pub fn kind(&self) -> Type {
        self.shape().ty
    }

    /// Full name of the built-in type, empty when there is none.
    pub fn type_name(&self) -> &str {
        &self.shape().name
    }

    /// Sorted by name.
    pub fn fields(&self) -> &[Field] {
        &self.shape().fields
    }

    pub fn field(&self, name: &str) -> Option<&Field> {
        let fields = self.fields();
        fields
            .binary_search_by(|f| f.name.as_ref().cmp(name))
            .ok()
            .map(|i| &fields[i])
    }

    /// The schema of a property, named or additional.
    pub fn property(&self, name: &str) -> Option<&Schema> {
        match self.field(name) {
            Some(f) => Some(&f.schema),
            None => match self.additional() {
                Additional::Of(s) => Some(s),
                _ => None,
            },
        }
    }

    pub fn items(&self) -> Option<&Schema> {
        self.shape().items.as_deref()
    }

    pub fn additional(&self) -> &Additional {
        &self.shape().additional
    }

    /// An object without named fields whose values share a schema.
    pub fn is_map(&self) -> bool {
        matches!(self.additional(), Additional::Of(_)) && self.fields().is_empty()
    }

    /// A named struct, as opposed to a map or free-form object.
    pub fn target_is_struct(&self) -> bool {
        let shape = self.shape();
        !shape.name.is_empty()
            && shape.ty == Type::Object
            && matches!(shape.additional, Additional::Closed)
    }

    pub fn list_type(&self) -> ListType {
        self.declared_list_type().unwrap_or_default()
    }

    /// The list type that the schema states, if it does.
    pub fn declared_list_type(&self) -> Option<ListType> {
        self.list_type.or(self.shape().list_type)
    }

    pub fn map_type(&self) -> MapType {
        self.map_type.or(self.shape().map_type).unwrap_or_default()
    }

    pub fn list_keys(&self) -> &[Cow<'static, str>] {
        if self.list_keys.is_empty() {
            &self.shape().list_keys
        } else {
            &self.list_keys
        }
    }

    /// Unknown fields below are kept.
    pub fn keeps_unknown(&self) -> bool {
        self.preserve_unknown
            || self.shape().preserve_unknown
            || matches!(self.additional(), Additional::Open)
    }

    /// From a structural schema, where every default is meant; the table of built-in types gives a
    /// zero default to every field that is always encoded.
    pub fn is_declared(&self) -> bool {
        self.declared
    }

    pub fn is_embedded_resource(&self) -> bool {
        self.embedded_resource || self.shape().embedded_resource
    }

    /// Strategic merge patches merge lists of this field.
    pub fn patch_merges(&self) -> bool {
        self.patch_strategy.split(',').any(|s| s == "merge")
    }

    pub fn patch_retains_keys(&self) -> bool {
        self.patch_strategy.split(',').any(|s| s == "retainKeys")
    }

    /// As OpenAPI names it; empty for anything and for unions of types.
    pub fn json_type(&self) -> &'static str {
        match self.kind() {
            Type::Object => "object",
            Type::Array => "array",
            Type::String | Type::Bytes | Type::Time | Type::MicroTime => "string",
            Type::Integer => "integer",
            Type::Number => "number",
            Type::Boolean => "boolean",
            Type::IntOrString | Type::Quantity | Type::Any => "",
        }
    }
}

/// A schema of the table or one made at run time.
#[derive(Debug, Clone)]
pub enum SchemaRef {
    Static(&'static Schema),
    Shared(Arc<Schema>),
}

impl Deref for SchemaRef {
    type Target = Schema;
    fn deref(&self) -> &Schema {
        match self {
            SchemaRef::Static(s) => s,
            SchemaRef::Shared(s) => s,
        }
    }
}

impl From<&'static Schema> for SchemaRef {
    fn from(s: &'static Schema) -> SchemaRef {
        SchemaRef::Static(s)
    }
}

impl From<Schema> for SchemaRef {
    fn from(s: Schema) -> SchemaRef {
        SchemaRef::Shared(Arc::new(s))
    }
}

impl From<Arc<Schema>> for SchemaRef {
    fn from(s: Arc<Schema>) -> SchemaRef {
        SchemaRef::Shared(s)
    }
}
