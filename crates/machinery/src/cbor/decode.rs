//! From CBOR to a tree.

use std::fmt::Display;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use keelson_api::{Additional, Schema, Type};
use serde_json::{Map, Value};

use super::encode::member;
use super::{CborError, Head, float, head, wellformed};
use crate::decode::{Decoded, go_type};
use crate::go::check_base64;
use crate::time;

/// Decodes one item. With the schema of a built-in type its structs know their fields, and the
/// first unknown one is a problem; the tree is still to be normalized.
pub fn decode(bytes: &[u8], schema: Option<&Schema>) -> Result<Decoded, CborError> {
    wellformed::check(bytes)?;
    let mut reader = Reader::new(bytes);
    reader.check_type_meta()?;
    let object = reader.value(schema)?;
    Ok(Decoded {
        object,
        problems: reader.problem.into_iter().collect(),
    })
}

/// Decodes a map of anything, an applied configuration; null is an empty one.
pub fn decode_map(bytes: &[u8]) -> Result<Map<String, Value>, CborError> {
    wellformed::check(bytes)?;
    let mut reader = Reader::new(bytes);
    let mut at = 0;
    let h = loop {
        let h = head(bytes, at).ok_or_else(truncated)?;
        if h.major != 6 {
            break h;
        }
        at = h.next;
    };
    match (h.major, reader.value(None)?) {
        (5, Value::Object(fields)) => Ok(fields),
        (7, Value::Null) => Ok(Map::new()),
        _ => reader.mismatch(h, "map[string]interface {}", None),
    }
}

/// What a byte string in a tag stands for in JSON.
#[derive(Clone, Copy)]
enum Later {
    Base64Url,
    Base64,
    Hex,
}

impl Later {
    fn of(tag: u64) -> Option<Self> {
        match tag {
            21 => Some(Self::Base64Url),
            22 => Some(Self::Base64),
            23 => Some(Self::Hex),
            _ => None,
        }
    }

