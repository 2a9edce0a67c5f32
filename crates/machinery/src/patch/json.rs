//! JSON patch, RFC 6902, with the liberties that upstream's library takes: `replace` and `copy`
//! make what is missing, an absent value is a null, negative indices count from the end.

use super::PatchError;
use crate::go;
use serde_json::{Map, Value};

/// More operations are refused before the first is tried.
pub const MAX_OPERATIONS: usize = 10_000;
/// What all `copy` operations of a patch may add, in bytes of JSON.
const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;

/// Unknown members of operations, for who decodes strictly: `json patch unknown field "[0].x"`.
pub fn problems(patch: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for (at, op) in patch.as_array().into_iter().flatten().enumerate() {
        for name in op.as_object().into_iter().flat_map(Map::keys) {
            if !matches!(name.as_str(), "op" | "path" | "from" | "value") && out.len() < 100 {
                let path = go::quote(&format!("[{at}].{name}"));
                out.push(format!("json patch unknown field {path}"));
            }
        }
    }
    out
}

/// Applies all operations in order, or none.
pub fn apply(object: Value, patch: &Value) -> Result<Value, PatchError> {
    let operations = operations(patch)?;
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooManyOperations {
            max: MAX_OPERATIONS,
            got: operations.len(),
        });
    }
    let mut doc = object;
    let mut copied = 0;
    let empty = Map::new();
    for op in operations {
        operate(&mut doc, op.as_object().unwrap_or(&empty), &mut copied)?;
    }
    Ok(doc)
}

/// The list of operations, each an object whose members have the right types (or null).
fn operations(patch: &Value) -> Result<&Vec<Value>, PatchError> {
    let mismatch = |value: &Value, place: &str| {
        PatchError::Malformed(format!(
            "error decoding patch: json: cannot unmarshal {} into Go {place}",
            go::json_kind(value)
        ))
    };
    let Value::Array(operations) = patch else {
        return Err(mismatch(patch, "value of type []handlers.jsonPatchOp"));
    };
    for op in operations {
        match op {
            Value::Null => {}
            Value::Object(members) => {
                for name in ["op", "path", "from"] {
                    match members.get(name) {
                        None | Some(Value::Null | Value::String(_)) => {}
                        Some(value) => {
                            let place = format!("struct field jsonPatchOp.{name} of type string");
                            return Err(mismatch(value, &place));
                        }
                    }
                }
            }
            _ => return Err(mismatch(op, "value of type handlers.jsonPatchOp")),
        }
    }
    Ok(operations)
}

fn operate(doc: &mut Value, op: &Map<String, Value>, copied: &mut usize) -> Result<(), PatchError> {
    let text = |name: &str| op.get(name).and_then(Value::as_str);
    let kind = text("op").unwrap_or_default();
    let path = text("path").ok_or_else(|| fail(format!("{kind} operation without a path")));
    let from = text("from").ok_or_else(|| fail(format!("{kind} operation without from")));
    let value = || op.get("value").cloned().unwrap_or_default();
    match kind {
        "add" => add(doc, path?, value()),
        "remove" => remove(doc, path?).map(|_| ()),
        "replace" => replace(doc, path?, value()),
        "test" => test(doc, path?, &value()),
        "move" => {
            let moved = remove(doc, from?)?;
            add(doc, path?, moved)
        }
        "copy" => {
            let from = from?;
            if from.is_empty() {
                return Err(fail("copy operation without a place to copy from".into()));
            }
            let taken = get(doc, from)
                .map_err(|found| {
                    found.told("copy", "missing from path", "error in copy for from", from)
                })?
                .cloned()
                .unwrap_or_default();
            *copied += taken.to_string().len();
            if *copied > MAX_COPIED_BYTES {
                return Err(fail("copy operations grow the object too much".into()));
            }
            add(doc, path?, taken)
        }
        other => Err(fail(format!("Unexpected kind: {other}"))),
    }
}

fn fail(message: String) -> PatchError {
    PatchError::DoesNotApply(message)
}

fn test(doc: &mut Value, path: &str, wanted: &Value) -> Result<(), PatchError> {
    let found = get(doc, path).map_err(|found| match found {
        Wrong::NoContainer => fail(format!(
            "test operation does not apply: is missing path: {path}: missing value"
        )),
        Wrong::There(why) => fail(format!("error in test for path: '{path}': {why}")),
    })?;
    let same = match found {
        Some(have) => equal(have, wanted),
        None => wanted.is_null(),
    };
    if same {
        return Ok(());
    }
    Err(PatchError::TestFailed(format!(
        "testing value {path} failed: test failed"
    )))
}

/// Why there is nothing at a path.
enum Wrong {
    /// What should hold it is not there.
    NoContainer,
    There(String),
}

