//! JSON patch, RFC 6902.

use super::PatchError;
use serde_json::Value;

/// More operations are refused before the first is tried.
pub const MAX_OPERATIONS: usize = 10_000;
/// What all `copy` operations of a patch may add, in bytes of JSON.
const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;

/// Applies all operations in order, or none.
pub fn apply(object: Value, patch: &Value) -> Result<Value, PatchError> {
    let operations = patch
        .as_array()
        .ok_or_else(|| PatchError::Malformed("a JSON patch must be a list of operations".into()))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooManyOperations {
            max: MAX_OPERATIONS,
            got: operations.len(),
        });
    }
    let mut doc = object;
    let mut copied = 0;
    for op in operations {
        let Some(op) = op.as_object() else {
            return Err(PatchError::Malformed(
                "an operation must be an object".into(),
            ));
        };
        let text = |k: &str| op.get(k).and_then(Value::as_str);
        let kind = text("op").unwrap_or("");
        let path = text("path").ok_or_else(|| fail(format!("{kind} operation without a path")))?;
        let value = || op.get("value").cloned();
        let from = || text("from").ok_or_else(|| fail(format!("{kind} operation without from")));
        match kind {
            "add" => {
                let v = value()
                    .ok_or_else(|| fail(format!("add operation at {path} without a value")))?;
                add(&mut doc, path, v)?;
            }
            "remove" => {
                remove(&mut doc, path)?;
            }
            "replace" => {
                let v = value()
                    .ok_or_else(|| fail(format!("replace operation at {path} without a value")))?;
                let slot = find_mut(&mut doc, path)?.ok_or_else(|| {
                    fail(format!(
                        "replace operation does not apply: doc is missing key: {path}"
                    ))
                })?;
                *slot = v;
            }
            "test" => {
                let want = value().unwrap_or(Value::Null);
                let have = find(&doc, path)?;
                let same = match have {
                    Some(h) => equal(h, &want),
                    None => want.is_null(),
                };
                if !same {
                    return Err(fail(format!("testing value {path} failed")));
                }
            }
            "move" => {
                let from = from()?;
                if path.strip_prefix(from).is_some_and(|r| r.starts_with('/')) {
                    return Err(fail(format!("cannot move {from} into itself")));
                }
                let v = remove(&mut doc, from)?;
                add(&mut doc, path, v)?;
            }
            "copy" => {
                let from = from()?;
                let v = find(&doc, from)?.cloned().ok_or_else(|| {
                    fail(format!(
                        "copy operation does not apply: doc is missing from path: {from}"
                    ))
                })?;
                copied += v.to_string().len();
                if copied > MAX_COPIED_BYTES {
                    return Err(fail("copy operations grow the object too much".into()));
                }
                add(&mut doc, path, v)?;
            }
            other => return Err(fail(format!("unexpected kind of operation: {other}"))),
        }
    }
    Ok(doc)
}

fn fail(message: String) -> PatchError {
    PatchError::DoesNotApply(message)
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

fn tokens(path: &str) -> Result<Vec<String>, PatchError> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let Some(rest) = path.strip_prefix('/') else {
        return Err(fail(format!("path {path} must start with a slash")));
    };
    Ok(rest
        .split('/')
        .map(|t| t.replace("~1", "/").replace("~0", "~"))
        .collect())
}

/// An index of an existing item; negative ones count from the end.
fn index(token: &str, len: usize) -> Option<usize> {
    if let Some(back) = token.strip_prefix('-') {
        let back: usize = back.parse().ok()?;
        return (1..=len).contains(&back).then(|| len - back);
    }
    if token.len() > 1 && token.starts_with('0') {
        return None;
    }
    token.parse().ok().filter(|i| *i < len)
}

fn find<'v>(doc: &'v Value, path: &str) -> Result<Option<&'v Value>, PatchError> {
    let mut at = doc;
    for t in tokens(path)? {
        let next = match at {
            Value::Object(m) => m.get(&t),
            Value::Array(l) => index(&t, l.len()).and_then(|i| l.get(i)),
            _ => None,
        };
        match next {
            Some(v) => at = v,
            None => return Ok(None),
        }
    }
    Ok(Some(at))
}

fn walk_mut<'v>(doc: &'v mut Value, tokens: &[String]) -> Option<&'v mut Value> {
    let mut at = doc;
    for t in tokens {
        at = match at {
            Value::Object(m) => m.get_mut(t)?,
            Value::Array(l) => {
                let i = index(t, l.len())?;
                l.get_mut(i)?
            }
            _ => return None,
        };
    }
    Some(at)
}

fn find_mut<'v>(doc: &'v mut Value, path: &str) -> Result<Option<&'v mut Value>, PatchError> {
    Ok(walk_mut(doc, &tokens(path)?))
}

fn add(doc: &mut Value, path: &str, value: Value) -> Result<(), PatchError> {
    let tokens = tokens(path)?;
    let Some((last, parents)) = tokens.split_last() else {
        *doc = value;
        return Ok(());
    };
    let missing = || {
        fail(format!(
            "add operation does not apply: doc is missing path: {path}"
        ))
    };
    match walk_mut(doc, parents).ok_or_else(missing)? {
        Value::Object(m) => {
            m.insert(last.clone(), value);
        }
        Value::Array(l) => {
            let at = if last == "-" || *last == l.len().to_string() {
                Some(l.len())
            } else {
                index(last, l.len())
            };
            let at = at.ok_or_else(|| fail(format!("unable to access invalid index: {last}")))?;
            l.insert(at, value);
        }
        _ => return Err(missing()),
    }
    Ok(())
}

fn remove(doc: &mut Value, path: &str) -> Result<Value, PatchError> {
    let tokens = tokens(path)?;
    let missing = || {
        fail(format!(
            "remove operation does not apply: doc is missing path: {path}"
        ))
    };
    let (last, parents) = tokens.split_last().ok_or_else(missing)?;
    match walk_mut(doc, parents).ok_or_else(missing)? {
        Value::Object(m) => m.remove(last).ok_or_else(missing),
        Value::Array(l) => {
            let i = index(last, l.len()).ok_or_else(missing)?;
            Ok(l.remove(i))
        }
        _ => Err(missing()),
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
        ] {
            assert_eq!(apply(doc.clone(), &patch), Ok(want), "{doc} {patch}");
        }
    }

    #[test]
    fn refusals() {
        let doc = json!({"a": [1], "b": "s"});
        for patch in [
            json!([{"op": "remove", "path": "/x"}]),
            json!([{"op": "replace", "path": "/x", "value": 1}]),
            json!([{"op": "add", "path": "/x/y", "value": 1}]),
            json!([{"op": "add", "path": "/a/5", "value": 1}]),
            json!([{"op": "add", "path": "/a/01", "value": 1}]),
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
        assert_eq!(
            apply(doc.clone(), &json!({})).unwrap_err().status().code,
            400
        );
        let many = Value::Array(vec![
            json!({"op": "test", "path": "/b", "value": "s"});
            10_001
        ]);
        assert_eq!(apply(doc, &many).unwrap_err().status().code, 413);
    }
}
