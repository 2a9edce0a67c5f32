//! Protobuf messages of the built-in types.

use std::collections::HashMap;
use std::sync::{LazyLock, OnceLock};

static TEXT: &str = include_str!("generated/protobuf.txt");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireType {
    String,
    Bytes,
    Bool,
    Int32,
    Int64,
    Double,
    /// A message, by the full name of its type.
    Message(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageField {
    pub number: u32,
    /// Name in JSON; of an embedded struct, its name in the message.
    pub json: &'static str,
    pub ty: WireType,
    pub repeated: bool,
    /// A map from strings.
    pub map: bool,
    /// An embedded struct: its fields stand in the JSON object itself.
    pub embedded: bool,
}

/// Fields in the order upstream writes them: by number.
#[derive(Debug, Clone, Default)]
pub struct Message {
    pub fields: Vec<MessageField>,
}

impl Message {
    pub fn field(&self, number: u32) -> Option<&MessageField> {
        self.fields.iter().find(|f| f.number == number)
    }
}

static INDEX: LazyLock<HashMap<&'static str, (&'static str, OnceLock<Message>)>> =
    LazyLock::new(|| {
        TEXT.lines()
            .map(|l| {
                let (name, rest) = l.split_once(' ').unwrap_or((l, ""));
                (name, (rest, OnceLock::new()))
            })
            .collect()
    });

/// The message of a type; `None` for types that have none.
pub fn message(type_name: &str) -> Option<&'static Message> {
    let (text, cell) = INDEX.get(type_name)?;
    Some(cell.get_or_init(|| parse(text)))
}

fn parse(text: &'static str) -> Message {
    let mut fields: Vec<MessageField> = text
        .split(' ')
        .filter_map(|w| {
            let mut parts = w.splitn(3, ':');
            let number = parts.next()?.parse().ok()?;
            let name = parts.next()?;
            let kind = parts.next()?;
            let repeated = kind.starts_with("[]");
            let map = kind.starts_with("{}");
            let ty = match kind.trim_start_matches("[]").trim_start_matches("{}") {
                "string" => WireType::String,
                "bytes" => WireType::Bytes,
                "bool" => WireType::Bool,
                "int32" => WireType::Int32,
                "int64" => WireType::Int64,
                "double" => WireType::Double,
                message => WireType::Message(message),
            };
            Some(MessageField {
                number,
                json: name.trim_start_matches('*'),
                ty,
                repeated,
                map,
                embedded: name.starts_with('*'),
            })
        })
        .collect();
    fields.sort_by_key(|f| f.number);
    Message { fields }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_resolve() {
        for (name, _) in INDEX.iter() {
            for f in &message(name).unwrap().fields {
                if let WireType::Message(m) = f.ty {
                    assert!(message(m).is_some(), "{name}.{} is a {m}", f.json);
                }
            }
        }
        let probe = message("io.k8s.api.core.v1.Probe").unwrap();
        assert!(probe.field(1).unwrap().embedded);
        assert_eq!(probe.field(2).unwrap().ty, WireType::Int32);
        let meta = message("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap();
        assert!(meta.field(11).unwrap().map);
    }
}
