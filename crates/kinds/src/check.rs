//! A value together with its path: what validation walks on. Reading what is absent gives an
//! absent [`At`] with the right path, so rules need no `if` around every level.

use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::quantity::Quantity;
use keelson_machinery::validation;
use serde_json::{Map, Value};

use crate::tree::Tree;

pub(crate) mod addresses;

static NULL: Value = Value::Null;

#[derive(Clone)]
pub(crate) struct At<'a> {
    pub(crate) value: &'a Value,
    pub(crate) path: Path,
}

impl<'a> At<'a> {
    /// A top-level field of an object.
    pub(crate) fn new(obj: &'a Value, name: &str) -> Self {
        Self {
            value: obj.get(name).unwrap_or(&NULL),
            path: Path::new(name),
        }
    }

    /// A field one level down.
    pub(crate) fn at(&self, name: &str) -> Self {
        Self {
            value: self.value.get(name).unwrap_or(&NULL),
            path: self.path.child(name),
        }
    }

    pub(crate) fn each(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let path = self.path.clone();
        let items: &'a [Value] = self.value.as_array().map_or(&[], Vec::as_slice);
        items.iter().enumerate().map(move |(i, value)| At {
            value,
            path: path.index(i),
        })
    }

    /// The entries of a map, with the key in the path.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, At<'a>)> + use<'a> {
        let path = self.path.clone();
        let map: Option<&'a Map<String, Value>> = self.value.as_object();
        map.into_iter().flatten().map(move |(k, value)| {
            (
                k.as_str(),
                At {
                    value,
                    path: path.key(k),
                },
            )
        })
    }

    pub(crate) fn exists(&self) -> bool {
        !self.value.is_null()
    }

    /// Absent, or the zero value of text, list or map.
    pub(crate) fn is_empty(&self) -> bool {
        match self.value {
            Value::Null => true,
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            _ => false,
        }
    }

    pub(crate) fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or("")
    }

    pub(crate) fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub(crate) fn num(&self) -> i64 {
        self.value.as_i64().unwrap_or(0)
    }

    pub(crate) fn flag(&self) -> bool {
        self.value.as_bool().unwrap_or(false)
    }

    pub(crate) fn len(&self) -> usize {
        match self.value {
            Value::Array(a) => a.len(),
            Value::Object(o) => o.len(),
            Value::String(s) => s.len(),
            _ => 0,
        }
    }

    pub(crate) fn quantity(&self) -> Option<Quantity> {
        quantity(self.value)
    }

    /// Whether a map has this key, dots and all.
    pub(crate) fn has_key(&self, key: &str) -> bool {
        self.value.get(key).is_some()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.value.has(name)
    }

    pub(crate) fn required(&self, detail: &str) -> FieldError {
        FieldError::required(&self.path, detail)
    }

    pub(crate) fn invalid(&self, detail: impl Into<String>) -> FieldError {
        let detail: String = detail.into();
        FieldError::invalid(&self.path, self.value.clone(), detail)
    }

    /// As [`At::invalid`], with an absent text shown as an empty one.
    pub(crate) fn invalid_text(&self, detail: &str) -> FieldError {
        FieldError::invalid(&self.path, self.text(), detail)
    }

    pub(crate) fn forbidden(&self, detail: impl Into<String>) -> FieldError {
        let detail: String = detail.into();
        FieldError::forbidden(&self.path, detail)
    }

    pub(crate) fn duplicate(&self) -> FieldError {
        FieldError::duplicate(&self.path, self.value.clone())
    }

    pub(crate) fn not_found(&self) -> FieldError {
        FieldError::not_found(&self.path, self.value.clone())
    }

    pub(crate) fn not_supported(&self, allowed: &[&str]) -> FieldError {
        FieldError::not_supported(&self.path, self.value.clone(), allowed)
    }

    /// Present values must be one of those allowed.
    pub(crate) fn one_of(&self, e: &mut ErrorList, allowed: &[&str]) {
        if self.exists() && !allowed.contains(&self.text()) {
            e.push(self.not_supported(allowed));
        }
    }

    /// Must be there and one of those allowed.
    pub(crate) fn required_one_of(&self, e: &mut ErrorList, allowed: &[&str]) {
        if self.is_empty() {
            e.push(self.required(""));
        } else {
            self.one_of(e, allowed);
        }
    }

    /// As [`At::one_of`], and an absent value is not supported either.
    pub(crate) fn strictly_one_of(&self, e: &mut ErrorList, allowed: &[&str]) {
        if !allowed.contains(&self.text()) {
            e.push(FieldError::not_supported(&self.path, self.text(), allowed));
        }
    }

    pub(crate) fn require(&self, e: &mut ErrorList) {
        if self.is_empty() {
            e.push(self.required(""));
        }
    }

    /// Every message of `rule` about the text is an error here.
    pub(crate) fn conforms(&self, e: &mut ErrorList, rule: impl Fn(&str) -> Vec<String>) {
        e.extend(
            rule(self.text())
                .into_iter()
                .map(|msg| FieldError::invalid(&self.path, self.text(), msg)),
        );
    }

    /// As [`At::conforms`] where there is a text; required otherwise.
    pub(crate) fn required_conforms(&self, e: &mut ErrorList, rule: impl Fn(&str) -> Vec<String>) {
        if self.is_empty() {
            e.push(self.required(""));
        } else {
            self.conforms(e, rule);
        }
    }

    pub(crate) fn optional_conforms(&self, e: &mut ErrorList, rule: impl Fn(&str) -> Vec<String>) {
        if !self.is_empty() {
            self.conforms(e, rule);
        }
    }

    pub(crate) fn non_negative(&self, e: &mut ErrorList) {
        if self.num() < 0 {
            e.push(self.invalid(NON_NEGATIVE));
        }
    }

    pub(crate) fn positive(&self, e: &mut ErrorList) {
        if self.num() <= 0 {
            e.push(FieldError::invalid(
                &self.path,
                self.num(),
                "must be greater than zero",
            ));
        }
    }

    /// A number of a TCP or UDP port.
    pub(crate) fn port(&self, e: &mut ErrorList) {
        if !(1..=65535).contains(&self.num()) {
            e.push(FieldError::invalid(&self.path, self.num(), range(1, 65535)));
        }
    }

    /// A port by number or by name.
    pub(crate) fn port_or_name(&self, e: &mut ErrorList) {
        if self.value.is_string() {
            self.conforms(e, validation::is_valid_port_name);
        } else {
            self.port(e);
        }
    }

    /// Unchanged from `old`.
    pub(crate) fn immutable(&self, e: &mut ErrorList, old: &Value) {
        if !same(self.value, old) {
            e.push(self.invalid(IMMUTABLE));
        }
    }

    /// A name that labels may have.
    pub(crate) fn label_name(&self, e: &mut ErrorList) {
        self.conforms(e, validation::is_qualified_name);
    }

    /// A map of labels.
    pub(crate) fn labels(&self, e: &mut ErrorList) {
        e.extend(validation::validate_labels(self.value, &self.path));
    }

    /// A label selector's own rules.
    pub(crate) fn label_selector(&self, e: &mut ErrorList) {
        e.extend(validation::validate_label_selector(self.value, &self.path));
    }
}

