//! Paths into an object and the errors found there, worded as upstream words them.

use crate::go;
use serde_json::Value;
use std::fmt;

/// A path from the root of an object to one field: `spec.containers[0].env[KEY]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path(String);

impl Path {
    /// The path above every field; its children have no leading dot.
    pub fn root() -> Path {
        Path::default()
    }

    pub fn new(name: &str) -> Path {
        Path(name.to_owned())
    }

    /// A field below this one. `name` may hold several steps separated by dots.
    pub fn child(&self, name: &str) -> Path {
        if self.0.is_empty() {
            return Path(name.to_owned());
        }
        let mut s = String::with_capacity(self.0.len() + name.len() + 1);
        s.push_str(&self.0);
        s.push('.');
        s.push_str(name);
        Path(s)
    }

    pub fn index(&self, i: usize) -> Path {
        let mut s = String::with_capacity(self.0.len() + 6);
        s.push_str(&self.0);
        s.push('[');
        match u8::try_from(i) {
            // Nearly every index, without the machinery of formatting.
            Ok(digit @ 0..10) => s.push(char::from(b'0' + digit)),
            _ => s.push_str(&i.to_string()),
        }
        s.push(']');
        Path(s)
    }

    pub fn key(&self, k: &str) -> Path {
        let mut s = String::with_capacity(self.0.len() + k.len() + 2);
        s.extend([self.0.as_str(), "[", k, "]"]);
        Path(s)
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// What is wrong with a field; the cause type of a `Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorType {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooShort,
    TooMany,
    TooFew,
    Internal,
    TypeInvalid,
}

impl ErrorType {
    /// The machine-readable cause, `reason` of a `StatusCause`.
    pub fn cause(self) -> &'static str {
        match self {
            ErrorType::NotFound => "FieldValueNotFound",
            ErrorType::Required => "FieldValueRequired",
            ErrorType::Duplicate => "FieldValueDuplicate",
            ErrorType::Invalid => "FieldValueInvalid",
            ErrorType::NotSupported => "FieldValueNotSupported",
            ErrorType::Forbidden => "FieldValueForbidden",
            ErrorType::TooLong => "FieldValueTooLong",
            ErrorType::TooShort => "FieldValueTooShort",
            ErrorType::TooMany => "FieldValueTooMany",
            ErrorType::TooFew => "FieldValueTooFew",
            ErrorType::Internal => "InternalError",
            ErrorType::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(
            self,
            ErrorType::Required
                | ErrorType::Forbidden
                | ErrorType::TooLong
                | ErrorType::TooShort
                | ErrorType::Internal
        )
    }
}

impl fmt::Display for ErrorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorType::NotFound => "Not found",
            ErrorType::Required => "Required value",
            ErrorType::Duplicate => "Duplicate value",
            ErrorType::Invalid | ErrorType::TypeInvalid => "Invalid value",
            ErrorType::NotSupported => "Unsupported value",
            ErrorType::Forbidden => "Forbidden",
            ErrorType::TooLong => "Too long",
            ErrorType::TooShort => "Too short",
            ErrorType::TooMany => "Too many",
            ErrorType::TooFew => "Too few",
            ErrorType::Internal => "Internal error",
        })
    }
}

/// One error of one field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    pub kind: ErrorType,
    pub field: String,
    pub bad_value: Value,
    pub detail: String,
    /// What stands in the message in place of the value's JSON; empty for nothing at all.
    pub shown: Option<String>,
}

pub type ErrorList = Vec<FieldError>;

impl FieldError {
    fn make(kind: ErrorType, path: &Path, bad_value: Value, detail: String) -> FieldError {
        FieldError {
            kind,
            field: path.to_string(),
            bad_value,
            detail,
            shown: None,
        }
    }