impl Wrong {
    fn told(self, verb: &str, missing: &str, otherwise: &str, path: &str) -> PatchError {
        fail(match self {
            Self::NoContainer => {
                format!("{verb} operation does not apply: doc is {missing}: {path}: missing value")
            }
            Self::There(why) => format!("{otherwise}: '{path}': {why}"),
        })
    }
}

/// Numbers are equal by value: 1 and 1.0 are the same.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(a, b)| equal(a, b))
        }
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(k, a)| y.get(k).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

/// The way to the container and the last token. The whole document is no member of anything.
fn split(path: &str) -> Result<(Vec<String>, String), Wrong> {
    let mut tokens: Vec<String> = path
        .split('/')
        .skip(1)
        .map(|token| token.replace("~1", "/").replace("~0", "~"))
        .collect();
    let last = tokens.pop().ok_or(Wrong::NoContainer)?;
    Ok((tokens, last))
}

/// An index of an existing item, or of the place behind the last where `len` counts it.
fn index(token: &str, len: usize) -> Result<usize, String> {
    let number = token.parse::<i64>().map_err(|_| {
        format!("value was not a proper array index: '{token}': strconv.Atoi: parsing {token:?}: invalid syntax")
    })?;
    let invalid = || format!("Unable to access invalid index: {number}: invalid index referenced");
    let len = i64::try_from(len).map_err(|_| invalid())?;
    let at = if number < 0 { number + len } else { number };
    usize::try_from(at)
        .ok()
        .filter(|_| at < len)
        .ok_or_else(invalid)
}

/// The object or list that the tokens lead to.
fn container<'v>(doc: &'v mut Value, tokens: &[String]) -> Result<&'v mut Value, Wrong> {
    let mut at = doc;
    for token in tokens {
        at = match at {
            Value::Object(map) => map.get_mut(token).ok_or(Wrong::NoContainer)?,
            Value::Array(items) => {
                let index = index(token, items.len()).map_err(|_| Wrong::NoContainer)?;
                &mut items[index]
            }
            _ => return Err(Wrong::NoContainer),
        };
    }
    match at {
        Value::Object(_) | Value::Array(_) => Ok(at),
        _ => Err(Wrong::NoContainer),
    }
}

/// A null counts as missing; a missing key of an object that is there is no error.
fn get<'v>(doc: &'v mut Value, path: &str) -> Result<Option<&'v Value>, Wrong> {
    if path.is_empty() {
        return Ok(Some(doc));
    }
    let (parents, last) = split(path)?;
    Ok(match container(doc, &parents)? {
        Value::Array(items) => {
            let index = index(&last, items.len()).map_err(Wrong::There)?;
            items.get(index)
        }
        other => other.get(&last),
    })
}

fn add(doc: &mut Value, path: &str, value: Value) -> Result<(), PatchError> {
    let quoted = || {
        fail(format!(
            "add operation does not apply: doc is missing path: \"{path}\": missing value"
        ))
    };
    let (parents, last) = split(path).map_err(|_| quoted())?;
    match container(doc, &parents).map_err(|_| quoted())? {
        Value::Array(items) => {
            let at = match last.as_str() {
                "-" => items.len(),
                token => index(token, items.len() + 1)
                    .map_err(|why| fail(format!("error in add for path: '{path}': {why}")))?,
            };
            items.insert(at, value);
        }
        other => other[last] = value,
    }
    Ok(())
}

fn replace(doc: &mut Value, path: &str, value: Value) -> Result<(), PatchError> {
    if path.is_empty() {
        if !value.is_object() && !value.is_array() {
            return Err(fail(
                "replace operation value must be object or array".into(),
            ));
        }
        *doc = value;
        return Ok(());
    }
    let missing = |what: &str| {
        fail(format!(
            "replace operation does not apply: doc is missing {what}: {path}: missing value"
        ))
    };
    let (parents, last) = split(path).map_err(|_| missing("path"))?;
    match container(doc, &parents).map_err(|_| missing("path"))? {
        Value::Array(items) => {
            let index = index(&last, items.len()).map_err(|_| missing("key"))?;
            items[index] = value;
        }
        other => other[last] = value,
    }
    Ok(())
}

