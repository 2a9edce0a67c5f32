//! How one document differs from another.

use serde_json::Value;

/// One place where two documents differ. `None` is absence.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// A JSON pointer.
    pub at: String,
    pub left: Option<Value>,
    pub right: Option<Value>,
}

/// Where `right` differs from `left`. Lists of the same length are compared item by item.
pub fn differences(left: &Value, right: &Value) -> Vec<Difference> {
    let mut out = Vec::new();
    compare("", left, right, &mut out);
    out
}

fn compare(at: &str, left: &Value, right: &Value, out: &mut Vec<Difference>) {
    match (left, right) {
        (Value::Object(l), Value::Object(r)) => {
            for (key, value) in l {
                let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
                match r.get(key) {
                    Some(other) => compare(&at, value, other, out),
                    None => out.push(Difference {
                        at,
                        left: Some(value.clone()),
                        right: None,
                    }),
                }
            }
            for (key, value) in r.iter().filter(|(key, _)| !l.contains_key(*key)) {
                out.push(Difference {
                    at: format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")),
                    left: None,
                    right: Some(value.clone()),
                });
            }
        }
        (Value::Array(l), Value::Array(r)) if l.len() == r.len() => {
            for (index, (l, r)) in l.iter().zip(r).enumerate() {
                compare(&format!("{at}/{index}"), l, r, out);
            }
        }
        _ if left == right => {}
        _ => out.push(Difference {
            at: at.to_owned(),
            left: Some(left.clone()),
            right: Some(right.clone()),
        }),
    }
}