    fn text(self, bytes: &[u8]) -> String {
        match self {
            Self::Base64Url => URL_SAFE_NO_PAD.encode(bytes),
            Self::Base64 => STANDARD.encode(bytes),
            Self::Hex => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

/// Reads what is known to be well-formed, which bounds its depth too.
struct Reader<'b, 's> {
    bytes: &'b [u8],
    at: usize,
    later: Option<Later>,
    /// The struct and the field whose value is being read.
    place: Option<(&'s str, &'s str)>,
    problem: Option<String>,
}

fn refuse<T>(problem: impl Display) -> Result<T, CborError> {
    Err(CborError::Value(format!("cbor: {problem}")))
}

/// A body that ends although it was whole a moment ago.
fn truncated() -> CborError {
    CborError::Malformed("unexpected EOF".to_owned())
}

impl<'b, 's> Reader<'b, 's> {
    fn new(bytes: &'b [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            later: None,
            place: None,
            problem: None,
        }
    }

    fn head(&mut self) -> Result<Head, CborError> {
        let h = head(self.bytes, self.at).ok_or_else(truncated)?;
        self.at = h.next;
        Ok(h)
    }

    /// Upstream looks for version and kind before it knows what else there is.
    fn check_type_meta(&mut self) -> Result<(), CborError> {
        const TYPE: &str = "v1.TypeMeta";
        let begin = self.at;
        let malformed = |problem: String| Err(CborError::Malformed(format!("cbor: {problem}")));
        let mut h = self.head()?;
        while h.major == 6 {
            h = self.head()?;
        }
        match h.major {
            5 => {}
            7 if matches!(h.argument, 22 | 23) && h.info < 24 => {
                self.at = begin;
                return Ok(());
            }
            4 => {
                return malformed(format!(
                    "cannot unmarshal array into Go value of type {TYPE} (cannot decode CBOR array to struct without toarray option)"
                ));
            }
            _ => {
                return malformed(format!(
                    "cannot unmarshal {} into Go value of type {TYPE}",
                    h.type_name()
                ));
            }
        }
        let mut seen = std::collections::HashSet::new();
        let mut index = 0;
        while self.more(h, index) {
            let key = self.key(false)?;
            if let Some(key) = &key
                && !seen.insert(key.clone())
            {
                return malformed(duplicate(key, index));
            }
            let given = head(self.bytes, self.at).ok_or_else(truncated)?;
            let known = matches!(key.as_deref(), Some("kind" | "apiVersion"));
            let null = given.major == 7 && given.info == 22;
            if known && !null && !matches!(given.major, 2 | 3 | 6) {
                return malformed(format!(
                    "cannot unmarshal {} into Go struct field {TYPE}.{} of type string",
                    given.type_name(),
                    key.unwrap_or_default()
                ));
            }
            self.skip()?;
            index += 1;
        }
        self.at = begin;
        Ok(())
    }

    /// Whether a container has another item; the break is taken.
    fn more(&mut self, h: Head, taken: u64) -> bool {
        if !h.is_indefinite() {
            return taken < h.argument;
        }
        let ends = head(self.bytes, self.at).is_some_and(Head::is_break);
        self.at += usize::from(ends);
        !ends
    }

    fn skip(&mut self) -> Result<(), CborError> {
        let mut h = self.head()?;
        while h.major == 6 {
            h = self.head()?;
        }
        match h.major {
            2 | 3 => drop(self.string(h)?),
            4 | 5 => {
                let mut index = 0;
                while self.more(h, index) {
                    for _ in 4..=h.major {
                        self.skip()?;
                    }
                    index += 1;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn string(&mut self, h: Head) -> Result<Vec<u8>, CborError> {
        let mut out = Vec::new();
        let mut piece = h;
        loop {
            if h.is_indefinite() {
                piece = self.head()?;
                if piece.is_break() {
                    return Ok(out);
                }
            }
            let length = usize::try_from(piece.argument).unwrap_or(usize::MAX);
            let end = self.at.checked_add(length).ok_or_else(truncated)?;
            out.extend_from_slice(self.bytes.get(self.at..end).ok_or_else(truncated)?);
            self.at = end;
            if !h.is_indefinite() {
                return Ok(out);
            }
        }
    }

    fn text(&mut self, h: Head) -> Result<String, CborError> {
        let bytes = self.string(h)?;
        match (h.major, self.later) {
            (3, _) => String::from_utf8(bytes).or_else(|_| refuse("invalid UTF-8 string")),
            (_, Some(later)) => Ok(later.text(&bytes)),
            // Go's strings are bytes, and become text when JSON is made of them.
            _ => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    /// A key; nothing for one that is no text. `strict` refuses those.
    fn key(&mut self, strict: bool) -> Result<Option<String>, CborError> {
        let begin = self.at;
        let outer = self.later;
        let mut h = self.head()?;
        while h.major == 6 {
            self.later = Later::of(h.argument).or(self.later);
            h = self.head()?;
        }
        let key = match h.major {
            2 | 3 => Some(self.text(h)?),
            7 if h.info == 22 => Some(String::new()),
            _ if strict => return self.mismatch(h, "string", None),
            _ => {
                self.at = begin;
                self.skip()?;
                None
            }
        };
        self.later = outer;
        Ok(key)
    }

    fn value(&mut self, schema: Option<&'s Schema>) -> Result<Value, CborError> {
        let outer = self.later;
        let mut h = self.head()?;
        // A loop, because nothing bounds how many tags there are around an item.
        while h.major == 6 {
            if h.argument < 2 {
                self.later = outer;
                return self.time(h.argument);
            }
            self.later = Later::of(h.argument).or(self.later);
            h = self.head()?;
        }
        let value = self.untagged(h, schema);
        self.later = outer;
        value
    }

    fn untagged(&mut self, h: Head, schema: Option<&'s Schema>) -> Result<Value, CborError> {
        if let Some(schema) = schema {
            self.check_type(h, schema)?;
        }
        match h.major {
            0 => self.integer(h, i64::try_from(h.argument).ok(), schema),
            1 => {
                let number = i64::try_from(h.argument).ok().map(|number| !number);
                self.integer(h, number, schema)
            }
            2 if is_bytes(schema) => self.bytes_of(h),
            2 | 3 => self.text(h).map(Value::String),
            4 => self.array(h, schema),
            5 => self.map(h, schema),
            _ => match h.info {
                25..=27 => Ok(Value::from(float(h))),
                20 | 21 => Ok(Value::Bool(h.info == 21)),
                22 => Ok(Value::Null),
                _ => refuse(format!(
                    "data item of cbor type primitives is not accepted by protocol: simple value {} is not recognized",
                    h.argument
                )),
            },
        }
    }

    fn integer(
        &self,
        h: Head,
        number: Option<i64>,
        schema: Option<&Schema>,
    ) -> Result<Value, CborError> {
        if let Some(number) = number {
            let short = schema.is_some_and(|schema| {
                schema.kind() == Type::Integer && schema.shape().format == "int32"
            });
            if short && i32::try_from(number).is_err() {
                let detail = format!("{number} overflows Go's int32");
                return self.mismatch(h, "int32", Some(&detail));
            }
            return Ok(Value::from(number));
        }
        let given = match h.major {
            0 => i128::from(h.argument),
            _ => -1 - i128::from(h.argument),
        };
        self.mismatch(h, "int64", Some(&format!("{given} overflows Go's int64")))
    }

    /// What tag 0 or 1 encloses.
    fn time(&mut self, tag: u64) -> Result<Value, CborError> {
        let content = head(self.bytes, self.at).ok_or_else(truncated)?;
        if tag == 1 {
            return self.epoch(content);
        }
        if !matches!(content.major, 2 | 3) {
            return refuse(format!(
                "tag number 0 must be followed by text string, got {}",
                content.type_name()
            ));
        }
        let h = self.head()?;
        let text = self.text(h)?;
        if time::parse(&text).is_some() {
            return Ok(Value::String(text));
        }
        let shown = crate::go::quote(&text);
        refuse(format!(
            "cannot set {text} for time.Time: parsing time {shown} as \"2006-01-02T15:04:05Z07:00\": cannot parse {shown} as \"2006\""
        ))
    }

    /// Seconds since 1970, as the text of that time.
    fn epoch(&mut self, content: Head) -> Result<Value, CborError> {
        let number = content.major < 2 || content.major == 7 && matches!(content.info, 25..=27);
        if !number {
            return refuse(format!(
                "tag number 1 must be followed by integer or floating-point number, got {}",
                content.type_name()
            ));
        }
        let seconds = self.value(None)?;
        let time = match seconds.as_i64() {
            Some(seconds) => Timestamp::from_second(seconds),
            None => {
                let seconds = seconds.as_f64().unwrap_or_default();
                let nanos = ((seconds - seconds.floor()) * 1e9) as i32;
                Timestamp::new(seconds.floor() as i64, nanos)
            }
        };
        match time {
            Ok(time) => Ok(Value::String(time.to_string())),
            Err(_) => refuse("cannot set a time that is out of range for time.Time"),
        }
    }

    /// Bytes without a tag are their text in base64; with one of those tags they are themselves,
    /// whatever text they were to become.
    fn bytes_of(&mut self, h: Head) -> Result<Value, CborError> {
        let bytes = self.string(h)?;
        if self.later.is_some() {
            return Ok(Value::String(STANDARD.encode(bytes)));
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match check_base64(&text) {
            None => Ok(Value::String(text)),
            Some(at) => refuse(format!(
                "failed to decode base64 from byte string: illegal base64 data at input byte {at}"
            )),
        }
    }

    fn array(&mut self, h: Head, schema: Option<&'s Schema>) -> Result<Value, CborError> {
        let schema = schema.and_then(Schema::items);
        let mut items = Vec::new();
        while self.more(h, items.len() as u64) {
            items.push(self.value(schema)?);
        }
        Ok(Value::Array(items))
    }

    fn map(&mut self, h: Head, schema: Option<&'s Schema>) -> Result<Value, CborError> {
        let shape = schema.map(Schema::shape).filter(|shape| is_struct(shape));
        let outer = self.place;
        let mut fields = Map::new();
        let mut index = 0;
        while self.more(h, index) {
            let key = self.key(shape.is_none())?;
            let field = key
                .as_deref()
                .and_then(|key| shape.and_then(|shape| shape.field(key)));
            if shape.is_some() && field.is_none() {
                // Later ones are not told of: upstream's decoder stops at the first.
                self.problem.get_or_insert_with(|| {
                    format!("cbor: found unknown field at map element index {index}")
                });
                self.skip()?;
                index += 1;
                continue;
            }
            let key = key.unwrap_or_default();
            if fields.contains_key(&key) {
                return refuse(duplicate(&key, index));
            }
            let inner = match (shape, field) {
                (Some(shape), Some(field)) => {
                    self.place = Some((&shape.name, &field.name));
                    Some(&field.schema)
                }
                _ => schema.and_then(|schema| member(schema, &key)),
            };
            let value = self.value(inner)?;
            self.place = outer;
            fields.insert(key, value);
            index += 1;
        }
        Ok(Value::Object(fields))
    }

    /// What Go's types say of an item before it is read. Types that read themselves take anything.
    fn check_type(&self, h: Head, schema: &Schema) -> Result<(), CborError> {
        if h.major == 7 && h.info == 22 {
            return Ok(());
        }
        let float = h.major == 7 && matches!(h.info, 25..=27);
        let fits = match schema.kind() {
            Type::String => matches!(h.major, 2 | 3),
            Type::Bytes => h.major == 2,
            Type::Integer => h.major < 2,
            Type::Number => h.major < 2 || float,
            Type::Boolean => h.major == 7 && matches!(h.info, 20 | 21),
            Type::Array => h.major == 4,
            Type::Object => h.major == 5,
            _ => true,
        };
        if fits || h.major == 7 && !float && !matches!(h.info, 20 | 21) {
            return Ok(());
        }
        self.mismatch(h, &go_type(schema), None)
    }

    fn mismatch<T>(&self, h: Head, wanted: &str, detail: Option<&str>) -> Result<T, CborError> {
        let given = h.type_name();
        let detail = detail.map_or(String::new(), |detail| format!(" ({detail})"));
        refuse(match self.place {
            None => format!("cannot unmarshal {given} into Go value of type {wanted}{detail}"),
            Some((owner, field)) => {
                let mut names = owner.rsplit('.');
                let (name, package) = (
                    names.next().unwrap_or_default(),
                    names.next().unwrap_or_default(),
                );
                format!(
                    "cannot unmarshal {given} into Go struct field {package}.{name}.{field} of type {wanted}{detail}"
                )
            }
        })
    }
}

fn duplicate(key: &str, index: u64) -> String {
    format!(
        "found duplicate map key {} at map element index {index}",
        crate::go::quote(key)
    )
}

fn is_bytes(schema: Option<&Schema>) -> bool {
    schema.is_some_and(|schema| schema.kind() == Type::Bytes)
}

/// Whether the fields of a shape are all there are.
fn is_struct(shape: &Schema) -> bool {
    shape.kind() == Type::Object
        && !shape.name.is_empty()
        && matches!(shape.additional(), Additional::Closed)
}