fn remove(doc: &mut Value, path: &str) -> Result<Value, PatchError> {
    let quoted = || {
        fail(format!(
            "remove operation does not apply: doc is missing path: \"{path}\": missing value"
        ))
    };
    let there = |why: String| fail(format!("error in remove for path: '{path}': {why}"));
    let (parents, last) = split(path).map_err(|_| quoted())?;
    match container(doc, &parents).map_err(|_| quoted())? {
        Value::Array(items) => {
            let index = index(&last, items.len()).map_err(there)?;
            Ok(items.remove(index))
        }
        other => other
            .as_object_mut()
            .and_then(|map| map.remove(&last))
            .ok_or_else(|| {
                there(format!(
                    "Unable to remove nonexistent key: {last}: missing value"
                ))
            }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operations() {
        for (doc, patch, want) in [
            (
                json!({"a": 1}),
                json!([{"op": "add", "path": "/b", "value": 2}]),
                json!({"a": 1, "b": 2}),
            ),
            (
                json!({"a": [1, 3]}),
                json!([{"op": "add", "path": "/a/1", "value": 2}]),
                json!({"a": [1, 2, 3]}),
            ),
            (
                json!({"a": [1]}),
                json!([{"op": "add", "path": "/a/-", "value": 2}]),
                json!({"a": [1, 2]}),
            ),
            (
                json!({"a": [1]}),
                json!([{"op": "add", "path": "/a/1", "value": 2}]),
                json!({"a": [1, 2]}),
            ),
            (
                json!({"a": 1, "b": 2}),
                json!([{"op": "remove", "path": "/a"}]),
                json!({"b": 2}),
            ),
            (
                json!({"a": [1, 2]}),
                json!([{"op": "remove", "path": "/a/0"}]),
                json!({"a": [2]}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "replace", "path": "/a", "value": null}]),
                json!({"a": null}),
            ),
            (
                json!({"a": {"b": 1}}),
                json!([{"op": "move", "from": "/a/b", "path": "/c"}]),
                json!({"a": {}, "c": 1}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "copy", "from": "/a", "path": "/b"}]),
                json!({"a": 1, "b": 1}),
            ),
            (
                json!({"x/y": 1, "a~b": 2}),
                json!([{"op": "remove", "path": "/x~1y"}, {"op": "test", "path": "/a~0b", "value": 2}]),
                json!({"a~b": 2}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "test", "path": "/zz", "value": null}]),
                json!({"a": 1}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "replace", "path": "/x", "value": 1}, {"op": "add", "path": "/y"}]),
                json!({"a": 1, "x": 1, "y": null}),
            ),
            (
                json!({"a": [1, 3]}),
                json!([{"op": "add", "path": "/a/-1", "value": 4}, {"op": "add", "path": "/a/01", "value": 2}]),
                json!({"a": [1, 2, 3, 4]}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "copy", "from": "/x", "path": "/b"}]),
                json!({"a": 1, "b": null}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "replace", "path": "", "value": {}}]),
                json!({}),
            ),
        ] {
            assert_eq!(apply(doc.clone(), &patch), Ok(want), "{doc} {patch}");
        }
    }

    #[test]
    fn refusals() {
        let doc = json!({"a": [1], "b": "s"});
        for patch in [
            json!([{"op": "remove", "path": "/x"}]),
            json!([{"op": "replace", "path": "/x/y", "value": 1}]),
            json!([{"op": "replace", "path": "", "value": 1}]),
            json!([{"op": "remove", "path": ""}]),
            json!([{"op": "add", "path": "", "value": {}}]),
            json!([{"op": "test", "path": "/x/y", "value": null}]),
            json!([{"op": "add", "path": "/x/y", "value": 1}]),
            json!([{"op": "add", "path": "/a/5", "value": 1}]),
            json!([{"op": "add", "path": "/a/-3", "value": 1}]),
            json!([null]),
            json!([{"op": "add", "path": "/b/c", "value": 1}]),
            json!([{"op": "test", "path": "/a/0", "value": 2}]),
            json!([{"op": "nope", "path": "/a"}]),
            json!([{"op": "add", "path": "a", "value": 1}]),
            json!([{"op": "add", "value": 1}]),
            json!([{"op": "move", "from": "/a", "path": "/a/0"}]),
        ] {
            let e = apply(doc.clone(), &patch).unwrap_err();
            assert_eq!(e.status().code, 422, "{patch}");
        }
        for (patch, message) in [
            (
                json!({}),
                "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
            ),
            (
                json!([1]),
                "error decoding patch: json: cannot unmarshal number into Go value of type handlers.jsonPatchOp",
            ),
            (
                json!([{"op": 1}]),
                "error decoding patch: json: cannot unmarshal number into Go struct field jsonPatchOp.op of type string",
            ),
        ] {
            let status = apply(doc.clone(), &patch).unwrap_err().status();
            assert_eq!((status.code, status.message.as_str()), (400, message));
        }
        assert_eq!(
            problems(&json!([{"op": "test", "path": "/b", "zz": 1}])),
            ["json patch unknown field \"[0].zz\""]
        );
        let many = Value::Array(vec![
            json!({"op": "test", "path": "/b", "value": "s"});
            10_001
        ]);
        assert_eq!(apply(doc, &many).unwrap_err().status().code, 413);
    }
}
