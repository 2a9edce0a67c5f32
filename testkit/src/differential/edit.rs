//! Edits of a document: JSON pointers and what to put there.

use serde_json::{Map, Value};

/// Applies `edits` (pointer → value, null removes, or a list of such maps, in their order).
/// Pointers without a leading slash start at `root`.
pub(super) fn edit(document: &mut Value, edits: &Value, root: &str) -> Result<(), String> {
    match edits {
        Value::Null => Ok(()),
        Value::Array(lists) => lists.iter().try_for_each(|e| edit(document, e, root)),
        Value::Object(map) => map.iter().try_for_each(|(at, value)| {
            let value = Some(value).filter(|value| !value.is_null());
            write(document, &absolute(at, root), value)
        }),
        other => Err(format!("edits are no map: {other}")),
    }
}

fn absolute(at: &str, root: &str) -> String {
    if at.starts_with('/') {
        at.to_owned()
    } else {
        format!("{root}/{at}")
    }
}

/// Writes a value at a JSON pointer, making the objects on the way; `None` removes.
pub(super) fn write(
    document: &mut Value,
    pointer: &str,
    value: Option<&Value>,
) -> Result<(), String> {
    let steps: Vec<String> = pointer
        .split('/')
        .skip(1)
        .map(|s| s.replace("~1", "/").replace("~0", "~"))
        .collect();
    let Some((last, way)) = steps.split_last() else {
        *document = value.cloned().unwrap_or_default();
        return Ok(());
    };
    let mut here = document;
    for step in way {
        here = enter(here, step).ok_or_else(|| format!("{pointer}: no {step}"))?;
    }
    let Some(value) = value else {
        match here {
            Value::Array(items) => {
                let index = last.parse::<usize>().ok().filter(|i| *i < items.len());
                items.remove(index.ok_or_else(|| format!("{pointer}: no such item"))?);
            }
            Value::Object(map) => {
                map.remove(last);
            }
            _ => {}
        }
        return Ok(());
    };
    *enter(here, last).ok_or_else(|| format!("{pointer}: no {last}"))? = value.clone();
    Ok(())
}

fn enter<'a>(here: &'a mut Value, step: &str) -> Option<&'a mut Value> {
    // A list is begun by appending to it, or by its first item.
    if here.is_null() && matches!(step, "-" | "0") {
        *here = Value::Array(Vec::new());
    }
    if let Value::Array(items) = here {
        let index = if step == "-" {
            items.len()
        } else {
            step.parse().ok()?
        };
        if index == items.len() {
            items.push(Value::Null);
        }
        return items.get_mut(index);
    }
    if !here.is_object() {
        *here = Value::Object(Map::new());
    }
    Some(here.as_object_mut()?.entry(step).or_insert(Value::Null))
}