    pub fn required(path: &Path, detail: impl fmt::Display) -> FieldError {
        Self::make(
            ErrorType::Required,
            path,
            Value::String(String::new()),
            detail.to_string(),
        )
    }

    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl fmt::Display) -> FieldError {
        Self::make(ErrorType::Invalid, path, value.into(), detail.to_string())
    }

    /// An invalid value that the message does not repeat.
    pub fn invalid_unshown(path: &Path, detail: impl fmt::Display) -> FieldError {
        Self::invalid(path, Value::Null, detail).shown_as(String::new())
    }

    /// The same error with this text in place of the value's JSON.
    pub fn shown_as(mut self, text: String) -> FieldError {
        self.shown = Some(text);
        self
    }

    /// The valid values are listed in the order given.
    pub fn not_supported(path: &Path, value: impl Into<Value>, valid: &[&str]) -> FieldError {
        let detail = if valid.is_empty() {
            String::new()
        } else {
            let quoted: Vec<String> = valid.iter().map(|v| go::quote(v)).collect();
            format!("supported values: {}", quoted.join(", "))
        };
        Self::make(ErrorType::NotSupported, path, value.into(), detail)
    }

    pub fn duplicate(path: &Path, value: impl Into<Value>) -> FieldError {
        Self::make(ErrorType::Duplicate, path, value.into(), String::new())
    }

    pub fn forbidden(path: &Path, detail: impl fmt::Display) -> FieldError {
        Self::make(
            ErrorType::Forbidden,
            path,
            Value::String(String::new()),
            detail.to_string(),
        )
    }

    /// `max` is in bytes.
    pub fn too_long(path: &Path, max: usize) -> FieldError {
        let unit = if max == 1 { "byte" } else { "bytes" };
        let detail = format!("may not be more than {max} {unit}");
        Self::make(
            ErrorType::TooLong,
            path,
            Value::String("<value omitted>".into()),
            detail,
        )
    }

    /// `max` is in characters.
    pub fn too_long_characters(path: &Path, max: usize) -> FieldError {
        let unit = if max == 1 { "character" } else { "characters" };
        let detail = format!("may not be more than {max} {unit}");
        Self::make(
            ErrorType::TooLong,
            path,
            Value::String("<value omitted>".into()),
            detail,
        )
    }

    pub fn too_many(path: &Path, actual: usize, max: usize) -> FieldError {
        let unit = if max == 1 { "item" } else { "items" };
        let detail = format!("must have at most {max} {unit}");
        Self::make(ErrorType::TooMany, path, actual.into(), detail)
    }

    pub fn too_few(path: &Path, actual: usize, min: usize) -> FieldError {
        let unit = if min == 1 { "item" } else { "items" };
        let detail = format!("must have at least {min} {unit}");
        Self::make(ErrorType::TooFew, path, actual.into(), detail)
    }

    pub fn not_found(path: &Path, value: impl Into<Value>) -> FieldError {
        Self::make(ErrorType::NotFound, path, value.into(), String::new())
    }

    pub fn type_invalid(
        path: &Path,
        value: impl Into<Value>,
        detail: impl fmt::Display,
    ) -> FieldError {
        Self::make(
            ErrorType::TypeInvalid,
            path,
            value.into(),
            detail.to_string(),
        )
    }

    pub fn internal(path: &Path, detail: impl fmt::Display) -> FieldError {
        Self::make(ErrorType::Internal, path, Value::Null, detail.to_string())
    }

    /// The message without the field's name, as it stands in a `StatusCause`.
    pub fn body(&self) -> String {
        let mut s = self.kind.to_string();
        if self.kind.shows_value() {
            match (&self.shown, &self.bad_value) {
                (Some(text), _) if text.is_empty() => {}
                (Some(text), _) => s.extend([": ", text]),
                (None, Value::String(v)) => s.extend([": ", &go::quote(v)]),
                (None, v) => s.extend([": ", &go::json(v)]),
            }
        }
        if !self.detail.is_empty() {
            s.push_str(": ");
            s.push_str(&self.detail);
        }
        s
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

impl std::error::Error for FieldError {}

/// Several errors as one line: the error itself, or `[first, second]` without repetitions.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut seen: Vec<String> = Vec::with_capacity(errors.len());
    for e in errors {
        let text = e.to_string();
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    match seen.len() {
        0 => String::new(),
        1 => seen.remove(0),
        _ => format!("[{}]", seen.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_and_messages() {
        let p = Path::new("spec").child("a").index(3).key("k");
        assert_eq!(p.to_string(), "spec.a[3][k]");
        assert_eq!(Path::root().child("x").to_string(), "x");
        assert_eq!(
            FieldError::required(&p, "").to_string(),
            "spec.a[3][k]: Required value"
        );
        assert_eq!(
            FieldError::invalid(&p, "a\"b", "no").to_string(),
            "spec.a[3][k]: Invalid value: \"a\\\"b\": no"
        );
        assert_eq!(
            FieldError::not_supported(&Path::new("t"), "X", &["A", "B"]).to_string(),
            "t: Unsupported value: \"X\": supported values: \"A\", \"B\""
        );
        assert_eq!(
            FieldError::invalid(&p, json!({"a": "<"}), "no").body(),
            "Invalid value: {\"a\":\"\\u003c\"}: no"
        );
        assert_eq!(
            FieldError::too_long(&p, 63).body(),
            "Too long: may not be more than 63 bytes"
        );
        assert_eq!(
            FieldError::too_many(&p, 9, 1).body(),
            "Too many: 9: must have at most 1 item"
        );
    }

    #[test]
    fn aggregates_drop_repetitions() {
        let e = FieldError::required(&Path::new("a"), "");
        assert_eq!(aggregate(&[e.clone(), e.clone()]), "a: Required value");
        let f = FieldError::forbidden(&Path::new("b"), "x");
        assert_eq!(aggregate(&[e, f]), "[a: Required value, b: Forbidden: x]");
    }
}