pub(crate) const IMMUTABLE: &str = "field is immutable";
pub(crate) const NON_NEGATIVE: &str = "must be greater than or equal to 0";

pub(crate) fn range(low: i64, high: i64) -> String {
    validation::inclusive_range_error(low, high)
}

/// A quantity from its JSON form, which may be a number.
pub(crate) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(s) => Quantity::parse(s).ok(),
        Value::Number(n) => Quantity::parse(&n.to_string()).ok(),
        _ => None,
    }
}

/// Whether a name given as a prefix would make a valid name.
pub(crate) fn masked(name: &str, prefix: bool) -> &str {
    if prefix {
        name.trim_end_matches('-')
    } else {
        name
    }
}

/// Finalizers without a domain are Kubernetes' own. Custom resources and a few groups take others.
pub(crate) fn finalizers(obj: &Value, e: &mut ErrorList) {
    const STANDARD: &[&str] = &["kubernetes", "orphan", "foregroundDeletion"];
    for at in At::new(obj, "metadata").at("finalizers").each() {
        let name = at.text();
        if !name.contains('/') && !STANDARD.contains(&name) {
            e.push(
                at.invalid("name is neither a standard finalizer name nor is it fully qualified"),
            );
        }
    }
}

/// Equal but for fields whose absence means the same as their emptiness.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter()
                .all(|(k, v)| y.get(k).map_or_else(|| blank(k, v), |w| same(v, w)))
                && y.iter().all(|(k, w)| x.contains_key(k) || blank(k, w))
        }
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(v, w)| same(v, w))
        }
        (Value::Null, other) | (other, Value::Null) => blank("", other),
        _ => a == b,
    }
}

/// Maps that are empty rather than absent; an empty struct may mean something, such as an emptyDir.
const MAPS: &[&str] = &[
    "labels",
    "annotations",
    "matchLabels",
    "nodeSelector",
    "requests",
    "limits",
    "resources",
    "data",
    "binaryData",
];

fn blank(key: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty() && (key.is_empty() || MAPS.contains(&key)),
        _ => false,
    }
}

/// Shorthand for the name rules of kinds that take DNS labels.
pub(crate) fn name_is_dns1123_label(name: &str, prefix: bool) -> Vec<String> {
    validation::is_dns1123_label(masked(name, prefix))
}

/// A name that is one segment of a URL path.
pub(crate) fn name_is_path_segment(name: &str, prefix: bool) -> Vec<String> {
    if prefix {
        validation::is_path_segment_prefix(name)
    } else {
        validation::is_path_segment_name(name)
    }
}

/// A domain, a slash and a path: how controllers are named.
pub(crate) fn domain_prefixed_path(at: &At, e: &mut ErrorList) {
    if at.is_empty() {
        return e.push(at.required(""));
    }
    match at.text().split_once('/') {
        Some((domain, path)) if !domain.is_empty() && !path.is_empty() => {
            e.extend(
                validation::is_dns1123_subdomain(domain)
                    .into_iter()
                    .map(|m| FieldError::invalid(&at.path, domain, m)),
            );
            let fine = |c: char| c.is_ascii_alphanumeric() || "/%-._~!$&'()*+,;=:".contains(c);
            if !path.chars().all(fine) {
                e.push(FieldError::invalid(&at.path, path, "Invalid path"));
            }
        }
        _ => e.push(at.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")")),
    }
}

/// `status.conditions` as every API of today has them.
pub(crate) fn conditions(list: &At, e: &mut ErrorList) {
    let mut seen = std::collections::BTreeSet::new();
    for c in list.each() {
        let kind = c.at("type");
        if !seen.insert(kind.text()) {
            e.push(FieldError::duplicate(&kind.path, kind.text()));
        }
        kind.conforms(e, validation::is_qualified_name);
        c.at("status")
            .strictly_one_of(e, &["False", "True", "Unknown"]);
        let generation = c.at("observedGeneration");
        if generation.num() < 0 {
            e.push(generation.invalid("must be greater than or equal to zero"));
        }
        c.at("lastTransitionTime").require(e);
        let reason = c.at("reason");
        reason.required_conforms(e, condition_reason);
        if reason.len() > 1024 {
            e.push(FieldError::too_long(&reason.path, 1024));
        }
        if c.at("message").len() > 32768 {
            e.push(FieldError::too_long(&c.at("message").path, 32768));
        }
    }
}

/// A letter first, then letters, digits, `_`, `,` and `:`, the last one of the first three.
fn condition_reason(reason: &str) -> Vec<String> {
    let bytes = reason.as_bytes();
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    let sound = bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.last().is_some_and(word)
        && bytes.iter().all(|b| word(b) || matches!(b, b',' | b':'));
    if sound {
        return Vec::new();
    }
    vec![validation::regex_error(
        "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'",
        "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
        &[
            "my_name",
            "MY_NAME",
            "MyName",
            "ReasonA,ReasonB",
            "ReasonA:ReasonB",
        ],
    )]
}
